"""A daemon's disk: ledger and checkpoints survive crashes, full disks and damage, and stay bounded."""

import json
from pathlib import Path

import pytest

from swarmd.daemon.local import Home
from swarmd.daemon.store import LocalStore


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


def test_a_full_disk_is_said_and_not_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = Home(tmp_path)
    home.ledger.symlink_to("/dev/full")
    LocalStore(home).append_ledger({"step": 3})
    assert "can't write the ledger" in caplog.text
    assert "No space left" in caplog.text


async def test_a_checkpoint_that_cannot_be_written_is_said_and_not_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(tmp_path)
    home.checkpoints.write_text("a file where the directory should be")
    await LocalStore(home).save_checkpoint(5, 0, b"state", {"step": 5})
    assert "can't save checkpoints" in caplog.text
