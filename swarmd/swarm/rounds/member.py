"""The averaging of one stage's gradients for one step, as a member sees it.

`Rounds` answers what leaders ask: how far the sum is, to freeze it, to carry out a plan. `leader.py` is the leader's
side, `exchange.py` the owners', `committed.py` has what becomes of a round's gradient. Everyone decodes the owner's
bytes, so the gradient is bit-identical everywhere. Sums and everything that was averaged are kept until the commit.
"""

import asyncio
import dataclasses
import itertools
import logging

from swarmd.errors import NonFinite, PeerFault, Refused
from swarmd.swarm.hops.rework import Rework
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.rounds.authority import RoundAuthority
from swarmd.swarm.rounds.averaged import AveragedGradients
from swarmd.swarm.rounds.committed import CommittedGradients
from swarmd.swarm.rounds.exchange import Exchange, Spoiled, unless_over
from swarmd.swarm.rounds.leader import RoundLeader
from swarmd.swarm.rounds.repair import Repairs
from swarmd.swarm.rounds.round import Round
from swarmd.swarm.tasks import joined, start_shared, to_the_end
from swarmd.swarm.wire.messages.common import check_stage, from_ranges, to_ranges
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.swarm.wire.messages.round import (
    AskHoldings,
    Averaged,
    Close,
    Contribution,
    Freeze,
    Holdings,
    Plan,
    Resend,
    Resent,
    Result,
    StageReport,
    Subtract,
)
from swarmd.values import PeerId

log = logging.getLogger(__name__)

PLAN_WAIT_SECONDS = 30.0  # a contribution may come before the plan that it is part of
VERSION_WAIT_SECONDS = 30.0


