"""The control socket: HTTP with JSON on a unix socket in the home, for `swarmctl`, `curl --unix-socket` and Prometheus.

It shows what is `Reported` of a daemon and passes on the few commands there are. It relies on aiohttp on the running
loop and on the socket's mode (0600) for who may speak. It decides nothing about the swarm.
"""

import asyncio
import dataclasses
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from aiohttp import web

from swarmd.daemon.bodies import Body, error_answer, json_answer, json_line, read_body
from swarmd.daemon.home import Home
from swarmd.daemon.metrics import METRICS_CONTENT_TYPE, render_metrics
from swarmd.errors import ConfigError, ControlError, SwarmError
from swarmd.files import PRIVATE_MODE
from swarmd.status import HopRow, PeerRow, Status
from swarmd.swarm.peer.drain import Drained

BODY_LIMIT_BYTES = 64 << 10  # a command is one short JSON object
BACKLOG = 64  # clients waiting to be accepted; more are refused by the kernel
PROGRESS_SECONDS = 0.5  # between two words on how far a command is
DRAIN_LIMIT_S = 86_400.0  # nobody waits longer than a day for a goodbye
LINES = "application/x-ndjson"  # of an answer that comes line by line
ADDRESS_LIMIT = 1_000  # characters; the longest multiaddr in use has about 200

log = logging.getLogger(__name__)

_JOIN = Body({"bootstrap": (str,)}, '{"bootstrap": "/ip4/203.0.113.5/tcp/4001/p2p/<peer id>"}')
_SWITCH = Body({"stage": (int,)}, '{"stage": 2}')
_DRAIN = Body({"timeout": (int, float)}, '{"timeout": 60}, or empty', empty=True)
_NOTHING = Body({}, "{}, or empty", empty=True)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Reported(Protocol):
    """A daemon as it is shown."""

    def status(self) -> Status: ...

    def peers(self) -> list[PeerRow]: ...

    def queues(self) -> list[HopRow]: ...


class Commanded(Protocol):
    """A daemon as it is commanded."""

    async def switch(self, stage: int) -> None:
        """Goes to another stage; returns when it serves there. Raises ControlError, Refused."""

    async def drain(self, why: str, bound_s: float | None = None) -> Drained:
        """Ends its work within a bound (None: its own), and then itself."""

    async def leave(self) -> None:
        """Says goodbye at once, and ends."""

    async def pause(self) -> None:
        """Takes no more hops. Raises ControlError, Refused."""

    async def resume(self) -> None:
        """Takes hops again. Raises ControlError, Refused."""

    async def join(self, bootstrap: str) -> None:
        """Makes an idle daemon join the swarm at a multiaddr and remember it.

        Raises ConfigError (not an address), ControlError (wrong state), another SwarmError (nobody there, refused).
        """


