"""An in-memory network behind the Transport port: delays, bandwidth, machines that die.

Deterministic in virtual time. A frame takes the link's delay plus its bytes over the bandwidth; a dead peer breaks
its connections, and whatever was asked of it fails at once, as with a killed process on a real network.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarmd.errors import ConfigError, PeerFault, PeerUnreachable, Refused
from swarmd.swarm.ports import Handler, Listener
from swarmd.values import Frame, PeerId, Urgency

HEADER_BYTES = 200  # of a frame besides its buffers


@dataclass(frozen=True)
class Link:
    """What lies between any two peers."""

    delay_s: float = 0.002  # one way
    bytes_per_second: float = 100e6


class SimNetwork:
    """All transports of a world."""

    def __init__(self, link: Link | None = None) -> None:
        self.link = link or Link()
        self.transports: dict[PeerId, SimTransport] = {}
        self._connections: set[frozenset[PeerId]] = set()

    def transport(self, peer: PeerId) -> "SimTransport":
        """A new machine on the network."""
        self.transports[peer] = SimTransport(self, peer)
        return self.transports[peer]

    async def carry(self, frame: Frame) -> None:
        """Takes as long as the frame is on its way."""
        await asyncio.sleep(self.link.delay_s + (HEADER_BYTES + frame.nbytes) / self.link.bytes_per_second)

    def kill(self, peer: PeerId) -> None:
        """The machine is gone; its neighbours' connections break."""
        dead = self.transports.pop(peer)
        dead.alive = False
        for pair in sorted(self._connections, key=sorted):
            if peer in pair:
                self._connections.discard(pair)
                (other,) = pair - {peer}
                self.transports[other].broken(peer)
        dead.end()

    def join(self, one: PeerId, other: PeerId) -> None:
        self._connections.add(frozenset((one, other)))

    def are_connected(self, one: PeerId, other: PeerId) -> bool:
        return frozenset((one, other)) in self._connections

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Both sides lose the connection."""
        if self.are_connected(one, other):
            self._connections.discard(frozenset((one, other)))
            self.transports[one].broken(other)
            self.transports[other].broken(one)


class SimTransport:
    """One machine's access to the network."""

    def __init__(self, network: SimNetwork, peer: PeerId) -> None:
        self._network, self._peer = network, peer
        self.alive = True
        self._handler: Handler | None = None
        self._known: set[PeerId] = set()
        self.listeners: dict[str, Listener] = {}
        self._callbacks: list[Callable[[PeerId], None]] = []
        self._asked: dict[PeerId, set[asyncio.Task[Frame]]] = {}  # questions out to a peer
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent = self.received = 0  # bytes

    @property
    def peer_id(self) -> PeerId:
        return self._peer

    def addresses(self) -> tuple[str, ...]:
        return (f"/sim/{self._peer}",)

    def traffic(self) -> tuple[int, int]:
        return self.sent, self.received

    def serve(self, handler: Handler) -> None:
        self._handler = handler

    async def request(
        self, peer: PeerId, frame: Frame, *, deadline_s: float | None = None, urgency: Urgency = "control"
    ) -> Frame:
        self._dial(peer)
        question = asyncio.create_task(self._question(peer, frame))
        question.add_done_callback(lambda done: done.cancelled() or done.exception())  # who asked may be gone
        self._asked.setdefault(peer, set()).add(question)
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.wait({question})
            if question.cancelled():  # by `broken`; our own cancellation ends the wait
                raise PeerUnreachable(f"{peer} is gone")
            return question.result()
        finally:
            question.cancel()
            self._asked[peer].discard(question)

    def _dial(self, peer: PeerId) -> None:
        assert peer != self._peer, "nobody dials itself"
        if not self.alive or peer not in self._network.transports:
            raise PeerUnreachable(f"{peer} can't be reached")
        if peer not in self._known and not self._network.are_connected(self._peer, peer):
            raise PeerUnreachable(f"no address of {peer} is known")
        self._network.join(self._peer, peer)

    async def _question(self, peer: PeerId, frame: Frame) -> Frame:
        self.sent += frame.nbytes
        await self._network.carry(frame)
        other = self._network.transports[peer]
        other.received += frame.nbytes
        answer = await other.answer(self._peer, frame)
        other.sent += answer.nbytes
        await self._network.carry(answer)
        self.received += answer.nbytes
        return answer

    async def answer(self, peer: PeerId, frame: Frame) -> Frame:
        """Has the peer's handler answer, in a task of this machine. Raises Refused, PeerUnreachable."""
        assert self._handler is not None
        try:
            return await self._handler(peer, frame)
        except PeerFault as fault:
            self._network.cut(self._peer, peer)
            raise PeerUnreachable(f"cut off: {fault}") from None
        except (Refused, asyncio.CancelledError):
            raise

    def broken(self, peer: PeerId) -> None:
        """The connection to a peer is gone: what was asked of it fails."""
        for question in list(self._asked.get(peer, ())):
            question.cancel()
        for callback in self._callbacks:
            callback(peer)

    def end(self) -> None:
        """This machine is dead: its own questions end, too."""
        for questions in self._asked.values():
            for question in questions:
                question.cancel()

    async def connect(self, address: str) -> PeerId:
        prefix, _, peer = address.rpartition("/")
        if prefix != "/sim":
            raise ConfigError(f"{address} is no address of a simulated peer")
        self._known.add(peer)
        self._dial(peer)
        return peer

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        if peer != self._peer:
            self._known.add(peer)

    def connected(self) -> tuple[PeerId, ...]:
        network = self._network
        return tuple(peer for peer in network.transports if network.are_connected(self._peer, peer))

    def on_disconnected(self, callback: Callable[[PeerId], None]) -> None:
        self._callbacks.append(callback)

    async def drop(self, peer: PeerId) -> None:
        self._network.cut(self._peer, peer)

    def subscribe(self, topic: str, listener: Listener) -> None:
        self.listeners[topic] = listener

    def unsubscribe(self, topic: str) -> None:
        self.listeners.pop(topic, None)

    async def publish(self, topic: str, frame: Frame) -> None:
        for peer in self.connected():
            task = asyncio.create_task(self._gossip(peer, topic, frame))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _gossip(self, peer: PeerId, topic: str, frame: Frame) -> None:
        await self._network.carry(frame)
        other = self._network.transports.get(peer)
        if other is not None and topic in other.listeners:
            other.listeners[topic](self._peer, frame)
