"""Peers of the network tests: whole ones, each on a thread with its own loop, and bare libp2p hosts that attack.

A Trio guest run takes a thread for itself, so peers of one test process are threads; their methods are awaited from
the test's loop.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import trio
import uvloop
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from multiaddr import Multiaddr

from swarmd.net.libp2p import Libp2pTransport
from swarmd.net.limits import TransportLimits
from swarmd.net.yamux import cut
from swarmd.values import Frame, Urgency

T = TypeVar("T")
PATIENCE_S = 20.0  # for what should take milliseconds, on a machine that is busy with other things


async def echo(peer: str, frame: Frame) -> Frame:
    return Frame("echo", frame.body, frame.buffers)


class Peer:
    """A transport on its own thread and loop."""

    transport: Libp2pTransport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.Thread(target=loop.run_forever)
        self._thread.start()
        self.gone: list[str] = []  # peers it was told are gone
        self.heard: list[tuple[str, Frame]] = []

    @classmethod
    async def start(
        cls,
        key: Path,
        listen: str = "/ip4/127.0.0.1/tcp/0",
        *,
        announce: Sequence[str] = (),
        limits: TransportLimits | None = None,
        on_uvloop: bool = False,
        incarnation: int | None = None,
    ) -> "Peer":
        peer = cls(uvloop.new_event_loop() if on_uvloop else asyncio.new_event_loop())
        try:
            peer.transport = await peer.do(
                Libp2pTransport.start(key, [listen], announce, limits, incarnation=incarnation)
            )
        except BaseException:
            await peer.end_loop()
            raise
        peer.transport.serve(echo)
        peer.transport.on_disconnected(peer.gone.append)
        return peer

    def do(self, work: Coroutine[Any, Any, T]) -> "asyncio.Future[T]":
        """Runs a coroutine on the peer's loop."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def now(self, call: Callable[..., T], *args: Any) -> T:
        """Runs a plain function on the peer's loop."""

        async def work() -> T:
            return call(*args)

        return await self.do(work())

    async def request(
        self, other: "Peer | str", frame: Frame, *, deadline_s: float | None = PATIENCE_S, urgency: Urgency = "control"
    ) -> Frame:
        peer = other if isinstance(other, str) else other.id
        return await self.do(self.transport.request(peer, frame, deadline_s=deadline_s, urgency=urgency))

    async def connect(self, other: "Peer") -> None:
        assert await self.do(self.transport.connect(other.address)) == other.id

    @property
    def id(self) -> str:
        return self.transport.peer_id

    @property
    def address(self) -> str:
        return self.transport.addresses()[0]

    def subscribe(self, topic: str) -> Awaitable[None]:
        return self.now(self.transport.subscribe, topic, lambda peer, frame: self.heard.append((peer, frame)))

    async def stop(self) -> None:
        """May be called again."""
        if not self._loop.is_closed():
            await self.do(self.transport.close())
            await self.end_loop()

    async def end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()


async def until(happened: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Waits for a condition that another thread brings about."""
    async with asyncio.timeout(patience_s):
        while not happened():  # another thread brings it about, and has no event to set
            await asyncio.sleep(0.005)


Attack = Callable[[Any, Any], Awaitable[T]]
"""Gets a bare host and its connection to the victim."""


async def attack(address: str, work: Attack[T], *, seed: bytes | None = None) -> T:
    """Runs an attack with a bare libp2p host on a Trio thread, connected to the victim."""
    target, _, peer = address.partition("/p2p/")

    async def main() -> T:
        async with bare_host(seed) as host:
            conn = await host.get_network().dial_addr(Multiaddr(target), ID.from_base58(peer))
            try:
                with trio.fail_after(PATIENCE_S):
                    return await work(host, conn)
            finally:
                cut(conn.muxed_conn, abort=True)

    return await asyncio.to_thread(trio.run, main)


@contextlib.asynccontextmanager
async def bare_host(seed: bytes | None = None) -> AsyncIterator[Any]:
    keys = create_new_key_pair(seed)
    noise = Transport(keys, noise_privkey=create_noise_key_pair().private_key)
    host: Any = new_host(key_pair=keys, sec_opt={PROTOCOL_ID: noise})
    async with host.run(listen_addrs=[]):
        yield host
        with trio.move_on_after(1):
            await host.close()


async def open_stream(host: Any, conn: Any, protocol: str) -> Any:
    stream = await conn.new_stream()
    await host.multiselect_client.select_one_of([protocol], MultiselectCommunicator(stream), 10)
    return stream
