"""A daemon's display: the live line on a terminal of any width, lines elsewhere."""

import asyncio
import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from swarmd.daemon.terminal import CLEAR, Terminal, show_status
from swarmd.live_line import cut, live_line, width
from swarmd.status import Wait
from tests.daemon.fakes import STATUS

TRAINING = replace(
    STATUS,
    stage=1,
    stages=3,
    step=55,
    steps=100,
    loss=5.2514,
    tokens_per_second=2975.4,
    seconds_left=72.0,
    peers={"0": 1, "1": 2, "2": 1},
)
LACK = Wait("a peer for stage 2", 14.2, advice="start one with `swarmd start --bootstrap X`")
LACKING = replace(TRAINING, state="waiting", waits=(LACK,))
BARE = replace(TRAINING, run="", stage=None, stages=0, loss=None, seconds_left=None)
TEXT = Wait("text to become tokens", 31.0, "31.2 MB of 133.0 MB")


def test_the_line_says_how_training_goes() -> None:
    assert live_line(TRAINING) == (
        "stage 1 of 3 · step 55/100 · loss 5.251 · 2,975 tokens/s · 1 min 12 s left · 4 peers"
    )
    assert live_line(replace(TRAINING, state="paused")).startswith("stage 1 of 3 · paused · step 55/100")
    fresh = replace(TRAINING, loss=None, seconds_left=None, tokens_per_second=0.0)
    assert live_line(fresh) == "stage 1 of 3 · step 55/100 · 4 peers"


def test_the_line_says_what_is_waited_for_instead() -> None:
    assert live_line(LACKING) == (
        "stage 1 of 3 · waiting 14 s for a peer for stage 2: start one with `swarmd start --bootstrap X`"
    )
    assert live_line(replace(BARE, state="looking", waits=(Wait("a run from X", 3.0, tried="refused"),))) == (
        "looking · waiting 3 s for a run from X"
    )
    assert live_line(replace(BARE, state="joining", waits=(TEXT,))) == (
        "joining · waiting 31 s for text to become tokens (31.2 MB of 133.0 MB)"
    )
    passing = replace(TRAINING, waits=(Wait("a majority", 1.0),))
    assert live_line(passing) == live_line(TRAINING), "what lasts a second is not worth a change"
    assert "swarmctl join" in live_line(replace(BARE, state="idle"))


@pytest.mark.parametrize("columns", [24, 39, 40, 60, 79, 80, 200])
def test_the_line_fits(columns: int) -> None:
    hostile = replace(LACKING, waits=(Wait("\x1b[2J漢字" * 100, 60.0),))
    for status in (TRAINING, LACKING, hostile, replace(BARE, state="idle"), replace(STATUS, waits=(TEXT,))):
        line = live_line(status, columns)
        assert width(line) <= columns
        assert line.isprintable()
    if columns >= 39:
        for word in ("1/3", "55/100", "5.25", "1m12s" if columns < 79 else "1 min 12 s"):
            assert word in live_line(TRAINING, columns).replace("1 of 3", "1/3")


def test_a_narrow_line_begins_with_the_wait() -> None:
    assert live_line(replace(BARE, state="joining", waits=(TEXT,)), 39) == "waiting 31 s for text to become tokens…"
    assert live_line(LACKING, 39).startswith("waiting 14 s for a peer for stage 2")


def test_wide_letters_take_two_columns() -> None:
    assert [width(text) for text in ("abc", "漢字", "é", "e\u0301")] == [3, 4, 1, 1]
    assert cut("漢字漢字", 5) == "漢字…"


# ------------------------------------------------------------------------------------------------- a terminal


class Screen:
    """The screen of a terminal of so many columns after some bytes: lines of text, and where they wrapped."""

    def __init__(self, columns: int) -> None:
        self.columns, self.lines, self.column, self.wrapped = columns, [""], 0, False

    def take(self, text: str) -> None:
        for piece in re.split(r"(\x1b\[2K|[\r\n])", text):
            if piece == "\x1b[2K":
                self.lines[-1] = ""
            elif piece == "\r":
                self.column = 0
            elif piece == "\n":
                self.lines.append("")
                self.column = 0
            else:
                assert piece.isprintable(), piece
                self.wrapped |= self.column + width(piece) > self.columns
                self.lines[-1] = self.lines[-1][: self.column] + piece + self.lines[-1][self.column + len(piece) :]
                self.column += len(piece)


