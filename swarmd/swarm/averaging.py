"""The averaging of one stage's gradients for one step: leader, members and part owners. DESIGN section 6.

The leader freezes the members' sums once they cover the step's indices, plans parts and owners, and reports
once the members hold the same whole result. A member sends each part of its sum to the part's owner, and the answer is
the averaged part. Everyone decodes the owner's bytes, so the gradient is bit-identical everywhere. A lost member means
another attempt with those who are left; sums are kept until the commit.
"""

import asyncio
import contextlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from swarmd.config import LimitsConfig, RunConfig
from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.swarm.commit import Record
from swarmd.swarm.history import History
from swarmd.swarm.journey import Journeys
from swarmd.swarm.links import Links
from swarmd.swarm.membership import Membership
from swarmd.swarm.messages import (
    AskGradient,
    AskHoldings,
    Averaged,
    Close,
    Contribution,
    Freeze,
    Frozen,
    GradientPart,
    Plan,
    Result,
    StageReport,
    from_ranges,
    to_ranges,
)
from swarmd.swarm.parts import Coverage, measure_coverage, plan_parts
from swarmd.swarm.ports import Compute
from swarmd.values import Encoded, PeerId

log = logging.getLogger(__name__)

HOLDINGS_SECONDS = 15.0  # a member answers at once unless its loop is busy
REPAIR_SECONDS = 20.0  # without progress, after which missing indices count as lost
SLOW_REPAIR_SECONDS = 120.0  # the same while a member still works on a hop of the step: a large stage takes its time
REPAIR_POLL_SECONDS = 0.5
EXCHANGE_SECONDS = 600.0  # bound on one attempt; lost members end it much sooner
PLAN_WAIT_SECONDS = 30.0  # a contribution may come before the plan that it is part of
PARTS_AT_ONCE = 4  # bounds the memory and the bytes in flight of one member's exchange
ATTEMPTS = 8
VERSION_WAIT_SECONDS = 30.0


@dataclass
class Bucket:
    """An owner's collection of one part."""

    contributions: dict[PeerId, Encoded] = field(default_factory=dict)
    result: asyncio.Future[Encoded] | None = None
    reducing: asyncio.Task[None] | None = None

    def fail(self, why: str) -> None:
        """Whoever waits for the result is told why there is none."""
        if self.result is not None and not self.result.done():
            self.result.set_exception(Refused(why))
            self.result.exception()  # nobody may be waiting for it


@dataclass
class Exchange:
    """The present attempt of a step's round, as an owner sees it."""

    plan: Plan
    buckets: dict[int, Bucket]


