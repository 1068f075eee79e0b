"""The control socket: requests of programs on the same machine.

A case is [method, path, {header: value}, body]: the body bytes, or a tree that is sent as JSON; or bytes, which are
sent as they are.
"""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from swarmd.daemon.home import Home
from tests.daemon.fakes import ADDRESS, FakeDaemon, served
from tests.fuzz.target import Finding, Target

PATIENCE_S = 30.0
READS = ("status", "peers", "queues", "metrics")
COMMANDS: dict[str, Any] = {
    "join": {"bootstrap": ADDRESS},
    "switch": {"stage": 2},
    "drain": {"timeout": 60},
    "leave": {},
    "pause": {},
    "resume": {},
}


class Control(Target):
    """A fake daemon behind the real server, on a loop that lasts."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory()
        self._home = Home(self._folder.name)
        self._daemon = FakeDaemon()
        self._server = contextlib.AsyncExitStack()
        self._loop.run_until_complete(self._server.enter_async_context(served(self._daemon, self._home)))

    def seeds(self) -> Iterator[Any]:
        yield from (["GET", f"/v1/{name}", {}, b""] for name in READS)
        yield from (["POST", f"/v1/{name}", {"Content-Type": "application/json"}, it] for name, it in COMMANDS.items())
        yield ["POST", "/v1/join", {"Accept": "application/x-ndjson"}, COMMANDS["join"]]
        yield ["POST", "/v1/drain", {"Transfer-Encoding": "chunked"}, b'e\r\n{"timeout": 1}\r\n0\r\n\r\n']
        yield b"GET /v1/status HTTP/1.1\r\nHost: swarmd\r\nConnection: close\r\n\r\n"

    def play(self, case: Any) -> None:
        request = _bytes(case)
        if request:
            self._loop.run_until_complete(self._play(request))
            self._daemon.joined.clear()
            self._daemon.told.clear()

    async def _play(self, request: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_unix_connection(os.fspath(self._home.control_socket))
            writer.write(request)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                _check(await reader.read())
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        for joined in self._daemon.joined:
            if not joined:
                raise Finding("a join to nowhere came through")

    def close(self) -> None:
        self._loop.run_until_complete(self._server.aclose())
        self._loop.close()
        self._folder.cleanup()


def _bytes(case: Any) -> bytes:
    """The request of a case; empty if there is none."""
    match case:
        case bytes():
            return case
        case [str(method), str(path), dict(headers), body]:
            try:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
            except (TypeError, ValueError, RecursionError):
                return b""
            if "Transfer-Encoding" not in headers:
                headers = {"Content-Length": len(content), **headers}
            lines = [f"{method} {path} HTTP/1.1", "Host: swarmd", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            return "\r\n".join(lines).encode(errors="surrogatepass") + b"\r\n\r\n" + content
    return b""


def _check(answer: bytes) -> None:
    """Raises Finding for an answer that says that the daemon failed, or an error of ours that is no sentence."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if status and status[0].startswith(b"5"):
        raise Finding(f"it answered {answer[:500]!r}")
    if status and status[0].startswith(b"4") and b"application/json" in head:
        sentence = json.loads(body)["error"]
        if not isinstance(sentence, str) or not sentence.strip():
            raise Finding(f"a refusal that says nothing: {answer[:500]!r}")


TARGET = Control
