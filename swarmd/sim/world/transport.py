"""One simulated machine's access to the network: the Transport port, and the two ends of each connection.

Keeps the port's promises as `swarmd/net` does: a request is delivered at most once, each runs in a task of the machine
that answers and is cancelled when its connection breaks; answers travel on the connection of their request; a fault
costs a peer all its connections; both sides dialling makes two. Gossip floods the peers subscribed to its topic.
"""

import asyncio
import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swarmd.errors import ConfigError, PeerFault, PeerUnreachable, Refused
from swarmd.sim.world.damage import damaged
from swarmd.sim.world.machine import WORLD, Machine
from swarmd.sim.world.mesh import Meshes
from swarmd.sim.world.points import step_of
from swarmd.sim.world.uplinks import HEADER_BYTES, LANES, Downlink, Uplink
from swarmd.swarm.ports import Handler, Listener
from swarmd.swarm.wire.framing import KINDS
from swarmd.values import Frame, PeerId, Urgency

if TYPE_CHECKING:
    from swarmd.sim.world.network import SimNetwork

log = logging.getLogger(__name__)

SERVING_PER_PEER = 256  # `serving_per_peer` of swarmd/net/limits.py: requests being answered at once for a connection


@dataclass
class Counts:
    """What one peer, or all of them, sent."""

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


class Dial:
    """An attempt to reach a peer, shared by everyone on this machine who wants it."""

    def __init__(self, source: "SimTransport", peer: PeerId) -> None:
        self._source, self._peer = source, peer
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def over(self) -> bool:
        return self.done.done()

    def succeed(self) -> None:
        self._source.dials.pop(self._peer, None)
        self.done.set_result(None)

    def fail(self, problem: str) -> None:
        """Ends it, unless it has ended."""
        if not self.over:
            self._source.dials.pop(self._peer, None)
            self.done.set_exception(PeerUnreachable(f"{self._peer} can't be reached: {problem}"))
            self.done.exception()  # seen, also when everybody who waited for it was cancelled


