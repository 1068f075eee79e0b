"""The muxer below the streams, as bytes come out of the encryption of one connection.

A case is [bytes per read, [frame]]: a frame is bytes, or [version, type, flags, stream, length, body].
"""

import struct
from collections.abc import Iterator
from typing import Any, cast

import trio
import trio.testing
from libp2p.peer.id import ID

from swarmd.net.limits import TransportLimits
from swarmd.net.yamux import SafeYamux, send_little_ahead
from tests.fuzz.parts import reads
from tests.fuzz.target import Finding, Target

HEAD = struct.Struct("!BBHII")
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
LIMITS = TransportLimits(buffered_per_connection=1 << 16, pending_replies=4)
HELD_BYTES = 1 << 12  # of a connection's bookkeeping beyond what may be buffered
PEER = ID(b"\x00\x24\x08\x01\x12\x20" + bytes(32))
VIRTUAL_SECONDS = 600.0  # that a connection may last: the library's own timeouts are shorter


class Encrypted:
    """The connection below: gives what the case has, takes what is answered."""

    is_initiator = False

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size, self._at = data, size, 0
        self.answered = 0

    async def read(self, n: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        stop = self._at + min(self._size, n or self._size)
        piece, self._at = self._data[self._at : stop], min(stop, len(self._data))
        return piece

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.answered += len(data)

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()


class Nobody:
    """The library's network, which knows no other connections."""

    def get_connections(self, peer: ID) -> list[Any]:
        return []


class Muxer(Target):
    """A connection for each case, in virtual time."""

    def seeds(self) -> Iterator[Any]:
        opened = [0, DATA, SYN, 1, 5, b"hello"]
        yield [1000, [opened, [0, DATA, 0, 1, 3, b"you"], [0, DATA, FIN, 1, 0, b""]]]
        yield [3, [opened, [0, WINDOW, 0, 1, 1 << 18, b""], [0, DATA, RST, 1, 0, b""]]]
        yield [1000, [[0, WINDOW, SYN, 1, 0, b""], [0, PING, SYN, 0, 7, b""], [0, PING, ACK, 0, 7, b""]]]
        yield [1000, [[0, PING, SYN, 0, number, b""] for number in range(8)]]
        yield [1000, [opened, [0, DATA, 0, 1, 1 << 17, bytes(1 << 12)], [0, GO_AWAY, 0, 0, 0, b""]]]
        yield [1000, [opened, opened, [0, DATA, 0, 99, 3, b"you"], [9, 9, 9, 9, 9, b""]]]

    def play(self, case: Any) -> None:
        match case:
            case [int(size), list(frames)]:
                data = b"".join(map(_bytes, frames))
                trio.run(_play, data, reads(data, size), clock=trio.testing.MockClock(autojump_threshold=0))


async def _play(data: bytes, size: int) -> None:
    muxer = SafeYamux(cast("Any", Encrypted(data, size)), PEER, is_initiator=False)
    muxer.limits = LIMITS
    setattr(muxer, "swarm", Nobody())  # noqa: B010  # set there by the library
    send_little_ahead(muxer)
    with trio.fail_after(VIRTUAL_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept, muxer, nursery)
            await muxer.start()
            held = sum(map(len, muxer.stream_buffers.values()))
            nursery.cancel_scope.cancel()
    if held > LIMITS.buffered_per_connection + HELD_BYTES:
        raise Finding(f"it holds {held} bytes")


async def _accept(muxer: SafeYamux, nursery: trio.Nursery) -> None:
    try:
        while True:
            nursery.start_soon(_read, await muxer.accept_stream())
    except Exception:  # noqa: BLE001
        return  # the connection is over, whichever way the library says it


async def _read(stream: Any) -> None:
    try:
        while await stream.read(100):
            await stream.write(b"answer")
    except Exception:  # noqa: BLE001
        return  # the stream is over


def _bytes(frame: Any) -> bytes:
    match frame:
        case bytes():
            return frame
        case [int(version), int(kind), int(flags), int(stream), int(length), bytes(body)]:
            head = HEAD.pack(version & 0xFF, kind & 0xFF, flags & 0xFFFF, stream & 0xFFFFFFFF, length & 0xFFFFFFFF)
            return head + body
    return b""


TARGET = Muxer
