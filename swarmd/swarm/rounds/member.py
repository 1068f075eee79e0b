"""The averaging of one stage's gradients for one step, as a member sees it.

`Rounds` answers what leaders ask: how far the sum is, to freeze it, to carry out a plan. `leader.py` is the leader's
side, `exchange.py` the owners'. Everyone decodes the owner's bytes, so the gradient is bit-identical everywhere. Sums
and everything that was averaged are kept until the commit.
"""

import asyncio
import dataclasses
import itertools
import logging
import math

from swarmd.config import LimitsConfig, RunConfig
from swarmd.errors import NO_ANSWER, NonFinite, PeerFault, Refused
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Record
from swarmd.swarm.hops.rework import Rework
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.hops.under_way import HopsUnderWay
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.ports import Compute
from swarmd.swarm.rounds.authority import Claims
from swarmd.swarm.rounds.averaged import Held, Whole
from swarmd.swarm.rounds.exchange import Exchange, Spoiled, unless_over
from swarmd.swarm.rounds.leader import Leader
from swarmd.swarm.rounds.repair import Repairs
from swarmd.swarm.tasks import joined
from swarmd.swarm.wire.links import Scope
from swarmd.swarm.wire.messages.commit import AskGradient, GradientPart
from swarmd.swarm.wire.messages.common import check_stage, from_ranges, to_ranges
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.swarm.wire.messages.round import (
    AskHoldings,
    Averaged,
    Close,
    Contribution,
    Freeze,
    Frozen,
    Plan,
    Resend,
    Resent,
    Result,
    StageReport,
    Subtract,
)
from swarmd.values import Encoded, PeerId, short

log = logging.getLogger(__name__)

PLAN_WAIT_SECONDS = 30.0  # a contribution may come before the plan that it is part of
NORM_TOLERANCE = (
    1e-6  # relative: devices add the same squares in fp64 in another order; 1e10 of them are 1e-6 off at most
)
GRADIENT_SECONDS = 120.0  # for one part of a committed gradient
VERSION_WAIT_SECONDS = 30.0


