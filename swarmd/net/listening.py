"""The addresses and port at which a daemon listens, alone.

The library's listeners share a port with any other of the same user, without a word (SO_REUSEPORT), so two daemons that
start at once could both have it. So a port is reserved first: by a lock of this user for the port, which is held for as
long as the daemon lives, then by a plain socket's look for other users and programs, then by a socket that is bound and
doesn't listen, until the library's does. The lock is a name in the network namespace, as the port is: no file that is
left behind, or that somebody could put there. Where a system has no such names (not Linux) the rest must do.
"""

import errno
import os
import socket
import sys
from collections.abc import Iterable, Sequence

from swarmd.errors import ConfigError
from swarmd.net.addresses import Address

DEFAULT_HOST, DEFAULT_PORT = "0.0.0.0", 4001  # libp2p's usual one
PORTS = 1000  # from the default one on are tried; a machine has no more daemons than that


class Reservation:
    """Addresses that nobody else of this user listens at, nor will, until `release`."""

    def __init__(self) -> None:
        self.addresses: tuple[Address, ...] = ()
        self._locks: dict[int, socket.socket] = {}  # by port
        self._places: list[socket.socket] = []

    def add(self, address: Address) -> str:
        """Takes one more, if it can be had. Returns why not, or nothing."""
        locked = address.port in self._locks
        if not (locked or self._lock(address.port)):
            return "another daemon of this user listens there"
        if problem := self._take(address):
            if not locked:
                self._locks.pop(address.port).close()
            return problem
        self.addresses = (*self.addresses, address)
        return ""

    def _take(self, address: Address) -> str:
        with _plain(address) as probe:
            if problem := _bound(probe, address):
                return problem
        if address.port:
            place = _plain(address)
            self._places.append(place)
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            return _bound(place, address)
        return ""

    def _lock(self, port: int) -> bool:
        """True if this user's lock of a port is this process's now. Any port (0) needs none."""
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._locks[port] = lock
        if not port or sys.platform != "linux":
            return True
        try:
            lock.bind(f"\0swarmd/{os.getuid()}/tcp/{port}")
        except OSError:
            self._locks.pop(port).close()
            return False
        return True

    def listening(self) -> None:
        """The listeners stand: nothing else needs to keep their places."""
        for place in self._places:
            place.close()
        self._places.clear()

    def release(self) -> None:
        """May be called again."""
        self.listening()
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()


def _plain(address: Address) -> socket.socket:
    """SO_REUSEADDR passes over the remains of connections of a daemon that just ended, not over a listener."""
    it = socket.socket(socket.AF_INET if address.family == "ip4" else socket.AF_INET6, socket.SOCK_STREAM)
    it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address.family == "ip6":
        it.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as the library's
    return it


def _bound(it: socket.socket, address: Address) -> str:
    """Binds a socket; returns why that can't be, or nothing."""
    try:
        it.bind((address.host, address.port))
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        return "the port is in use by another program" if in_use else str(error.strerror)
    return ""


def reserve(wanted: Sequence[Address], kept: int = 0) -> Reservation:
    """Reserves the addresses that the user wants to listen at; if there are none, all interfaces at the kept port, or
    at the first free one from the default one on. Raises ConfigError.
    """
    reservation = Reservation()
    try:
        if not wanted:
            _reserve_any(reservation, dict.fromkeys((*filter(None, (kept,)), *_usual())))
        for address in wanted:
            if problem := reservation.add(address):
                raise ConfigError(f"can't listen at {address}: {problem}; choose another with --listen")
    except BaseException:
        reservation.release()
        raise
    return reservation


def _usual() -> range:
    return range(DEFAULT_PORT, DEFAULT_PORT + PORTS)


def _reserve_any(reservation: Reservation, ports: Iterable[int]) -> None:
    problem = ""
    for port in ports:
        if not (problem := reservation.add(Address("ip4", DEFAULT_HOST, port, ""))):
            return
    ports = _usual()
    raise ConfigError(f"can't listen at any port from {ports[0]} to {ports[-1]}: {problem}; choose one with --listen")
