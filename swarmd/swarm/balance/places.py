"""The place of a newcomer: it asks where it is needed, and others answer.

A founder decides by itself. In a large swarm the peer that is asked may be far from the place that it gives, and know
only a few of the peers there; so the newcomer asks one of those, too.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass

from swarmd.errors import NO_ANSWER, ConfigError, Refused
from swarmd.sizes import lacking
from swarmd.swarm.balance.opinions import agree_on_place
from swarmd.swarm.balance.outlook import Outlook
from swarmd.swarm.balance.rule import plan_place
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.membership.gossip import cards_for
from swarmd.swarm.membership.shown import shown
from swarmd.swarm.membership.table import SMALL_SWARM, nan_to_zero
from swarmd.swarm.wire.messages.fields import ARRIVALS_LIMIT, LARGE_BYTES, WORDS_BYTES
from swarmd.swarm.wire.messages.presence import AskPlace, Card, Place
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

PLACE_SECONDS = 10.0
OPINION_SECONDS = 3.0  # for the others that a person named, once one has given a place
CARDS_BYTES = LARGE_BYTES - WORDS_BYTES  # of the cards in a `Place`, whose other fields are words
MEET_SECONDS = 3.0  # for those near the place to greet; who takes longer may do so later
NEAR_LIMIT = 192  # of them are greeted at once
PROMISES_LIMIT = 256  # newcomers whose place counts as taken; of more than these the first are forgotten
PROMISE_SECONDS = 60.0  # a place given to a newcomer counts as taken for so long
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Entrance:
    """The way a peer comes into its run."""

    stage: int | None = None  # the only one that it is to serve
    used: int | None = None  # the one that its disk is mostly of
    entries: tuple[PeerId, ...] = ()  # peers through which it comes; none: it founds the run
    named: tuple[PeerId, ...] = ()  # those of them that a person named; where these are several, one may lie
    resume: bool = False  # the run goes on from what is on disks


class Places:
    """This peer's search for a place, and its answers to those who search."""

    def __init__(
        self,
        context: PeerContext,
        entrance: Entrance,
        outlook: Outlook,
        hear_of: Callable[[Card], None],
    ) -> None:
        self._run, self._links, self._membership = context.run, context.links, context.membership
        self._history, self._stages = context.history, context.run.model.stages
        self._outlook, self._hear_of = outlook, hear_of
        self._wanted, self._entries, used = entrance.stage, entrance.entries, entrance.used
        self._named = entrance.named
        self._used = used if used is not None and used < self._stages else None
        self.has_data = True  # until loading it fails
        self.tried = ""  # whom this peer last asked for a place in vain, and why
        self._promises: dict[PeerId, tuple[int, float]] = {}  # newcomer -> its stage, until when
        self._arrivals = 0  # the last number that was given to a newcomer here
        context.links.handle(AskPlace, self._answer)

    async def find(self) -> int:
        """The stage to serve. A founder decides by itself; a joiner asks until somebody answers: alone it would begin a
        second history of the run. Raises ConfigError.
        """
        wanted = self._wanted
        if wanted is not None and not 0 <= wanted < self._stages:
            raise ConfigError(f"--stage {wanted}: this run has stages 0 to {self._stages - 1}")
        while True:
            known = [card.peer for card in self._told() if card.peer != self._membership.own.peer]
            for peer in dict.fromkeys((*self._links.transport.connected(), *known, *self._entries)):
                place = await self._ask(peer, wanted)
                if place is not None:
                    stage = await self._compare(peer, place, wanted)
                    if wanted is None and self._history.origin.resumes and self._may_use():
                        stage = self._used or 0
                    await self._meet_neighbours(peer, stage)
                    return stage
            if not self._entries:
                if wanted is not None:
                    return wanted
                if self._history.origin.resumes and self._may_use():
                    return self._used or 0
                return self._place(self.has_data, self._membership.own.memory_bytes)
            await self._membership.changed.wait(RETRY_SECONDS)

    def _may_use(self) -> bool:
        return self._used is not None and (self._used > 0 or self.has_data)

    def _told(self) -> list[Card]:
        """The cards of all that this peer was told of, whether they count yet or not."""
        return [*self._membership.cards(), *self._membership.rumours.cards()]

    async def _meet_neighbours(self, asked: PeerId, stage: int) -> None:
        """Asks a peer near the place for its neighbours' cards, if the one that gave the place is far from it; then
        greets them all, and before the first record the founder, as none counts before that.
        """
        giver = self._membership.get(asked)
        if giver is None or abs(giver.stage - stage) > 1:
            await self._ask_near(stage)
        small = len(self._told()) <= SMALL_SWARM
        near = [card.peer for card in self._membership.rumours.cards() if small or abs(card.stage - stage) <= 1]
        if self._history.record is None and self._history.origin.founder in self._membership.rumours:
            near.append(self._history.origin.founder)  # it leads, however far it is
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MEET_SECONDS):
                await asyncio.gather(*map(self._greet, near[-NEAR_LIMIT:]))

    async def _greet(self, peer: PeerId) -> None:
        with contextlib.suppress(*NO_ANSWER):
            await self._links.greet(peer)

    async def _ask_near(self, stage: int) -> None:
        own = self._membership.own
        near = [card for card in self._told() if card.stage >= 0 and abs(card.stage - stage) <= 1]
        for card in sorted(near, key=lambda card: (abs(card.stage - stage), card.peer)):
            if card.peer != own.peer and (place := await self._ask(card.peer, stage)) is not None:
                self._take(card.peer, place)
                return

    async def _compare(self, peer: PeerId, place: Place, wanted: int | None) -> int:
        """Takes a place. If a person named several peers, all of them are asked first: what one of them makes up counts
        for nothing. Returns the stage.
        """
        places = {peer: place}
        if len(self._named) > 1:
            others = [it for it in self._named if it != peer]
            answers = await asyncio.gather(*(self._ask(it, wanted, OPINION_SECONDS) for it in others))
            places |= {it: answer for it, answer in zip(others, answers, strict=True) if answer is not None}
        guide, agreed = agree_on_place(places) if len(places) > 1 else (peer, place)
        if odd := [short(it) for it, said in places.items() if said.founder != agreed.founder]:
            log.warning("%s say another founder of the run than most do", ", ".join(odd))
        self._take(guide, agreed)
        return agreed.stage

    async def _ask(self, peer: PeerId, wanted: int | None, deadline_s: float = PLACE_SECONDS) -> Place | None:
        stage = -1 if wanted is None else wanted
        question = AskPlace(stage, self.has_data, self._membership.own.memory_bytes)
        try:
            place = await self._links.ask(peer, question, deadline_s=deadline_s)
        except NO_ANSWER as trouble:
            log.info("no place from %s: %s", short(peer), trouble)
            self.tried = f"{short(peer)}: {str(trouble) or 'no answer'}"
            return None
        return place if 0 <= place.stage < self._stages else None

    def _take(self, peer: PeerId, place: Place) -> None:
        """Believes what comes with a place."""
        self._arrive(place.arrival)
        for card in place.cards:
            self._hear_of(card)
        own, told = self._membership.own.peer, bool(self._promises)
        self._history.origin.learn(place, own, told=told, ready=self._history.ready)
        self._history.origin.guide = peer

    def _arrive(self, arrival: int) -> None:
        """Takes its number from the peer that gives it a place: the order among newcomers is of that, not of clocks."""
        own = self._links.own
        arrival = max(own.card.arrival, 1, arrival)
        own.card = dataclasses.replace(own.card, arrival=arrival)

    def _next_arrival(self) -> int:
        """A number for a newcomer that is higher than those of all who are known here, newcomers on their way too."""
        seen = max(card.arrival for card in self._membership.cards())
        self._arrivals = min(max(self._arrivals, seen) + 1, ARRIVALS_LIMIT)
        return self._arrivals

    async def _answer(self, peer: PeerId, ask: AskPlace) -> Place:
        """Newcomers that come together through this peer get different places. One that has no place itself gives none:
        two that know nobody else would begin a second history of the run.
        """
        if self._membership.own.stage < 0:
            raise Refused("this peer looks for a place itself")
        now = asyncio.get_running_loop().time()
        self._promises = {who: it for who, it in self._promises.items() if it[1] > now and who != peer}
        stage = ask.stage
        if stage < 0:
            stage = self._place(ask.has_data, nan_to_zero(ask.memory_bytes), peer)
        while len(self._promises) >= PROMISES_LIMIT:
            del self._promises[next(iter(self._promises))]
        self._promises[peer] = (stage, now + PROMISE_SECONDS)
        origin = self._history.origin
        cards, arrival = shown(self._cards_for(stage), CARDS_BYTES), self._next_arrival()
        return Place(stage, cards, origin.founder, origin.resumes, arrival)

    def _cards_for(self, stage: int) -> tuple[Card, ...]:
        """The cards that a newcomer of a stage is given: before the first record the founder's, too, which leads."""
        cards, founder = cards_for(stage, self._membership), self._history.origin.founder
        known = self._membership.get(founder) if self._history.record is None else None
        return cards if known is None or any(it.peer == founder for it in cards) else (known, *cards)

    def lost(self, peer: PeerId) -> None:
        """Its connection broke: the next newcomer may have the place that was promised to it."""
        self._promises.pop(peer, None)

    def _place(self, has_data: bool, memory_bytes: float, newcomer: PeerId = "") -> int:
        """The stage that needs a newcomer most, of those that its device may hold, if there are any; those to whom a
        place was promised are as good as there.
        """
        coming = []
        for who, (promised, _) in self._promises.items():
            known = self._membership.get(who)
            if known is None or known.stage < 0:
                plain = dataclasses.replace(self._membership.own, peer=who, stage=promised, service_seconds=0.0)
                coming.append(dataclasses.replace(plain, state="joining", moving=-1))
        if newcomer:  # it may have been here before
            coming.append(dataclasses.replace(self._membership.own, peer=newcomer, stage=-1, state="joining"))
        able = [stage for stage in range(self._stages) if stage > 0 or has_data]
        able = [stage for stage in able if not lacking(self._run, stage, memory_bytes)] or able
        planned = plan_place(self._outlook.loads(coming), self._outlook.works, able)
        return 0 if planned is None else planned
