"""A disk that takes its time holds up neither beats nor steps: whatever syncs does so beside the event loop."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.e2e.swarm import swarm
from tests.e2e.test_training import INT8, write_settings

RUN = dataclasses.replace(
    INT8, model=dataclasses.replace(INT8.model, layers=2, stages=2), steps=8, checkpoint_every=2, validate_every=0
)
SYNCED = ("identity", "incarnation", "port", "node.json", "run.json", "stage-0", "stage-1", "tokens")
"""Files of which each must have been synced at least once: else this looks at nothing."""


@pytest.mark.timeout(240)
@pytest.mark.slow
async def test_nothing_syncs_in_the_event_loop(tmp_path: Path) -> None:
    model, record = write_settings(RUN, tmp_path / "run.toml"), tmp_path / "synced"
    async with swarm(("tests.e2e.slow_disk", str(record))) as it:
        first = await it.start("--model", str(model), "--stage", "0", listen="")
        other = await it.start("--bootstrap", await first.address(), "--stage", "1")
        assert [await daemon.end() for daemon in (first, other)] == [0, 0]
        assert [[line["step"] for line in daemon.ledger()] for daemon in (first, other)] == [[*range(1, 9)]] * 2
        assert all("can't" not in daemon.log() for daemon in (first, other))
    synced = [json.loads(line) for line in record.read_text().splitlines()]
    assert [entry for entry in synced if entry[1]] == []
    names = [Path(file).name for file, _ in synced]
    for what in SYNCED:
        assert any(what in name or (what.startswith("stage") and ".new-" in name) for name in names), (what, names)
