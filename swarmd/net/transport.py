"""The Transport port as far as it needs no libp2p: connections, requests, faults, what is held for whom, gossip.

asyncio only. `net.libp2p` derives from it and brings the bytes: it dials, makes a `Connection` for each connection,
hands over what it reads (`take`), writes what the outboxes give, and says when a connection is ready or over.
"""

import asyncio
import contextlib
import contextvars
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Sequence
from typing import Any

from swarmd.errors import Mismatch, OutOfRange, PeerFault, PeerUnreachable, Refused, WrongPeer
from swarmd.net import addresses as multiaddrs
from swarmd.net import frames
from swarmd.net.accept_pace import AcceptPace
from swarmd.net.address_book import AddressBook
from swarmd.net.channel import Channel, StreamName
from swarmd.net.dial_pace import DialPace
from swarmd.net.limits import TransportLimits
from swarmd.net.machine import machine_name
from swarmd.values import Frame, PeerId, Urgency

Handler = Callable[[PeerId, Frame], Awaitable[Frame]]
Listener = Callable[[PeerId, Frame], None]

FLUSH_S = 0.3  # for answers still queued when the daemon stops
FAREWELL_S = 1.0  # for a refusal to arrive that ends a conversation

TOPIC_PREFIX = "/swarmd/1/"
TOPIC_CHARACTERS = 128

log = logging.getLogger(__name__)


class Connection(ABC):
    """One connection to one peer, in setup or ready or over."""

    def __init__(self, peer: PeerId, owner: "WireTransport") -> None:
        self.peer = peer
        self.ready = False
        self.partial_bytes = 0  # as last accounted for
        self.channel = Channel(
            peer,
            owner.limits,
            serve=owner.answer,
            on_fault=lambda fault: owner.fault(self, fault),
            wake=self.wake,
        )

    @property
    @abstractmethod
    def host(self) -> str:
        """The IP at which the peer is; "" if that isn't known."""

    @abstractmethod
    def wake(self, stream: StreamName) -> None:
        """Tells the writer of a stream that there is something to write."""

    @abstractmethod
    def cut(self, *, abort: bool) -> None:
        """Closes the socket at once; with `abort` without sending what is left."""


class OurTopics(Container[str]):
    """Topics, as they are on the wire, that peers may subscribe to with us: any other would only cost memory."""

    def __contains__(self, topic: object) -> bool:
        return isinstance(topic, str) and topic.startswith(TOPIC_PREFIX) and len(topic) <= TOPIC_CHARACTERS