class ControlServer:
    """Serves one daemon on its home's control socket from `start` to `stop`."""

    def __init__(self, report: Reported, daemon: Commanded, home: Home) -> None:
        self._report, self._daemon = report, daemon
        self._home = home
        self._commands: set[asyncio.Task[Any]] = set()  # those under way that take a while
        application = web.Application(client_max_size=BODY_LIMIT_BYTES, middlewares=[_errors_as_json])
        application.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/peers", self._peers),
                web.get("/v1/queues", self._queues),
                web.get("/v1/metrics", self._metrics),
                web.post("/v1/join", self._join),
                web.post("/v1/switch", self._switch),
                web.post("/v1/drain", self._drain),
                web.post("/v1/leave", self._leave),
                web.post("/v1/pause", self._pause),
                web.post("/v1/resume", self._resume),
            ]
        )
        # Signals are the daemon's affair; an access log of a poll every second would drown everything else.
        self._runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=1.0)

    async def start(self) -> None:
        """Listens. A socket left by a dead daemon is replaced. Raises ConfigError when a live one answers on it."""
        self._home.prepare()
        self._home.clear_stale_socket()
        await self._runner.setup()
        try:
            listener = self._bind()
        except OSError as error:
            path = self._home.control_socket
            raise ConfigError(f"can't make the socket {path} ({error.strerror}); free or change --home.") from error
        await web.SockSite(self._runner, listener, backlog=BACKLOG).start()

    def _bind(self) -> socket.socket:
        """A bound socket that appears at its path only once it listens and nobody but the owner may connect. Raises
        ConfigError.
        """
        new = self._home.path / ".control.new"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            new.unlink(missing_ok=True)
            os.fchmod(listener.fileno(), PRIVATE_MODE)  # Linux makes the name with it, so that it never has another
            listener.bind(os.fspath(new))
            if stat.S_IMODE(new.lstat().st_mode) != PRIVATE_MODE:  # elsewhere, or where a umask took more
                new.chmod(PRIVATE_MODE)
            listener.listen(BACKLOG)
            new.replace(self._home.control_socket)
        except OSError as error:
            listener.close()
            raise ConfigError(
                f"can't make the socket {self._home.control_socket} ({error.strerror}); choose another --home."
            ) from error
        listener.setblocking(False)
        return listener

    async def stop(self) -> None:
        """Ends running requests, closes the socket and removes it."""
        await self._runner.cleanup()
        for task in list(self._commands):
            task.cancel()
        await asyncio.gather(*self._commands, return_exceptions=True)
        self._home.control_socket.unlink(missing_ok=True)

    async def _status(self, _request: web.Request) -> web.Response:
        return json_answer(dataclasses.asdict(self._report.status()))

    async def _peers(self, _request: web.Request) -> web.Response:
        return json_answer([dataclasses.asdict(row) for row in self._report.peers()])

    async def _queues(self, _request: web.Request) -> web.Response:
        return json_answer([dataclasses.asdict(row) for row in self._report.queues()])

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=render_metrics(self._report.status()), headers={"Content-Type": METRICS_CONTENT_TYPE})

    async def _join(self, request: web.Request) -> web.StreamResponse:
        bootstrap = (await read_body(request, _JOIN))["bootstrap"]
        if not 0 < len(bootstrap) <= ADDRESS_LIMIT:
            raise ConfigError(_JOIN.wanted())

        async def join() -> dict[str, Any]:
            await self._daemon.join(bootstrap)
            return {"joined": True}

        if LINES in request.headers.get("Accept", ""):
            return await self._with_progress(request, join())
        return json_answer(await join())

    async def _switch(self, request: web.Request) -> web.StreamResponse:
        stage = (await read_body(request, _SWITCH))["stage"]

        async def switch() -> dict[str, Any]:
            await self._daemon.switch(stage)
            return {"switched": True, "stage": stage}

        return await self._with_progress(request, switch())

    async def _drain(self, request: web.Request) -> web.StreamResponse:
        bound = (await read_body(request, _DRAIN)).get("timeout")
        if bound is not None and not 0 < bound <= DRAIN_LIMIT_S:
            raise ConfigError(f"timeout is {bound}, but must be over 0 and at most {DRAIN_LIMIT_S:.0f} seconds.")

        async def drain() -> dict[str, Any]:
            return {"drained": True, **dataclasses.asdict(await self._daemon.drain("as told", bound))}

        return await self._with_progress(request, drain())

    async def _leave(self, request: web.Request) -> web.Response:
        await read_body(request, _NOTHING)
        await self._daemon.leave()
        return json_answer({"left": True})

    async def _pause(self, request: web.Request) -> web.Response:
        await read_body(request, _NOTHING)
        await self._daemon.pause()
        return json_answer({"paused": True})

    async def _resume(self, request: web.Request) -> web.Response:
        await read_body(request, _NOTHING)
        await self._daemon.resume()
        return json_answer({"paused": False})

    async def _with_progress(self, request: web.Request, work: Coroutine[Any, Any, Any]) -> web.StreamResponse:
        """Answers with what `work` returns. If that takes a while the answer comes as lines of JSON: how far it is,
        again and again, and last {"result": ...} or {"error": sentence}. It goes on if nobody listens any more.
        """
        task = asyncio.create_task(work, name=f"{request.path} of the control socket")
        self._commands.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=PROGRESS_SECONDS)
        if done:
            return json_answer(task.result())
        answer = web.StreamResponse(headers={"Content-Type": LINES})
        await answer.prepare(request)
        while not done:
            await answer.write(json_line(self._progress()))
            done, _ = await asyncio.wait({task}, timeout=PROGRESS_SECONDS)
        try:
            last = {"result": task.result()}
        except SwarmError as trouble:
            last = {"error": str(trouble) or type(trouble).__name__}
        await answer.write(json_line(last))
        return answer

    def _progress(self) -> dict[str, Any]:
        status = self._report.status()
        return {"progress": status.doing, "done": status.state_bytes, "total": status.state_bytes_total}

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._commands.discard(task)
        if not task.cancelled():
            task.exception()  # marked as retrieved: the client gets it from the task, if it still listens


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Answers a failure with {"error": sentence}; it costs the daemon nothing."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return error_answer(413, f"the body is larger than {BODY_LIMIT_BYTES} bytes.")
    except web.HTTPException as error:
        return error_answer(error.status, f"{request.method} {request.path} is not served here ({error.reason}).")
    except ConfigError as error:
        return error_answer(400, str(error))
    except ControlError as error:
        return error_answer(409, str(error))
    except SwarmError as error:
        return error_answer(409, str(error) or type(error).__name__)
    except TimeoutError:
        return error_answer(408, "it took too long; try again.")
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return error_answer(500, "the daemon failed to answer; its swarmd.log says why.")
