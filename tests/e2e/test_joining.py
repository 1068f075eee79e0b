"""Idle daemons, remembered joins, refusals, and the user's mistakes: each a clear sentence, nothing lost."""

import dataclasses
import json
import socket
from pathlib import Path

import pytest

from tests.e2e.swarm import run_command, swarm
from tests.e2e.test_training import RUN, write_settings


@pytest.mark.timeout(200)
async def test_an_idle_daemon_joins_and_remembers_it() -> None:
    async with swarm() as it:
        founder = await it.start("--model", str(write_settings(RUN, it.directory / "run.toml")))
        idle = await it.start("--idle")
        await idle.until(lambda status: status["state"] == "idle")
        home = str(idle.home)
        code, _, error = await run_command("swarmctl", "--home", home, "join", "--bootstrap", "/ip4/127.0.0.1/tcp/1")
        assert (code, "Traceback" in error) == (2, False), error
        await idle.until(lambda status: status["state"] == "idle")
        code, out, error = await run_command(
            "swarmctl", "--home", home, "join", "--bootstrap", await founder.address(), "--json"
        )
        assert code == 0, error
        json.loads(out)
        await idle.until(lambda status: status["state"] == "waiting" and status["stage"] == 1)
        idle.process.terminate()
        assert await idle.end(20) == 0, "SIGTERM ends with 0"
        again = await it.start(home=idle.home)
        status = await again.until(lambda status: status["state"] == "waiting" and status["stage"] == 1)
        assert status["run"] == "e2e"


async def test_join_without_a_daemon_says_what_to_do(tmp_path: Path) -> None:
    code, out, error = await run_command(
        "swarmctl", "--home", str(tmp_path), "join", "--bootstrap", "/ip4/127.0.0.1/tcp/1"
    )
    assert (code, out) == (2, "")
    assert "swarmd start" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.timeout(150)
async def test_a_second_daemon_on_the_same_home_and_on_a_busy_port() -> None:
    async with swarm() as it:
        first = await it.start("--idle")
        await first.until(lambda status: status["state"] == "idle")
        code, _, error = await run_command("swarmd", "start", "--idle", "--home", str(first.home))
        assert code == 2, error
        assert "already" in error
        await first.until(lambda status: status["state"] == "idle")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            home = str(it.directory / "other")
            code, _, error = await run_command(
                "swarmd", "start", "--idle", "--home", home, "--listen", f"/ip4/127.0.0.1/tcp/{port}"
            )
        assert code == 2, error
        assert str(port) in error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bootstrap", "nonsense"], "nonsense"),
        (["--model", "tinny"], "tiny"),
        (["--model", "tiny", "--gpu", "0"], "cuda:0"),
        (["--model", "tiny", "--stage", "7"], "stage"),
        (["--idle", "--listen", "/ip4/300.0.0.1/tcp/0"], "300.0.0.1"),
    ],
)
@pytest.mark.timeout(120)
async def test_mistakes_are_one_sentence_and_exit_code_2(arguments: list[str], named: str, tmp_path: Path) -> None:
    code, out, error = await run_command("swarmd", "start", "--home", str(tmp_path), *arguments)
    assert (code, out) == (2, ""), error
    assert named in error
    assert "Traceback" not in error


async def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = write_settings(RUN, tmp_path / "run.toml")
    path.write_text("stepz = 5\n" + path.read_text())
    code, _, error = await run_command("swarmd", "start", "--home", str(tmp_path / "home"), "--model", str(path))
    assert code == 2
    assert "stepz" in error
    assert "steps" in error


@pytest.mark.timeout(150)
async def test_peers_of_another_run_refuse_each_other() -> None:
    """Two founders of different runs: neither ever counts the other, both go on."""
    other_run = dataclasses.replace(RUN, seed=8)
    async with swarm() as it:
        one = await it.start("--model", str(write_settings(RUN, it.directory / "one.toml")))
        address = await one.address()
        other = await it.start("--model", str(write_settings(other_run, it.directory / "other.toml")))
        await other.until(lambda status: status["state"] == "waiting")
        status = await one.until(lambda status: status["state"] == "waiting")
        assert status["peers"] == {"0": 1, "1": 0, "2": 0}
        code, _, error = await run_command("swarmctl", "--home", str(other.home), "join", "--bootstrap", address)
        assert code == 2
        assert "already" in error
