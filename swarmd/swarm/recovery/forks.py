"""Histories that meet: whose records are not ours, which history wins, and how the loser's peers cross to it.

A history forks when the network is cut in two for so long that both sides decide records of the same step
(`ballots.py`). A peer whose card shows a record that is not in our chain is *foreign*: it gets no hops, leads nothing
and counts nowhere until its card fits again. When two histories meet, `wins` says which one is given up.

Nobody may leave the last replica of a stage behind, so a loser goes only to a history that is whole, and asks first:
one peer of each stage must say, by giving a record, that it stays there. Who is about to leave gives none. So of two
peers that want to go each other's way one stays, and of two histories at least one is whole at any time. If neither has
every stage, nobody moves: no state is given up for one that can't be had.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from swarmd.swarm.history.chain import RECORDS_KEPT
from swarmd.swarm.history.confirmation import Confirmation
from swarmd.swarm.history.listener import HistoryListener
from swarmd.swarm.history.parting import ask_record, find_fork
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Record
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.ports import Compute
from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

DECISIVE_LEAD = 2  # steps; a lead of one is a matter of when one looks, and would change sides twice a step
FOREIGN_SECONDS = 10.0  # after which a peer that is ahead with another history is looked at again
MEET_SECONDS = 2.0  # between two looks at foreign histories
MET_AT_ONCE = 4  # foreign peers looked at, at a time
ASKED_AT_ONCE = 8  # peers of a stage asked whether they stay; records fetched at a time
MEMORY_SECONDS = 1.0  # between tries to have memory for a copy of the state
INCOMPLETE_SECONDS = 30.0  # a stage of ours that is empty for less may only be restarting


@dataclass(frozen=True)
class Standing:
    """One history, for comparison."""

    version: int  # the newest
    forked: bool  # some record after the last common one was decided without a majority
    tokens: int  # of the first record after the fork, and so it doesn't change
    record_hash: str  # and its hash


def wins(one: Standing, other: Standing, steps: int) -> bool:
    """True if a history is kept when it meets another: one at the end of the run, whose peers can't go back; then one
    that majorities decided, however long the other is; then more steps, more tokens, the lower hash. `steps`: of the
    run.
    """
    lead = one.version - other.version
    if lead and steps in (one.version, other.version):
        return lead > 0
    if one.forked != other.forked:
        return other.forked
    if abs(lead) >= DECISIVE_LEAD:
        return lead > 0
    return (-one.tokens, one.record_hash) < (-other.tokens, other.record_hash)


@dataclass(frozen=True)
class Meeting:
    """The place where another history parts from ours."""

    peer: PeerId  # who showed it
    ancestor: int  # the newest version in common, as far as is known
    ours: Record  # the first records after that
    theirs: Record


@dataclass(frozen=True)
class Crossing:
    """The way to a history that wins."""

    ancestor: int
    guide: PeerId  # a peer of it
    donors: tuple[PeerId, ...]  # of our stage, that stay there


class Forks(HistoryListener):
    """This peer's knowledge of other histories than its own."""

    def __init__(self, context: PeerContext, confirmation: Confirmation) -> None:
        self._context, self._run, self._rng = context, context.run, context.rng
        self._confirmation = confirmation
        self._unforked: dict[str, int] = {}  # first record of another history -> version up to which none is forked
        self._membership, self._history = context.membership, context.history
        self._foreign_until: dict[PeerId, float] = {}  # a peer that is ahead of us -> loop time
        self._rest_until = 0.0
        self._incomplete_since: float | None = None
        self._membership.fits = self.fits
        self._history.listen(self)

    def fits(self, card: Card) -> bool:
        """True for a card that can be of our history: its record is in our chain, or it is ahead and its records follow
        ours as far as we have seen.
        """
        if card.version > self._history.version:
            until = self._foreign_until.get(card.peer)
            return until is None or until < asyncio.get_running_loop().time()
        known = self._history.chain.hash_at(card.version)
        return not known or not card.record_hash or known == card.record_hash

    def on_record(self, record: Record) -> None:
        """Cards that were ahead of this peer can be compared now."""
        self._membership.judge_again()

    def on_foreign(self, peer: PeerId) -> None:
        """Believes a peer that is ahead to be of another history, for a while."""
        self._foreign_until[peer] = self._now() + FOREIGN_SECONDS
        self._membership.judge_again()
        self._history.changed.notify()

    def on_replaced(self) -> None:
        """This peer may be of the history now that was another."""
        self._foreign_until.clear()
        self._membership.judge_again()

    def sweep(self, now: float) -> None:
        """Looks again at those who were ahead of us with another history a while ago."""
        if over := [peer for peer, until in self._foreign_until.items() if until < now]:
            for peer in over:
                del self._foreign_until[peer]
            self._membership.judge_again()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # ---------------------------------------------------------------------------------------------- which one wins

    @contextlib.asynccontextmanager
    async def look(self) -> AsyncIterator[Crossing | None]:
        """Looks at foreign histories. Gives the way to one of them that is whole and wins; within the context nobody
        counts on this peer any more.
        """
        for known in self._due()[:MET_AT_ONCE]:
            meeting = await self._meet(known)
            if meeting is None or not await self._loses_to(meeting, known):
                continue
            with self._history.crossing(meeting.ancestor):
                if (way := await self._find_crossing(meeting, self._newest(known), self._foreign())) is not None:
                    yield way
                    return
        yield None

    def _due(self) -> list[Card]:
        """The foreign peers that are to be looked at now; none if it isn't time to do so."""
        foreign = self._foreign()
        if not foreign:
            self._incomplete_since = None
        if not foreign or self._now() < self._rest_until or self._history.version == 0:
            return []
        self._rest_until = self._now() + MEET_SECONDS * (0.5 + self._rng.random())
        return foreign

    def _foreign(self) -> list[Card]:
        """Peers of other histories, those that are ahead first."""
        foreign = [card for card in self._membership.foreign() if card.state in (*AT_WORK, "finished")]
        return sorted(foreign, key=lambda card: (-card.version, card.peer))

    def _newest(self, card: Card) -> Card:
        """The card that its peer has now: it may have gone on while records were fetched."""
        return self._membership.get(card.peer) or card

    async def _meet(self, card: Card) -> Meeting | None:
        """Finds where a foreign peer's history parts from ours. None if it doesn't, or that can't be had."""
        records: dict[int, Record] = {}

        async def theirs(version: int) -> str:
            record = await ask_record(self._context, card.peer, version)
            if record is not None:
                records[version] = record
            return record.hash if record is not None else ""

        fork = await find_fork(self._history.chain.hash_at, theirs, min(self._history.version, card.version))
        if fork is None:
            self._foreign_until.pop(card.peer, None)
            self._membership.judge_again()
            return None
        if card.version >= self._history.version:
            self.on_foreign(card.peer)
        ours = self._history.chain.at(fork[1])
        if ours is None or ours.hash == records[fork[1]].hash:
            return None  # this peer has gone on meanwhile
        first = records[fork[1]]
        ancestor = fork[0] if first.parent == ours.parent else await self._agreed(theirs, fork[0])
        return Meeting(card.peer, ancestor, ours, first)

    async def _agreed(self, theirs: Callable[[int], Awaitable[str]], upto: int) -> int:
        """The newest version of which they give our record. One that has crossed, and hasn't learned the records that
        led there yet, gives none of those; they are no common ones.
        """

        async def given(version: int) -> str:
            return await theirs(version) or "none"

        fork = await find_fork(self._history.chain.hash_at, given, upto)
        return upto if fork is None else fork[0]

    async def _loses_to(self, meeting: Meeting, card: Card) -> bool:
        """True if our history is the one to be given up, provided that the other is whole."""
        if not meeting.theirs.forked and await self._confirmation.denies(meeting.theirs):
            log.warning(
                "%s shows a record of step %d that its acceptors deny", short(meeting.peer), meeting.theirs.step
            )
            return False
        if self._is_torn():
            return True
        forked = await self._is_forked(card, meeting.theirs)
        newest = self._membership.newest().version
        ours = _standing(max(newest, self._history.version), meeting.ours, forked=self._has_forked(meeting.ancestor))
        shown = max(it.version for it in (self._newest(card), *self._foreign()))
        theirs = _standing(shown, meeting.theirs, forked=forked)
        lost = wins(theirs, ours, self._run.steps)
        log.info(
            "the history of %s parts from ours after step %d: %s", short(card.peer), meeting.ancestor, (ours, theirs)
        )
        return lost

    def _has_forked(self, ancestor: int) -> bool:
        """True if a record of ours after a version is marked as forked."""
        records = map(self._history.chain.at, range(ancestor + 1, self._history.version + 1))
        return any(record.forked for record in records if record is not None)

    async def _is_forked(self, card: Card, first: Record) -> bool:
        """True if a peer's history has a forked record, from the first after the fork on, as far as it gives them."""
        if first.forked:
            return True
        looked, end = self._unforked.pop(first.hash, first.step), min(card.version, self._run.steps) + 1
        for start in range(max(looked + 1, end - RECORDS_KEPT), end, ASKED_AT_ONCE):  # nobody gives older ones
            steps = range(start, min(start + ASKED_AT_ONCE, end))
            records = await asyncio.gather(*(ask_record(self._context, card.peer, step) for step in steps))
            if any(record.forked for record in records if record is not None):
                return True
        self._unforked[first.hash] = max(looked, end - 1)
        while len(self._unforked) > MET_AT_ONCE:
            del self._unforked[next(iter(self._unforked))]
        return False

    def _is_torn(self) -> bool:
        """True if a stage of our history has been empty for so long that the other one can only be better."""
        if not self._membership.missing_stages(self._run.model.stages):
            self._incomplete_since = None
        elif self._incomplete_since is None:
            self._incomplete_since = self._now()
        return self._incomplete_since is not None and self._now() - self._incomplete_since > INCOMPLETE_SECONDS

    # ---------------------------------------------------------------------------------------------- crossing

    async def _find_crossing(self, meeting: Meeting, card: Card, foreign: list[Card]) -> Crossing | None:
        """Asks peers of each stage whether they stay in the other history. None if nobody does so at one of them."""
        stages = range(self._run.model.stages)
        found = await asyncio.gather(*(self._stayers(card, foreign, stage) for stage in stages))
        if not all(found):
            log.info("the history of %s has no peer that stays for every stage", short(card.peer))
            return None
        return Crossing(meeting.ancestor, card.peer, found[self._membership.own.stage])

    async def _stayers(self, guide: Card, foreign: list[Card], stage: int) -> tuple[PeerId, ...]:
        """Peers of a stage that are of the guide's history and stay there."""
        cards = [card for card in foreign if card.stage == stage]
        cards = sorted(cards, key=lambda card: (-card.version, card.peer))[:ASKED_AT_ONCE]
        answers = await asyncio.gather(*(self._stays(guide, card) for card in cards))
        return tuple(card.peer for card, stays in zip(cards, answers, strict=True) if stays)

    async def _stays(self, guide: Card, card: Card) -> bool:
        step = min(guide.version, card.version)
        mine, its = await asyncio.gather(*(ask_record(self._context, it.peer, step) for it in (guide, card)))
        return mine is not None and its is not None and mine.hash == its.hash

    async def arrive(self, way: Crossing, compute: Compute) -> None:
        """Makes this peer one of the other history, whose state has come."""
        async with self._history.lock:
            with contextlib.suppress(KeyError):  # a freeze of the old history may have come after the new state
                await compute.thaw(self._history.version + 1)
        await self._learn_chain(way.guide, way.ancestor)
        log.warning("this peer goes on at another history's version %d", self._history.version)

    async def stay(self, compute: Compute) -> None:
        """Goes on in this peer's own history, as the other's state can't be had; with an empty sum, since the others
        have gone on without it.
        """
        history = self._history
        async with history.lock:
            if not history.broken:
                history.replace(history.record, await _empty_sum(compute))
        log.warning("this peer stays at version %d", history.version)

    async def _learn_chain(self, guide: PeerId, ancestor: int) -> None:
        """Fetches the records that led from the common version to ours, so that we know of others what they are."""
        records: dict[int, Record] = {}
        missing = range(max(ancestor + 1, self._history.version - RECORDS_KEPT), self._history.version)
        for start in range(missing.start, missing.stop, ASKED_AT_ONCE):
            steps = range(start, min(start + ASKED_AT_ONCE, missing.stop))
            got = await asyncio.gather(*(ask_record(self._context, guide, step) for step in steps))
            records.update({record.step: record for record in got if record is not None})
        self._history.chain.learn(records)
        self._membership.judge_again()


async def _empty_sum(compute: Compute) -> str:
    """Loads the state that is there once more, as soon as there is the memory for it. Returns its digest."""
    while True:
        try:
            return await compute.import_state(await compute.export_state())
        except MemoryError:
            await asyncio.sleep(MEMORY_SECONDS)


def _standing(version: int, first: Record, *, forked: bool) -> Standing:
    return Standing(version, forked, first.total_tokens, first.hash)
