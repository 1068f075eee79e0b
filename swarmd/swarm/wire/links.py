"""Questions and answers between peers as typed messages, after a handshake that proves they are of one run.

Relies on the Transport port. Knows who has been greeted, not what messages mean: `Links` turns frames into messages,
checks the fingerprint on a connection's first request, has a judge look whether each other one counts from its sender
(`roles.py`), and hands it to the handler of its kind.
"""

import asyncio
import dataclasses
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

from swarmd.errors import NO_ANSWER, Mismatch, NotAllowed, PeerFault, PeerUnreachable, Refused, SwarmError
from swarmd.swarm.fence import Fence
from swarmd.swarm.ports import Transport
from swarmd.swarm.tasks import start_shared
from swarmd.swarm.wire.framing import from_frame, to_frame
from swarmd.swarm.wire.incarnation import Incarnation, Keep, keep_nothing
from swarmd.swarm.wire.messages.common import PROTOCOL, Message, Request, RequestKind
from swarmd.swarm.wire.messages.presence import AskSettings, Card, Hello, SayHello, Settings
from swarmd.swarm.wire.own_card import OwnCard
from swarmd.swarm.wire.roles import ROLES, Judge, RoleRefusals
from swarmd.values import Frame, PeerId, Urgency, short

log = logging.getLogger(__name__)

GREETING_SECONDS = 15.0  # a hello is a few hundred bytes; this allows for a dial and a busy machine
DOUBT_SECONDS = 15.0  # after a peer was told to greet again its card is as new as can be
GREETINGS = 3  # of one peer: the second one after either had to go above a former life of its own
A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")

Handler = Callable[[PeerId, Any], Awaitable[Message]]


class Others(Protocol):
    """The other peers, as far as conversations need to know them."""

    def get(self, peer: PeerId) -> Card | None:
        """The newest card of a peer that counts."""

    def life_of(self, peer: PeerId) -> int:
        """The incarnation in which a peer itself has spoken here; 0: in none."""

    def touch(self, peer: PeerId, now: float) -> None:
        """A word came from a peer: it is alive."""


