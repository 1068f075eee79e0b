"""The control socket: HTTP with JSON on a unix socket in the home, for `swarmctl`, `curl --unix-socket` and Prometheus.

It shows what a `Daemon` says of itself and passes on the few commands there are. It relies on aiohttp on the running
loop and on the socket's mode (0600) for who may speak. It decides nothing about the swarm.
"""

import asyncio
import dataclasses
import json
import logging
import math
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

from swarmd.daemon.local import Home
from swarmd.daemon.metrics import METRICS_CONTENT_TYPE, render_metrics
from swarmd.errors import ConfigError, ControlError, SwarmError
from swarmd.status import HopRow, PeerRow, Status

BODY_LIMIT_BYTES = 64 << 10  # a command is one short JSON object
BODY_TIMEOUT_S = 10.0  # a client on the same machine sends its body at once or is broken
BACKLOG = 64  # clients waiting to be accepted; more are refused by the kernel
ADDRESS_LIMIT = 1_000  # characters; the longest multiaddr in use has about 200

log = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Daemon(Protocol):
    """What the control socket needs of the daemon."""

    def status(self) -> Status: ...

    def peers(self) -> list[PeerRow]: ...

    def queues(self) -> list[HopRow]: ...

    async def join(self, bootstrap: str) -> None:
        """Makes an idle daemon join the swarm at a multiaddr and remember it.

        Raises ConfigError (not an address), ControlError (wrong state), another SwarmError (nobody there, refused).
        """


class ControlServer:
    """Serves one daemon on its home's control socket from `start` to `stop`."""

    def __init__(self, daemon: Daemon, home: Home) -> None:
        self._daemon = daemon
        self._home = home
        application = web.Application(client_max_size=BODY_LIMIT_BYTES, middlewares=[_errors_as_json])
        application.add_routes([
            web.get("/v1/status", self._status),
            web.get("/v1/peers", self._peers),
            web.get("/v1/queues", self._queues),
            web.get("/v1/metrics", self._metrics),
            web.post("/v1/join", self._join),
        ])  # fmt: skip
        # Signals are the daemon's affair; an access log of a poll every second would drown everything else.
        self._runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=1.0)

    async def start(self) -> None:
        """Listens. A socket left by a dead daemon is replaced. Raises ConfigError when a live one answers on it."""
        self._home.prepare()
        self._home.clear_stale_socket()
        await self._runner.setup()
        await web.SockSite(self._runner, self._bind(), backlog=BACKLOG).start()

    def _bind(self) -> socket.socket:
        """A bound socket that appears at its path only once it listens and nobody but the owner may connect."""
        new = self._home.path / ".control.new"
        new.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(new))
            new.chmod(0o600)
            listener.listen(BACKLOG)
            new.replace(self._home.control_socket)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    async def stop(self) -> None:
        """Ends running requests, closes the socket and removes it."""
        await self._runner.cleanup()
        self._home.control_socket.unlink(missing_ok=True)

    async def _status(self, _request: web.Request) -> web.Response:
        return _json(dataclasses.asdict(self._daemon.status()))

    async def _peers(self, _request: web.Request) -> web.Response:
        return _json([dataclasses.asdict(row) for row in self._daemon.peers()])

    async def _queues(self, _request: web.Request) -> web.Response:
        return _json([dataclasses.asdict(row) for row in self._daemon.queues()])

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=render_metrics(self._daemon.status()), headers={"Content-Type": METRICS_CONTENT_TYPE})

    async def _join(self, request: web.Request) -> web.Response:
        await self._daemon.join(await _bootstrap_of(request))
        return _json({"joined": True})


async def _bootstrap_of(request: web.Request) -> str:
    """The address in a join's body. Raises ConfigError for every other body."""
    wanted = 'the body must be a JSON object like {"bootstrap": "/ip4/203.0.113.5/tcp/4001/p2p/<peer id>"}.'
    async with asyncio.timeout(BODY_TIMEOUT_S):
        raw = await request.read()
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(wanted) from error
    if not isinstance(body, dict) or set(body) != {"bootstrap"}:
        raise ConfigError(wanted)
    bootstrap = body["bootstrap"]
    if not isinstance(bootstrap, str) or not 0 < len(bootstrap) <= ADDRESS_LIMIT:
        raise ConfigError(wanted)
    return bootstrap


def _json(content: Any, status: int = 200) -> web.Response:
    return web.json_response(_finite(content), status=status)


def _finite(content: Any) -> Any:
    """The same with infinities and NaN as null: a loss may be one, and JSON has no word for them."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def _error(status: int, sentence: str) -> web.Response:
    return _json({"error": sentence}, status)


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Whatever goes wrong is answered with {"error": sentence} and costs the daemon nothing."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return _error(413, f"the body is larger than {BODY_LIMIT_BYTES} bytes.")
    except web.HTTPException as error:
        return _error(error.status, f"{request.method} {request.path} is not served here ({error.reason}).")
    except ConfigError as error:
        return _error(400, str(error))
    except ControlError as error:
        return _error(409, str(error))
    except SwarmError as error:
        return _error(409, str(error) or type(error).__name__)
    except TimeoutError:
        return _error(408, "it took too long; try again.")
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _error(500, "the daemon failed to answer; its swarmd.log says why.")
