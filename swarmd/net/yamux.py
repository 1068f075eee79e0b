"""Connections of libp2p that a peer can't freeze, crash or bloat: guards around its Yamux, and how one is cut.

Runs on the Trio side, below `libp2p.py`. Each guard says what happens without it.
"""

# ruff: noqa: BLE001  # what the library raises ends one stream or connection; guards reach into its insides

import contextlib
import logging
import os
import socket as stdlib_socket
import struct
from typing import Any

import libp2p.stream_muxer.muxer_multistream as muxer_multistream
import trio
from libp2p.stream_muxer.yamux.yamux import Yamux

from swarmd.net.limits import TransportLimits

NOTSENT_BYTES = 128 << 10  # unsent in the kernel: two chunks, so that a word waits behind no more

log = logging.getLogger(__name__)

os.environ.setdefault("PY_YAMUX_RELEASE_ON_READ", "0")  # fewer window frames: more throughput, less gossip CPU


class SafeYamux(Yamux):
    """Yamux that a peer can't freeze, crash or bloat."""

    limits = TransportLimits()
    _reader: trio.lowlevel.Task | None = None
    _replies = 0

    async def start(self) -> None:
        """An exception of any of its tasks would end the host; it ends the connection."""
        try:
            await super().start()
        except Exception as error:
            log.debug("connection to %s ended with %r", self.peer_id, error)
            cut(self, abort=True)

    async def handle_incoming(self) -> None:
        self._reader = trio.lowlevel.current_task()
        await super().handle_incoming()

    async def _read_data_body(self, length: int) -> bytes:
        """Enforces the receive window, which Yamux doesn't: a cheating sender would fill the memory."""
        if length + sum(map(len, self.stream_buffers.values())) > self.limits.buffered_per_connection:
            log.warning("%s sends more than its window allows", self.peer_id)
            cut(self, abort=True)
            return b""
        return await super()._read_data_body(length)

    async def _write_frame(self, data: bytes) -> None:
        """The reading task must not wait for a writer: both directions full, nobody would read any more, for good."""
        if trio.lowlevel.current_task() is not self._reader or self._nursery is None:
            await self._write_whole(data)
        elif self._replies < self.limits.pending_replies:
            self._replies += 1
            self._nursery.start_soon(self._write_later, data)
        else:
            cut(self, abort=True)  # a flood of pings whose answers nobody reads

    async def _write_later(self, data: bytes) -> None:
        try:
            await self._write_whole(data)
        except Exception as error:  # the reader notices a broken connection by itself
            log.debug("a reply to %s was not sent: %r", self.peer_id, error)
        finally:
            self._replies -= 1

    async def _write_whole(self, data: bytes) -> None:
        """Waiting for the turn may be cancelled, sending may not: half a frame breaks the encryption."""
        async with self._write_lock:
            with trio.CancelScope(shield=True):
                await self.secured_conn.write(data)


setattr(muxer_multistream, "Yamux", SafeYamux)  # noqa: B010  # hard-coded there; the muxer option is ignored


def cut(muxed: Any, *, abort: bool) -> None:
    """Closes the raw socket. A polite close writes first, and hangs forever when the peer has stopped."""
    for conn in muxed.swarm.get_connections(muxed.peer_id):
        if conn.muxed_conn is muxed:
            muxed.swarm.remove_conn(conn)  # now, not when the library notices: it must open no more streams there
    muxed.event_closed.set()
    stream = socket_of(muxed)
    if stream is None:
        trio.lowlevel.spawn_system_task(muxed.secured_conn.close)
        return
    if abort:
        with contextlib.suppress(OSError):
            stream.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def send_little_ahead(muxed: Any) -> None:
    """Bounds what waits in the kernel to be sent; without it an urgent word waits behind megabytes."""
    with contextlib.suppress(OSError, AttributeError):  # gone already, or a system without the option
        socket_of(muxed).setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)


def socket_of(muxed: Any) -> Any:
    """Its trio.SocketStream, or None where the library's layers are not as we know them."""
    with contextlib.suppress(AttributeError):
        return muxed.secured_conn.conn.read_writer.read_write_closer.stream.stream
    return None