@contextlib.contextmanager
def opened(columns: int):  # type: ignore[no-untyped-def]
    """The two ends of a terminal of so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        yield master, slave
    finally:
        for end in (master, slave):
            with contextlib.suppress(OSError):
                os.close(end)


def read_all(master: int, until: "subprocess.Popen[bytes]") -> str:
    """All that a program writes, until it ends."""
    parts = []
    while True:
        try:
            block = os.read(master, 1 << 16)
        except OSError:  # the program's end is closed
            break
        if not block:
            break
        parts.append(block)
    until.wait(60)
    return b"".join(parts).decode()


def run_on(columns: int, command: Sequence[str], **environment: str) -> tuple[int, str]:
    """Exit code and output of a program that has a terminal of its own, as a shell would start it."""
    with opened(columns) as (master, slave):
        name = os.ttyname(slave)

        def own_terminal() -> None:
            os.setsid()
            os.close(os.open(name, os.O_RDWR))  # the first one opened becomes the controlling one

        with subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=own_terminal,
            env={**os.environ, "TERM": "xterm", **environment},
        ) as process:
            os.close(slave)
            said = read_all(master, process)
            return process.returncode, said


PROGRAM = """
import logging, sys, threading
from pathlib import Path
from swarmd.daemon.logs import configure_logging
from swarmd.daemon.terminal import shown_as, terminal
configure_logging(Path(sys.argv[1]), as_json="json" in sys.argv)
log = logging.getLogger("swarmd.test")
with shown_as("starting"):
    shown = terminal()
    threads = [threading.Thread(target=lambda: [log.warning(f"event {i}") for i in range(20)]) for _ in range(3)]
    for thread in threads: thread.start()
    for i in range(50):
        if shown.is_live(): shown.show(f"line {i}")
    for thread in threads: thread.join()
    log.warning("last event")
print("swarmd: the end.", file=sys.stderr)
"""


def test_records_stand_above_the_line_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    code, said = run_on(80, [sys.executable, "-c", PROGRAM, str(tmp_path / "log")])
    assert code == 0
    assert "line 49" in said
    screen = Screen(80)
    screen.take(said.replace("\r\n", "\n"))
    lines = [line for line in screen.lines if line]
    assert len([line for line in lines if "warning: event" in line]) == 60
    assert not [line for line in lines if "line " in line or "starting" in line]
    assert lines[-1] == "swarmd: the end."
    assert lines[-2].endswith("warning: last event")


@pytest.mark.parametrize(("words", "term"), [(["json"], "xterm"), ([], "dumb")])
def test_no_line_where_it_would_disturb(tmp_path: Path, words: list[str], term: str) -> None:
    _, said = run_on(80, [sys.executable, "-c", PROGRAM, str(tmp_path / "log"), *words], TERM=term)
    assert "\x1b" not in said
    assert "line 49" not in said
    assert said.count("event") >= 61


def test_no_line_into_a_pipe(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "log")], capture_output=True, check=True, text=True
    )
    assert "\x1b" not in done.stderr
    assert done.stderr.count("event") == 61


def test_nothing_is_left_of_the_line_where_a_process_ends_at_once(tmp_path: Path) -> None:
    program = PROGRAM.replace('log.warning("last event")', "from swarmd import exits; exits.at_once(0)")
    code, said = run_on(80, [sys.executable, "-c", program, str(tmp_path / "log")])
    assert code == 0
    screen = Screen(80)
    screen.take(said.replace("\r\n", "\n").replace("\x1b[?25h", ""))
    assert "line 49" in said
    assert screen.lines[-1] == ""


def test_a_terminal_that_is_gone_costs_nothing() -> None:
    stream = io.StringIO()
    shown = Terminal(stream)
    shown.show("a")
    assert stream.getvalue() == f"{CLEAR}a"
    stream.close()
    shown.show("b")
    assert not shown.is_live()
    shown.close()


# ------------------------------------------------------------------------------------------------- going on


async def test_elsewhere_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("swarmd.daemon.terminal.time.monotonic", lambda: now[0])
    lines: list[str] = []
    shown = Terminal(io.StringIO())
    task = asyncio.create_task(show_status(lambda: TRAINING, lines.append, shown, renew_s=0.0))
    for second in range(301):
        now[0] = float(second)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert lines == [live_line(TRAINING)] * 5


async def test_in_the_background_nothing_is_renewed_and_no_prompt_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, live = Terminal(stream := io.StringIO()), [True]
    monkeypatch.setattr(shown, "is_live", lambda: live[0])
    task = asyncio.create_task(show_status(lambda: TRAINING, lambda line: None, shown, renew_s=0.0))
    while not stream.getvalue():
        await asyncio.sleep(0)
    live[0] = False
    for _ in range(5):
        await asyncio.sleep(0)
    before = stream.tell()
    shown.handle(logging.makeLogRecord({"msg": "record"}))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert stream.getvalue()[before:] == "record\n"


def test_records_of_other_threads_and_the_line_do_not_mix() -> None:
    stream = io.StringIO()
    shown = Terminal(stream)
    shown.setFormatter(logging.Formatter("%(message)s"))
    record = logging.makeLogRecord({"msg": "record"})
    threads = [threading.Thread(target=lambda: [shown.handle(record) for _ in range(200)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(200):
        shown.show(f"line {number}")
    for thread in threads:
        thread.join()
    shown.show("")
    screen = Screen(1000)
    screen.take(stream.getvalue())
    assert screen.lines == ["record"] * 600 + [""]
