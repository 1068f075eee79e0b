"""Talks to a daemon over its control socket and turns every trouble into one sentence.

Relies on the standard library's HTTP client (httpx would import trio and more, 0.35 s before the first byte)
and on the JSON of `swarmd.status`. A daemon that can't be reached becomes a ControlError with the command to run.
Knows nothing of how answers are shown.
"""

import dataclasses
import http.client
import json
import os
import shlex
import socket
import threading
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from swarmctl.homes import default_home, hint
from swarmd.errors import ControlError
from swarmd.status import HopRow, PeerRow, Status

SLOW_ANSWER_S = 2.0  # after which a person is told that the answer isn't there yet
ANSWER_TIMEOUT_S = 10.0  # a healthy daemon answers within milliseconds
JOIN_TIMEOUT_S = 120.0  # a join dials, fetches the run's settings and proves its fingerprint
ANSWER_LIMIT_BYTES = 64 << 20  # far over the longest list of peers; a wrong socket must not fill memory

LINE_LIMIT_BYTES = 64 << 10  # of one word on how far a command is
LINES = "application/x-ndjson"  # of an answer that comes line by line

Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a command."""

    doing: str  # one sentence
    done: int  # bytes, while some are fetched
    total: int  # 0: none are


Told = Callable[[Progress], None]


def _silent(_progress: Progress) -> None:
    """Ignores progress, for commands that take no time."""


def _nothing(_sentence: str) -> None:
    """Tells nobody."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("swarmd", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(os.fspath(self._path))
        except OSError as error:
            raise _Unreachable(error) from error


class _Unreachable(Exception):
    """Nobody accepted the connection."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class Client:
    """One daemon's control socket. A request is a connection of its own, so there is nothing to close."""

    def __init__(
        self, home: Path, *, timeout_s: float = ANSWER_TIMEOUT_S, patience: Callable[[str], None] | None = None
    ) -> None:
        self.home = home.expanduser().absolute()
        self._timeout_s = timeout_s
        self._patience = patience  # hears, in a thread of its own, that the daemon takes long to answer

    def status(self) -> dict[str, Any]:
        """The daemon's status as the JSON object it sent."""
        status: dict[str, Any] = _expect(self._ask("GET", "/v1/status"), dict)
        return status

    def peers(self) -> list[dict[str, Any]]:
        """The peers it knows, as it sent them."""
        return _expect_rows(self._ask("GET", "/v1/peers"))

    def queues(self) -> list[dict[str, Any]]:
        """The microbatches it holds, as it sent them."""
        return _expect_rows(self._ask("GET", "/v1/queues"))

    def join(self, bootstrap: str, told: Told) -> dict[str, Any]:
        """Makes an idle daemon join a swarm."""
        try:
            answer = self._ask("POST", "/v1/join", {"bootstrap": bootstrap}, JOIN_TIMEOUT_S, told)
        except NoDaemon as error:
            raise ControlError(
                f"no daemon runs at {self.home}; start one that joins with "
                f"`swarmd start --bootstrap {shlex.quote(bootstrap)}{self._home_option()}`."
            ) from error
        joined: dict[str, Any] = _expect(answer, dict)
        return joined

    def switch(self, stage: int, told: Told) -> dict[str, Any]:
        """Has the daemon go to another stage; returns when it serves there."""
        return self._command("/v1/switch", {"stage": stage}, told)

    def drain(self, bound_s: float | None, told: Told) -> dict[str, Any]:
        """Has the daemon end its work, and itself."""
        return self._command("/v1/drain", {} if bound_s is None else {"timeout": bound_s}, told)

    def leave(self) -> dict[str, Any]:
        """Has the daemon end at once, with a goodbye."""
        return self._command("/v1/leave", {}, _silent)

    def pause(self) -> dict[str, Any]:
        """Has the daemon take no more microbatches."""
        return self._command("/v1/pause", {}, _silent)

    def resume(self) -> dict[str, Any]:
        """Has the daemon take microbatches again."""
        return self._command("/v1/resume", {}, _silent)

    def _command(self, path: str, body: Any, told: Told) -> dict[str, Any]:
        """Has the daemon do something, and hears how far it is: `told` gets every word of that."""
        answer: dict[str, Any] = _expect(self._ask("POST", path, body, told=told), dict)
        return answer

    def _ask(
        self, method: str, path: str, body: Any = None, timeout_s: float | None = None, told: Told | None = None
    ) -> Any:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            status, content = self._exchange(method, path, body, timeout_s, told or _silent)
        except _Unreachable as error:
            raise self._unreachable(error.error) from error
        except TimeoutError as error:
            raise ControlError(
                f"the daemon at {self.home} did not answer within {timeout_s:.0f} s; its swarmd.log may say why."
            ) from error
        except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ControlError(f"the daemon at {self.home} broke off while answering; try again.") from error
        if status == http.client.OK:
            return content
        sentence = content.get("error") if isinstance(content, dict) else None
        raise ControlError(str(sentence or f"the daemon at {self.home} answered with status {status}."))

    def _exchange(self, method: str, path: str, body: Any, timeout_s: float, told: Told) -> tuple[int, Any]:
        connection = _UnixConnection(self.home / "control.sock", timeout_s)
        slow = f"the daemon at {self.home} takes its time to answer; it has {timeout_s:.0f} s in all."
        timer = threading.Timer(SLOW_ANSWER_S, self._patience or _nothing, [slow])
        timer.daemon = True
        timer.start()
        try:
            payload = None if body is None else json.dumps(body)
            headers = {
                "Content-Type": "application/json",
                "Accept": f"application/json, {LINES}",
                "Connection": "close",
            }
            connection.request(method, path, payload, headers)
            answer = connection.getresponse()
            timer.cancel()
            if answer.headers.get_content_type() == LINES:
                return _read_lines(answer, told)
            return answer.status, json.loads(answer.read(ANSWER_LIMIT_BYTES))
        finally:
            timer.cancel()
            connection.close()

    def _unreachable(self, error: OSError) -> ControlError:
        if isinstance(error, PermissionError):
            return ControlError(f"the daemon at {self.home} belongs to another user; run swarmctl as that user.")
        if isinstance(error, TimeoutError):
            return ControlError(f"the daemon at {self.home} does not take connections; its swarmd.log may say why.")
        return NoDaemon(
            f"no daemon runs at {self.home}; start one with `swarmd start --model NAME{self._home_option()}` "
            f"or name its directory with --home.{hint()}"
        )

    def _home_option(self) -> str:
        return "" if self.home == default_home().absolute() else f" --home {shlex.quote(os.fspath(self.home))}"


