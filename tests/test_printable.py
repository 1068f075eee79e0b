"""Strangers' words where they are shown: no command, log, metric or service line lets them steer a terminal."""

import asyncio
import contextlib
import io
import json
import logging
import re
import socket
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from swarmctl.app import run_command_line
from swarmctl.plan import render_plan
from swarmd.config import ModelConfig, RunConfig
from swarmd.daemon.home import Home
from swarmd.daemon.logs import configure_logging
from swarmd.daemon.metrics import render_metrics
from swarmd.daemon.systemd import Notifier
from swarmd.demo.process import DaemonProcess
from swarmd.demo.view import Lines, LiveTable
from swarmd.errors import Refused
from swarmd.printable import CUT, LINES_LIMIT, printable, printable_lines
from swarmd.screen import console
from swarmd.sim.planner.forecast import Forecast, GroupInStage
from swarmd.sim.planner.plan import Plan, Variant
from swarmd.status import HopRow, PeerRow, Status
from swarmd.swarm.peer.drain import Drained
from tests.daemon.fakes import HOP, PEER, SILENT_PEER, STATUS, FakeDaemon, served

HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b[35mcolour",
    "\x9b2J\x90q\x9c\x84",
    "[/nope][bold red]markup[/][link=file:///etc]x :warning: \\[",
    "up\x08\x08\x7f\r2026-01-01T00:00:00.000Z ERROR forged",
    "a\nb\u2028c\x0b\x0cd",
    "\u202eright to left\u2066\u200b\u200f",
    "\ud800 alone",
    "long" * 5000,
)
T4 = GroupInStage("T4", 0, 3, 0.1, 0.0, 0.5, 0.5, 0.1, 0.1, 1.0, 1.0, 1e9, 0.1)
PLAN = Plan(
    "tiny",
    3,
    3,
    10_000,
    0.05,
    "int8",
    "fp32",
    Forecast(
        100.0,
        1.0,
        0.1,
        "stage 0",
        (T4,),
        "",
        0.9,
    ),
    10.0,
    1000,
    None,
    None,
    None,
    (Variant("fp16", 100.0, "stage 1", 100, True),),
    (),
    ("a note",),
)
COLOURS = re.compile(r"\x1b\[(?!35m)[0-9;]*m")  # what rich itself writes on a terminal; 35 is the strangers'
CURSOR = re.compile(r"\x1b\[(?:\?25[lh]|\d*[AGK]|2K|1A)|\r(?!2026)")  # of a display that renews itself


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[io.StringIO, Terminal], ids=["pipe", "terminal"])
def out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    made: io.StringIO = request.param()
    return made


def filled(row: Any, words: str) -> Any:
    """A row, every text in it replaced."""
    if is_dataclass(row) and not isinstance(row, type):
        return replace(row, **{field.name: filled(getattr(row, field.name), words) for field in fields(row)})
    if isinstance(row, str):
        return words
    if isinstance(row, tuple):
        return tuple(filled(value, words) for value in row)
    return dict.fromkeys([words], 1) if isinstance(row, dict) else row


def check(shown: str, *, renewed: bool = False) -> None:
    plain = COLOURS.sub("", shown)
    plain = CURSOR.sub("", plain) if renewed else plain
    bad = sorted({letter for letter in plain if not letter.isprintable() and letter not in "\n\t"})
    assert not bad, f"{bad} in {plain[:300]!r}"


