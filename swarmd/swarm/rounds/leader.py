"""Leading a stage's round: the members' sums are made whole, planned, averaged, reported.

`round.py` asks the members, `reconcile.py` makes their sums whole. A member that holds an attempt up is left
out; averaged parts stay averaged.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from swarmd.config import RunConfig
from swarmd.errors import NO_ANSWER, Refused
from swarmd.swarm.rounds.holdups import Holdups
from swarmd.swarm.rounds.parts import complete_parts
from swarmd.swarm.rounds.reconcile import REPAIR_POLL_SECONDS, Reconciliation
from swarmd.swarm.rounds.round import PATIENCE_FLOOR_SECONDS, Round
from swarmd.swarm.wire.messages.round import Close, Holdings, Plan, Result, StageReport
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

WATCH_SECONDS = 2.0  # between looks at the members of an attempt that goes on
ATTEMPTS = 12
REFUSALS = 3  # attempts of the leader alone that a member may fail at: others are done sooner without it
ATTEMPTS_SPREAD = 2  # after so many failed, the leader alone owns all parts: everyone in the round reaches it


class RoundLeader:
    """One round, led by this peer."""

    def __init__(
        self,
        run: RunConfig,
        round_: Round,
        gradient_size: int,
        name_attempt: Callable[[], str],
        is_named: Callable[[PeerId], bool],
    ) -> None:
        self._run, self._round, self._size, self._name_attempt = run, round_, gradient_size, name_attempt
        self._is_named = is_named  # by a record; anybody may say of itself that it is at work
        self._sums = Reconciliation(run, round_, gradient_size, is_named)
        self._failures = 0
        self._refusing: set[PeerId] = set()  # members that failed at the present attempt
        self._refusals: dict[PeerId, int] = {}  # members -> attempts of the leader alone that they failed at
        self._releases: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """The step is over."""
        for task in self._releases:
            task.cancel()

    def on_close(self, close: Close) -> None:
        """A conductor asks: the round goes on under its ballot, if that is higher, and is skipped if it says so."""
        self._round.ballot = max(self._round.ballot, close.ballot)
        if close.blame:
            self._round.skip(close.blame)

    async def lead(self) -> StageReport:
        """The round, to its report. Raises Refused when another leader has it, or nothing works."""
        try:
            return await self._lead()
        except Refused:
            for peer in sorted(self._round.asked):  # unless another leader has them
                self._release(peer, None)
            raise

    async def _lead(self) -> StageReport:
        it = self._round
        while self._failures < ATTEMPTS:
            frozen = await self._sums.make_whole()
            if it.blame:
                return self._report(await self._settle(), None, {})
            plan = self._plan(frozen)
            results = self._believed(await self._attempt(plan, sorted(frozen)))
            for blame in (result.blame for result in results.values() if result.blame):
                it.skip(blame)
            if it.blame:
                return self._report(await self._settle(), None, {})
            digests = {result.digest for result in results.values()}
            if len(digests) == 1 and {it.own, *plan.members} <= results.keys():
                for peer in sorted(it.asked - frozen.keys()):
                    self._release(peer, None)
                return self._report(frozen, plan, results)
            self._count_failure()
            answered = f"{len(results)} of {len(frozen)} answered"
            log.info("round of step %d: attempt %s failed, %s", it.step, plan.attempt, answered)
        raise Refused(f"the round of step {it.step} failed {ATTEMPTS} times")

    def _believed(self, results: dict[PeerId, Result]) -> dict[PeerId, Result]:
        """The results, without those of newcomers that say something else than this peer found itself."""
        own = self._round.own
        if own not in results:
            return {peer: result for peer, result in results.items() if self._is_named(peer)}
        found = results[own].digest
        for peer in [peer for peer, result in results.items() if result.digest != found]:
            if not self._sums.believes(peer):
                self._round.leave_out(peer, "it has another gradient than this peer, and no record names it")
        return {peer: result for peer, result in results.items() if peer not in self._round.left_out}

    async def _settle(self) -> dict[PeerId, Holdings]:
        """Tells the members that the step is to be skipped: hops may go on with their sums, which other stages' may
        wait for, and who answers has taken part.
        """
        question = self._round.thaw(blame=self._round.blame)
        while self._round.own not in (answers := await self._sums.ask_members(question)):
            await self._round.changed.wait(REPAIR_POLL_SECONDS)
        return answers

    def _count_failure(self) -> None:
        """An attempt failed. A member that fails again and again at what works at the leader is left out: it may have
        no memory for it.
        """
        if not self._sums.spread and self._round.own not in self._refusing:
            for peer in sorted(self._refusing):
                self._refusals[peer] = self._refusals.get(peer, 0) + 1
                if self._refusals[peer] == REFUSALS:
                    self._round.leave_out(peer, "it can't carry the plan out")
        self._failures += 1
        self._sums.spread = self._failures < ATTEMPTS_SPREAD

    # ---------------------------------------------------------------------------------------------- averaging

    def _plan(self, frozen: dict[PeerId, Holdings]) -> Plan:
        it, lost = self._round, self._sums.lost
        members = tuple(sorted(peer for peer, indices in self._sums.holdings(frozen).items() if indices))
        named = [peer for peer in members if self._is_named(peer)]  # newcomers do no work for others yet
        owners = dict.fromkeys(named if self._sums.spread and named else [it.own], 1.0)
        averaged = () if lost else self._sums.averaged(frozen)
        return Plan(
            step=it.step,
            attempt=self._name_attempt(),
            members=members,
            parts=complete_parts(self._size, averaged, owners),
            tokens=max(1, (self._run.microbatches - len(lost)) * self._run.tokens_per_microbatch),
            codec=self._codec(),
            ballot=it.ballot,
            thaws=tuple(frozen[peer].thaws for peer in members),
            stage=it.stage,
        )

    def _codec(self) -> str:
        wanted = self._run.codecs.averaging
        members = self._round.membership.stage(self._round.stage)
        return wanted if all(wanted in card.codecs for card in members) else "fp16"

    async def _attempt(self, plan: Plan, peers: list[PeerId]) -> dict[PeerId, Result]:
        """Has the peers carry out a plan. Ends early when one that it needs fails or falls silent."""
        own = self._round.own
        needed = {own, *plan.members, *(part.owner for part in plan.parts)}
        tasks = {peer: asyncio.create_task(self._carry_out(peer, plan)) for peer in peers}
        results: dict[PeerId, Result] = {}
        stopped_s = WATCH_SECONDS + self._round.patience() + PATIENCE_FLOOR_SECONDS
        self._refusing.clear()
        holdups = Holdups(plan, own, asyncio.get_running_loop().time(), stopped_s)
        try:
            while waiting := sorted(peer for peer in needed if not tasks[peer].done()):
                if self._round.blame or any(tasks[peer].done() and _failed(tasks[peer].result()) for peer in needed):
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

    async def _carry_out(self, peer: PeerId, plan: Plan) -> Result | None:
        try:
            return await self._round.links.ask(peer, plan, deadline_s=None)
        except NO_ANSWER as trouble:
            log.info("%s doesn't carry out attempt %s: %s", short(peer), plan.attempt, trouble)
            self._refusing.add(peer)
            return None

    async def _look_at(self, peers: list[PeerId], needed: set[PeerId], holdups: Holdups) -> bool:
        """True if the peers that the attempt waits for still answer, as their sums are frozen, and none holds it up."""
        it = self._round
        answers = await it.ask_all(peers, it.freeze(watch=True))
        now, standings = asyncio.get_running_loop().time(), {peer: frozen.standing for peer, frozen in answers.items()}
        found = holdups.look(now, standings, peers)
        if [*found] == [it.own]:  # another one may lead, and go on without it
            raise Refused(f"this peer has held its round up for {found[it.own]:.0f} s")
        for peer, seconds in found.items():
            if peer != it.own:
                waited = f"the others have waited {seconds:.0f} s for its part in the averaging"
                it.leave_out(peer, f"it holds the round up: it answers, but {waited}")
        return not it.left_out & needed

    def _release(self, peer: PeerId, task: "asyncio.Task[Result | None] | None") -> None:
        """The round is whole without this peer: it gets the result, too, or may go on with its sum."""

        async def release() -> None:
            with contextlib.suppress(Refused):
                if task is None or await task is None:
                    await self._round.ask(peer, self._round.thaw(), self._round.patience())

        work = asyncio.create_task(release(), name=f"release {short(peer)}")
        self._releases.add(work)
        work.add_done_callback(self._releases.discard)

    # ---------------------------------------------------------------------------------------------- the report

    def _report(self, frozen: dict[PeerId, Holdings], plan: Plan | None, results: dict[PeerId, Result]) -> StageReport:
        """The stage's part of the record; without a plan, of a step that is to be skipped."""
        holdings, loss_sum = self._sums.holdings(frozen), self._sums.loss_sum
        result = results[self._round.own] if plan is not None else Result("", 0.0)
        lost = len(self._sums.lost) if plan is not None else 0
        counted = self._run.microbatches - lost
        if loss_sum is None:
            loss_sum = sum(frozen[peer].loss_sum for peer in holdings if holdings[peer])
        return StageReport(
            stage=self._round.stage,
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
            blame=self._round.blame,
        )

    def _settled_by(self, frozen: dict[PeerId, Holdings], holdings: dict[PeerId, list[int]]) -> tuple[PeerId, ...]:
        """The members of a step that is skipped: those that know it, and stay or have part of its sum. There may be no
        sums at all, and yet the next step needs acceptors.
        """
        staying = [card.peer for card in self._round.membership.staying(self._round.stage)]
        return tuple(sorted(peer for peer in frozen if peer in staying or holdings.get(peer))) or tuple(sorted(frozen))


def _failed(result: Result | None) -> bool:
    """True if nothing can come of an attempt in which a peer that it needs answers this."""
    return result is None or bool(result.blame)