def _read_lines(answer: http.client.HTTPResponse, told: Told) -> tuple[int, Any]:
    """An answer that comes line by line: words on how far it is, and last the result or an error."""
    while line := answer.readline(LINE_LIMIT_BYTES):
        content = json.loads(line)
        if "result" in content:
            return http.client.OK, content["result"]
        if "error" in content:
            return http.client.CONFLICT, content
        told(Progress(str(content["progress"]), int(content["done"]), int(content["total"])))
    raise http.client.IncompleteRead(b"")


class NoDaemon(ControlError):
    """Nobody listens on the control socket."""


def parse_status(content: dict[str, Any]) -> Status:
    """A Status from its JSON. Raises ControlError when the daemon speaks another version."""
    return _parse(Status, content)


def parse_peers(content: list[dict[str, Any]]) -> list[PeerRow]:
    """Peer rows from their JSON."""
    return [_parse(PeerRow, row) for row in content]


def parse_queues(content: list[dict[str, Any]]) -> list[HopRow]:
    """Hop rows from their JSON."""
    return [_parse(HopRow, row) for row in content]


def _parse(kind: type[Row], content: Any) -> Row:
    """A dataclass from a JSON object; unknown fields are skipped, so that a newer daemon can be looked at."""
    if not isinstance(content, dict):
        raise _other_version()
    assert dataclasses.is_dataclass(kind)
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)} & set(content)
    values = {name: _value(hints[name], content[name]) for name in known}
    try:
        return typing.cast("Row", kind(**values))
    except TypeError as error:  # a field without a default is missing
        raise _other_version() from error


def _value(hint: Any, value: Any) -> Any:
    """A field's value, checked as far as printing relies on it."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _parse(hint, value)
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return None if value is None else _value(typing.get_args(hint)[0], value)
    if origin is tuple and isinstance(value, list):
        kind: type = typing.get_args(hint)[0]
        return tuple(_value(kind, row) for row in value)
    plain = origin if isinstance(origin, type) else str if origin is typing.Literal else hint
    accepted = (int, float) if plain is float else plain
    if not isinstance(value, accepted):
        raise _other_version()
    return value


def _expect(content: Any, kind: type) -> Any:
    if not isinstance(content, kind):
        raise _other_version()
    return content


def _expect_rows(content: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = _expect(content, list)
    return [_expect(row, dict) for row in rows]


def _other_version() -> ControlError:
    return ControlError("the daemon speaks another version of the control protocol; install the same swarmd for both.")
