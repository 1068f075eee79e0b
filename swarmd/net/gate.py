"""The gate at which connections that others open are admitted or refused, as early as it can be told.

Runs on the Trio side, below `libp2p.py`: it stands in the listeners' sockets, before anything is made for a connection,
and again where the handshake has proved who is there. `accept_pace.py` decides. Each guard says what happens without
it.
"""

# ruff: noqa: SLF001  # guards reach into the library's insides

import contextlib
import errno
import socket as stdlib_socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio
from libp2p.transport.exceptions import SecurityUpgradeFailure

from swarmd.net.accept_pace import AcceptPace
from swarmd.values import PeerId

AT_A_STRETCH = 64  # connections that are refused before the loop goes on to something else
RESET = struct.pack("ii", 1, 0)  # as SO_LINGER: the other side learns it now, and nothing of it lingers here
GONE = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.EINTR)


class Gate:
    """The gate of one host."""

    def __init__(self, pace: AcceptPace, is_known: Callable[[PeerId], bool], now: Callable[[], float]) -> None:
        self._pace, self._is_known, self._now = pace, is_known, now
        self._admitted = set[trio.SocketStream]()  # until they are taken up
        self.refused = 0  # before their handshake, or after it

    def guard(self, swarm: Any) -> None:
        """Stands where a libp2p swarm takes a connection up: once it listens, its listeners are to be guarded, too."""
        swarm._handle_inbound_connection = partial(self._handle, swarm._handle_inbound_connection)
        swarm.upgrader.upgrade_security = partial(self._secure, swarm.upgrader.upgrade_security)

    def guard_listeners(self, swarm: Any) -> None:
        """The library makes a task and several objects of every connection, as fast as they come: a flood of them gets
        all of the loop's time.
        """
        for listener in swarm.listeners.values():
            for one in listener.listeners:
                one.accept = partial(self._accept, one.socket)

    async def _accept(self, listening: Any) -> trio.SocketStream:
        """The next connection that is admitted. Raises like a listener's own."""
        while True:
            try:
                taken, address = await listening.accept()
            except OSError as trouble:
                if trouble.errno in GONE:
                    continue
                if trouble.errno in (errno.EBADF, errno.ENOTSOCK):
                    raise trio.ClosedResourceError from None
                raise
            with contextlib.suppress(BlockingIOError, ConnectionError):
                for _ in range(AT_A_STRETCH):
                    if self._pace.admit(address[0], self._now()):
                        admitted = trio.SocketStream(taken)
                        self._admitted.add(admitted)
                        return admitted
                    self._refuse(taken)
                    plain, address = listening._sock.accept()
                    taken = trio.socket.from_stdlib_socket(plain)
                self._refuse(taken)

    def _refuse(self, taken: Any) -> None:
        self.refused += 1
        with contextlib.suppress(OSError):
            taken.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, RESET)
        taken.close()

    async def _handle(self, handle: Callable[..., Awaitable[None]], stream: Any, *args: Any) -> None:
        """Counts a connection by its address for as long as it is open. The first one at each listener has come by the
        library's way, which it waited at when the gate was made.
        """
        host = _host(stream)
        if stream.stream in self._admitted:
            self._admitted.remove(stream.stream)
        elif not self._pace.admit(host, self._now()):
            self._refuse(stream.stream.socket)
            return
        self._pace.opened(host)
        try:
            await handle(stream, *args)
        finally:
            self._pace.closed(host)

    async def _secure(self, secure: Callable[..., Awaitable[Any]], raw: Any, initiates: bool, *args: Any) -> Any:
        """The library makes streams of its own with everyone who shakes hands, and keeps what they say."""
        secured = await secure(raw, initiates, *args)
        if not initiates:
            peer = secured.get_remote_peer().to_base58()
            if not self._pace.admit_peer(peer, _host(raw), self._now(), known=self._is_known(peer)):
                self._refuse(_socket(raw))
                raise SecurityUpgradeFailure("refused")
        return secured


def _socket(raw: Any) -> Any:
    return raw.stream.stream.socket


def _host(stream: Any) -> str:
    address = stream.get_remote_address()
    return str(address[0]) if address else ""