class Rounds:
    """This peer's part in its stage's rounds."""

    def __init__(
        self,
        run: RunConfig,
        limits: LimitsConfig,
        scope: Scope,
        membership: Membership,
        history: History,
        sums: StepSums,
        hops: HopsUnderWay,
        rework: Rework,
        repairs: Repairs,
        compute: Compute,
        stage: int,
    ) -> None:
        self._run, self._links, self._membership = run, scope.links, membership
        self._history, self._sums, self._hops, self._rework = history, sums, hops, rework
        self._repairs, self._compute, self._stage = repairs, compute, stage
        self._claims = Claims(stage, membership.is_live)
        self._held = Held(limits.held_gradients)
        self._offered: dict[int, tuple[str, Whole]] = {}  # step -> digest and parts, brought by `hold` and not checked
        self._assembled = (0, "")  # step and digest of what the device would apply
        self._norms: dict[str, tuple[int, float]] = {}  # digest of what was assembled for a step -> step, squared norm
        self._decided = 0  # the step whose record is being applied: no attempt may replace its gradient any more
        self._exchange: Exchange | None = None
        self._leading: dict[int, Leader] = {}
        self._reports: dict[int, asyncio.Task[StageReport]] = {}
        self._attempts = itertools.count(1)
        scope.handle(AskHoldings, self._answer_holdings)
        scope.handle(Freeze, self._answer_freeze)
        scope.handle(Subtract, self._answer_subtract)
        scope.handle(Resend, self._answer_resend)
        scope.handle(Plan, self._answer_plan)
        scope.handle(Contribution, self._answer_contribution)
        scope.handle(AskGradient, self._answer_gradient)
        scope.handle(Close, self._answer_close)

    def gradients(self) -> dict[int, int]:
        """Number of whole averaged gradients that this peer holds of each step."""
        return self._held.counts()

    # ---------------------------------------------------------------------------------------------- leader

    async def _answer_close(self, conductor: PeerId, close: Close) -> StageReport:
        """Leads the round. A conductor with a higher ballot takes over the round that goes on, one with a lower ballot
        is refused.
        """
        check_stage(close.stage, self._stage)
        await self._history.await_version(close.step - 1, close.record, conductor, VERSION_WAIT_SECONDS)
        self._claims.admit(close.step, close.ballot)
        task = self._reports.get(close.step)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            if (last := self._leading.get(close.step)) is not None:
                last.close()
            leader = self._leading[close.step] = self._leader(close)
            task = self._reports[close.step] = asyncio.create_task(leader.lead(), name=f"round {close.step}")
        leader = self._leading[close.step]
        leader.ballot = max(leader.ballot, close.ballot)
        if close.blame:
            leader.skip(close.blame)
        return await joined(task, Refused(f"the round of step {close.step} is over"))  # the step's commit cancels it

    def _leader(self, close: Close) -> Leader:
        own = self._membership.own
        return Leader(
            self._run,
            self._links,
            self._membership,
            self._sums.changed,
            self._stage,
            close.step,
            close.record,
            close.ballot,
            self._compute.gradient_size,
            lambda: f"{own.peer}/{own.incarnation}/{self._history.departures}/{next(self._attempts)}",
        )

    def leads(self, step: int) -> bool:
        """Whether this peer leads the round of a step at present."""
        task = self._reports.get(step)
        return task is not None and not task.done()

    def averaged(self, step: int) -> bool:
        """Whether this peer has a step's whole gradient, and others may count on that."""
        return self._assembled[0] == step or self._held.has(step) or self.leads(step)

    # ---------------------------------------------------------------------------------------------- member

    async def _answer_holdings(self, asker: PeerId, ask: AskHoldings) -> Frozen:
        """How far the sum is. If it was frozen, the round begins again: repairs may add what is missing. Or nothing is:
        then this settles the round, and whoever answers has taken part in it.
        """
        check_stage(ask.stage, self._stage)
        await self._history.await_version(ask.step - 1, ask.record, asker, VERSION_WAIT_SECONDS)
        self._claims.give_way(ask.step, ask.ballot, asker, asyncio.get_running_loop().time())
        await self._thaw(ask.step)
        self._repairs.spare(ask.step, from_ranges(ask.spared, self._run.microbatches))
        if ask.blame and self._history.version == ask.step - 1:
            self._history.took_part(ask.step)
            step_sum = self._sums.of(ask.step)
            step_sum.blame = step_sum.blame or ask.blame
        return await self._frozen(ask.step, named=not ask.blame)

    async def _thaw(self, step: int) -> None:
        async with self._sums.lock:
            if self._sums.is_frozen(step):
                self._sums.thaws += 1
                self._end_exchange("the round begins again")
                with unless_over(step):
                    await self._compute.thaw(step)
                self._sums.thaw(step)

    async def _answer_freeze(self, leader: PeerId, freeze: Freeze) -> Frozen:
        check_stage(freeze.stage, self._stage)
        await self._history.await_version(freeze.step - 1, freeze.record, leader, VERSION_WAIT_SECONDS)
        self._claims.take(freeze.step, freeze.ballot, leader, asyncio.get_running_loop().time())
        async with self._sums.lock:
            self._sums.freeze(freeze.step)
            with unless_over(freeze.step):
                await self._compute.freeze(freeze.step)
        frozen = await self._frozen(freeze.step, named=not freeze.watch)
        exchange = self._exchange if freeze.watch else None
        if exchange is not None and exchange.plan.step == freeze.step:
            return dataclasses.replace(frozen, standing=exchange.standing())
        return frozen

    async def _frozen(self, step: int, *, named: bool = True) -> Frozen:
        parts = await self._held.parts(step) if named else ()
        step_sum = self._sums.of(step)
        return Frozen(
            indices=to_ranges(step_sum.done),
            under_way=to_ranges(self._hops.indices(step)),
            loss_sum=step_sum.loss_sum,
            resent=step_sum.resent,
            finite=not step_sum.spoiled,
            subtracted=step_sum.subtracted,
            parts=parts,
            thaws=self._sums.thaws,
            blame=step_sum.blame,
        )

    async def _answer_subtract(self, leader: PeerId, ask: Subtract) -> Frozen:
        check_stage(ask.stage, self._stage)
        await self._history.await_version(ask.step - 1, ask.record, leader, VERSION_WAIT_SECONDS)
        self._claims.take(ask.step, ask.ballot, leader, asyncio.get_running_loop().time())
        await self._thaw(ask.step)
        await self._rework.subtract(ask.step, from_ranges(ask.indices, self._run.microbatches))
        return await self._frozen(ask.step)

    async def _answer_resend(self, leader: PeerId, ask: Resend) -> Resent:
        await self._history.await_version(ask.step - 1, ask.record, leader, VERSION_WAIT_SECONDS)
        self._claims.admit(ask.step, ask.ballot)
        return await self._repairs.bring(ask)

    async def _answer_plan(self, leader: PeerId, plan: Plan) -> Result:
        """Takes part in an attempt: sends every part to its owner, puts the answers together."""
        if plan.step != self._history.version + 1 or not self._history.ready:
            raise Refused(f"step {plan.step} is not being averaged here")
        check_stage(plan.stage, self._stage)
        check_plan(plan, self._compute.gradient_size)
        self._claims.take(plan.step, plan.ballot, leader, asyncio.get_running_loop().time())
        thaws = self._sums.thaws

        def check() -> None:
            """All parts of an attempt are of one and the same sum."""
            if self._sums.thaws != thaws or not self._sums.is_frozen(plan.step):
                raise Refused("the round begins again")

        own = self._membership.own.peer
        if own in plan.members:
            check()
            if plan.thaws[plan.members.index(own)] != thaws:
                raise Refused("the plan is for a sum that has changed since")
        exchange = self._begin_exchange(plan)
        try:
            averaged = await exchange.take_part(check)
            if self._decided == plan.step:
                raise Refused(f"step {plan.step} is decided")
            digest, squared_norm = await self._assemble(plan.step, averaged)
        except Spoiled as trouble:
            return self._spoiled(plan, trouble.blame)
        except NonFinite as trouble:  # so is everyone's who has the same parts
            known = trouble.source is not None and trouble.source < len(plan.parts)
            owner = plan.parts[trouble.source].owner if known and trouble.source is not None else own
            return self._spoiled(plan, Blame(trouble.what, self._stage, owner))
        self._held.add(plan.step, digest, averaged)
        if self._sums.thaws == thaws and self._sums.is_frozen(plan.step):
            self._sums.settle(plan.step)
        if own in plan.members:
            self._history.took_part(plan.step)
        return Result(digest, squared_norm)

    def _spoiled(self, plan: Plan, blame: Blame) -> Result:
        """There is no averaged gradient, for everyone alike."""
        log.warning("step %d is to be skipped: %s", plan.step, blame.words())
        return Result("", 0.0, blame)

    async def _assemble(self, step: int, averaged: Whole) -> tuple[str, float]:
        """Has the device put averaged parts together. Raises Refused, NonFinite."""
        self._assembled = (0, "")
        try:
            with unless_over(step):
                summary = await self._compute.assemble(step, averaged)
        except PeerFault as fault:  # an owner's, not the leader's
            self._held.forget_parts()  # or the next attempt would begin with the same bytes
            raise Refused(f"an averaged part is malformed: {fault}") from None
        except MemoryError:
            raise Refused("this peer has no memory for the gradient") from None
        self._assembled = (step, summary.digest)
        self._norms = {digest: it for digest, it in self._norms.items() if it[0] == step}
        self._norms[summary.digest] = step, summary.squared_norm
        return summary.digest, summary.squared_norm

    # ---------------------------------------------------------------------------------------------- owner

    def _begin_exchange(self, plan: Plan) -> Exchange:
        if self._exchange is None or not self._exchange.is_of(plan.step, plan.attempt):
            self._end_exchange("another attempt began")
            whole = plan.tokens == self._run.microbatches * self._run.tokens_per_microbatch
            own = self._membership.own.peer
            self._exchange = Exchange(plan, own, self._links, self._compute, self._held, whole=whole)
            self._sums.changed.notify()
        return self._exchange

    def _end_exchange(self, why: str, *, over: bool = False) -> None:
        if self._exchange is not None:
            self._exchange.end(why, over=over)
        self._exchange = None

    async def _answer_contribution(self, member: PeerId, contribution: Contribution) -> Averaged:
        def planned() -> bool:
            return self._exchange is not None and self._exchange.is_of(contribution.step, contribution.attempt)

        if not await self._sums.changed.until(planned, PLAN_WAIT_SECONDS):
            raise Refused("no such attempt here")
        assert self._exchange is not None
        return await self._exchange.contribute(member, contribution)

    # ---------------------------------------------------------------------------------------------- after the commit

    async def _answer_gradient(self, peer: PeerId, ask: AskGradient) -> GradientPart:
        averaged = self._held.whole(ask.step, ask.digest)
        if averaged is None or not 0 <= ask.part < len(averaged):
            raise Refused(f"the gradient of step {ask.step} is not here any more")
        return GradientPart(len(averaged), averaged[ask.part])

    def objection(self, record: Record) -> str:
        """What of a record doesn't fit the gradient that it names, if that was assembled here; "" if all does."""
        entry = record.stages[self._stage]
        step, norm = self._norms.get(entry.digest, (0, 0.0))
        if record.skipped or step != record.step or math.isclose(norm, entry.squared_norm, rel_tol=NORM_TOLERANCE):
            return ""
        if self._decided == step:  # another record may still come
            self._decided = 0
        return f"the squared norm of stage {self._stage} is {norm:.6g}, not {entry.squared_norm:.6g}"

    async def gather(self, record: Record) -> bool:
        """Makes sure that the gradient a record names is assembled, fetching it from a holder if need be."""
        entry = record.stages[self._stage]
        self._decided = record.step
        if self._assembled == (record.step, entry.digest) and self._held.whole(*self._assembled) is not None:
            return True
        here = self._held.whole(record.step, entry.digest)
        if here is not None and await self._take(record.step, entry.digest, here):
            return True
        offered, brought = self._offered.pop(record.step, ("", ()))
        if offered == entry.digest and await self._take(record.step, offered, brought):
            return True
        own = self._membership.own.peer
        live = [card.peer for card in self._membership.stage(self._stage)]
        sources = [*entry.holders, *(peer for peer in live if peer not in entry.holders)]
        for source in sorted(sources, key=lambda peer: peer not in live):
            if source != own and await self._fetch(record.step, entry.digest, source):
                return True
        return False

    async def _fetch(self, step: int, digest: str, source: PeerId) -> bool:
        """Fetches a committed gradient from one holder."""
        averaged: list[Encoded] = []
        try:
            parts = 1
            while len(averaged) < parts:
                question = AskGradient(step, digest, len(averaged))
                answer = await self._links.ask(source, question, deadline_s=GRADIENT_SECONDS, urgency="bulk")
                parts = answer.parts
                averaged.append(answer.data)
        except NO_ANSWER as trouble:
            log.info("no gradient of step %d from %s: %s", step, short(source), trouble)
            return False
        return await self._take(step, digest, tuple(averaged))

    async def _take(self, step: int, digest: str, averaged: Whole) -> bool:
        """Assembles a committed gradient. False if it isn't what it should be."""
        try:
            found, _ = await self._assemble(step, averaged)
        except (Refused, NonFinite) as trouble:
            log.warning("no gradient of step %d: %s", step, trouble)
            return False
        if found != digest:
            log.warning("a gradient came that isn't the one that the record of step %d names", step)
            return False
        self._held.add(step, digest, averaged)
        return True

    def hold(self, step: int, digest: str, parts: Whole) -> None:
        """Keeps the averaged parts of a committed step that is still to be applied here, for `gather` to assemble."""
        self._offered[step] = (digest, parts)

    def end_step(self, step: int) -> None:
        """The step has committed: nobody needs its buckets or report any more."""
        record = self._history.record
        self._held.end_step(step, record.stages[self._stage].digest if record is not None else "")
        self._end(step)

    def abandon(self) -> None:
        """The state was replaced: rounds under way, and results that were not committed, are of no use any more."""
        self._held.abandon(self._history.version)
        self._decided = 0
        self._end(self._run.steps)

    def _end(self, step: int) -> None:
        self._end_exchange("the step is over", over=True)
        self._rework.end_step(step)
        self._offered = {known: it for known, it in self._offered.items() if known > step}
        for old in [known for known in self._reports if known <= step]:
            self._reports.pop(old).cancel()
            self._leading.pop(old).close()

    def close(self) -> None:
        """Ends what is under way."""
        self._end_exchange("this peer leaves", over=True)
        self._rework.close()
        for step, task in self._reports.items():
            task.cancel()
            self._leading[step].close()


def check_plan(plan: Plan, size: int) -> None:
    """Raises PeerFault unless the parts cover the gradient once, in order."""
    borders = [0, *(part.stop for part in plan.parts)]
    if borders[-1] != size or any(
        part.start != start or part.stop <= start for part, start in zip(plan.parts, borders, strict=False)
    ):
        raise PeerFault("a plan whose parts don't cover the gradient once")
    if plan.tokens < 1 or len(plan.thaws) != len(plan.members):
        raise PeerFault("a plan without tokens, or for other sums than its members'")