class Links:
    """One peer's conversations with the others."""

    def __init__(
        self,
        transport: Transport,
        own: OwnCard,
        others: Others,
        settings: Callable[[], Settings | None],
        keep: Keep = keep_nothing,
    ) -> None:
        self.transport = transport
        self.own = own
        self.incarnation = Incarnation(own, keep)
        self._others, self._settings = others, settings
        self.fence = Fence()  # of the whole peer: what failed without anybody having foreseen it
        self.role_refusals = RoleRefusals()
        self._judge: Judge | None = None  # none before there is a run
        self._handlers: dict[Any, Handler] = {}  # by the class of requests
        self._greeted: dict[PeerId, Card] = {}  # they know us and we know them, on the present connection
        self._doubted: dict[PeerId, float] = {}  # loop time when they were told to greet again, for want of a role
        self._greetings: dict[PeerId, asyncio.Task[None]] = {}
        self._heard: list[Callable[[Card], None]] = []
        self._lost: list[Callable[[PeerId], None]] = []
        self._offers: list[Callable[[Card, str], None]] = []
        self._in_vain: list[Callable[[PeerId], None]] = []
        transport.on_disconnected(self._disconnected)
        transport.serve(self._answer)

    def handle(self, kind: RequestKind[R, A], handler: Callable[[PeerId, R], Awaitable[A]]) -> None:
        """Has a handler answer a kind of request, as long as this peer lives."""
        self._handlers[kind] = handler

    def judge_by(self, judge: Judge) -> None:
        """Has a judge say from now on which requests count."""
        self._judge = judge

    def scope(self) -> "Scope":
        """Makes a scope, for handlers that end before this peer does."""
        return Scope(self, self._handlers)

    def _handler(self, kind: type[Any]) -> Handler:
        """Raises Refused."""
        if (handler := self._handlers.get(kind)) is None:
            raise Refused(f"nobody here answers {kind.__name__} now")
        return handler

    def on_card(self, callback: Callable[[Card], None]) -> None:
        """Calls back with every card that comes in a handshake."""
        self._heard.append(callback)

    def greeted(self) -> tuple[Card, ...]:
        """The cards with which those greeted that have met this peer on the present connection."""
        return tuple(self._greeted.values())

    def on_offer(self, callback: Callable[[Card, str], None]) -> None:
        """Calls back with the card and the run's fingerprint of a peer that greets, while this one has no run."""
        self._offers.append(callback)

    def on_asked_in_vain(self, callback: Callable[[PeerId], None]) -> None:
        """Calls back with a peer that asked for the run's settings while this one has none."""
        self._in_vain.append(callback)

    def on_lost(self, callback: Callable[[PeerId], None]) -> None:
        """Calls back when a peer's connection is gone."""
        self._lost.append(callback)

    def _disconnected(self, peer: PeerId) -> None:
        self._greeted.pop(peer, None)
        self._doubted.pop(peer, None)
        for callback in self._lost:
            self.fence.call(callback, peer)

    # ---------------------------------------------------------------------------------------------- asking

    async def ask(
        self, peer: PeerId, message: Request[A], *, deadline_s: float | None, urgency: Urgency = "control"
    ) -> A:
        """Asks a peer, greeting it first if need be; oneself is asked without the network. Raises like
        `Transport.request`.
        """
        if peer == self.transport.peer_id:
            async with asyncio.timeout(deadline_s):
                own: A = await self._respond(self._handler(type(message)), peer, message)
                assert message.accepts(own)
                return own
        for _ in range(2):  # it may have lost sight of us between two connections
            await self.greet(peer)
            answer = await self._ask(peer, message, SayHello, deadline_s=deadline_s, urgency=urgency)
            if not isinstance(answer, SayHello):
                self._others.touch(peer, asyncio.get_running_loop().time())
                return answer
            self._greeted.pop(peer, None)
        raise PeerUnreachable(f"{short(peer)} has no run yet")  # it greets, yet wants to be greeted: it starts again

    async def _ask(
        self,
        peer: PeerId,
        message: Request[A],
        *others: type[B],  # kinds that are an answer to whatever is asked
        deadline_s: float | None,
        urgency: Urgency = "control",
    ) -> A | B:
        frame = await self.transport.request(peer, to_frame(message), deadline_s=deadline_s, urgency=urgency)
        _check_protocol(peer, frame)
        try:
            answer = from_frame(frame)
            if not (isinstance(answer, others) or message.accepts(answer)):
                raise PeerFault(f"answered with {type(answer).__name__}")
            return cast("A | B", answer)
        except PeerFault as fault:
            log.warning("%s answered badly: %s", short(peer), fault)
            await self.transport.drop(peer)
            raise

    async def greet(self, peer: PeerId) -> None:
        """Shakes hands with a peer, once a connection. Raises Refused with its sentence, or ours."""
        if peer in self._greeted:
            return
        if (greeting := self._greetings.get(peer)) is None:
            greeting = self._greetings[peer] = start_shared(self._greet(peer), f"greet {short(peer)}")
            greeting.add_done_callback(lambda _: self._greetings.pop(peer))
        await asyncio.shield(greeting)

    async def introduce(self, peer: PeerId) -> bool:
        """Shakes hands with a peer that has never met this one on the present connection: so it has its card as it is
        now. False if they have met, or are about to. Raises like `greet`.
        """
        if peer in self._greeted or peer in self._greetings:
            return False
        await self.greet(peer)
        return True

    async def _greet(self, peer: PeerId) -> None:
        """Exchanges greetings until both know each other's present lives: one that hears of a later life of itself goes
        above that first.
        """
        for _ in range(GREETINGS):
            ours = self._hello(peer)
            theirs = await self._ask(peer, ours, deadline_s=GREETING_SECONDS)
            self._check_hello(peer, theirs)
            if await self._rise(theirs) and not self._is_outdated(theirs.card):
                if ours.fingerprint:
                    self._greeted[peer] = theirs.card
                self._hear(theirs.card)
                return
        raise Refused(f"peer {short(peer)} and this one don't agree on which of their lives are the present ones")

    async def _rise(self, hello: Hello) -> bool:
        """Makes this the latest life of this peer. False if others know a later one: this peer must greet again."""
        if hello.known_incarnation <= self.own.card.incarnation:
            return True
        await self.incarnation.rise_above(hello.known_incarnation)
        return False

    def _is_outdated(self, card: Card) -> bool:
        """Tells if a later life of the card's peer is known here."""
        return self._others.life_of(card.peer) > card.incarnation

    async def ask_settings(self, peer: PeerId) -> Settings:
        """The run's settings from a peer that has one. Raises like `ask`."""
        return await self._ask(peer, AskSettings(), deadline_s=GREETING_SECONDS)

    def _hello(self, peer: PeerId) -> Hello:
        settings = self._settings()
        fingerprint = settings.fingerprint if settings else ""
        return Hello(PROTOCOL, fingerprint, self.own.card, self._others.life_of(peer))

    def _check_hello(self, peer: PeerId, hello: Hello) -> None:
        settings = self._settings()
        ours = settings.fingerprint if settings else ""
        if hello.card.peer != peer:
            raise PeerFault("its card names another peer")
        if ours and hello.fingerprint and hello.fingerprint != ours:
            raise Mismatch(
                f"peer {short(peer)} is of run {hello.fingerprint} and this daemon of run {ours}; their settings differ"
                + (_prolonged(settings) if settings else "")
            )

    def _hear(self, card: Card) -> None:
        for callback in self._heard:
            self.fence.call(callback, card)

    # ---------------------------------------------------------------------------------------------- answering

    async def _answer(self, peer: PeerId, frame: Frame) -> Frame:
        if frame.kind == Hello.__name__:
            return to_frame(await self._answer_hello(peer, frame))
        message = from_frame(frame)
        if isinstance(message, AskSettings):
            return to_frame(self._answer_settings(peer))
        now = asyncio.get_running_loop().time()
        if peer not in self._greeted or (self._others.get(peer) is None and self._doubts(peer, now)):
            return to_frame(SayHello())  # a greeting brings its card; that may not count here yet
        self._handler(type(message))
        self._others.touch(peer, now)
        if not await self._counts(peer, message):
            return to_frame(SayHello())
        return to_frame(await self._respond(self._handler(type(message)), peer, message))

    async def _counts(self, peer: PeerId, message: Message) -> bool:
        """Tells if a request counts from its sender; False if that is to greet again first, since its card may be older
        than its role. Raises NotAllowed once it has done so.
        """
        if self._judge is None:
            raise Refused("this daemon takes part in no run yet")
        needs, kind, now = ROLES[type(message)], type(message).__name__, asyncio.get_running_loop().time()
        if await self._judge.allows(peer, message, needs):
            return True
        if self._doubts(peer, now):
            return False
        self.role_refusals.note(peer, kind, now)
        raise NotAllowed(f"{kind} counts only from {needs.role.value}")

    def _doubts(self, peer: PeerId, now: float) -> bool:
        """True if a peer is to greet again, since its card is missing or may be old. Not each time: it may stay so."""
        if now - self._doubted.get(peer, -math.inf) <= DOUBT_SECONDS:
            return False
        self._doubted[peer] = now
        self._greeted.pop(peer, None)
        return True

    async def _respond(self, handler: Handler, peer: PeerId, message: Message) -> Message:
        """The answer. A lack of memory is this peer's trouble, and so is a failure that nobody foresaw: the asker hears
        of it, and asks others.
        """
        try:
            return await handler(peer, message)
        except (Refused, PeerFault):
            raise
        except (SwarmError, TimeoutError) as trouble:
            raise Refused(str(trouble) or "it took too long") from None
        except MemoryError as trouble:
            log.warning("%s of %s: %s", type(message).__name__, short(peer), str(trouble) or "out of memory")
            raise Refused("this peer is out of memory") from None
        except Exception as trouble:  # noqa: BLE001 - one message's failure ends nothing but its answer
            self.fence.note(f"answering {type(message).__name__} of {short(peer)}", trouble)
            raise Refused("internal error") from None

    async def _answer_hello(self, peer: PeerId, frame: Frame) -> Hello:
        try:
            _check_protocol(peer, frame)
            hello = cast("Hello", from_frame(frame))
            self._check_hello(peer, hello)
        except Refused as refusal:
            log.warning("refused %s: %s", short(peer), refusal)
            raise
        await self._rise(hello)
        ours = self._hello(peer)
        if ours.fingerprint and hello.fingerprint and not self._is_outdated(hello.card):
            self._greeted[peer] = hello.card
            self._hear(hello.card)
        elif hello.fingerprint:
            for callback in self._offers:
                callback(hello.card, hello.fingerprint)
        return ours

    def _answer_settings(self, peer: PeerId) -> Settings:
        settings = self._settings()
        if settings is None:
            for callback in self._in_vain:
                callback(peer)
            raise Refused("this daemon is idle and has no run")
        return dataclasses.replace(settings, protocol=PROTOCOL)

    # ---------------------------------------------------------------------------------------------- many at once

    async def tell_all(self, peers: list[PeerId], message: Request[A], *, deadline_s: float) -> dict[PeerId, A]:
        """Asks several peers at once. Returns the answers of those that gave one in time."""
        if len(peers) == 1:
            answer = await self._try(peers[0], message, deadline_s)
            return {} if answer is None else {peers[0]: answer}
        results = await asyncio.gather(*(self._try(peer, message, deadline_s) for peer in peers))
        return {peer: answer for peer, answer in zip(peers, results, strict=True) if answer is not None}

    async def _try(self, peer: PeerId, message: Request[A], deadline_s: float) -> A | None:
        try:
            async with asyncio.timeout(deadline_s):  # over the greeting, too
                return await self.ask(peer, message, deadline_s=None)
        except NO_ANSWER as trouble:
            log.debug("%s to %s: %s", type(message).__name__, short(peer), trouble)
            return None


