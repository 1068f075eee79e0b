"""Signals that are meant to end a process, at any moment: the documented code, no traceback, no abort, within a bound.

Moments are named by what a process does then (the import of a module, a line that it writes), so that they are the same
on a busy machine; the long test tries one every 50 ms instead.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmd.config import DataConfig, RunConfig
from swarmd.daemon.home import Home
from tests.daemon.fakes import FakeDaemon, served
from tests.e2e.swarm import START_SECONDS, Daemon, run_command, swarm
from tests.e2e.test_training import INT8, write_settings

BOUND_S = 5.0  # promised, before a stage is open
SLACK_S = 10.0  # a busy machine's
ALONE = dataclasses.replace(INT8.model, stages=1)
ENDLESS = dataclasses.replace(INT8, model=ALONE, steps=1_000_000, validate_every=0)
NAMES = ("SIGTERM", "SIGINT", "SIGHUP")
LONG = pytest.mark.long
SELF = """
import os, signal, sys
class Moment:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            sys.meta_path.remove(moment)
            print("now", flush=True)
            os.kill(os.getpid(), signal.SIGNAL)
moment = Moment()
sys.meta_path.insert(0, moment)
from PROGRAM.__main__ import main
main()
"""
"""A command that sends itself a signal when it is about to import a module."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a process after its signal."""

    code: int
    out: str
    err: str
    seconds: float

    def check(self, *codes: int, bound_s: float = BOUND_S) -> None:
        """Checks what holds of every end."""
        assert self.code in codes, self
        assert "Traceback" not in self.err, self
        assert "terminate called" not in self.err, self
        assert self.seconds < bound_s + SLACK_S, self


async def launch(*command: str, **options: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NO_COLOR": "1"},
        **options,  # type: ignore[arg-type]
    )


async def end(process: asyncio.subprocess.Process, *numbers: signal.Signals) -> Ended:
    """Sends signals, one after the other, and waits for the end."""
    began = time.monotonic()
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
    try:
        async with asyncio.timeout(START_SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise AssertionError(f"still there {START_SECONDS} s after {numbers}") from None
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode(), time.monotonic() - began)


async def ended_at(
    program: str, module: str, name: str, *arguments: str, again: tuple[signal.Signals, ...] = ()
) -> Ended:
    """A command that gets a signal when it is about to import a module, and others after that."""
    source = SELF.replace("MODULE", repr(module)).replace("SIGNAL", name).replace("PROGRAM", program)
    process = await launch("-c", source, *arguments)
    assert process.stdout is not None
    async with asyncio.timeout(START_SECONDS):
        while (line := await process.stdout.readline()) not in (b"now\n", b""):
            pass
    assert line, f"{program} {arguments} ended before it imported {module}"
    return await end(process, *again)


def start_arguments(home: Path, model: str = "tiny") -> tuple[str, ...]:
    listen = ("--listen", "/ip4/127.0.0.1/tcp/0", "--threads", "1")
    return ("start", "--model", model, "--steps", "1000000", "--home", str(home), *listen)


@pytest.mark.parametrize("name", NAMES)
async def test_a_start_that_has_hardly_begun_ends_with_0(tmp_path: Path, name: str) -> None:
    (await ended_at("swarmd", "swarmd.cli.main", name, *start_arguments(tmp_path / "home"))).check(0)
    assert not (tmp_path / "home").exists()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "module",
    ["pydantic", "libp2p", "swarmd.stage.engine", *(pytest.param(it, marks=LONG) for it in ("uvloop", "torch"))],
)
async def test_a_start_ends_with_0_whatever_it_is_at(tmp_path: Path, module: str) -> None:
    """Before there is a loop, in the loop's thread, and in the thread that opens the stage."""
    home = tmp_path / "home"
    (await ended_at("swarmd", module, "SIGTERM", *start_arguments(home))).check(0)
    if home.exists():
        assert not list(home.glob("control*"))
        with Home(home).locked():
            pass  # nothing holds it