class Hostile(FakeDaemon):
    """All it says is meant to harm."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words
        self.current = filled(replace(STATUS, warnings=("a full disk",)), words)

    def peers(self) -> list[PeerRow]:
        return [filled(PEER, self.words), filled(SILENT_PEER, self.words)]

    def queues(self) -> list[HopRow]:
        return [filled(HOP, self.words)]

    async def drain(self, why: str, bound_s: float | None = None) -> Drained:
        await super().drain(why, bound_s)
        return Drained(heir=self.words, handed_over=5, given_up=1)


async def swarmctl(out: io.StringIO, *arguments: str) -> int:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        return await asyncio.to_thread(run_command_line, list(arguments))


COMMANDS = ("status", "peers", "queues", "drain", "switch 1", "pause", "status --json", "peers --json")


@pytest.mark.parametrize("command", COMMANDS)
async def test_no_command_passes_them_on(tmp_path: Path, out: io.StringIO, command: str) -> None:
    for number, words in enumerate(HOSTILE):
        daemon, home = Hostile(words), tmp_path / str(number)
        async with served(daemon, Home(home)):
            before = out.tell()
            assert await swarmctl(out, "--home", str(home), *command.split()) == 0
            if "--json" in command:
                json.loads(out.getvalue()[before:])
            daemon.trouble = Refused(words)
            await swarmctl(out, "--home", str(home), *command.split())
    check(out.getvalue(), renewed=isinstance(out, Terminal))


@pytest.mark.slow
@pytest.mark.parametrize("words", HOSTILE[:3], ids=range(3))
async def test_what_a_command_is_at_is_shown_safely(tmp_path: Path, out: io.StringIO, words: str) -> None:
    daemon = Hostile(words)
    daemon.hold = asyncio.Event()
    async with served(daemon, Home(tmp_path)):
        running = asyncio.create_task(swarmctl(out, "--home", str(tmp_path), "switch", "1"))
        while daemon.looks < 2:
            await asyncio.sleep(0.01)
        daemon.hold.set()
        assert await running == 0
    check(out.getvalue(), renewed=isinstance(out, Terminal))


async def test_a_status_that_is_watched(tmp_path: Path, out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swarmctl.calls.time.sleep", interrupt)
    for number, words in enumerate(HOSTILE):
        home = tmp_path / str(number)
        async with served(Hostile(words), Home(home)):
            assert await swarmctl(out, "--home", str(home), "status", "--watch") == 0
    check(out.getvalue(), renewed=isinstance(out, Terminal))


@pytest.mark.parametrize("words", HOSTILE, ids=range(len(HOSTILE)))
def test_the_demo_and_a_plan(tmp_path: Path, out: io.StringIO, words: str) -> None:
    run = RunConfig(words, ModelConfig(256, 8, 16, 2, 2, 2, 16))
    peer = DaemonProcess(0, 0, tmp_path)
    peer.status = filled(STATUS, words)
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        view = LiveTable(run, console()) if isinstance(out, Terminal) else Lines(run)
        view.show([peer], 1.0)
        view.say(words)
        view.close()
        console().print(render_plan(filled(PLAN, words)))
    check(out.getvalue(), renewed=isinstance(out, Terminal))


@pytest.mark.parametrize("words", HOSTILE, ids=range(len(HOSTILE)))
def test_logs_metrics_and_the_service_manager(
    tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str], kept_logging: None
) -> None:
    log = logging.getLogger("swarmd.test")
    for as_json in (False, True):
        path = tmp_path / f"{as_json}.log"
        configure_logging(path, as_json=as_json, debug=True)
        log.warning("from a peer: %s", words)
        try:
            raise Refused(words)
        except Refused:
            log.exception("%s", words)
        shown = path.read_text()
        check(shown)
        check(capsys.readouterr().err)
        records = [line for line in shown.splitlines() if not line.startswith("    ")]
        assert len(records) == 2, "one event is one line, and a traceback is indented"
    check(render_metrics(replace(filled(STATUS, words), ledger={})).decode())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        Notifier(str(tmp_path / "notify")).ready(words)
        said = manager.recv(1 << 16).decode()
    check(said)
    assert len(said.splitlines()) == 2


@pytest.fixture
def kept_logging() -> Iterator[None]:
    """The root logger as it was."""
    root, ours = logging.getLogger(), logging.getLogger("swarmd")
    before = list(root.handlers), root.level, ours.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level, ours.level = before
    logging.captureWarnings(False)


def test_words_stay_readable() -> None:
    assert printable("é 漢 👍 [x]") == "é 漢 👍 [x]"
    assert printable("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"
    assert printable("x" * 50, 20) == "x" * 17 + CUT
    assert len(printable("\x1b" * 50, 20)) == 20
    assert printable(None) == "None"
    assert printable_lines("a\nb\tc", "  ") == "  a\n  b\\tc"
    assert len(printable_lines("a\n" * 1000).splitlines()) == LINES_LIMIT


def test_every_text_of_a_status_is_tried() -> None:
    """So that a new field is, too."""
    texts = [field.name for field in fields(Status) if isinstance(getattr(STATUS, field.name), str)]
    assert len(texts) > 10
    assert all(getattr(filled(STATUS, "x"), name) == "x" for name in texts)