class End:
    """A connection as one of its two sides sees it."""

    def __init__(self, transport: "SimTransport", connection: "Connection") -> None:
        self.transport, self.connection = transport, connection
        self.other: End
        self.lot: tuple[int, int] = (0, 0)  # drawn for the connection: whether its ends are of each other's meshes
        self.is_open = False
        self.is_over = False
        self._last_id = 0
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}

    @property
    def peer(self) -> PeerId:
        return self.other.transport.peer_id

    def open(self) -> None:
        """From now on it is used."""
        if not self.is_open and not self.is_over:
            self.is_open = True
            self.transport.opened(self)

    def close(self, reason: str, *, tell: bool = False) -> None:
        """It is over: what was asked through it fails, what is being answered is cancelled."""
        if self.is_over:
            return
        self.is_over, was_open, self.is_open = True, self.is_open, False
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PeerUnreachable(f"the connection to {self.peer} broke: {reason}"))
        for task in self._serving.values():
            task.cancel()
        if was_open:
            self.transport.closed(self)
        if self.other.is_over:
            self.transport.network.forget(self.connection)
        elif tell:
            network, other = self.transport.network, self.other
            network.post(self.transport, other.transport, 0, 0, other.closed_by_peer)

    def closed_by_peer(self) -> None:
        self.close("the other side ended it")

    # ---------------------------------------------------------------------------------------------- asking

    async def ask(self, frame: Frame, urgency: Urgency, *, lost: bool = False) -> Frame:
        """Asks and waits. With `lost` the question gets lost. Raises PeerUnreachable, Refused."""
        self._last_id += 1
        number = self._last_id
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if not lost:
                self._send(frame, LANES[urgency], self.other.arrive, number, urgency)
            return await answer
        finally:
            self._waiting.pop(number, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # the connection broke while the asker was cancelled

    def _send(self, frame: Frame, lane: int, deliver: Callable[..., None], *args: Any) -> None:
        """Posts a frame to the other end, whose `deliver` gets it, its size, and the rest."""
        transport, network = self.transport, self.transport.network
        rate = network.corrupted.get(transport.peer_id, 0.0) if network.corrupted else 0.0
        if rate and frame.kind != REFUSAL and network.rng.random() < rate:
            frame = damaged(frame, network.rng)
        nbytes = frame.nbytes
        transport.count_sent(frame.kind, nbytes)
        network.post(
            transport, self.other.transport, nbytes, lane, deliver, frame, nbytes, *args, connection=self.connection
        )

    def arrive_answer(self, frame: Frame, nbytes: int, number: int, request: Frame) -> None:
        """The other side answered, or refused."""
        transport = self.transport
        if self.is_over or not transport.alive:
            return
        transport.received += HEADER_BYTES + nbytes
        if transport.network.trace.on:
            transport.note_arrival(self.peer, frame, request)
        answer = self._waiting.pop(number, None)
        if answer is None or answer.done():
            return  # we forgot the question
        if frame.kind == REFUSAL:
            answer.set_exception(Refused(frame.body["sentence"]))
        else:
            answer.set_result(frame)

    # ---------------------------------------------------------------------------------------------- answering

    def arrive(self, frame: Frame, nbytes: int, number: int, urgency: Urgency) -> None:
        """The other side asks."""
        transport = self.transport
        if self.is_over or not transport.alive:
            return
        self.open()
        transport.received += HEADER_BYTES + nbytes
        if transport.network.trace.on:
            transport.note_arrival(self.peer, frame, frame)
        if len(self._serving) >= SERVING_PER_PEER:
            self._refuse(number, "the peer is answering as many of our requests as it allows", frame)
            return
        task = asyncio.get_running_loop().create_task(self._serve(frame, number, urgency), name=f"serve {frame.kind}")
        self._serving[number] = task
        task.add_done_callback(lambda _: self._serving.pop(number, None))

    async def _serve(self, frame: Frame, number: int, urgency: Urgency) -> None:
        machine, armed = self.transport.machine, self.transport.machine.points.armed
        known = frame.kind in KINDS  # that of a damaged frame may be none
        if armed and known and await machine.at(f"serve.{frame.kind}", step_of(frame)):
            return
        try:
            answer = await self.transport.answer(self.peer, frame)
        except Refused as refusal:
            answer = _refusal(str(refusal))
        except PeerFault as fault:
            self.transport.fault(self.peer, fault)
            return
        except Exception as trouble:  # noqa: BLE001 - a failure of ours: production logs it and goes on, worlds end
            self.transport.failed(frame, trouble)
            answer = _refusal("internal error")
        if armed and await machine.at(f"served.{frame.kind}", step_of(frame)):
            return
        if not self.is_over:
            self._send(answer, LANES[urgency], self.other.arrive_answer, number, frame)

    def _refuse(self, number: int, sentence: str, request: Frame) -> None:
        self._send(_refusal(sentence), LANES["control"], self.other.arrive_answer, number, request)


REFUSAL = "(refusal)"  # travels as no message's kind


def _refusal(sentence: str) -> Frame:
    return Frame(REFUSAL, {"sentence": sentence})


class Connection:
    """Two ends. Each may be over without the other's knowing."""

    def __init__(self, number: int, dialler: "SimTransport", answerer: "SimTransport") -> None:
        self.number = number
        self.names = (dialler.peer_id, answerer.peer_id)
        self.ends = (End(dialler, self), End(answerer, self))
        self.ends[0].other, self.ends[1].other = self.ends[1], self.ends[0]
        self.ends[0].lot = self.ends[1].lot = zlib.crc32("/".join(sorted(self.names)).encode()), number
        self.stuck_since: float | None = None


class Gossip:
    """A message on its way through the swarm."""

    __slots__ = ("author", "coming", "frame", "heard", "nbytes", "topic")

    def __init__(self, topic: str, author: PeerId, frame: Frame) -> None:
        self.topic, self.author, self.frame = topic, author, frame
        self.nbytes = len(json.dumps(frame.body, separators=(",", ":")))  # a little more than as msgpack
        self.heard: set[PeerId] = {author}
        self.coming: set[PeerId] = {author}  # who has a copy on the way


class SimTransport:
    """One machine's access to the network."""

    def __init__(self, network: "SimNetwork", machine: Machine, uplink: Uplink, downlink: Downlink) -> None:
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
        self.meshes = Meshes(self)

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
        """Has the handler answer. Raises what it raises."""
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
            dial = self.dials[peer] = Dial(self, peer)
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

    def on_disconnected(self, callback: Callable[[PeerId], None]) -> None:
        self._callbacks.append(callback)

    async def drop(self, peer: PeerId) -> None:
        for end in list(self.ends.get(peer, ())):
            end.close("it was dropped", tell=True)
        await asyncio.sleep(0)  # those who wait for word of it have it when this returns

    def fault(self, peer: PeerId, fault: PeerFault) -> None:
        """What no honest peer does costs a peer all its connections."""
        log.warning("%s cuts %s: %s", self._peer, peer, fault)
        self.network.note("fault", self._peer, peer, str(fault))
        for end in list(self.ends.get(peer, ())):
            end.close(f"cut off: {fault}", tell=True)

    def failed(self, frame: Frame, trouble: Exception) -> None:
        """A handler of ours raised what it must not."""
        log.error("serving %r at %s failed", frame.kind, self._peer, exc_info=trouble)
        if self.network.failed is not None:
            self.network.failed(self._peer, trouble)

    def opened(self, end: End) -> None:
        """There is one more connection."""
        self.ends.setdefault(end.peer, []).append(end)
        self.meshes.opened()

    def closed(self, end: End) -> None:
        """There is one less."""
        self.meshes.closed()
        ends = self.ends[end.peer]
        ends.remove(end)
        if not ends:
            del self.ends[end.peer]
            loop = asyncio.get_running_loop()
            for callback in self._callbacks if self.alive else ():
                loop.call_soon(callback, end.peer, context=self.machine.context)

    def die(self) -> None:
        """This machine is gone: nothing goes out or in any more."""
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
        rate = self.network.corrupted.get(self._peer, 0.0)
        if rate and self.network.rng.random() < rate:
            frame = damaged(frame, self.network.rng)
        self._pass_on(Gossip(topic, self._peer, frame), self._peer)

    def _pass_on(self, gossip: Gossip, source: PeerId) -> None:
        network = self.network
        known = gossip.heard if network.walled else gossip.coming  # a wall may hold up what is on its way
        copies = 0
        for peer, end in self.meshes.of(gossip.topic):
            if peer in (source, gossip.author):
                continue
            copies += 1
            if peer not in known and not network.is_lost(self._peer, peer):
                gossip.coming.add(peer)
                network.post(
                    self,
                    end.other.transport,
                    gossip.nbytes,
                    LANES["control"],
                    end.other.transport.hear,
                    gossip,
                    self._peer,
                    connection=end.connection,
                )
        self.counts.gossip += copies
        self.count_sent(gossip.frame.kind, gossip.nbytes, copies)

    def hear(self, gossip: Gossip, source: PeerId) -> None:
        """A copy of a gossip message came; the first one counts."""
        listener = self.listeners.get(gossip.topic)
        if not self.alive or self._peer in gossip.heard or listener is None:
            return
        gossip.heard.add(self._peer)
        self.received += HEADER_BYTES + gossip.nbytes
        if self.network.trace.on:
            self.note_arrival(gossip.author, gossip.frame, gossip.frame)
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

    def note_arrival(self, source: PeerId, frame: Frame, about: Frame) -> None:
        """Writes a frame that came into the trace; `about` is the question that names step and index."""
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
"""Fields that say in a trace what a message is about."""


def describe(frame: Frame) -> str:
    """What a transcript says of a frame besides its kind."""
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
