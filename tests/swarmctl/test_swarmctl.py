"""swarmctl against a real control socket with a fake daemon behind it."""

import asyncio
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swarmctl.app import run_command_line
from swarmctl.client import Client, parse_status
from swarmctl.render import render_status
from swarmd.daemon.home import Home
from swarmd.errors import ControlError, Refused
from swarmd.printable import duration, size
from swarmd.status import Status, Wait
from tests.daemon.fakes import ADDRESS, DRAINED, HOP, PEER, SILENT_PEER, STATUS, FakeDaemon, served


async def swarmctl(*arguments: str) -> tuple[int, str, str]:
    """Runs it in a thread, as the socket is served by this one. Exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = await asyncio.to_thread(run_command_line, list(arguments))
    return code, out.getvalue(), err.getvalue()


@contextlib.asynccontextmanager
async def daemon_at(path: Path) -> AsyncIterator[FakeDaemon]:
    daemon = FakeDaemon()
    async with served(daemon, Home(path)):
        yield daemon


async def test_status_json_is_the_daemons_own_object(tmp_path: Path) -> None:
    async with daemon_at(tmp_path):
        code, out, err = await swarmctl("--home", str(tmp_path), "status", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(asdict(STATUS)))


async def test_status_is_readable(tmp_path: Path) -> None:
    async with daemon_at(tmp_path):
        code, out, _ = await swarmctl("status", "--home", str(tmp_path))
    assert code == 0
    for text in (
        "toy",
        "1 of 3",
        "8 of 20",
        "3.2500, validation 3.5000",
        "1,234 tokens/s",
        "1 min 30 s",
        "1.5 MB sent",
    ):
        assert text in out
    assert ADDRESS in out


async def test_what_the_swarm_waits_for_is_said(tmp_path: Path) -> None:
    async with daemon_at(tmp_path) as daemon:
        full = ("can't save checkpoints: No space left on device",)
        daemon.say(state="waiting", waiting_for="stage 2 has no peer", loss=None, warnings=full)
        _, out, _ = await swarmctl("status", "--home", str(tmp_path))
    assert "waiting: stage 2 has no peer" in out
    assert "warning: can't save checkpoints: No space left on device" in out
    assert "not measured yet" in out


async def test_a_newcomer_shows_how_much_of_its_state_has_come(tmp_path: Path) -> None:
    async with daemon_at(tmp_path) as daemon:
        daemon.say(state="joining", state_bytes=1_500_000, state_bytes_total=4_000_000, state_donors=3)
        _, out, _ = await swarmctl("status", "--home", str(tmp_path))
    assert "38% of the stage's state: 1.5 MB of 4.0 MB, from 3 donors" in out


async def test_peers_and_queues(tmp_path: Path) -> None:
    async with daemon_at(tmp_path):
        _, peers, _ = await swarmctl("peers", "--home", str(tmp_path))
        _, peers_json, _ = await swarmctl("peers", "--json", "--home", str(tmp_path))
        _, queues, _ = await swarmctl("queues", "--home", str(tmp_path))
        _, queues_json, _ = await swarmctl("queues", "--json", "--home", str(tmp_path))
    assert "itself" in peers
    assert "(silent)" in peers
    assert [row["peer_id"] for row in json.loads(peers_json)] == [PEER.peer_id, SILENT_PEER.peer_id]
    assert "passed" in queues
    assert json.loads(queues_json) == [asdict(HOP)]


async def test_queues_say_why_the_device_is_idle(tmp_path: Path) -> None:
    async with daemon_at(tmp_path) as daemon:
        _, busy, _ = await swarmctl("queues", "--home", str(tmp_path))
        daemon.say(queues=replace(STATUS.queues, idle_because="2 microbatches are with the next stage"))
        _, idle, _ = await swarmctl("queues", "--home", str(tmp_path))
    assert "computing" in busy
    assert "idle: 2 microbatches are with the next stage" in idle
    held = "2 waiting for the forward pass, 1 waiting for the backward pass, 2 passed on to the next stage"
    assert f"5 microbatches: {held}" in idle


COMMANDS = [
    (["switch", "2"], ("switch", 2), {"switched": True, "stage": 2}, "serving stage 2."),
    (["drain"], ("drain", None), {"drained": True, **asdict(DRAINED)}, "5 microbatches of the step went to"),
    (["drain", "--timeout", "2.5"], ("drain", 2.5), {"drained": True, **asdict(DRAINED)}, "drained; the daemon ends."),
    (["leave"], ("leave",), {"left": True}, "left; the daemon ends."),
    (["pause"], ("pause",), {"paused": True}, "`swarmctl resume` lets it go on"),
    (["resume"], ("resume",), {"paused": False}, "going on."),
]


@pytest.mark.parametrize(("command", "told", "result", "sentence"), COMMANDS, ids=lambda it: " ".join(map(str, it)))
async def test_commands_reach_the_daemon(
    tmp_path: Path, command: list[str], told: tuple[object, ...], result: dict[str, object], sentence: str
) -> None:
    async with daemon_at(tmp_path) as daemon:
        code, out, err = await swarmctl("--home", str(tmp_path), *command, "--json")
        assert (code, err, json.loads(out)) == (0, "", result)
        code, out, _ = await swarmctl("--home", str(tmp_path), *command)
        assert code == 0
        assert sentence in out
        assert daemon.told == [told, told]
        daemon.trouble = Refused("stage 1 would be left with 0 replicas")
        code, out, err = await swarmctl("--home", str(tmp_path), *command)
    assert (code, out, err) == (2, "", "swarmctl: stage 1 would be left with 0 replicas\n")


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [None, Refused("the conductor is silent")])
async def test_a_command_that_takes_a_while_says_how_far_it_is(tmp_path: Path, trouble: Exception | None) -> None:
    async with daemon_at(tmp_path) as daemon:
        daemon.hold = asyncio.Event()
        daemon.say(doing="moving to stage 2: its state comes", state_bytes=1_500_000, state_bytes_total=4_000_000)
        running = asyncio.create_task(swarmctl("--home", str(tmp_path), "switch", "2", "--json"))
        while daemon.looks < 2:
            await asyncio.sleep(0.01)
        daemon.say(doing="moving to stage 2: asking for it", state_bytes=0, state_bytes_total=0)
        while daemon.looks < 4:
            await asyncio.sleep(0.01)
        daemon.trouble_at_the_end = trouble
        daemon.hold.set()
        code, out, err = await running
    assert "moving to stage 2: its state comes (1.5 MB of 4.0 MB)" in err
    assert err.count("asking for it") == 1, "what is the same is said once"
    if trouble is None:
        assert (code, json.loads(out)) == (0, {"switched": True, "stage": 2})
    else:
        assert (code, out, err.splitlines()[-1]) == (2, "", "swarmctl: the conductor is silent")


async def test_the_home_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMD_HOME", str(tmp_path))
    async with daemon_at(tmp_path):
        code, out, _ = await swarmctl("status", "--json")
    assert code == 0
    assert json.loads(out)["peer_id"] == STATUS.peer_id


async def test_join_reaches_the_daemon(tmp_path: Path) -> None:
    async with daemon_at(tmp_path) as daemon:
        code, out, _ = await swarmctl("join", "--bootstrap", ADDRESS, "--home", str(tmp_path), "--json")
        assert (code, json.loads(out)) == (0, {"joined": True})
        daemon.trouble = ControlError("already in the run toy.")
        code, out, err = await swarmctl("join", "--bootstrap", ADDRESS, "--home", str(tmp_path))
    assert daemon.joined == [ADDRESS]
    assert (code, out, err) == (2, "", "swarmctl: already in the run toy.\n")


@pytest.mark.slow
async def test_a_join_that_takes_a_while_says_what_it_waits_for(tmp_path: Path) -> None:
    async with daemon_at(tmp_path) as daemon:
        daemon.hold = asyncio.Event()
        daemon.say(doing=f"asking for the settings of a run from {ADDRESS}")
        joining = asyncio.create_task(swarmctl("join", "--bootstrap", ADDRESS, "--home", str(tmp_path)))
        while daemon.looks < 2:
            await asyncio.sleep(0.01)
        daemon.hold.set()
        code, out, err = await joining
    assert (code, out) == (0, "joined; `swarmctl status` shows how it goes.\n")
    assert f"asking for the settings of a run from {ADDRESS}" in err


async def test_a_daemon_that_is_slow_to_answer_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmctl.client.SLOW_ANSWER_S", 0.05)
    asked, go = asyncio.Event(), asyncio.Event()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
        await writer.drain()
        writer.close()

    said: list[str] = []

    def hear(sentence: str) -> None:
        said.append(sentence)
        loop.call_soon_threadsafe(go.set)

    loop = asyncio.get_running_loop()
    async with await asyncio.start_unix_server(respond, tmp_path / "control.sock"):
        assert await asyncio.to_thread(Client(tmp_path, patience=hear).peers) == []
    assert len(said) == 1
    assert f"{tmp_path} takes its time to answer" in said[0]


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["peers"],
        ["queues"],
        ["status", "--json"],
        ["status", "--watch"],
        ["switch", "1"],
        ["drain"],
        ["pause"],
    ],
)
async def test_without_a_daemon_it_says_what_to_run(tmp_path: Path, command: list[str]) -> None:
    code, out, err = await swarmctl(*command, "--home", str(tmp_path))
    assert (code, out.strip()) == (2, "")
    assert err.count("\n") == 1
    assert f"swarmd start --model NAME --home {tmp_path}" in err


async def test_joining_without_a_daemon_says_what_to_run(tmp_path: Path) -> None:
    home = tmp_path / "with space"
    code, _, err = await swarmctl("--home", str(home), "join", "--bootstrap", ADDRESS)
    assert code == 2
    assert err.count("\n") == 1
    assert f"swarmd start --bootstrap {ADDRESS} --home '{home}'" in err


async def test_the_socket_of_a_dead_daemon_is_no_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(tmp_path / "control.sock"))
    code, _, err = await swarmctl("status", "--home", str(tmp_path))
    assert code == 2
    assert "no daemon runs" in err


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", "broke off"),
        (b"not http at all\r\n\r\n", "broke off"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"peer_id": ', "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "another version"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "another version"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n[]", "status 500"),
    ],
)
async def test_a_strange_answer_is_one_sentence(tmp_path: Path, answer: bytes, expected: str) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(respond, tmp_path / "control.sock")
    async with server:
        code, _, err = await swarmctl("status", "--home", str(tmp_path))
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


async def test_a_hung_daemon_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "control.sock"))
        listener.listen(1)
        with pytest.raises(ControlError, match="did not answer"):
            await asyncio.to_thread(Client(tmp_path, timeout_s=0.05).status)


@pytest.mark.parametrize(
    "arguments",
    [
        ["stats"],
        ["status", "--nope"],
        ["switch"],
        ["switch", "-1"],
        ["switch", "x"],
        ["drain", "--timeout", "0"],
        ["join"],
        ["status", "extra"],
    ],
)
async def test_a_mistake_is_one_sentence(arguments: list[str]) -> None:
    code, out, err = await swarmctl(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("swarmctl: ")
    assert err.count("\n") == 1


def test_a_newer_daemons_extra_fields_are_skipped() -> None:
    content = {**json.loads(json.dumps(asdict(STATUS))), "mood": "good"}
    assert parse_status(content) == STATUS


def test_an_idle_daemon_can_be_shown() -> None:
    idle = replace(STATUS, run="", state="idle", stage=None, loss=None, seconds_left=None)
    assert "idle" in _drawn(idle)
    assert "loss" not in _drawn(idle)


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({}, "TRAINING  step 8 of 20, 1 min 30 s left"),
        ({"seconds_left": None, "state": "finished"}, "DONE  step 8 of 20"),
        (
            {"state": "looking", "run": "", "waits": (Wait("a run, at 2 addresses", 14.0),)},
            "LOOKING  waiting 14 s for a run, at 2 addresses",
        ),
        ({"state": "idle", "run": ""}, "IDLE"),
        (
            {"state": "waiting", "waits": (Wait("a peer for stage 2", 61.0),)},
            "WAITING  waiting 1 min 01 s for a peer for",
        ),
    ],
)
def test_the_first_line_says_whether_all_is_well(changes: dict[str, Any], first: str) -> None:
    assert _drawn(replace(STATUS, **changes)).splitlines()[0].startswith(first)


def test_every_wait_is_shown_with_all_that_is_known_of_it() -> None:
    waits = (Wait("a peer for stage 2", 61.0, "", "b: refused", "start one"), Wait("text", 3.0, "1 of 9"))
    content = json.loads(json.dumps(asdict(replace(STATUS, waits=waits))))
    assert parse_status(content).waits == waits
    shown = _drawn(parse_status(content))
    assert "waiting: a peer for stage 2 (for 61 s, last: b: refused): start one" in shown
    assert "waiting: text (for 3 s, 1 of 9)" in shown


def _drawn(status: Status) -> str:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as captured:
        console.print(render_status(status))
    return captured.get()


def test_units_are_those_a_person_reads() -> None:
    assert [size(count) for count in (0, 999, 1000, 278_000_000, 5_000_000_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "278.0 MB",
        "5.0 TB",
    ]
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 3600, 200_000)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "1 h 00 min",
        "2 d 7 h",
    ]


def test_the_command_itself_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "swarmctl", "--home", str(tmp_path), "status"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no daemon runs" in done.stderr
