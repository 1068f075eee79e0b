"""The metrics on an HTTP port, for Prometheus: `swarmd start --metrics HOST:PORT`. Nothing can be changed there.

Whoever reaches the port may speak, so a request has a bound in bytes and in seconds, is answered once, and few are
served at a time. Relies on asyncio's streams alone: a server that keeps connections open for strangers could take this
daemon's file descriptors.
"""

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable

from swarmd.daemon.logs import NOTICE
from swarmd.daemon.metrics import METRICS_CONTENT_TYPE, render_metrics
from swarmd.errors import ConfigError
from swarmd.status import Status

PATHS = ("/metrics", "/v1/metrics")  # where Prometheus looks by itself, and where the control socket has it
HEAD_LIMIT_BYTES = 16 << 10  # of a request; Prometheus sends some 300
REQUEST_SECONDS = 5.0  # for a request to come and its answer to go
CONNECTIONS_LIMIT = 16  # at a time; further ones are closed at once

log = logging.getLogger(__name__)


class MetricsServer:
    """Serves the metrics of one daemon from `start` to `stop`."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listens, and says so. Returns the port, which the system chooses if `port` is 0. Raises ConfigError."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=HEAD_LIMIT_BYTES)
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                f"can't serve metrics at {_shown(host, port)} ({_why(error)}); give another --metrics."
            ) from error
        bound = [it.getsockname() for it in self._server.sockets]
        port = bound[0][1]
        if all(ipaddress.ip_address(name[0].partition("%")[0]).is_loopback for name in bound):
            log.log(NOTICE, "metrics at http://%s/metrics", _shown(host, port))
        else:
            log.warning(
                "metrics at http://%s/metrics: whoever reaches that can read this daemon's peer id, run, device, state "
                "and figures, and change nothing",
                _shown(host, port),
            )
        return int(port)

    async def stop(self) -> None:
        """Closes the port and all connections."""
        if self._server is None:
            return
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._serving) >= CONNECTIONS_LIMIT:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="metrics")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request. A connection that is slow or breaks is closed."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            log.debug("a request for metrics came to nothing")
        finally:
            with contextlib.suppress(OSError):
                writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if path not in PATHS:
            return _response("404 Not Found", "text/plain", b"the metrics are at /metrics\n")
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"this is only to be read\n", "Allow: GET, HEAD")
        answer = _response("200 OK", METRICS_CONTENT_TYPE, render_metrics(self._status()))
        return answer if method == "GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _response(status: str, kind: str, body: bytes, *more: str) -> bytes:
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", *more)
    return "\r\n".join((*lines, "", "")).encode() + body


def _why(error: Exception) -> str:
    """The system's word for what went wrong, without that of the event loop before it."""
    return str(getattr(error, "strerror", None) or error).rpartition(": ")[2].lower()


def _shown(host: str, port: int) -> str:
    """A host and a port as they stand in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
