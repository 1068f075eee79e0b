"""One simulated machine's access to the network: the Transport port.

Keeps the port's promises as `swarmd/net` does: requests and answers travel on connections (`connection.py`); a fault
costs a peer all its connections; both sides dialling makes two. Gossip floods the peers subscribed to its topic.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from swarmd.errors import ConfigError, PeerFault, PeerUnreachable, Refused
from swarmd.sim.world.connection import REFUSAL, Carrier, Dial, End, Gossip
from swarmd.sim.world.machine import WORLD, Machine
from swarmd.sim.world.mesh import Meshes
from swarmd.sim.world.points import step_of
from swarmd.sim.world.trace import Trace
from swarmd.sim.world.uplinks import HEADER_BYTES, Downlink, Uplink
from swarmd.swarm.ports import Handler, Listener
from swarmd.swarm.wire.framing import SIZES
from swarmd.values import Frame, PeerId, Urgency

log = logging.getLogger(__name__)


class Network(Carrier, Protocol):
    """The network, as transports see it."""

    trace: Trace
    subscriptions: Counter[str]
    walled: bool
    gossip_lag_s: float
    failed: Callable[[PeerId, BaseException], None] | None

    def dial(self, source: "SimTransport", peer: PeerId, dial: Dial) -> None: ...

    def is_lost(self, source: PeerId, target: PeerId) -> bool: ...

    def note(self, what: str, peer: PeerId, other: PeerId, detail: str) -> None: ...


@dataclass
class Counts:
    """Frames and bytes that one peer, or all of them, sent."""

    requests: int = 0
    gossip: int = 0  # copies of gossip messages
    frames: Counter[str] = field(default_factory=Counter)  # by kind; answers and copies included
    bytes: Counter[str] = field(default_factory=Counter)  # by kind

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.requests + other.requests,
            self.gossip + other.gossip,
            self.frames + other.frames,
            self.bytes + other.bytes,
        )


class SimTransport:
    """One machine's access to the network."""

    def __init__(self, network: Network, machine: Machine, uplink: Uplink, downlink: Downlink) -> None:
        self.network, self.machine, self.uplink, self.downlink = network, machine, uplink, downlink
        self._peer = machine.name
        self.alive = True
        self.listeners: dict[str, Listener] = {}
        self.dials: dict[PeerId, Dial] = {}
        self.sent = self.received = 0  # bytes
        self.counts = Counts()
        self._handler: Handler | None = None
        self._known: set[PeerId] = set()
        self._callbacks: list[Callable[[PeerId], None]] = []
        self.ends: dict[PeerId, list[End]] = {}  # the open ones
        self.meshes = Meshes(self._peer, self.ends, self.listeners, network.subscriptions)

    @property
    def peer_id(self) -> PeerId:
        return self._peer

    def addresses(self) -> tuple[str, ...]:
        return (f"/sim/{self._peer}",)

    def traffic(self) -> tuple[int, int]:
        return self.sent, self.received

    # ---------------------------------------------------------------------------------------------- requests

    def serve(self, handler: Handler) -> None:
        self._handler = handler

    async def request(
        self, peer: PeerId, frame: Frame, *, deadline_s: float | None = None, urgency: Urgency = "control"
    ) -> Frame:
        points = self.machine.points
        async with asyncio.timeout(deadline_s):
            lost = bool(points.armed) and await self.machine.at(f"ask.{frame.kind}", step_of(frame))
            if peer not in self.ends:
                await self._dial_once(peer)
            ends = self.ends.get(peer)
            if not ends:
                raise PeerUnreachable(f"the connection to {peer} broke at once")
            self.counts.requests += 1
            answer = await ends[0].ask(frame, urgency, lost=lost)
            if points.armed and await self.machine.at(f"asked.{frame.kind}", step_of(frame)):
                return await ends[0].ask(frame, urgency, lost=True)
            return answer

    async def answer(self, peer: PeerId, frame: Frame) -> Frame:
        """Has the handler answer, and raises its exceptions."""
        if self._handler is None:
            raise Refused("this peer is starting and answers nothing yet")
        return await self._handler(peer, frame)

    async def _dial_once(self, peer: PeerId) -> None:
        if peer == self._peer:
            raise PeerUnreachable("a peer does not dial itself")
        if not self.alive:
            raise PeerUnreachable("this machine is gone")
        if peer not in self._known:
            raise PeerUnreachable(f"no address of {peer} is known")
        dial = self.dials.get(peer)
        if dial is None:
            dial = self.dials[peer] = Dial(self.dials, peer)
            self.network.dial(self, peer, dial)
        await asyncio.shield(dial.done)

    async def connect(self, address: str) -> PeerId:
        prefix, _, peer = address.rpartition("/")
        if prefix != "/sim":
            raise ConfigError(f"{address} is no address of a simulated peer")
        self._known.add(peer)
        if peer not in self.ends:
            await self._dial_once(peer)
        return peer

    def learn(self, peer: PeerId, addresses: Sequence[str], machine: str | None = None) -> None:
        if peer != self._peer:
            self._known.add(peer)

    # ---------------------------------------------------------------------------------------------- connections

    def connected(self) -> tuple[PeerId, ...]:
        return tuple(self.ends)

    def network_of(self, peer: PeerId) -> str:
        return peer  # each has its own

    def on_disconnected(self, callback: Callable[[PeerId], None]) -> None:
        self._callbacks.append(callback)

    async def drop(self, peer: PeerId) -> None:
        for end in list(self.ends.get(peer, ())):
            end.close("it was dropped", tell=True)
        await asyncio.sleep(0)  # tasks that wait for word of it have it when this returns

    def fault(self, peer: PeerId, fault: PeerFault) -> None:
        """Cuts a peer's connections, for something that no honest peer does."""
        log.warning("%s cuts %s: %s", self._peer, peer, fault)
        self.network.note("fault", self._peer, peer, str(fault))
        for end in list(self.ends.get(peer, ())):
            end.close(f"cut off: {fault}", tell=True)

    def failed(self, frame: Frame, trouble: Exception) -> None:
        """Reports that a handler raised an exception that none may raise."""
        log.error("serving %r at %s failed", frame.kind, self._peer, exc_info=trouble)
        if self.network.failed is not None:
            self.network.failed(self._peer, trouble)

    def opened(self, end: End) -> None:
        """Takes note of a connection that opened."""
        self.ends.setdefault(end.peer, []).append(end)
        self.meshes.opened()

    def closed(self, end: End) -> None:
        """Takes note of a connection that closed."""
        self.meshes.closed()
        ends = self.ends[end.peer]
        ends.remove(end)
        if not ends:
            del self.ends[end.peer]
            loop = asyncio.get_running_loop()
            for callback in self._callbacks if self.alive else ():
                loop.call_soon(callback, end.peer, context=self.machine.context)

    def die(self) -> None:
        """Ends the transport with its machine: nothing goes out or in any more."""
        self.alive = False
        self.uplink.lose(asyncio.get_running_loop().time())
        for end in [end for ends in self.ends.values() for end in ends]:
            end.close("this machine is gone")
        for dial in list(self.dials.values()):
            dial.fail("this machine is gone")
        self.network.subscriptions.update(self.listeners.keys())
        self.listeners.clear()

    # ---------------------------------------------------------------------------------------------- gossip

    def subscribe(self, topic: str, listener: Listener) -> None:
        self.listeners[topic] = listener
        self.network.subscriptions[topic] += 1

    def unsubscribe(self, topic: str) -> None:
        self.listeners.pop(topic, None)
        self.network.subscriptions[topic] += 1

    async def publish(self, topic: str, frame: Frame) -> None:
        if not self.alive:
            return
        gossip = Gossip(topic, self._peer, frame)
        if (size := SIZES.get(frame.kind)) is not None and gossip.nbytes > size.header:
            raise ValueError(f"gossip {frame.kind!r} of {gossip.nbytes} bytes can't be published")
        if self.network.corrupted:
            gossip = Gossip(topic, self._peer, self.network.corrupt_some(self._peer, frame))
        self._pass_on(gossip, self._peer)

    def _pass_on(self, gossip: Gossip, source: PeerId) -> None:
        network = self.network
        known = gossip.heard if network.walled else gossip.coming  # a wall may hold up what is on its way
        copies = 0
        for peer in self.meshes.of(gossip.topic):
            if peer in (source, gossip.author):
                continue
            copies += 1
            if peer not in known and not network.is_lost(self._peer, peer):
                gossip.coming.add(peer)
                self.ends[peer][0].tell(gossip)
        self.counts.gossip += copies
        self.count_sent(gossip.frame.kind, gossip.nbytes, copies)

    def hear(self, gossip: Gossip, source: PeerId) -> None:
        """Receives a copy of a gossip message; the first one counts."""
        listener = self.listeners.get(gossip.topic)
        if not self.alive or self._peer in gossip.heard or listener is None:
            return
        gossip.heard.add(self._peer)
        self.count_received(gossip.author, gossip.frame, gossip.nbytes, gossip.frame)
        self._pass_on(gossip, source)
        if self.network.gossip_lag_s:
            loop = asyncio.get_running_loop()
            loop.call_later(self.network.gossip_lag_s, self.machine.call, self._hear_late, gossip, context=WORLD)
        else:
            listener(gossip.author, gossip.frame)

    def _hear_late(self, gossip: Gossip) -> None:
        if (listener := self.listeners.get(gossip.topic)) is not None:
            listener(gossip.author, gossip.frame)

    # ---------------------------------------------------------------------------------------------- what was seen

    def count_sent(self, kind: str, nbytes: int, copies: int = 1) -> None:
        nbytes = copies * (nbytes + HEADER_BYTES)
        self.sent += nbytes
        self.counts.frames[kind] += copies
        self.counts.bytes[kind] += nbytes

    def count_received(self, source: PeerId, frame: Frame, nbytes: int, about: Frame) -> None:
        """Counts a frame that came; `about`: the question, which names step and index."""
        self.received += nbytes + HEADER_BYTES
        if not self.network.trace.on:
            return
        step, index = step_of(about), about.body.get("index")
        self.network.trace.add(
            asyncio.get_running_loop().time(),
            source,
            "Refused" if frame.kind == REFUSAL else frame.kind,
            self._peer,
            -1 if step is None else step,
            index if type(index) is int else -1,
            describe(frame),
        )


MENTIONED = ("again", "evaluate", "renew", "part", "attempt", "number", "indices", "hops", "granted", "ballot", "here")
"""Fields that are shown in a transcript."""


def describe(frame: Frame) -> str:
    """The words of a transcript about a frame besides its kind."""
    if frame.kind == REFUSAL:
        return str(frame.body["sentence"])
    if frame.kind in ("Beat", "Card", "Summary"):
        return ""
    words = []
    for name in MENTIONED:
        value = frame.body.get(name)
        if value is True:
            words.append(name)
        elif value not in (None, False, 0, "", [], ()):
            words.append(f"{name} {value}")
    return " ".join(words)
