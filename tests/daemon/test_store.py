"""A daemon's disk: ledger and checkpoints survive crashes, full disks and damage, and stay bounded."""

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from swarmd.daemon import in_order
from swarmd.daemon import store as store_file
from swarmd.daemon.home import Home
from swarmd.daemon.remembered import RememberedRun
from swarmd.daemon.store import LocalStore
from swarmd.stage import checkpoint


def test_the_ledger_has_a_line_per_step(tmp_path: Path) -> None:
    home = Home(tmp_path)
    store = LocalStore(home)
    store.append_ledger({"step": 1, "loss": 5.5})
    store.append_ledger({"step": 2, "loss": 5.4})
    assert [json.loads(line)["step"] for line in home.ledger.read_text().splitlines()] == [1, 2]


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.ledger.write_bytes(b'{"step": 1}\n{"st')
    LocalStore(home).append_ledger({"step": 2})
    assert home.ledger.read_text().splitlines() == ['{"step": 1}', '{"st', '{"step":2}']


def test_lines_of_a_history_that_lost_are_moved_away(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.ledger.write_bytes(b'{"step": 1}\n{"st\n{"step": 2}\n{"step": 3}\n')
    LocalStore(home).void_ledger(1)
    assert home.ledger.read_text().splitlines() == ['{"step": 1}', '{"st']
    assert (tmp_path / "ledger-void.jsonl").read_text().splitlines() == ['{"step": 2}', '{"step": 3}']


def test_the_ledger_is_bounded(tmp_path: Path) -> None:
    home = Home(tmp_path)
    store = LocalStore(home, ledger_limit_bytes=200)
    for step in range(100):
        store.append_ledger({"step": step})
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"ledger.jsonl", "ledger.jsonl.1"}
    assert all(0 < size < 250 for size in sizes.values())
    assert json.loads(home.ledger.read_text().splitlines()[-1])["step"] == 99


def full(path: Path, **_: bool) -> BinaryIO:
    """A file on a full disk."""
    return open("/dev/full", "ab", buffering=0)


def test_a_full_disk_is_said_and_not_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "open_regular", full)
    LocalStore(Home(tmp_path)).append_ledger({"step": 3})
    assert "can't write the ledger" in caplog.text
    assert "No space left" in caplog.text


def test_whose_run_it_is_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = LocalStore(Home(tmp_path / "gone"))
    for _ in range(3):
        store.remember_run(RememberedRun({}, "00ff"))
    assert len([it for it in caplog.records if "can't write whose run this is" in it.message]) == 1


async def test_a_checkpoint_that_cannot_be_written_is_said_and_not_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(tmp_path)
    home.checkpoints.write_text("a file where the directory should be")
    assert not await LocalStore(home).save_checkpoint(5, 0, b"state", RECORD)
    assert "can't save checkpoints" in caplog.text


RECORD = b"a record"


async def test_a_full_disk_shows_until_it_works_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told once in the log, not with every step; `trouble` says it as long as it lasts."""
    home = Home(tmp_path)
    store = LocalStore(home)
    home.checkpoints.write_text("a file where the directory should be")
    with monkeypatch.context() as patched:
        patched.setattr(store_file, "open_regular", full)
        for step in range(1, 4):
            store.append_ledger({"step": step})
            await store.save_checkpoint(step, 0, b"state", RECORD)
        await store.settle(5.0)
    assert "can't write the ledger: No space left on device" in store.trouble
    assert "can't save checkpoints" in store.trouble
    assert len([it for it in caplog.records if "training goes on" in it.message]) == 2
    home.checkpoints.unlink()
    store.append_ledger({"step": 4})
    await store.save_checkpoint(4, 0, b"state", RECORD)
    await store.settle(5.0)
    assert store.trouble == ""


async def test_only_what_is_whole_is_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bit that flips later is noticed, too, as the file is another one then."""
    store = LocalStore(Home(tmp_path))
    for version in (5, 10):
        await store.save_checkpoint(version, 0, b"state", RECORD)
    await store.save_checkpoint(5, 1, b"copied", RECORD, copy=True)
    assert [it[:2] for it in await store.list_checkpoints()] == [(10, 0), (5, 1), (5, 0)]
    state = tmp_path / "checkpoints" / "step-000010" / "stage-0.safetensors"
    state.write_bytes(b"statf")
    assert [it[:2] for it in await store.list_checkpoints()] == [(5, 1), (5, 0)]
    assert store.damaged() == [(10, 0)]
    assert [it[:2] for it in await store.list_checkpoints()] == [(5, 1), (5, 0)]
    assert caplog.text.count(f"{state} is damaged") == 1, "it is read, and told, once"
    state.with_suffix(".json").write_text("{")
    await store.list_checkpoints()
    assert store.damaged() == [(10, 0)]
    assert f"{state.with_suffix('.json')} is damaged" in caplog.text
    assert await store.load_checkpoint(10, 0) is None
    assert await store.load_checkpoint(5, 1) == (b"copied", RECORD)
    assert await store.read_checkpoint(5, 1, 1, 3) == b"op"
    assert await store.read_checkpoint(7, 1, 1, 3) is None