@pytest.mark.parametrize(
    ("program", "module", "arguments"),
    [
        ("swarmd", "swarmd.cli.main", ("demo",)),
        ("swarmd", "rich.console", ("demo", "--peers", "3", "--home", "HOME")),
        ("swarmd", "torch", ("profile",)),
        ("swarmctl", "swarmctl.app", ("plan", "--model", "tiny", "--peers", "3xT4@1Gbps")),
        ("swarmctl", "swarmd.sim.planner.plan", ("plan", "--model", "tiny", "--peers", "3xT4@1Gbps")),
        ("swarmctl", "swarmctl.app", ("status", "--json")),
    ],
)
async def test_a_command_that_is_cut_off_says_so(
    program: str, module: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    home = str(tmp_path / "home")
    it = await ended_at(program, module, "SIGINT", *(home if word == "HOME" else word for word in arguments))
    it.check(1)
    assert it.err.splitlines()[-1:] == [f"{program}: interrupted."]


async def line_of(stream: asyncio.StreamReader | None, words: bytes, seconds: float = START_SECONDS) -> None:
    assert stream is not None
    async with asyncio.timeout(seconds):
        while words not in (line := await stream.readline()):
            assert line, f"ended before it said {words!r}"


@pytest.mark.parametrize("name", ["SIGTERM", *(pytest.param(it, marks=LONG) for it in ("SIGINT", "SIGHUP"))])
async def test_a_plan_is_cut_off_while_it_simulates(name: str) -> None:
    process = await launch("-m", "swarmctl", "plan", "--model", "13b-shared", "--peers", "64xA100@200Mbps")
    await line_of(process.stderr, b"simulating")
    it = await end(process, signal.Signals[name])
    it.check(1)
    assert it.err.endswith("swarmctl: interrupted.\n")


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_a_profile_is_cut_off_while_it_measures() -> None:
    process = await launch("-m", "swarmd", "profile")
    await line_of(process.stderr, b"measuring")
    it = await end(process, signal.SIGTERM)
    it.check(1)
    assert it.err.endswith("swarmd: interrupted.\n")


@pytest.mark.parametrize("name", NAMES)
async def test_a_watch_ends_with_0_and_the_terminal_has_its_cursor_back(tmp_path: Path, name: str) -> None:
    ours, theirs = os.openpty()
    async with served(FakeDaemon(), Home(tmp_path)):
        command = (sys.executable, "-m", "swarmctl", "--home", str(tmp_path), "status", "--watch")
        process = await asyncio.create_subprocess_exec(*command, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        said = b""
        async with asyncio.timeout(START_SECONDS):
            while b"toy" not in said:
                said += await asyncio.to_thread(os.read, ours, 4096)
            process.send_signal(signal.Signals[name])
            assert await process.wait() == 0
    with contextlib.suppress(OSError):  # how a terminal says that its other side is gone
        while more := os.read(ours, 4096):
            said += more
    os.close(ours)
    assert b"Traceback" not in said
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")


async def test_nohup_lets_a_command_survive_its_terminal() -> None:
    source = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{SELF}"
    source = source.replace("MODULE", "'swarmd.cli.main'").replace("SIGNAL", "SIGHUP").replace("PROGRAM", "swarmd")
    it = await end(await launch("-c", source, "--version"))
    it.check(0)
    assert "swarmd 0" in it.out


async def test_output_that_nobody_reads_is_no_traceback() -> None:
    for program in ("swarmd", "swarmctl"):
        reading, writing = os.pipe()
        os.close(reading)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", program, "--help", stdout=writing, stderr=asyncio.subprocess.PIPE
        )
        os.close(writing)
        _, err = await process.communicate()
        assert (process.returncode, err) == (1, b"")


# ------------------------------------------------------------------------------------------------- a daemon that works


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", [("--resume",), pytest.param((), marks=LONG)])
async def test_a_terminal_that_closes_before_the_first_step_leaves_a_home_as_if_new(how: tuple[str, ...]) -> None:
    """The last replica of its stage has a state that nobody else has, and that is version 0."""
    run = dataclasses.replace(ENDLESS, model=dataclasses.replace(ALONE, layers=2, stages=2))
    async with swarm() as it:
        model = str(write_settings(run, it.directory / "run.toml"))
        first = await it.start("--model", model, "--stage", "0")
        await first.until(lambda status: status["state"] == "waiting")
        first.process.send_signal(signal.SIGHUP)
        assert await first.end(60 + 15 + SLACK_S) == 0
        assert "drained" in first.log()
        assert not list(first.home.glob("checkpoints/*"))
        again = await it.start("--model", model, "--stage", "0", *how, home=first.home)
        status = await again.until(lambda status: status["state"] == "waiting")
        assert "a peer for stage 1" in status["waiting_for"]


async def test_a_second_signal_ends_a_daemon_that_is_ending(tmp_path: Path) -> None:
    it = await ended_at("swarmd", "libp2p", "SIGTERM", *start_arguments(tmp_path / "home"), again=(signal.SIGINT,))
    it.check(0, 1, bound_s=1)  # 0 if it was over before


def slow_text(directory: Path, documents: int) -> RunConfig:
    """A run whose text takes some seconds to tokenise."""
    tokenizers = pytest.importorskip("tokenizers")
    trainers, level = tokenizers.trainers, tokenizers.pre_tokenizers.ByteLevel
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = level()
    words = "the quick brown fox jumps over the lazy dog. " * 40
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=level.alphabet())
    made.train_from_iterator([words], trainer)
    made.save(str(directory / "tokenizer.json"))
    with (directory / "text.jsonl").open("w") as file:
        for number in range(documents):
            file.write(json.dumps({"text": f"{words}{number}"}) + "\n")
    data = DataConfig(source=str(directory / "text.jsonl"), tokenizer=str(directory / "tokenizer.json"))
    return dataclasses.replace(ENDLESS, data=data, model=dataclasses.replace(ALONE, vocabulary=1000))


