"""Making the sums of a round whole: missing indices are sent again, those that count twice are taken out of one sum.

So exactness never depends on who believes whom dead.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarmd.config import RunConfig
from swarmd.errors import OutOfRange, Overruled
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.rounds.coverage import Coverage, find_superfluous, measure_coverage
from swarmd.swarm.rounds.parts import choose_held
from swarmd.swarm.rounds.round import Round
from swarmd.swarm.wire.messages.common import Request, from_ranges, to_ranges
from swarmd.swarm.wire.messages.hop import SOMEONE
from swarmd.swarm.wire.messages.round import Holdings, Part, Resend, Subtract
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

REPAIR_POLL_SECONDS = 0.5
RESEND_AFTER_SECONDS = 1.0  # custodians see most deaths themselves, and at once
RESEND_AGAIN_SECONDS = 3.0
TURN_SECONDS = 15.0  # an index that doesn't come is asked of others after this
NEWCOMER_SECONDS = 15.0  # one that is on its way to newcomers alone is asked for after this, as if it wasn't
RESEND_SECONDS = 10.0  # to set out
SUBTRACT_SECONDS = 30.0  # besides what the device takes
LOST_SECONDS = 900.0  # without any progress, after which missing indices count as lost


@dataclass
class Lack:
    """An index that no sum has, as long as it is on its way to none."""

    since: float  # loop time
    asked: float = 0.0


class Lacks:
    """The indices that a round lacks, since when, and when each was last asked for."""

    def __init__(self) -> None:
        self._lacks: dict[int, Lack] = {}

    def due(self, missing: Sequence[int], now: float, after_s: float) -> list[int]:
        """Those of the missing indices that are to be asked for now: they have been missing for `after_s`, and were not
        asked for lately. What isn't missing any more is forgotten.
        """
        self._lacks = {index: self._lacks.get(index, Lack(now)) for index in missing}
        return [
            index
            for index, lack in self._lacks.items()
            if now - lack.since >= after_s and now - lack.asked >= RESEND_AGAIN_SECONDS
        ]

    def ask(self, indices: Sequence[int], now: float) -> float:
        """These are asked for now. Returns for how many seconds the first of them has been missing."""
        for index in indices:
            self._lacks[index].asked = now
        return max(now - self._lacks[index].since for index in indices)


def order_sources(
    sources: Sequence[PeerId],
    waited_s: float,
    is_silent: Callable[[PeerId], bool],
    is_named: Callable[[PeerId], bool],
) -> list[PeerId]:
    """The order in which peers are asked for what has been missing for so long: each turn another one is the first, but
    newcomers come after those that a record names, and the silent ones, which are waited for, are the last.
    """
    turn = int(waited_s / TURN_SECONDS) % max(1, len(sources))
    return sorted([*sources[turn:], *sources[:turn]], key=lambda peer: (is_silent(peer), not is_named(peer)))


class Reconciliation:
    """One round's members' sums on their way to having every index once."""

    def __init__(self, run: RunConfig, round_: Round, gradient_size: int, is_named: Callable[[PeerId], bool]) -> None:
        self._run, self._round, self._size = run, round_, gradient_size
        self._is_named = is_named  # by a record: what a newcomer alone says decides nothing
        self.lost: set[int] = set()  # indices that nobody brings any more
        self.loss_sum: float | None = None  # of all indices, once known
        self.spread = True  # the members share the work of owners; else the leader alone owns all parts
        self._lacks = Lacks()
        self._with_newcomers = Lacks()
        self._void: set[PeerId] = set()  # they answer, but their sums can't be used
        self._failed_subtractions: dict[PeerId, int] = {}

    async def make_whole(self) -> dict[PeerId, Holdings]:
        """Freezes the members' sums once they have every index once, or the step is to be skipped. Mostly they do, and
        the first question is the last.
        """
        frozen: dict[PeerId, Holdings] = {}
        while not self._round.blame:
            frozen = await self.ask_members(self._round.freeze())
            if self._is_whole(frozen):
                break
            await self._repair()
        if not self._round.blame:
            self._take_stock(frozen)
        return frozen

    async def ask_members(self, question: Request[Holdings]) -> dict[PeerId, Holdings]:
        """The holdings of the members that answer; one that names indices which the step doesn't have is left out.
        Raises Overruled, Refused.
        """
        answers = await self._round.ask_members(question)
        for peer, it in [*answers.items()]:
            try:
                for ranges in (it.indices, it.under_way):
                    from_ranges(ranges, self._run.microbatches)
            except OutOfRange as trouble:
                self._round.leave_out(peer, str(trouble))
                del answers[peer]
        return answers

    def _take_stock(self, frozen: dict[PeerId, Holdings]) -> None:
        """Notes what the frozen sums together have."""
        holdings = self.holdings(frozen)
        coverage = measure_coverage(holdings, self._run.microbatches, self._is_named)
        if coverage.exact:
            self.loss_sum = sum(frozen[peer].loss_sum for peer in sorted(holdings) if holdings[peer])
        self.lost = set() if self._all_averaged(frozen) else set(coverage.missing)

    def holdings(self, frozen: dict[PeerId, Holdings]) -> dict[PeerId, list[int]]:
        """The indices in the sums that count."""
        limit = self._run.microbatches
        found = {peer: from_ranges(it.indices, limit) for peer, it in frozen.items() if peer not in self._void}
        return {**found, **{peer: [] for peer in find_superfluous(found, self._is_named)}}

    def averaged(self, frozen: dict[PeerId, Holdings]) -> tuple[Part, ...]:
        """The parts that needn't be averaged again."""
        own = self._round.own
        having = {peer: it for peer, it in frozen.items() if peer == own or (self.spread and self._is_named(peer))}
        return choose_held({peer: it.parts for peer, it in having.items()}, self._size)

    def believes(self, peer: PeerId) -> bool:
        """Tells if a peer's word is enough that numbers aren't finite: one's that a record names. Before the first
        record there is none, and the leader must have met such a number itself.
        """
        return peer == self._round.own or (self._round.step > 1 and self._is_named(peer))

    def _is_whole(self, frozen: dict[PeerId, Holdings]) -> bool:
        for peer, it in [*frozen.items()]:
            if not it.finite and self.believes(peer):
                self._round.skip(it.blame or SOMEONE)
            elif not it.finite:  # whoever computes its microbatches anew finds out
                self._round.leave_out(peer, "it says that its numbers are not finite, and no record names it")
                del frozen[peer]
        if self._round.blame:
            return True
        if self._round.own not in frozen:
            return False
        coverage = measure_coverage(self.holdings(frozen), self._run.microbatches, self._is_named)
        if coverage.surplus:
            return False
        return set(coverage.missing) <= self.lost or self._all_averaged(frozen)

    def _all_averaged(self, frozen: dict[PeerId, Holdings]) -> bool:
        """True if the whole gradient is there already, from an attempt before; the tail must know the loss, too."""
        if self.loss_sum is None and self._round.stage == self._run.model.stages - 1:
            return False
        return sum(part.stop - part.start for part in self.averaged(frozen)) == self._size and self._size > 0

    async def _repair(self) -> None:
        """Has sums repaired until they look whole."""
        loop, it = asyncio.get_running_loop(), self._round
        best, since = -1, loop.time()
        spared: set[int] = set()
        while True:
            frozen = await self.ask_members(it.thaw(spared))
            if self._is_whole(frozen):
                return
            holdings = self.holdings(frozen)
            coverage = measure_coverage(holdings, self._run.microbatches, self._is_named)
            ways = {peer: set(from_ranges(frozen[peer].under_way, self._run.microbatches)) for peer in holdings}
            under_way = set().union(*ways.values())
            held = {index for indices in holdings.values() for index in indices}
            twice = (held & under_way) - spared
            spared = (spared & held) | twice
            if twice:  # what comes to an end meanwhile would have to be subtracted
                continue
            counting = sorted(peer for peer in holdings if holdings[peer] or not frozen[peer].indices)
            await self._resend(self._to_bring(coverage.missing, ways), counting)
            if it.blame:
                return
            await self._subtract(coverage)
            progress = self._run.microbatches - len(coverage.missing) - sum(map(len, coverage.surplus.values()))
            if progress != best:
                best, since = progress, loop.time()
            if loop.time() - since > LOST_SECONDS:
                log.error("step %d: microbatches %s of stage %d are lost", it.step, coverage.missing, it.stage)
                self.lost.update(coverage.missing)
            await it.changed.wait(REPAIR_POLL_SECONDS)

    # ---------------------------------------------------------------------------------------------- what is missing

    def _to_bring(self, missing: Sequence[int], ways: dict[PeerId, set[int]]) -> list[int]:
        """Those of the missing indices that are on their way to no member. Whoever gave one to a newcomer may be gone,
        and then nobody takes its hop: so it is brought to it once more after a while, by someone who answers for that.
        `ways`: what is under way at each member.
        """
        named = set[int]().union(*(indices for peer, indices in ways.items() if self._is_named(peer)))
        others = set[int]().union(*ways.values()) - named
        with_newcomers = [index for index in missing if index in others]
        late = self._with_newcomers.due(with_newcomers, asyncio.get_running_loop().time(), NEWCOMER_SECONDS)
        return [index for index in missing if index in late or index not in named | others]

    async def _resend(self, missing: list[int], members: list[PeerId]) -> None:
        """Has indices brought that are in no sum, nor on their way to one."""
        it, now = self._round, asyncio.get_running_loop().time()
        replicas = [card.peer for card in it.membership.stage(it.stage)]
        silent = any(it.membership.is_silent(peer, now) for peer in replicas)
        # A silent one that has them says no word, and no custodian was told.
        due = self._lacks.due(missing, now, 0.0 if silent else RESEND_AFTER_SECONDS)
        if not due or not members:
            return
        sources = members
        if it.stage > 0:
            sources = rendezvous(f"resend/{it.step}/{it.stage}", self._sources())
        waited_s = self._lacks.ask(due, now)
        sources = order_sources(sources, waited_s, lambda peer: it.membership.is_silent(peer, now), self._is_named)
        left = due
        if it.stage > 0:
            for source in sources:  # one after another, so that two don't send the same
                left = await self._bring(source, left, members, anew=False)
        for number, source in enumerate(sources):  # nobody has these: each does a share
            await self._bring(source, left[number :: len(sources)], members, anew=True)

    def _sources(self) -> list[PeerId]:
        """The peers at work that can bring what this stage lacks."""
        return [card.peer for card in self._round.membership.stage(max(0, self._round.stage - 1))]

    async def _bring(self, source: PeerId, indices: list[int], members: list[PeerId], *, anew: bool) -> list[int]:
        """Asks a peer to bring indices. Returns those that it doesn't."""
        if not indices:
            return []
        it = self._round
        it.handouts.give(it.step, max(0, it.stage - 1), indices, source)
        question = Resend(it.step, it.record, to_ranges(indices), it.stage, tuple(members), it.ballot, anew)
        answer = await it.ask(source, question, min(RESEND_SECONDS, it.patience()))
        if answer is None:
            return indices
        if answer.blame and not self._is_named(source) and any(map(self._is_named, self._sources())):
            return indices
        if answer.blame:
            it.skip(answer.blame)
            return []
        try:
            taken = from_ranges(answer.indices, self._run.microbatches)
        except OutOfRange as trouble:
            log.warning("step %d: %s brings none of the missing microbatches: %s", it.step, short(source), trouble)
            return indices
        log.info("step %d: %d missing microbatches come from %s", it.step, len(taken), short(source))
        return [index for index in indices if index not in taken]

    # ---------------------------------------------------------------------------------------------- what is surplus

    async def _subtract(self, coverage: Coverage) -> None:
        """Has indices taken out of sums where others count. A sum of which that fails twice doesn't count at all."""
        members = [card.peer for card in self._round.membership.stage(self._round.stage)]
        patience = self._round.patience()
        try:
            async with asyncio.TaskGroup() as group:
                for peer, indices in coverage.surplus.items():
                    if peer in members:
                        group.create_task(self._take_out(peer, indices, SUBTRACT_SECONDS + patience * len(indices)))
        except* Overruled as troubles:
            raise troubles.exceptions[0] from None

    async def _take_out(self, peer: PeerId, indices: tuple[int, ...], seconds: float) -> None:
        it = self._round
        question = Subtract(it.step, it.record, to_ranges(indices), it.ballot, it.stage)
        if await it.ask(peer, question, seconds) is None:
            self._failed_subtractions[peer] = self._failed_subtractions.get(peer, 0) + 1
            if self._failed_subtractions[peer] > 1:
                log.warning("step %d: %s can't subtract: its sum doesn't count", it.step, short(peer))
                self._void.add(peer)