class Scope:
    """The conversations of a part of a peer, such as its stage: its handlers end with it."""

    def __init__(self, links: Links, handlers: dict[Any, Handler]) -> None:
        self.links = links
        self._handlers, self._own = handlers, set[Any]()

    def handle(self, kind: RequestKind[R, A], handler: Callable[[PeerId, R], Awaitable[A]]) -> None:
        """Has a handler answer a kind of request until the scope is closed."""
        self._handlers[kind] = handler
        self._own.add(kind)

    def close(self) -> None:
        """Refuses these kinds from now on."""
        for kind in self._own:
            self._handlers.pop(kind, None)


def _check_protocol(peer: PeerId, frame: Frame) -> None:
    """Reads of a greeting first which protocol it is in: the rest may be in other words then. Raises Mismatch."""
    protocol = frame.body.get("protocol") if frame.kind == Hello.__name__ else PROTOCOL
    if type(protocol) is int and protocol != PROTOCOL:
        raise Mismatch(
            f"peer {short(peer)} speaks protocol {protocol} and this daemon {PROTOCOL}; update the older one"
        )


def _prolonged(settings: Settings) -> str:
    """A word for peers that may have missed that this run was prolonged; "" if it wasn't."""
    if not settings.run.get("earlier"):
        return ""
    return (
        f"; run {settings.fingerprint} was prolonged to {settings.run.get('steps')} steps: a daemon that still has the "
        "old total follows once it is started again"
    )
