"""The control socket against a fake daemon: what it answers, and what no client can do to it."""

import asyncio
import json
import math
import os
import socket
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from swarmd.daemon.control import BODY_LIMIT_BYTES
from swarmd.daemon.home import Home
from swarmd.errors import ConfigError, ControlError, PeerUnreachable
from tests.daemon.fakes import ADDRESS, HOP, PEER, STATUS, FakeDaemon, served


async def ask(home: Home, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connector = aiohttp.UnixConnector(os.fspath(home.control_socket))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, f"http://swarmd{path}", data=body) as answer,
    ):
        return answer.status, json.loads(await answer.read())


async def test_answers_what_the_daemon_says(tmp_path: Path) -> None:
    home = Home(tmp_path)
    async with served(FakeDaemon(), home):
        status, content = await ask(home, "GET", "/v1/status")
        peers = await ask(home, "GET", "/v1/peers")
        queues = await ask(home, "GET", "/v1/queues")
    assert status == 200
    assert content == json.loads(json.dumps(asdict(STATUS)))
    assert peers[1][0] == json.loads(json.dumps(asdict(PEER)))
    assert queues[1] == [asdict(HOP)]


async def test_a_loss_that_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    home, daemon = Home(tmp_path), FakeDaemon()
    daemon.say(loss=math.nan, seconds_left=math.inf)
    async with served(daemon, home):
        _, content = await ask(home, "GET", "/v1/status")
    assert content["loss"] is None
    assert content["seconds_left"] is None


async def test_metrics_are_prometheus_text(tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    home = Home(tmp_path)
    async with served(FakeDaemon(), home):
        connector = aiohttp.UnixConnector(os.fspath(home.control_socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://swarmd/v1/metrics") as answer,
        ):
            text = await answer.text()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples[("swarmd_loss",)] == STATUS.loss
    assert samples[("swarmd_version",)] == STATUS.version
    assert samples[("swarmd_stage_replicas", "2")] == 1
    assert samples[("swarmd_resent_microbatches_total",)] == 3


async def test_join_reaches_the_daemon(tmp_path: Path) -> None:
    home, daemon = Home(tmp_path), FakeDaemon()
    async with served(daemon, home):
        status, content = await ask(home, "POST", "/v1/join", json.dumps({"bootstrap": ADDRESS}).encode())
    assert (status, content) == (200, {"joined": True})
    assert daemon.joined == [ADDRESS]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b'"bootstrap"',
        b"{}",
        b'{"bootstrap": 5}',
        b'{"bootstrap": ""}',
        b'{"bootstrap": "/ip4/x", "more": 1}',
        json.dumps({"bootstrap": "/" * 2000}).encode(),
        b"[" * 50_000,
    ],
)
async def test_a_bad_body_is_refused_with_a_sentence(tmp_path: Path, body: bytes) -> None:
    home, daemon = Home(tmp_path), FakeDaemon()
    async with served(daemon, home):
        status, content = await ask(home, "POST", "/v1/join", body)
        assert (await ask(home, "GET", "/v1/status"))[0] == 200
    assert status == 400
    assert "bootstrap" in content["error"]
    assert daemon.joined == []


async def test_a_large_body_is_refused(tmp_path: Path) -> None:
    home, daemon = Home(tmp_path), FakeDaemon()
    async with served(daemon, home):
        status, content = await ask(home, "POST", "/v1/join", b" " * (BODY_LIMIT_BYTES + 1))
    assert status == 413
    assert "larger" in content["error"]