class Rounds:
    """This peer's part in its stage's rounds."""

    def __init__(
        self,
        run: RunConfig,
        limits: LimitsConfig,
        links: Links,
        membership: Membership,
        history: History,
        journeys: Journeys,
        compute: Compute,
        stage: int,
    ) -> None:
        self._run, self._limits, self._links, self._membership = run, limits, links, membership
        self._history, self._journeys, self._compute, self._stage = history, journeys, compute, stage
        self._exchange: Exchange | None = None
        self._reports: dict[int, asyncio.Task[StageReport]] = {}
        self._thaws = 0  # how often a frozen sum took in hops again
        self._attempts = itertools.count(1)
        self._held: OrderedDict[int, tuple[str, tuple[Encoded, ...]]] = OrderedDict()  # step -> digest, averaged parts
        links.answers(AskHoldings, self._answer_holdings)
        links.answers(Freeze, self._answer_freeze)
        links.answers(Plan, self._answer_plan)
        links.answers(Contribution, self._answer_contribution)
        links.answers(AskGradient, self._answer_gradient)
        links.answers(Close, self._answer_close)

    # ---------------------------------------------------------------------------------------------- leader

    async def _answer_close(self, conductor: PeerId, close: Close) -> StageReport:
        """Leads the round; a second conductor gets the same report as the first."""
        await self._history.await_version(close.step - 1, close.record, conductor, VERSION_WAIT_SECONDS)
        task = self._reports.get(close.step)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._lead(close.step), name=f"round {close.step}")
            self._reports[close.step] = task
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by the commit of the step, not because whoever asked is gone
                raise Refused(f"the round of step {close.step} is over") from None
            raise

    async def _lead(self, step: int) -> StageReport:
        for attempt in range(ATTEMPTS):
            # Mostly everything is there, and the first question may be the last.
            accepted = await self._await_coverage(step) if attempt else 0
            frozen = await self._ask_members(step, freeze=True)
            holdings = {peer: from_ranges(it.indices, self._run.microbatches) for peer, it in frozen.items()}
            coverage = measure_coverage(holdings, self._run.microbatches)
            if coverage.lost > accepted:
                continue
            plan = self._plan(step, holdings, coverage)
            results = await self._attempt(sorted(frozen), plan)
            report = self._report(frozen, coverage, plan, results)
            if report is not None:
                return report
            log.info(
                "round of step %d: attempt %s failed, %d of %d members answered",
                step,
                plan.attempt,
                len(results),
                len(frozen),
            )
        raise Refused(f"the round of step {step} failed {ATTEMPTS} times")

    async def _attempt(self, peers: list[PeerId], plan: Plan) -> dict[PeerId, Result]:
        """Has the peers carry out a plan. Ends early when a contributor fails: the others would wait in vain."""
        tasks = {
            peer: asyncio.create_task(self._links.tell_all([peer], plan, Result, deadline_s=EXCHANGE_SECONDS))
            for peer in peers
        }

        def failed() -> bool:
            return any(tasks[peer].done() and not tasks[peer].result() for peer in plan.members)

        try:
            while not failed() and (waiting := [task for task in tasks.values() if not task.done()]):
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return {peer: task.result()[peer] for peer, task in tasks.items() if task.done() and task.result()}
        finally:
            for task in tasks.values():
                task.cancel()

    async def _await_coverage(self, step: int) -> int:
        """Waits until the members' sums cover all indices, or repairs make no more progress. Returns how many are
        missing.
        """
        loop = asyncio.get_running_loop()
        best, since = -1, loop.time()
        while True:
            frozen = await self._ask_members(step, freeze=False)
            holdings = {peer: from_ranges(it.indices, self._run.microbatches) for peer, it in frozen.items()}
            coverage = measure_coverage(holdings, self._run.microbatches)
            if coverage.lost == 0:
                return 0
            if coverage.covered > best:
                best, since = coverage.covered, loop.time()
            under_way = any(it.under_way for it in frozen.values())
            if loop.time() - since > (SLOW_REPAIR_SECONDS if under_way else REPAIR_SECONDS):
                log.warning("step %d: %d microbatches of stage %d are lost", step, coverage.lost, self._stage)
                return coverage.lost
            await self._journeys.changed.wait(REPAIR_POLL_SECONDS)

    async def _ask_members(self, step: int, *, freeze: bool) -> dict[PeerId, Frozen]:
        members = [card.peer for card in self._membership.stage(self._stage)]
        kind = Freeze if freeze else AskHoldings
        question = kind(step, self._history.record_hash)
        return await self._links.tell_all(members, question, Frozen, deadline_s=HOLDINGS_SECONDS)

    def _plan(self, step: int, holdings: dict[PeerId, list[int]], coverage: Coverage) -> Plan:
        contributors = tuple(sorted(peer for peer, indices in holdings.items() if indices))
        owners = dict.fromkeys(contributors or sorted(holdings), 1.0)
        return Plan(
            step=step,
            attempt=f"{self._membership.own.peer}/{next(self._attempts)}",
            members=contributors,
            parts=plan_parts(self._compute.gradient_size, owners),
            tokens=max(1, coverage.counted * self._run.tokens_per_microbatch),
            codec=self._codec(),
        )

    def _codec(self) -> str:
        wanted = self._run.codecs.averaging
        members = self._membership.stage(self._stage)
        return wanted if all(wanted in card.codecs for card in members) else "fp16"

    def _report(
        self, frozen: dict[PeerId, Frozen], coverage: Coverage, plan: Plan, results: dict[PeerId, Result]
    ) -> StageReport | None:
        """The stage's part of the record, if all who contributed hold the same result."""
        digests = {result.digest for result in results.values()}
        if not results or len(digests) != 1 or any(peer not in results for peer in plan.members):
            return None
        result = results[min(results)]
        return StageReport(
            stage=self._stage,
            digest=result.digest,
            squared_norm=result.squared_norm,
            tokens=plan.tokens,
            loss_sum=sum(frozen[peer].loss_sum for peer in sorted(frozen)),
            microbatches=coverage.covered,
            resent=sum(it.resent for it in frozen.values()),
            lost=coverage.lost,
            duplicated=coverage.duplicated,
            finite=all(it.finite for it in frozen.values()),
            members=plan.members,
            holders=tuple(sorted(results)),
        )

    # ---------------------------------------------------------------------------------------------- member

    async def _answer_holdings(self, leader: PeerId, ask: AskHoldings) -> Frozen:
        await self._history.await_version(ask.step - 1, ask.record, leader, VERSION_WAIT_SECONDS)
        if self._journeys.frozen_step == ask.step:  # an attempt failed: repairs may add what is missing
            self._thaws += 1
            self._end_exchange("the round begins again")
            with _unless_over(ask.step):
                await self._compute.thaw(ask.step)
            self._journeys.thaw()
        return self._frozen(ask.step)

    async def _answer_freeze(self, leader: PeerId, freeze: Freeze) -> Frozen:
        await self._history.await_version(freeze.step - 1, freeze.record, leader, VERSION_WAIT_SECONDS)
        self._journeys.freeze(freeze.step)
        with _unless_over(freeze.step):
            await self._compute.freeze(freeze.step)
        return self._frozen(freeze.step)

    def _frozen(self, step: int) -> Frozen:
        book = self._journeys.book(step)
        return Frozen(
            indices=to_ranges(book.accumulated | book.spoiled),
            under_way=self._journeys.under_way(step),
            loss_sum=book.loss_sum,
            resent=book.resent,
            finite=not book.spoiled,
        )

    async def _answer_plan(self, leader: PeerId, plan: Plan) -> Result:
        """Takes part in an attempt: sends every part to its owner, puts the answers together."""
        if plan.step != self._history.version + 1:
            raise Refused(f"step {plan.step} is not being averaged here")
        _check_plan(plan, self._compute.gradient_size)
        self._begin_exchange(plan)
        thaws = self._thaws
        pace = asyncio.Semaphore(PARTS_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._exchange_part(plan, number, thaws, pace))
                    for number in range(len(plan.parts))
                ]
        except* (PeerUnreachable, TimeoutError, Refused, PeerFault) as troubles:
            raise Refused(f"an owner failed: {troubles.exceptions[0]}") from None
        averaged = tuple(task.result() for task in tasks)
        self._held.pop(plan.step, None)  # from here on the device may hold the new one
        try:
            with _unless_over(plan.step):
                summary = await self._compute.assemble(plan.step, averaged)
        except PeerFault as fault:  # an owner's, not the leader's
            raise Refused(f"an averaged part is malformed: {fault}") from None
        self._hold(plan.step, summary.digest, averaged)
        if self._thaws == thaws:
            self._journeys.freeze(plan.step, settled=True)
        return Result(summary.digest, summary.squared_norm)

    async def _exchange_part(self, plan: Plan, number: int, thaws: int, pace: asyncio.Semaphore) -> Encoded:
        part = plan.parts[number]
        async with pace:
            if self._thaws != thaws:  # all parts of an attempt are of one and the same sum
                raise Refused("the round begins again")
            data = Encoded("fp32", (0,), (b"",))
            if self._membership.own.peer in plan.members:
                with _unless_over(plan.step):
                    data = await self._compute.contribution(plan.step, part.start, part.stop, codec=plan.codec)
            message = Contribution(plan.step, plan.attempt, number, data)
            answer = await self._links.ask(part.owner, message, Averaged, deadline_s=EXCHANGE_SECONDS, urgency="bulk")
            return answer.data

    def _hold(self, step: int, digest: str, averaged: tuple[Encoded, ...]) -> None:
        self._held[step] = (digest, averaged)
        self._held.move_to_end(step)
        while len(self._held) > self._limits.held_gradients:
            self._held.popitem(last=False)

    # ---------------------------------------------------------------------------------------------- owner

    def _begin_exchange(self, plan: Plan) -> Exchange:
        if self._exchange is None or self._exchange.plan.attempt != plan.attempt:
            self._end_exchange("another attempt began")
            self._exchange = Exchange(plan, {})
            self._journeys.changed.notify()
        return self._exchange

    def _end_exchange(self, why: str) -> None:
        if self._exchange is not None:
            for bucket in self._exchange.buckets.values():
                bucket.fail(why)
                if bucket.reducing is not None:
                    bucket.reducing.cancel()
        self._exchange = None

    async def _answer_contribution(self, member: PeerId, contribution: Contribution) -> Averaged:
        """Collects a part; the last contribution sets off the reduction, and everyone gets its result."""

        def planned() -> bool:
            return self._exchange is not None and self._exchange.plan.attempt == contribution.attempt

        if not await self._journeys.changed.until(planned, PLAN_WAIT_SECONDS):
            raise Refused("no such attempt here")
        exchange = self._exchange
        assert exchange is not None
        plan = exchange.plan
        if (
            not 0 <= contribution.part < len(plan.parts)
            or plan.parts[contribution.part].owner != self._membership.own.peer
        ):
            raise PeerFault("that part has another owner")
        bucket = exchange.buckets.setdefault(contribution.part, Bucket())
        if bucket.result is None:
            bucket.result = asyncio.get_running_loop().create_future()
        if member in plan.members:
            bucket.contributions[member] = contribution.data
        if len(bucket.contributions) == len(plan.members) and bucket.reducing is None:
            # A task of its own: everyone waits for it, also when the last to contribute is lost meanwhile.
            bucket.reducing = asyncio.create_task(self._reduce(plan, contribution.part, bucket), name="reduce")
        return Averaged(await asyncio.shield(bucket.result))

    async def _reduce(self, plan: Plan, number: int, bucket: Bucket) -> None:
        """Adds a part's contributions in member order and divides by the tokens."""
        assert bucket.result is not None
        ordered = [bucket.contributions[peer] for peer in plan.members]
        try:
            if not ordered:  # nobody has anything: the gradient is zero
                part = plan.parts[number]
                with _unless_over(plan.step):
                    ordered = [await self._compute.contribution(plan.step, part.start, part.stop, codec=plan.codec)]
            reduced = await self._compute.reduce(ordered, plan.tokens, codec=plan.codec)
        except (PeerFault, Refused, MemoryError) as trouble:
            bucket.fail(f"a part can't be reduced: {trouble}")
            return
        bucket.contributions = dict.fromkeys(
            bucket.contributions, Encoded("fp32", (0,), (b"",))
        )  # their bytes are done with
        if not bucket.result.done():
            bucket.result.set_result(reduced)

    # ---------------------------------------------------------------------------------------------- after the commit

    async def _answer_gradient(self, peer: PeerId, ask: AskGradient) -> GradientPart:
        digest, averaged = self._held.get(ask.step, ("", ()))
        if digest != ask.digest or not 0 <= ask.part < len(averaged):
            raise Refused(f"the gradient of step {ask.step} is not here any more")
        return GradientPart(len(averaged), averaged[ask.part])

    async def gather(self, record: Record) -> bool:
        """Makes sure that the gradient a record names is assembled, fetching it from a holder if need be."""
        entry = record.stages[self._stage]
        digest, _ = self._held.get(record.step, ("", ()))
        if digest == entry.digest:
            return True
        own = self._membership.own.peer
        live = [card.peer for card in self._membership.stage(self._stage)]
        sources = [*entry.holders, *(peer for peer in live if peer not in entry.holders)]
        for source in sources:
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
                answer = await self._links.ask(
                    source, question, GradientPart, deadline_s=EXCHANGE_SECONDS, urgency="bulk"
                )
                parts = answer.parts
                averaged.append(answer.data)
            self._held.pop(step, None)
            summary = await self._compute.assemble(step, averaged)
        except (PeerUnreachable, TimeoutError, Refused, PeerFault) as trouble:
            log.info("no gradient of step %d from %s: %s", step, source[-8:], trouble)
            return False
        if summary.digest != digest:
            log.warning("%s gave another gradient than the record of step %d names", source[-8:], step)
            return False
        self._hold(step, digest, tuple(averaged))
        return True

    def end_step(self, step: int) -> None:
        """The step has committed: nobody needs its buckets or report any more."""
        self._end_exchange("the step has committed")
        for old in [known for known in self._reports if known <= step]:
            self._reports.pop(old).cancel()

    def close(self) -> None:
        """Ends what is under way."""
        self._end_exchange("this peer leaves")
        for task in self._reports.values():
            task.cancel()


@contextlib.contextmanager
def _unless_over(step: int) -> Iterator[None]:
    """The step may commit while a task of its round waits for the device, which then refuses it."""
    try:
        yield
    except KeyError:
        raise Refused(f"step {step} is over") from None


def _check_plan(plan: Plan, size: int) -> None:
    """Raises PeerFault unless the parts cover the gradient once, in order."""
    borders = [0, *(part.stop for part in plan.parts)]
    if borders[-1] != size or any(
        part.start != start or part.stop <= start for part, start in zip(plan.parts, borders, strict=False)
    ):
        raise PeerFault("a plan whose parts don't cover the gradient once")
    if plan.tokens < 1:
        raise PeerFault("a plan without tokens")
