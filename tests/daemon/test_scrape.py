"""The metrics on a port: what Prometheus gets there, and what nobody can do to it."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from swarmd.cli.options import parse_endpoint
from swarmd.daemon import scrape
from swarmd.daemon.scrape import CONNECTIONS_LIMIT, HEAD_LIMIT_BYTES, MetricsServer
from swarmd.errors import ConfigError
from tests.daemon.fakes import STATUS

HOST = "127.0.0.1"


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = MetricsServer(lambda: STATUS)
    yield await server.start(HOST, 0)
    await server.stop()


async def ask(port: int, request: bytes) -> bytes:
    """All that comes back, and then the connection's end."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics", "/metrics?name=x"])
async def test_prometheus_gets_the_metrics(port: int, path: str) -> None:
    head, _, body = (await ask(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Content-Type: text/plain; version=" in head
    values = {it.name: it.value for family in text_string_to_metric_families(body.decode()) for it in family.samples}
    assert values["swarmd_loss"] == STATUS.loss
    assert values["swarmd_sent_bytes_total"] == STATUS.bytes.sent


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /v1/status HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /v1/drain HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"\xff\x00\r\n\r\n", b"404"),
        (b"\r\n\r\n", b"404"),
    ],
)
async def test_nothing_else_is_there(port: int, request_: bytes, status: bytes) -> None:
    assert (await ask(port, request_)).split()[1] == status


async def test_a_head_has_no_body(port: int) -> None:
    answer = await ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"\r\n\r\n")
    assert answer.count(b"\r\n\r\n") == 1


async def test_a_request_without_end_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await ask(port, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (2 * HEAD_LIMIT_BYTES)) == b""
    monkeypatch.setattr(scrape, "REQUEST_SECONDS", 0.05)
    assert await ask(port, b"GET /metrics") == b""
    assert (await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_idle_connections_are_few(port: int) -> None:
    held = [await asyncio.open_connection(HOST, port) for _ in range(CONNECTIONS_LIMIT)]
    assert await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
    for _, writer in held:
        writer.close()
    while not await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n"):
        await asyncio.sleep(0.01)


async def test_the_port_closes_with_connections_that_are_open() -> None:
    server = MetricsServer(lambda: STATUS)
    port = await server.start(HOST, 0)
    reader, writer = await asyncio.open_connection(HOST, port)
    await server.stop()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionError):
        await asyncio.open_connection(HOST, port)


@pytest.mark.parametrize("host", [HOST, "203.0.113.77", "no-such-name.invalid", "a" * 70 + ".b"])
async def test_a_place_that_cannot_be_had_is_one_sentence(port: int, host: str) -> None:
    with pytest.raises(ConfigError, match=r"can't serve metrics at .*; give another --metrics"):
        await MetricsServer(lambda: STATUS).start(host, port)


async def test_who_may_read_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for host, warned in ((HOST, False), ("0.0.0.0", True)):
        server = MetricsServer(lambda: STATUS)
        caplog.clear()
        port = await server.start(host, 0)
        await server.stop()
        (record,) = (it for it in caplog.records if it.name == scrape.__name__)
        assert f"http://{host}:{port}/metrics" in record.message
        assert ("whoever reaches that can read" in record.message) == warned


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9464", ("::1", 9464)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("9464", None),
        (":9464", None),
        ("127.0.0.1:", None),
        ("127.0.0.1:65536", None),
        ("127.0.0.1:-1", None),
        ("127.0.0.1:٩", None),
        ("::1:9464", None),
        ("http://127.0.0.1:9464", None),
        ("127.0.0.1:9464/metrics", None),
    ],
)
def test_a_place_is_an_address_and_a_port(text: str, place: tuple[str, int] | None) -> None:
    if place is not None:
        assert parse_endpoint(text) == place
    else:
        with pytest.raises(ConfigError, match=r"looks like 127\.0\.0\.1:9464"):
            parse_endpoint(text)


def start(home: Path, place: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "swarmd", "start", "--idle", "--home", str(home), "--metrics", place]
    command += ["--listen", "/ip4/127.0.0.1/tcp/0"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ})


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_daemon_serves_them_until_it_ends(tmp_path: Path) -> None:
    process = start(tmp_path, f"{HOST}:0")
    assert process.stderr is not None
    found = None
    while found is None:
        line = await asyncio.to_thread(process.stderr.readline)
        assert line, "it ended"
        found = re.search(r"metrics at http://127\.0\.0\.1:(\d+)/metrics$", line)
    port = int(found[1])
    assert b'state="idle"' in await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait) == 0
    process.stderr.close()
    with pytest.raises(ConnectionError):
        await asyncio.open_connection(HOST, port)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_port_in_use_ends_the_daemon_with_a_sentence(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        place = f"{HOST}:{taken.getsockname()[1]}"
        process = start(tmp_path, place)
        _, said = process.communicate()
    assert process.returncode == 2
    assert said.splitlines()[-1] == (
        f"swarmd: can't serve metrics at {place} (address already in use); give another --metrics."
    )