@pytest.mark.parametrize(("method", "path", "expected"), [("GET", "/v2/status", 404), ("POST", "/v1/status", 405)])
async def test_what_is_not_served_is_said_in_json(tmp_path: Path, method: str, path: str, expected: int) -> None:
    home = Home(tmp_path)
    async with served(FakeDaemon(), home):
        status, content = await ask(home, method, path)
    assert status == expected
    assert path in content["error"]


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (ConfigError("not an address."), 400),
        (ControlError("already in a run."), 409),
        (PeerUnreachable("nobody there."), 409),
    ],
)
async def test_trouble_becomes_its_sentence(tmp_path: Path, trouble: Exception, expected: int) -> None:
    home, daemon = Home(tmp_path), FakeDaemon()
    daemon.trouble = trouble
    async with served(daemon, home):
        status, content = await ask(home, "POST", "/v1/join", json.dumps({"bootstrap": ADDRESS}).encode())
    assert (status, content["error"]) == (expected, str(trouble))


async def test_a_bug_costs_one_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home, daemon = Home(tmp_path), FakeDaemon()
    async with served(daemon, home):
        daemon.trouble = ZeroDivisionError("ours")
        status, content = await ask(home, "GET", "/v1/status")
        daemon.trouble = None
        assert (await ask(home, "GET", "/v1/status"))[0] == 200
    assert status == 500
    assert "swarmd.log" in content["error"]
    assert "ZeroDivisionError" in caplog.text


async def test_bytes_that_are_no_http_do_no_harm(tmp_path: Path) -> None:
    home = Home(tmp_path)
    async with served(FakeDaemon(), home):
        for garbage in (
            b"\x00" * 100,
            b"GET\r\n\r\n",
            b"A" * 100_000,
            b"POST /v1/join HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        ):
            reader, writer = await asyncio.open_unix_connection(os.fspath(home.control_socket))
            writer.write(garbage)
            writer.write_eof()
            async with asyncio.timeout(5):
                await reader.read()
            writer.close()
        assert (await ask(home, "GET", "/v1/status"))[0] == 200


async def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    async with served(FakeDaemon(), home):
        assert stat.S_IMODE(home.control_socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert not home.control_socket.exists()


@pytest.mark.parametrize("umask", [0o000, 0o777])
async def test_the_socket_is_private_from_the_moment_it_has_a_name(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, made = Home(tmp_path), list[int]()
    chmod = Path.chmod

    def seen(path: Path, mode: int) -> None:
        made.append(stat.S_IMODE(path.lstat().st_mode))
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", seen)
    before = os.umask(umask)
    try:
        async with served(FakeDaemon(), home):
            assert stat.S_IMODE(home.control_socket.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert not [mode for mode in made if mode & 0o077]


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.control_socket.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket; remove it"):
        async with served(FakeDaemon(), home):
            pytest.fail("it was replaced")
    assert home.control_socket.read_text() == "precious"


async def test_a_socket_that_cannot_be_made_is_the_user_s_to_mend(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / ".control.new").mkdir()
    with pytest.raises(ConfigError, match="can't make the socket"):
        async with served(FakeDaemon(), home):
            pytest.fail("it listens")


async def test_a_slow_answer_holds_up_nobody(tmp_path: Path) -> None:
    home, daemon = Home(tmp_path), FakeDaemon()
    daemon.hold = asyncio.Event()
    async with served(daemon, home):
        join = asyncio.create_task(ask(home, "POST", "/v1/join", json.dumps({"bootstrap": ADDRESS}).encode()))
        assert (await ask(home, "GET", "/v1/status"))[0] == 200
        assert not join.done()
        daemon.hold.set()
        assert (await join)[0] == 200


async def test_the_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    home = Home(tmp_path)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(os.fspath(home.control_socket))
    dead.close()
    async with served(FakeDaemon(), home):
        assert (await ask(home, "GET", "/v1/status"))[0] == 200


async def test_the_socket_of_a_live_daemon_is_left_alone(tmp_path: Path) -> None:
    home = Home(tmp_path)
    async with served(FakeDaemon(), home):
        with pytest.raises(ConfigError, match="already answers"):
            async with served(FakeDaemon(), home):
                pytest.fail("a second server started")
        assert (await ask(home, "GET", "/v1/status"))[0] == 200
