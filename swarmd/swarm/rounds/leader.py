"""Leading a stage's round: the members' sums are made whole, planned, averaged, reported.

Members of the round are those that answer; everyone else's sum counts for nothing in it. The leader reconciles: it has
missing indices sent again, and those that count twice taken out of one sum, so that exactness never depends on who
believes whom dead. Whoever stays silent is left out; what is averaged stays averaged.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from swarmd.config import RunConfig
from swarmd.errors import NO_ANSWER, Overruled, PeerFault, PeerUnreachable, Refused
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.table import Membership, nan_to_zero
from swarmd.swarm.rounds.holdups import Holdups
from swarmd.swarm.rounds.parts import Coverage, choose_held, complete_parts, find_superfluous, measure_coverage
from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Ballot, Request, from_ranges, to_ranges
from swarmd.swarm.wire.messages.hop import NOBODY, SOMEONE, Blame
from swarmd.swarm.wire.messages.round import (
    AskHoldings,
    Freeze,
    Frozen,
    Part,
    Plan,
    Resend,
    Result,
    StageReport,
    Subtract,
)
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

A = TypeVar("A")

PATIENCE_FACTOR = 10.0  # a member may take so many times the stage's slowest microbatch to answer ...
PATIENCE_FLOOR_SECONDS = 5.0  # ... but no less than this: a loaded machine stalls for seconds ...
PATIENCE_CEILING_SECONDS = 60.0  # ... and no more, or a hung device would hold up the swarm
HASTY_SECONDS = 0.5  # for one that nothing was heard of lately: if it is coming back, it answers at once
SILENCES = 2  # questions in a row that a member may leave unanswered: after a stall of our own all come late at once
WATCH_SECONDS = 2.0  # between looks at the members of an attempt that goes on
REPAIR_POLL_SECONDS = 0.5
RESEND_AFTER_SECONDS = 1.0  # custodians see most deaths themselves, and at once
RESEND_AGAIN_SECONDS = 3.0
TURN_SECONDS = 15.0  # an index that doesn't come is asked of others after this
RESEND_SECONDS = 10.0  # to set out
SUBTRACT_SECONDS = 30.0  # besides what the device takes
LOST_SECONDS = 900.0  # without any progress, after which missing indices count as lost
ATTEMPTS = 12
REFUSALS = 3  # attempts of the leader alone that a member may fail at: others are done sooner without it
ATTEMPTS_SPREAD = 2  # after so many failed, the leader alone owns all parts: everyone in the round reaches it


@dataclass
class Lack:
    """An index that no sum has, as long as it is on its way to none."""

    since: float  # loop time
    asked: float = 0.0


class Leader:
    """One round, led by this peer."""

    def __init__(
        self,
        run: RunConfig,
        links: Links,
        membership: Membership,
        changed: Signal,
        stage: int,
        step: int,
        record: str,
        ballot: Ballot,
        gradient_size: int,
        name_attempt: Callable[[], str],
    ) -> None:
        self._run, self._links, self._membership, self._changed = run, links, membership, changed
        self._stage, self._step, self._record, self.ballot = stage, step, record, ballot
        self._size, self._name_attempt = gradient_size, name_attempt
        self._own = membership.own.peer
        self._silences: dict[PeerId, int] = {}
        self._left_out: set[PeerId] = set()  # they don't answer, or hold the round up
        self._void: set[PeerId] = set()  # they answer, but their sums can't be used
        self._lacks: dict[int, Lack] = {}
        self._lost: set[int] = set()
        self._failed_subtractions: dict[PeerId, int] = {}
        self._loss_sum: float | None = None  # of all indices, once known
        self._failures = 0
        self._refusing: set[PeerId] = set()  # members that failed at the present attempt
        self._refusals: dict[PeerId, int] = {}  # members -> attempts of the leader alone that they failed at
        self._asked: set[PeerId] = set()  # whose sums this leader may have frozen
        self._releases: set[asyncio.Task[None]] = set()
        self._blame = NOBODY  # why the step is to be skipped, once that is known

    def skip(self, blame: Blame) -> None:
        """The step is to be skipped: nobody needs its gradient, and nothing must be whole for it."""
        self._blame = self._blame or blame
        self._changed.notify()

    async def lead(self) -> StageReport:
        """The round, to its report. Raises Refused when another leader has it, or nothing works."""
        try:
            return await self._lead()
        except Refused:
            for peer in sorted(self._asked):  # unless another leader has them
                self._release(peer, None)
            raise

    async def _lead(self) -> StageReport:
        while self._failures < ATTEMPTS:
            frozen = await self._make_whole()
            if self._blame:
                return self._report(await self._settle(), None, {})
            plan = self._plan(frozen)
            results = await self._attempt(plan, sorted(frozen))
            for blame in (result.blame for result in results.values() if result.blame):
                self.skip(blame)
            if self._blame:
                return self._report(await self._settle(), None, {})
            digests = {result.digest for result in results.values()}
            if len(digests) == 1 and {self._own, *plan.members} <= results.keys():
                for peer in sorted(self._asked - frozen.keys()):
                    self._release(peer, None)
                return self._report(frozen, plan, results)
            self._count_refusals()
            self._failures += 1
            log.info(
                "round of step %d: attempt %s failed, %d of %d answered",
                self._step,
                plan.attempt,
                len(results),
                len(frozen),
            )
        raise Refused(f"the round of step {self._step} failed {ATTEMPTS} times")

    async def _settle(self) -> dict[PeerId, Frozen]:
        """Tells the members that the step is to be skipped: hops may go on with their sums, which other stages' may
        wait for, and who answers has taken part.
        """
        question = AskHoldings(self._step, self._record, self.ballot, self._stage, blame=self._blame)
        while self._own not in (answers := await self._ask_members(question)):
            await self._changed.wait(REPAIR_POLL_SECONDS)
        return answers

    def _count_refusals(self) -> None:
        """Whoever fails again and again at what works at the leader is left out: it may have no memory for it."""
        if self._spreads() or self._own in self._refusing:
            return
        for peer in sorted(self._refusing):
            self._refusals[peer] = self._refusals.get(peer, 0) + 1
            if self._refusals[peer] == REFUSALS:
                log.warning("round of step %d goes on without %s: it can't carry the plan out", self._step, short(peer))
                self._left_out.add(peer)

    # ---------------------------------------------------------------------------------------------- asking

    def _patience(self) -> float:
        """How long a member may take to answer, by what its stage's microbatches take."""
        slowest = max((nan_to_zero(card.service_seconds) for card in self._membership.stage(self._stage)), default=0.0)
        return min(PATIENCE_CEILING_SECONDS, max(PATIENCE_FLOOR_SECONDS, PATIENCE_FACTOR * slowest))

    async def _ask(self, peer: PeerId, question: Request[A], seconds: float) -> A | None:
        """The answer, None if there is none. Raises Overruled. Counts silences."""
        try:
            async with asyncio.timeout(seconds):
                answer = await self._links.ask(peer, question, deadline_s=seconds)
        except TimeoutError:
            self._silences[peer] = self._silences.get(peer, 0) + 1
            log.info("%s doesn't answer %s of step %d", short(peer), type(question).__name__, self._step)
            return None
        except Overruled:
            raise
        except (PeerUnreachable, Refused, PeerFault) as trouble:
            log.info("%s to %s of step %d: %s", type(question).__name__, short(peer), self._step, trouble)
            return None
        self._silences.pop(peer, None)
        return answer

    async def _ask_all(
        self, peers: list[PeerId], question: Request[A], seconds: float, hasty: Sequence[PeerId] = ()
    ) -> dict[PeerId, A]:
        """Everyone at once. `hasty`: who doesn't get so many seconds."""
        limits = {peer: min(seconds, HASTY_SECONDS) if peer in hasty else seconds for peer in peers}
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {peer: group.create_task(self._ask(peer, question, limits[peer])) for peer in peers}
        except* Overruled as troubles:
            raise troubles.exceptions[0] from None
        return {peer: answer for peer, task in tasks.items() if (answer := task.result()) is not None}

    async def _ask_members(self, question: Request[Frozen]) -> dict[PeerId, Frozen]:
        """What everyone who answers has. Whoever stays silent is left out of the round."""
        now = asyncio.get_running_loop().time()
        peers = [card.peer for card in self._membership.stage(self._stage) if card.peer not in self._left_out]
        silent = [peer for peer in peers if peer != self._own and self._membership.is_silent(peer, now)]
        peers = [peer for peer in peers if peer not in silent or peer not in self._asked]  # silent ones only once
        if self._own not in peers:
            raise Refused("this peer isn't at work")
        self._asked.update(peers)
        answers = await self._ask_all(peers, question, self._patience(), hasty=silent)
        self._leave_out_the_silent()
        return answers

    def _leave_out_the_silent(self) -> None:
        for peer, times in self._silences.items():
            if times >= SILENCES and peer not in self._left_out:
                if peer == self._own:
                    raise Refused("the device of this peer doesn't answer")
                log.warning("round of step %d goes on without %s: it doesn't answer", self._step, short(peer))
                self._left_out.add(peer)

    def _holdings(self, frozen: dict[PeerId, Frozen]) -> dict[PeerId, list[int]]:
        """What is in the sums that count."""
        limit = self._run.microbatches
        found = {peer: from_ranges(it.indices, limit) for peer, it in frozen.items() if peer not in self._void}
        return {**found, **{peer: [] for peer in find_superfluous(found)}}

    # ---------------------------------------------------------------------------------------------- repairing

    async def _make_whole(self) -> dict[PeerId, Frozen]:
        """Freezes the members' sums once they have every index once. Mostly they do, and the first question is the
        last.
        """
        frozen: dict[PeerId, Frozen] = {}
        while not self._blame:
            frozen = await self._ask_members(Freeze(self._step, self._record, self.ballot, self._stage))
            if self._is_whole(frozen):
                break
            await self._repair()
        return frozen

    def _is_whole(self, frozen: dict[PeerId, Frozen]) -> bool:
        for it in frozen.values():
            if not it.finite:
                self.skip(it.blame or SOMEONE)
        if self._blame:
            return True
        if self._own not in frozen:
            return False
        coverage = measure_coverage(self._holdings(frozen), self._run.microbatches)
        if coverage.surplus:
            return False
        if set(coverage.missing) <= self._lost:
            return True
        return self._all_averaged(frozen)

    def _all_averaged(self, frozen: dict[PeerId, Frozen]) -> bool:
        """Whether the whole gradient is there already, from an attempt before; the tail must know the loss, too."""
        if self._loss_sum is None and self._stage == self._run.model.stages - 1:
            return False
        return sum(part.stop - part.start for part in self._held(frozen)) == self._size and self._size > 0

    def _held(self, frozen: dict[PeerId, Frozen]) -> tuple[Part, ...]:
        """What needn't be averaged again."""
        having = frozen if self._spreads() else {self._own: frozen[self._own]}
        return choose_held({peer: it.parts for peer, it in having.items()})

    def _spreads(self) -> bool:
        """Whether the members share the work of owners."""
        return self._failures < ATTEMPTS_SPREAD

    async def _repair(self) -> None:
        """Has sums repaired until they look whole."""
        loop = asyncio.get_running_loop()
        best, since = -1, loop.time()
        spared: set[int] = set()
        while True:
            question = AskHoldings(self._step, self._record, self.ballot, self._stage, to_ranges(spared))
            frozen = await self._ask_members(question)
            if self._is_whole(frozen):
                return
            holdings = self._holdings(frozen)
            coverage = measure_coverage(holdings, self._run.microbatches)
            under_way = {i for peer in holdings for i in from_ranges(frozen[peer].under_way, self._run.microbatches)}
            held = {index for indices in holdings.values() for index in indices}
            twice = (held & under_way) - spared
            spared = (spared & held) | twice
            if twice:  # what comes to an end meanwhile would have to be subtracted
                continue
            counting = sorted(peer for peer in holdings if holdings[peer] or not frozen[peer].indices)
            await self._resend([index for index in coverage.missing if index not in under_way], counting)
            if self._blame:
                return
            await self._subtract(coverage)
            progress = self._run.microbatches - len(coverage.missing) - sum(map(len, coverage.surplus.values()))
            if progress != best:
                best, since = progress, loop.time()
            if loop.time() - since > LOST_SECONDS:
                log.error("step %d: microbatches %s of stage %d are lost", self._step, coverage.missing, self._stage)
                self._lost.update(coverage.missing)
            await self._changed.wait(REPAIR_POLL_SECONDS)

    async def _resend(self, missing: list[int], members: list[PeerId]) -> None:
        """Has indices brought that are in no sum, nor on their way to one."""
        now = asyncio.get_running_loop().time()
        self._lacks = {index: self._lacks.get(index, Lack(now)) for index in missing}
        silent = any(self._membership.is_silent(card.peer, now) for card in self._membership.stage(self._stage))
        after = 0.0 if silent else RESEND_AFTER_SECONDS  # whoever has them says no word, and no custodian was told
        due = [
            index
            for index, lack in self._lacks.items()
            if now - lack.since >= after and now - lack.asked >= RESEND_AGAIN_SECONDS
        ]
        if not due or not members:
            return
        for index in due:
            self._lacks[index].asked = now
        turn = int(max(now - self._lacks[index].since for index in due) / TURN_SECONDS)
        sources = members
        if self._stage > 0:
            live = [card.peer for card in self._membership.stage(self._stage - 1)]
            sources = rendezvous(f"resend/{self._step}/{self._stage}", live)
        turn = turn % max(1, len(sources))
        sources = [*sources[turn:], *sources[:turn]]
        sources.sort(key=lambda peer: self._membership.is_silent(peer, now))  # whoever is silent is waited for last
        left = due
        if self._stage > 0:
            for source in sources:  # one after another, so that two don't send the same
                left = await self._bring(source, left, members, anew=False)
        for number, source in enumerate(sources):  # nobody has these: each does a share
            await self._bring(source, left[number :: len(sources)], members, anew=True)

    async def _bring(self, source: PeerId, indices: list[int], members: list[PeerId], *, anew: bool) -> list[int]:
        """Asks a peer to bring indices. Returns those that it doesn't."""
        if not indices:
            return []
        question = Resend(self._step, self._record, to_ranges(indices), self._stage, tuple(members), self.ballot, anew)
        answer = await self._ask(source, question, min(RESEND_SECONDS, self._patience()))
        if answer is None:
            return indices
        if answer.blame:
            self.skip(answer.blame)
            return []
        taken = from_ranges(answer.indices, self._run.microbatches)
        log.info("step %d: %d missing microbatches come from %s", self._step, len(taken), short(source))
        return [index for index in indices if index not in taken]

    async def _subtract(self, coverage: Coverage) -> None:
        """Has indices taken out of sums where others count. Whoever can't is left out, whole."""
        members = [card.peer for card in self._membership.stage(self._stage)]
        patience = self._patience()

        async def one(peer: PeerId, indices: tuple[int, ...]) -> None:
            question = Subtract(self._step, self._record, to_ranges(indices), self.ballot, self._stage)
            seconds = SUBTRACT_SECONDS + patience * len(indices)
            if await self._ask(peer, question, seconds) is None:
                self._failed_subtractions[peer] = self._failed_subtractions.get(peer, 0) + 1
                if self._failed_subtractions[peer] > 1:
                    log.warning("step %d: %s can't subtract: its sum doesn't count", self._step, short(peer))
                    self._void.add(peer)

        asked = {peer: indices for peer, indices in coverage.surplus.items() if peer in members}
        try:
            async with asyncio.TaskGroup() as group:
                for peer, indices in asked.items():
                    group.create_task(one(peer, indices))
        except* Overruled as troubles:
            raise troubles.exceptions[0] from None

    # ---------------------------------------------------------------------------------------------- averaging

    def _plan(self, frozen: dict[PeerId, Frozen]) -> Plan:
        holdings = self._holdings(frozen)
        members = tuple(sorted(peer for peer, indices in holdings.items() if indices))
        owners = dict.fromkeys(members if self._spreads() and members else [self._own], 1.0)
        coverage = measure_coverage(holdings, self._run.microbatches)
        if coverage.exact:
            self._loss_sum = sum(frozen[peer].loss_sum for peer in members)
        self._lost = set() if self._all_averaged(frozen) else set(coverage.missing)
        held = () if self._lost else self._held(frozen)
        return Plan(
            step=self._step,
            attempt=self._name_attempt(),
            members=members,
            parts=complete_parts(self._size, held, owners),
            tokens=max(1, (self._run.microbatches - len(self._lost)) * self._run.tokens_per_microbatch),
            codec=self._codec(),
            ballot=self.ballot,
            thaws=tuple(frozen[peer].thaws for peer in members),
            stage=self._stage,
        )

    def _codec(self) -> str:
        wanted = self._run.codecs.averaging
        members = self._membership.stage(self._stage)
        return wanted if all(wanted in card.codecs for card in members) else "fp16"

    async def _attempt(self, plan: Plan, peers: list[PeerId]) -> dict[PeerId, Result]:
        """Has the peers carry out a plan. Ends early when one that it needs fails or falls silent."""
        needed = {self._own, *plan.members, *(part.owner for part in plan.parts)}
        tasks = {peer: asyncio.create_task(self._carry_out(peer, plan)) for peer in peers}
        results: dict[PeerId, Result] = {}
        stopped_s = WATCH_SECONDS + self._patience() + PATIENCE_FLOOR_SECONDS
        self._refusing.clear()
        holdups = Holdups(plan, self._own, asyncio.get_running_loop().time(), stopped_s)
        try:
            while waiting := sorted(peer for peer in needed if not tasks[peer].done()):
                if self._blame or any(tasks[peer].done() and _failed(tasks[peer].result()) for peer in needed):
                    break
                done, _ = await asyncio.wait(
                    [tasks[peer] for peer in waiting], timeout=WATCH_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if not done and not await self._look_at(waiting, needed, holdups):
                    break
            results = {peer: it for peer, task in tasks.items() if task.done() and (it := task.result()) is not None}
            return results
        finally:
            whole = needed <= results.keys()
            for peer, task in tasks.items():
                if whole and peer not in needed:
                    self._release(peer, task)
                else:
                    task.cancel()

    def _release(self, peer: PeerId, task: "asyncio.Task[Result | None] | None") -> None:
        """The round is whole without this peer: it gets the result, too, or may go on with its sum."""

        async def release() -> None:
            with contextlib.suppress(Refused):
                if task is None or await task is None:
                    question = AskHoldings(self._step, self._record, self.ballot, self._stage)
                    await self._ask(peer, question, self._patience())

        work = asyncio.create_task(release(), name=f"release {short(peer)}")
        self._releases.add(work)
        work.add_done_callback(self._releases.discard)

    def close(self) -> None:
        """The step is over."""
        for task in self._releases:
            task.cancel()

    async def _carry_out(self, peer: PeerId, plan: Plan) -> Result | None:
        try:
            return await self._links.ask(peer, plan, deadline_s=None)
        except NO_ANSWER as trouble:
            log.info("%s doesn't carry out attempt %s: %s", short(peer), plan.attempt, trouble)
            self._refusing.add(peer)
            return None

    async def _look_at(self, peers: list[PeerId], needed: set[PeerId], holdups: Holdups) -> bool:
        """Whether the devices still answer that the attempt waits for, as their sums are frozen already, and nobody
        holds it up.
        """
        question = Freeze(self._step, self._record, self.ballot, self._stage, watch=True)
        answers = await self._ask_all(peers, question, self._patience())
        self._leave_out_the_silent()
        now, standings = asyncio.get_running_loop().time(), {peer: it.standing for peer, it in answers.items()}
        found = holdups.look(now, standings, peers)
        if [*found] == [self._own]:  # another one may lead, and go on without it
            raise Refused(f"this peer has held its round up for {found[self._own]:.0f} s")
        for peer, seconds in found.items():
            if peer == self._own:
                continue
            words = "it holds the round up: it answers, but the others have waited %.0f s for its part in the averaging"
            log.warning(f"round of step %d goes on without %s: {words}", self._step, short(peer), seconds)
            self._left_out.add(peer)
        return not self._left_out & needed

    def _report(self, frozen: dict[PeerId, Frozen], plan: Plan | None, results: dict[PeerId, Result]) -> StageReport:
        """The stage's part of the record; without a plan, of a step that is to be skipped."""
        holdings = self._holdings(frozen)
        result = results[self._own] if plan is not None else Result("", 0.0)
        lost = len(self._lost) if plan is not None else 0
        counted = self._run.microbatches - lost
        loss_sum = (
            sum(frozen[peer].loss_sum for peer in holdings if holdings[peer])
            if self._loss_sum is None
            else self._loss_sum
        )
        return StageReport(
            stage=self._stage,
            digest=result.digest,
            squared_norm=result.squared_norm,
            tokens=max(1, counted * self._run.tokens_per_microbatch),
            loss_sum=loss_sum,
            microbatches=counted,
            resent=sum(it.resent for it in frozen.values()),
            lost=lost,
            duplicated=0,
            finite=plan is not None,
            members=plan.members if plan is not None else self._settled_by(frozen, holdings),
            holders=tuple(sorted(results)),
            subtracted=sum(it.subtracted for it in frozen.values()),
            blame=self._blame,
        )

    def _settled_by(self, frozen: dict[PeerId, Frozen], holdings: dict[PeerId, list[int]]) -> tuple[PeerId, ...]:
        """The members of a step that is skipped: who knows that it is, and stays or has part of its sum. There may be
        no sums at all, and yet the next step needs acceptors.
        """
        staying = [card.peer for card in self._membership.staying(self._stage)]
        return tuple(sorted(peer for peer in frozen if peer in staying or holdings.get(peer))) or tuple(sorted(frozen))


def _failed(result: Result | None) -> bool:
    """Whether nothing can come of an attempt in which a peer that it needs says this."""
    return result is None or bool(result.blame)
