"""Daemons train under the unit's system call filter and paths, as the service's user; what it forbids is forbidden."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import confined
from tests.e2e.swarm import swarm
from tests.e2e.test_training import RUN, write_settings
from tests.house import ROOT

STEPS = 20
TRAINED = dataclasses.replace(
    RUN, model=dataclasses.replace(RUN.model, layers=2, stages=2), steps=STEPS, sequences_per_step=8, validate_every=0
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(confined.why_not()), reason=confined.why_not()),
]


async def test_twenty_steps_are_trained_under_the_filter_and_paths_of_the_unit() -> None:
    async with swarm(("tests.e2e.confined",)) as it:
        daemons = await it.found(write_settings(TRAINED, it.directory / "run.toml"), [0, 1])
        for daemon in daemons:
            await daemon.until(bool)
            told = Path(f"/proc/{daemon.process.pid}/status").read_text().split("\n")
            assert {"Uid:" + 4 * f"\t{confined.USER}", "NoNewPrivs:\t1", "Seccomp:\t2", f"CapEff:\t{0:016x}"} <= {*told}
        assert [await daemon.end() for daemon in daemons] == [0, 0], daemons[0].log()
        for daemon in daemons:
            assert len(daemon.ledger()) == STEPS
            assert (daemon.home / "checkpoints").stat().st_uid == confined.USER
        losses = [line["loss"] for line in daemons[0].ledger()]
        assert losses[-1] < losses[0]


def test_what_the_unit_forbids_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "state" / "home"
    home.parent.mkdir()
    command = [sys.executable, "-m", "tests.e2e.confined", "probe", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert found.pop("write") == "EROFS"
    seen = found.pop("homes").split()
    assert all(any(path.resolve().is_relative_to(it) for path in confined.KEPT) for it in seen), "nothing of a home"
    assert set(found.values()) == {"EPERM"}, found
