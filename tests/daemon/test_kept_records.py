"""Records in homes: what a release before wrote keeps its name, and what was received is kept byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest

from swarmd.daemon.home import Home
from swarmd.daemon.kept_records import raw_of
from swarmd.daemon.store import LocalStore
from swarmd.errors import PeerFault
from swarmd.settings import run_from_plain
from swarmd.stage.checkpoint import _check
from swarmd.swarm.history.record import Record, record_to_plain
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.history.record_format import hash_of
from tests.swarm.records import RUN, record, skipped

FIRST = Path(__file__).parents[1] / "compat" / "first" / "head"


def test_what_the_first_release_kept_is_the_record_that_its_ledger_names() -> None:
    kept = json.loads((FIRST / "checkpoints/step-000044/stage-0.json").read_text())["record"]
    names = [json.loads(line) for line in (FIRST / "ledger.jsonl").read_text().splitlines()]
    (name,) = (it["record"] for it in names if it["step"] == 44)
    run = run_from_plain(json.loads((FIRST / "run.json").read_text())["run"])
    it = record_from_raw(run, raw_of(kept))
    assert (it.step, it.hash) == (44, name)


@pytest.mark.parametrize("it", [record(), skipped(), record(validation_loss=2.5)], ids=["usual", "skipped", "measured"])
async def test_a_home_of_a_release_that_kept_plain_data_goes_on_with_it(tmp_path: Path, it: Record) -> None:
    store = LocalStore(Home(tmp_path))
    assert await store.save_checkpoint(it.step, 0, b"state", it.raw)
    path = tmp_path / f"checkpoints/step-{it.step:06d}/stage-0.json"
    manifest = {**json.loads(path.read_text()), "format": 1, "record": record_to_plain(it)}
    del manifest["check"]
    path.write_text(json.dumps({**manifest, "check": _check(manifest)}))
    (saved,) = await store.list_checkpoints()
    found = record_from_raw(RUN, saved.record)
    assert (found, found.hash, found.raw) == (it, it.hash, it.raw)


async def test_a_received_record_is_kept_byte_for_byte(tmp_path: Path) -> None:
    raw = record().raw.replace(b",", b", ")
    it = record_from_raw(RUN, raw)
    assert await LocalStore(Home(tmp_path)).save_checkpoint(it.step, 0, b"state", it.raw)
    store = LocalStore(Home(tmp_path))
    (saved,) = await store.list_checkpoints()
    loaded = await store.load_checkpoint(it.step, 0)
    assert loaded is not None
    assert saved.record == loaded[1] == raw
    assert hash_of(raw) == it.hash != record().hash


NESTED: Any = {}
for _ in range(100_000):
    NESTED = {"": NESTED}


@pytest.mark.parametrize(
    "kept",
    ["", "text", "p\xe4rent", "\ud800", {}, {"loss": float("nan")}, NESTED],
    ids=lambda it: str(it)[:10] if it is not NESTED else "nested",
)
def test_what_is_no_record_is_refused_where_it_is_read(kept: Any) -> None:
    with pytest.raises(PeerFault, match="not a commit record"):
        record_from_raw(RUN, raw_of(kept))
