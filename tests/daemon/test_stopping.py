"""The end of a daemon: its signals, their bounds, and work in threads that nothing can end."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmd import exits
from swarmd.config import DataConfig
from swarmd.daemon.beside import run_beside
from swarmd.daemon.stopping import AFTER_DRAIN_SECONDS, SECOND_SIGNAL_EXIT, UNOPENED_SECONDS, Stopping
from swarmd.errors import ConfigError, Stopped
from swarmd.text import blocks
from swarmd.text.reading import Reading
from swarmd.text.tokens import load_tokens


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The end that a process would have made."""
    done: list[tuple[object, ...]] = []

    def at_once(code: int, _: str) -> None:
        done.append(("at once", code))
        raise SystemExit

    monkeypatch.setattr(exits, "at_once", at_once)
    monkeypatch.setattr(exits, "end_within", lambda seconds, code, _: done.append(("within", seconds, code)))
    return done


@pytest.mark.parametrize(
    ("opened", "end"),
    [(False, ("within", UNOPENED_SECONDS, 0)), (True, ("within", 60 + AFTER_DRAIN_SECONDS, 1))],
)
async def test_the_first_signal_has_a_bound_and_the_second_none(
    ends: list[tuple[object, ...]], opened: bool, end: tuple[object, ...]
) -> None:
    stopping = Stopping(60)
    stopping.opened = lambda: opened
    with exits.heard_by(stopping.hear):
        os.kill(os.getpid(), signal.SIGTERM)
        assert await stopping.asked == "SIGTERM"
        assert ends == [end]
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGINT)
    assert ends[1:] == [("at once", SECOND_SIGNAL_EXIT)]


@pytest.mark.parametrize("before", [False, True])
async def test_a_signal_cancels_the_start(ends: list[tuple[object, ...]], before: bool) -> None:
    stopping = Stopping(60)
    start = asyncio.create_task(asyncio.sleep(60, result=0))
    if before:
        stopping.hear("SIGTERM")
        await stopping.asked
    stopping.cancels(start)
    if not before:
        stopping.hear("SIGTERM")
    with pytest.raises(asyncio.CancelledError):
        await start
    assert len(ends) == 1


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in exits.SIGNALS]
    with exits.heard_by(lambda _: None):
        assert all(signal.getsignal(number) not in before for number in exits.SIGNALS)
    assert [signal.getsignal(number) for number in exits.SIGNALS] == before


def test_a_bound_ends_a_process_that_is_at_something_else() -> None:
    program = "from swarmd import exits\nexits.end_within(0.2, 7, 'late')\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (7, b"late\n")


async def test_what_runs_beside_gives_its_result_or_failure() -> None:
    assert await run_beside(lambda stopped: (threading.current_thread().name, stopped())) == ("beside", False)

    def fail(_: Callable[[], bool]) -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        await run_beside(fail)


async def test_what_runs_beside_is_told_to_stop_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.daemon.beside.STOP_SECONDS", 0.1)
    begun, deaf, asked = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work(stopped: Callable[[], bool]) -> None:
        loop.call_soon_threadsafe(begun.set)
        deaf.wait(30)
        asked.set() if stopped() else None

    task = asyncio.create_task(run_beside(work))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not asked.is_set()
    deaf.set()
    assert await asyncio.to_thread(asked.wait, 30)


def test_tokens_that_nobody_wants_any_more_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PIECE_BYTES", 10)
    (tmp_path / "text.txt").write_text("some words\n" * 100)
    asked: list[int] = []

    def hear(_: Reading) -> None:
        asked.append(len(list((tmp_path / "cache").glob(".tokens-*"))))
        if len(asked) > 5:
            raise Stopped

    data = DataConfig(source=str(tmp_path / "text.txt"))
    with pytest.raises(Stopped):
        load_tokens(data, 256, tmp_path / "cache", needed=0, progress=hear)
    assert asked == [1] * 6
    assert not list((tmp_path / "cache").iterdir())


def test_what_killed_processes_left_is_removed_and_what_others_write_stays(tmp_path: Path) -> None:
    """Also where all tokens are there."""
    (tmp_path / "text.txt").write_text("some words\n" * 100)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / ".tokens-one").write_text("half")
    os.mkfifo(cache / ".tokens-odd")

    def load() -> list[str]:
        load_tokens(DataConfig(source=str(tmp_path / "text.txt")), 256, cache, needed=0)
        return sorted(it.name for it in cache.glob(".tokens-*"))

    with (cache / ".tokens-two").open("wb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        assert load() == [".tokens-odd", ".tokens-two"]
        assert load() == [".tokens-odd", ".tokens-two"]
    assert load() == [".tokens-odd"]


@pytest.mark.timeout(120)
def test_python_waits_at_its_end_for_a_stage_that_is_being_opened() -> None:
    """Else its thread, in C++ by then, would abort the process."""
    program = """
import asyncio, sys, threading
from swarmd.settings import load_run
from swarmd.stage import worker
from swarmd.stage.worker import Worker
worker.CLOSE_LIMIT_S = 0.01
async def main():
    start = asyncio.create_task(Worker.start(load_run("tiny"), 0, "cpu", 1))
    while "torch" not in sys.modules: await asyncio.sleep(0.01)
    start.cancel()
    await asyncio.wait({start})
    assert [it for it in threading.enumerate() if it.name == "stage-0"]
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, b"")