async def half_written(daemon: Daemon) -> list[str]:
    """The files of tokens on their way, once there is one."""
    async with asyncio.timeout(START_SECONDS):
        while not (found := sorted(it.name for it in daemon.home.glob("data/.tokens-*"))):
            assert daemon.process.returncode is None, daemon.log()
            await asyncio.sleep(0.05)
    return found


@pytest.mark.timeout(240)
async def test_tokenising_is_broken_off_and_leaves_nothing() -> None:
    """Also what a daemon left that was killed is removed by the next one."""
    async with swarm() as it:
        model = str(write_settings(slow_text(it.directory, 30_000), it.directory / "run.toml"))
        killed = await it.start("--model", model)
        left = await half_written(killed)
        killed.kill()
        await killed.process.wait()
        again = await it.start("--model", model, home=killed.home)
        async with asyncio.timeout(START_SECONDS):
            while await half_written(again) == left:
                await asyncio.sleep(0.05)
        assert len(await half_written(again)) == 1
        began = time.monotonic()
        again.process.send_signal(signal.SIGTERM)
        assert await again.end() == 0
        assert time.monotonic() - began < BOUND_S + SLACK_S
        assert not list(again.home.glob("data/*")), "nothing half written, and nothing whole: it was broken off"


# ------------------------------------------------------------------------------------------------- a demo


def daemons_of(home: Path) -> list[int]:
    """Processes whose command line names a directory under `home`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and str(home).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


async def until(holds: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            while not holds():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {START_SECONDS} s: {what}") from None


@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", [pytest.param("peer-0/lock", marks=LONG), "peer-1/control.sock"])
async def test_a_demo_ends_with_all_its_daemons(tmp_path: Path, moment: str) -> None:
    home = tmp_path / "demo"
    process = await launch(
        "-m", "swarmd", "demo", "--peers", "2", "--stages", "1", "--home", str(home), start_new_session=True
    )
    await until((home / moment).exists, moment)
    it = await end(process, signal.SIGINT)
    it.check(1, bound_s=20)
    assert "all daemons are stopped" in it.err
    assert daemons_of(home) == []


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children of their parent's end")
async def test_a_demo_that_is_killed_leaves_no_daemon(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    process = await launch("-m", "swarmd", "demo", "--peers", "1", "--stages", "1", "--home", str(home))
    await until((home / "peer-0/lock").exists, "a daemon that starts")
    await end(process, signal.SIGKILL)
    await until(lambda: not daemons_of(home), "no daemon is left")


# ------------------------------------------------------------------------------------------------- every 50 ms


EVERY_S = 0.05
START_S = 5.0  # with a stage that works at its end
SOONEST_S = 2.0  # in which a busy machine may not have come to our first line


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
async def test_a_signal_at_every_50_ms_of_a_start(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    for tick in range(round(START_S / EVERY_S)):
        home = tmp_path / str(tick)
        process = await launch("-m", "swarmd", *start_arguments(home), "--stages", "1", "--drain-timeout", "5")
        await asyncio.sleep(tick * EVERY_S)  # the moment
        it = await end(process, number)
        if it.code == -number:  # before our first line: the signal's own end
            assert (it.out, it.err, home.exists()) == ("", "", False), (tick, it)
            assert tick * EVERY_S < SOONEST_S, (tick, it)
            continue
        it.check(0, bound_s=5 + 15)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_processes_that_measure_end_with_a_profile() -> None:
    process = await launch("-m", "swarmd", "profile")
    await line_of(process.stderr, b"processes", 400)
    it = await end(process, signal.SIGTERM)
    it.check(1)
    await until(lambda: not daemons_of(Path("swarmd.stage.profile")), "no process is left that measures")


async def test_help_still_ends_as_before() -> None:
    code, out, err = await run_command("swarmctl", "--help")
    assert (code, err) == (0, "")
    assert "Examples" in out