async def test_copies_have_a_bound_of_their_own(tmp_path: Path) -> None:
    """The oldest go; what is this peer's own stays; a copy that alone is too large isn't written."""
    store = LocalStore(Home(tmp_path), copies_limit_bytes=25)
    await store.save_checkpoint(5, 0, b"0123456789", RECORD)
    for stage in (1, 2, 3):
        await store.save_checkpoint(5 + stage, stage, b"0123456789", RECORD, copy=True)
    assert not await store.save_checkpoint(9, 4, b"x" * 26, RECORD, copy=True)
    assert [it[:2] for it in await store.list_checkpoints()] == [(8, 3), (7, 2), (5, 0)]


async def test_a_copy_pushes_out_none_that_is_as_new(tmp_path: Path) -> None:
    """So what a peer says of the final states on its disk stays true."""
    store = LocalStore(Home(tmp_path), copies_limit_bytes=25)
    assert await store.save_checkpoint(9, 0, b"0123456789", RECORD)
    kept = [await store.save_checkpoint(9, stage, b"0123456789", RECORD, copy=True) for stage in (1, 2, 3)]
    assert kept == [True, True, False]
    assert [it[:2] for it in await store.list_checkpoints()] == [(9, 2), (9, 1), (9, 0)]
    assert await store.save_checkpoint(9, 1, b"0123456789", RECORD, copy=True), "it is there already"


async def test_newer_versions_of_a_history_that_was_given_up_make_room(tmp_path: Path) -> None:
    store = LocalStore(Home(tmp_path))
    for version in (5, 10, 5):
        await store.save_checkpoint(version, 0, b"state", RECORD)
    assert [it[:2] for it in await store.list_checkpoints()] == [(5, 0)]


async def test_a_slow_write_of_an_older_version_does_not_remove_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write removes newer versions, as of a history that was given up: so they end in the order they began in."""
    store, usual = LocalStore(Home(tmp_path)), checkpoint.save_stage
    begun, go_on = threading.Event(), threading.Event()

    def slow(directory: Path, version: int, *rest: Any) -> Path:
        if version == 2:
            begun.set()
            assert go_on.wait(60)
        return usual(directory, version, *rest)

    monkeypatch.setattr(store_file, "save_stage", slow)
    older = asyncio.create_task(store.save_checkpoint(2, 0, b"older", RECORD))
    await asyncio.to_thread(begun.wait)
    newer = asyncio.create_task(store.save_checkpoint(3, 0, b"newer", RECORD))
    await asyncio.wait({newer}, timeout=0.1)  # ample for it to be written, if it didn't wait for the other
    go_on.set()
    assert await older
    assert await newer
    assert [it[:2] for it in await store.list_checkpoints()] == [(3, 0), (2, 0)]


def test_what_a_crash_left_half_written_is_cleared(tmp_path: Path) -> None:
    home = Home(tmp_path)
    torn = home.checkpoints / "step-000005" / ".new-abc"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"half")
    LocalStore(home)
    assert not torn.exists()


def test_voided_lines_are_bounded_and_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    store = LocalStore(home, ledger_limit_bytes=200)
    for step in range(60):
        store.append_ledger({"step": 1 + step % 2, "record": f"r{step}"})
        store.void_ledger(1)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("ledger-void*")}
    assert set(sizes) == {"ledger-void.jsonl", "ledger-void.jsonl.1"}
    assert all(0 < size < 300 for size in sizes.values())
    store.append_ledger({"step": 2, "record": "other"})
    store.void_ledger(0, {"other"})
    assert store.ledger_tail(100) == {1: "r58"}


async def test_a_disk_that_does_not_answer_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines and memory are written in order once it does; what is too much is lost, and said."""
    monkeypatch.setattr(in_order, "PENDING_LIMIT", 5)
    home, answers, sync = Home(tmp_path), threading.Event(), os.fsync
    store = LocalStore(home)

    def slow(descriptor: int) -> None:
        assert answers.wait(30)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    home.ledger.write_bytes(b'{"step": 1}\n{"step": 2}\n')
    store.void_ledger(1)
    for step in range(2, 9):
        store.append_ledger({"step": step})
        store.remember_run(RememberedRun({}, f"run {step}"))
    assert store.trouble == "can't write the ledger: the disk doesn't answer"
    answers.set()
    await store.settle(30.0)
    assert [json.loads(line)["step"] for line in home.ledger.read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert store.trouble == ""
    known = home.remembered_run()
    assert known is not None
    assert known.fingerprint == "run 8"
    store.append_ledger({"step": 9, "record": "last"})
    assert store.ledger_tail(1) == {9: "last"}, "it waits for what is on its way"


async def test_a_failure_that_nobody_foresaw_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    queue, made = in_order.InOrder("test"), list[int]()
    queue.put(lambda: made.append(1 // 0))
    queue.put(lambda: made.append(1))
    await asyncio.wait(queue.pending())
    assert made == [1]
    assert "a write to the disk failed" in caplog.text