class Rounds:
    """This peer's part in its stage's rounds."""

    def __init__(
        self,
        context: StageContext,
        rework: Rework,
        repairs: Repairs,
        averaged: AveragedGradients,
        committed: CommittedGradients,
    ) -> None:
        peer, scope = context.peer, context.scope
        self._run, self._links, self._membership, self._history = peer.run, peer.links, peer.membership, peer.history
        self._sums, self._hops, self._compute, self._stage = context.sums, context.hops, context.compute, context.stage
        self._handouts = peer.handouts
        self._rework, self._repairs, self._averaged, self._committed = rework, repairs, averaged, committed
        self._authority = RoundAuthority(
            context.stage, peer.membership.is_live, lambda: peer.history.chain.members(context.stage)
        )
        self._exchange: Exchange | None = None
        self._leading: dict[int, RoundLeader] = {}
        self._reports: dict[int, asyncio.Task[StageReport]] = {}
        self._attempts = itertools.count(1)
        self._agreeing: set[asyncio.Task[None]] = set()  # what freezes and thaws
        scope.handle(AskHoldings, self._answer_holdings)
        scope.handle(Freeze, self._answer_freeze)
        scope.handle(Subtract, self._answer_subtract)
        scope.handle(Resend, self._answer_resend)
        scope.handle(Plan, self._answer_plan)
        scope.handle(Contribution, self._answer_contribution)
        scope.handle(Close, self._answer_close)

    def gradients(self) -> dict[int, int]:
        """Number of whole averaged gradients that this peer holds of each step."""
        return self._averaged.counts()

    # ---------------------------------------------------------------------------------------------- leader

    async def _answer_close(self, conductor: PeerId, close: Close) -> StageReport:
        """Leads the round. A conductor with a higher ballot takes over the round that goes on, one with a lower ballot
        is refused.
        """
        check_stage(close.stage, self._stage)
        await self._history.await_version(close.step - 1, close.record_hash, conductor, VERSION_WAIT_SECONDS)
        self._authority.admit(close.step, close.ballot)
        task = self._reports.get(close.step)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            if (last := self._leading.get(close.step)) is not None:
                last.close()
            leader = self._leading[close.step] = self._leader(close)
            task = self._reports[close.step] = asyncio.create_task(leader.lead(), name=f"round {close.step}")
        self._leading[close.step].on_close(close)
        self._handouts.lead(close.step, conductor)
        return await joined(task, Refused(f"the round of step {close.step} is over"))  # the step's commit cancels it

    def _leader(self, close: Close) -> RoundLeader:
        own = self._membership.own
        return RoundLeader(
            self._run,
            Round(self._links, self._membership, self._sums.changed, close, self._stage, self._handouts),
            self._compute.gradient_size,
            lambda: f"{own.peer}/{own.incarnation}/{self._history.departures}/{next(self._attempts)}",
            lambda peer: self._history.record is None or self._history.chain.took_part(peer),
        )

    def leads(self, step: int) -> bool:
        """True while this peer leads the round of a step."""
        task = self._reports.get(step)
        return task is not None and not task.done()

    def averaged(self, step: int) -> bool:
        """True if this peer has a step's whole gradient, and others may count on that."""
        return self._committed.has(step) or self.leads(step)

    # ---------------------------------------------------------------------------------------------- member

    async def _answer_holdings(self, asker: PeerId, ask: AskHoldings) -> Holdings:
        """Tells how far the sum is. If it was frozen, the round begins again: repairs may add what is missing. If the
        step is to be skipped, nothing is: then this settles the round, and every peer that answers has taken part.
        """
        check_stage(ask.stage, self._stage)
        await self._history.await_version(ask.step - 1, ask.record_hash, asker, VERSION_WAIT_SECONDS)
        self._authority.give_way(ask.step, ask.ballot, asker, asyncio.get_running_loop().time())
        await self._thaw(ask.step)
        self._repairs.spare(ask.step, from_ranges(ask.spared, self._run.microbatches))
        if ask.blame and self._history.version == ask.step - 1:
            self._history.took_part(ask.step)
            self._committed.spoil(ask.step)
            step_sum = self._sums.of(ask.step)
            step_sum.blame = step_sum.blame or ask.blame
        return await self._frozen(ask.step, named=not ask.blame)

    # Device and sum must agree, though who asked gives up meanwhile: a device that hangs can't be called back.

    async def _thaw(self, step: int) -> None:
        async def work() -> None:
            async with self._sums.lock:
                if self._sums.is_frozen(step):
                    self._sums.thaws += 1
                    self._end_exchange("the round begins again")
                    with unless_over(step):
                        await self._compute.thaw(step)
                    self._sums.thaw(step)

        await to_the_end(start_shared(work(), f"thaw {step}"), self._agreeing)

    async def _freeze(self, step: int) -> None:
        async def work() -> None:
            async with self._sums.lock:
                self._sums.freeze(step)
                with unless_over(step):
                    await self._compute.freeze(step)

        await to_the_end(start_shared(work(), f"freeze {step}"), self._agreeing)

    async def _answer_freeze(self, leader: PeerId, freeze: Freeze) -> Holdings:
        check_stage(freeze.stage, self._stage)
        await self._history.await_version(freeze.step - 1, freeze.record_hash, leader, VERSION_WAIT_SECONDS)
        self._authority.take(freeze.step, freeze.ballot, leader, asyncio.get_running_loop().time())
        await self._freeze(freeze.step)
        frozen = await self._frozen(freeze.step, named=not freeze.watch)
        exchange = self._exchange if freeze.watch else None
        if exchange is not None and exchange.plan.step == freeze.step:
            return dataclasses.replace(frozen, standing=exchange.standing())
        return frozen

    async def _frozen(self, step: int, *, named: bool = True) -> Holdings:
        parts = await self._averaged.parts(step) if named else ()
        step_sum = self._sums.of(step)
        return Holdings(
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

    async def _answer_subtract(self, leader: PeerId, ask: Subtract) -> Holdings:
        check_stage(ask.stage, self._stage)
        await self._history.await_version(ask.step - 1, ask.record_hash, leader, VERSION_WAIT_SECONDS)
        self._authority.take(ask.step, ask.ballot, leader, asyncio.get_running_loop().time())
        await self._thaw(ask.step)
        await self._rework.subtract(ask.step, from_ranges(ask.indices, self._run.microbatches))
        return await self._frozen(ask.step)

    async def _answer_resend(self, leader: PeerId, ask: Resend) -> Resent:
        await self._history.await_version(ask.step - 1, ask.record_hash, leader, VERSION_WAIT_SECONDS)
        self._authority.admit(ask.step, ask.ballot)
        return await self._repairs.bring(leader, ask)

    async def _answer_plan(self, leader: PeerId, plan: Plan) -> Result:
        """Takes part in an attempt: sends every part to its owner, puts the answers together."""
        if plan.step != self._history.version + 1 or not self._history.ready:
            raise Refused(f"step {plan.step} is not being averaged here")
        check_stage(plan.stage, self._stage)
        check_plan(plan, self._compute.gradient_size)
        self._authority.take(plan.step, plan.ballot, leader, asyncio.get_running_loop().time())
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
            if self._committed.is_decided(plan.step):
                raise Refused(f"step {plan.step} is decided")
            digest, squared_norm = await self._committed.assemble(plan.step, averaged)
        except Spoiled as trouble:
            return self._spoiled(plan, trouble.blame)
        except NonFinite as trouble:  # so is everyone's who has the same parts
            known = trouble.source is not None and trouble.source < len(plan.parts)
            owner = plan.parts[trouble.source].owner if known and trouble.source is not None else own
            return self._spoiled(plan, Blame(trouble.what, self._stage, owner))
        self._averaged.add(plan.step, digest, averaged)
        if self._sums.thaws == thaws and self._sums.is_frozen(plan.step):
            self._sums.settle(plan.step)
        if own in plan.members:
            self._history.took_part(plan.step)
        return Result(digest, squared_norm)

    def _spoiled(self, plan: Plan, blame: Blame) -> Result:
        """There is no averaged gradient, for everyone alike."""
        log.warning("step %d is to be skipped: %s", plan.step, blame.words())
        self._committed.spoil(plan.step)
        return Result("", 0.0, blame)

    # ---------------------------------------------------------------------------------------------- owner

    def _begin_exchange(self, plan: Plan) -> Exchange:
        if self._exchange is None or not self._exchange.is_of(plan.step, plan.attempt):
            self._end_exchange("another attempt began")
            whole = plan.tokens == self._run.microbatches * self._run.tokens_per_microbatch
            own = self._membership.own.peer
            self._exchange = Exchange(plan, own, self._links, self._compute, self._averaged, whole=whole)
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

    # ---------------------------------------------------------------------------------------------- the end

    def end_step(self, step: int) -> None:
        """The step has committed: nobody needs its buckets or report any more."""
        self._committed.end_step(step, self._history.record)
        self._end(step)

    def abandon(self) -> None:
        """The state was replaced: rounds under way, and results that were not committed, are of no use any more."""
        self._committed.abandon(self._history.version)
        self._end(self._run.steps)

    def _end(self, step: int) -> None:
        self._end_exchange("the step is over", over=True)
        self._rework.end_step(step)
        for old in [known for known in self._reports if known <= step]:
            self._reports.pop(old).cancel()
            self._leading.pop(old).close()

    def close(self) -> None:
        """Ends what is under way."""
        self._end_exchange("this peer leaves", over=True)
        self._rework.close()
        for each in self._agreeing:
            each.cancel()
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