class WireTransport(ABC):
    """Everything about peers except how their bytes come and go."""

    def __init__(self, peer_id: PeerId, limits: TransportLimits) -> None:
        self.limits = limits
        self._peer_id = peer_id
        self.machine = machine_name()
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # callbacks must not inherit the context of Trio's tasks
        self.failed: asyncio.Future[BaseException] = self._loop.create_future()
        """Gets the exception when the network ends by itself; the transport is of no use then."""
        self.gossip_dropped = 0  # malformed, undecodable, or more than can be sent
        self._handler: Handler | None = None
        self._callbacks: list[Callable[[PeerId], None]] = []
        self.told: tuple[multiaddrs.Address, ...] = ()  # to others, instead of where it listens
        self.book = AddressBook(limits, self.machine)
        self._pace = DialPace(limits)
        self._accept_pace = AcceptPace(limits)
        self._connections: list[Connection] = []  # from their first word on
        self._peers: dict[PeerId, list[Connection]] = {}  # the ready ones
        self._dials: dict[PeerId, asyncio.Future[None]] = {}
        self._named = Counter[multiaddrs.Address]()  # addresses that somebody wants dialled as they stand
        self._sent = self._received = 0
        self._partial_bytes = 0
        self._publishing = 0
        self._listeners: dict[str, Listener] = {}
        self._hearing: set[str] = set()
        self._closing = False

    @abstractmethod
    def _begin(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Starts one of the next three where the network lives. None of them raises."""

    @abstractmethod
    async def _dial(self, peer: PeerId, addresses: Sequence[multiaddrs.Address], done: asyncio.Future[None]) -> None:
        """Dials, and tells `_dialled` when the connection is ready or why there is none."""

    @abstractmethod
    async def _publish(self, topic: str, data: bytes) -> None:
        """Sends gossip; lowers `_publishing` by one when it is done."""

    @abstractmethod
    async def _hear(self, topic: str) -> None:
        """Hands a topic's gossip to `_deliver` until that says no; then `_heard_no_more`."""

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def now(self) -> float:
        """The time by which paces are kept."""
        return self._loop.time()

    def traffic(self) -> tuple[int, int]:
        return self._sent, self._received

    def learn(self, peer: PeerId, addresses: Sequence[str], machine: str | None = None) -> None:
        if peer != self._peer_id:
            self.book.learn(peer, addresses, machine)

    def recall(self, peer: PeerId, addresses: Sequence[str], worked: Sequence[str], machine: str | None) -> None:
        """Takes over what an earlier life of this daemon knew of a peer that it had met."""
        if peer != self._peer_id:
            self.book.recall(peer, addresses, worked, machine)
            self._pace.met(peer)

    def serve(self, handler: Handler) -> None:
        self._handler = handler

    def connected(self) -> tuple[PeerId, ...]:
        return tuple(self._peers)

    def network_of(self, peer: PeerId) -> str:
        ready = self._peers.get(peer)
        return multiaddrs.network_of(ready[0].host) if ready else ""

    def on_disconnected(self, callback: Callable[[PeerId], None]) -> None:
        self._callbacks.append(callback)

    async def request(
        self, peer: PeerId, frame: Frame, *, deadline_s: float | None = None, urgency: Urgency = "control"
    ) -> Frame:
        async with asyncio.timeout(deadline_s):
            if peer not in self._peers:
                await self._dial_known(peer)
            ready = self._peers.get(peer)
            if not ready:
                raise PeerUnreachable(f"the connection to {peer} broke at once")
            return await ready[0].channel.request(frame, urgency)

    async def connect(self, address: str) -> PeerId:
        target = multiaddrs.parse_dialled(address)
        if target.peer not in self._peers:
            self._named[target] += 1
            try:
                await self._dial_once(target.peer, (target,))
            finally:
                self._named[target] -= 1
        self.learn(target.peer, (address,))
        return target.peer

    async def _dial_known(self, peer: PeerId) -> None:
        """Dials a peer at the addresses that are known, if it is time for it. Raises PeerUnreachable."""
        addresses: Sequence[multiaddrs.Address] = self.book.addresses(peer)
        if addresses and peer != self._peer_id and peer not in self._dials and not self._closing:
            addresses, why = self._pace.admit(peer, addresses, self.book.known(peer).worked, self._loop.time())
            if why:
                raise PeerUnreachable(why)
        await self._dial_once(peer, addresses)

    async def drop(self, peer: PeerId) -> None:
        for connection in [each for each in self._connections if each.peer == peer]:
            self._end(connection, f"the connection to {peer} was dropped", abort=True)

    async def _dial_once(self, peer: PeerId, addresses: Sequence[multiaddrs.Address]) -> None:
        """Returns when there is a connection; those who want the same peer share one dial. Raises PeerUnreachable."""
        if peer == self._peer_id:
            raise PeerUnreachable("a peer does not dial itself")
        if self._closing:
            raise PeerUnreachable("this daemon is stopping")
        if not addresses:
            said = ", ".join(address.transport for address in self.book.known(peer).all())
            why = f"none of its addresses can be dialled from here: {said}" if said else "no address of it is known"
            raise PeerUnreachable(f"{peer} can't be reached: {why}")
        dial = self._dials.get(peer)
        if dial is None:
            dial = self._dials[peer] = self._loop.create_future()
            self._begin(self._dial, peer, addresses, dial)
        await asyncio.shield(dial)

    def _dialled(
        self,
        peer: PeerId,
        addresses: Sequence[multiaddrs.Address],
        done: asyncio.Future[None],
        problem: str,
        *,
        others: bool = False,
    ) -> None:
        """Ends a dial, with a connection unless there was a problem. `others`: all who answered were other peers."""
        self._dials.pop(peer, None)
        if done.done():
            return
        if problem:
            tried = ", ".join(address.transport for address in addresses)
            trouble = PeerUnreachable(f"{peer} can't be reached at {tried}: {problem}")
            if others:
                trouble = WrongPeer(f"another peer than {peer} answers at {tried}")
            self._pace.failed(peer, addresses, str(trouble), self._loop.time())
            done.set_exception(trouble)
            done.exception()  # seen, also when everybody who waited for it was cancelled
        else:
            done.set_result(None)

    async def answer(self, peer: PeerId, frame: Frame) -> Frame:
        """Answers a request. Raises Refused, and whatever the handler raises. A peer of another run or release has no
        business here: its connections are kept no longer than it takes to tell it so.
        """
        if self._handler is None:
            raise Refused("this peer is starting and answers nothing yet")
        try:
            return await self._handler(peer, frame)
        except Mismatch:
            self._accept_pace.turn_away(peer, self._loop.time())
            self._loop.call_later(FAREWELL_S, self._part_from, peer, context=self._context)
            raise

    def turn_away(self, peer: PeerId, why: str) -> None:
        """Cuts a peer off that does what no honest peer does, and takes no connection of it for a while."""
        self._accept_pace.turn_away(peer, self._loop.time())
        for connection in [each for each in self._connections if each.peer == peer][:1]:
            self.fault(connection, PeerFault(why))

    def _part_from(self, peer: PeerId) -> None:
        for connection in [each for each in self._connections if each.peer == peer]:
            self._end(connection, f"{peer} is of another run or release", abort=False)

    # Connections

    def _set_ready(self, connection: Connection) -> None:
        connection.ready = True
        self._pace.met(connection.peer)
        self._peers.setdefault(connection.peer, []).append(connection)

    def _take(self, connection: Connection, stream: StreamName, data: bytes) -> None:
        """Takes bytes that a peer sent. Raises PeerFault, also where unfinished messages hold too much."""
        self._received += len(data)
        if connection.channel.failed:
            return  # read when it was over already: what it held is counted no more
        connection.channel.received(stream, data)
        grown = connection.channel.partial_bytes - connection.partial_bytes
        connection.partial_bytes += grown
        self._partial_bytes += grown
        held = sum(each.partial_bytes for each in self._peers.get(connection.peer, (connection,)))
        if held > self.limits.partial_bytes_per_peer:
            raise PeerFault(f"unfinished messages of {held} bytes")
        if self._partial_bytes > self.limits.partial_bytes:
            worst = max(self._connections, key=lambda each: each.partial_bytes)
            self.fault(worst, PeerFault(f"unfinished messages of {worst.partial_bytes} bytes while memory is short"))

    def fault(self, connection: Connection, fault: PeerFault) -> None:
        """Cuts all connections of a peer that did what no honest peer does."""
        log.warning("cutting %s: %s", connection.peer, fault)
        for each in [each for each in self._connections if each.peer == connection.peer]:
            self._end(each, f"the connection to {connection.peer} was cut: {fault}", abort=True)

    def _end(self, connection: Connection, reason: str, *, abort: bool) -> None:
        """Ends a connection at once, whatever the peer does. May be called again."""
        if connection.channel.failed:
            return
        connection.channel.fail(reason)
        connection.ready = False
        self._partial_bytes -= connection.partial_bytes
        if connection in self._connections:
            self._connections.remove(connection)
        connection.cut(abort=abort)
        ready = self._peers.get(connection.peer, [])
        if connection in ready:
            ready.remove(connection)
            if not ready:
                del self._peers[connection.peer]
                for callback in self._callbacks:
                    self._loop.call_soon(callback, connection.peer, context=self._context)

    async def _flush(self) -> None:
        """Gives queued answers a moment to leave."""
        outboxes = [outbox for each in self._connections for outbox in each.channel.outboxes.values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await asyncio.gather(*(outbox.empty.wait() for outbox in outboxes))

    def _network_ended(self, error: BaseException | None) -> None:
        """Ends all waiting: the network has ended, by itself or because we closed it."""
        if error is not None or not self._closing:
            log.critical("the network ended by itself: %r", error)
            self.failed.set_result(error or RuntimeError("the network ended by itself"))
        self._closing = True
        for connection in list(self._connections):
            connection.channel.fail("the network of this daemon ended")
        for dial in list(self._dials.values()):
            if not dial.done():
                dial.set_exception(PeerUnreachable("the network of this daemon ended"))

    # Gossip

    def subscribe(self, topic: str, listener: Listener) -> None:
        self._listeners[topic] = listener
        if topic not in self._hearing and not self._closing:
            self._hearing.add(topic)
            self._begin(self._hear, topic)

    def unsubscribe(self, topic: str) -> None:
        self._listeners.pop(topic, None)

    async def publish(self, topic: str, frame: Frame) -> None:
        data = frames.encode_gossip(frame, self.limits.sizes)
        if self._closing or self._publishing >= self.limits.publishing:
            self.gossip_dropped += 1
            return
        self._publishing += 1
        self._begin(self._publish, topic, data)

    def _deliver(self, topic: str, author: PeerId, data: bytes) -> bool:
        """Hands on gossip with its signed author; says whether more is wanted. Our own comes back and stays here."""
        listener = self._listeners.get(topic)
        if listener is None or author == self._peer_id:
            return listener is not None
        try:
            frame = frames.decode_gossip(data, self.limits.sizes)
        except (PeerFault, OutOfRange) as trouble:
            self.gossip_dropped += 1
            log.debug("gossip of %s dropped: %s", author, trouble)
        else:
            self._loop.call_soon(listener, author, frame, context=self._context)
        return True

    def _heard_no_more(self, topic: str) -> None:
        self._hearing.discard(topic)
        if topic in self._listeners and not self._closing:
            self.subscribe(topic, self._listeners[topic])  # wanted again while it was being left
