"""Leading a step: the right to propose its record, its leases, its rounds, its record.

Every peer runs one `Conductor`; it is at work while this peer is first in the order of conductors. It begins a step by
asking the step's acceptors for the right to propose its record (`ballots.py`), and proposes at once what they have
accepted already. The `LeaseDesk` gives the leases; `StageReports` asks the leaders of the rounds. Nothing is decided
here about gradients: the record follows from the reports. All that it waits for is bounded, or watched.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from swarmd.errors import NO_ANSWER, Outvoted
from swarmd.swarm.balance.grants import Wishes, able_alone
from swarmd.swarm.balance.outlook import Outlook
from swarmd.swarm.history.ballots import Ballots, Decision, Mandate, Outranked
from swarmd.swarm.history.distribution import Distribution
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Move, Record, build_record
from swarmd.swarm.history.record_codec import UNREADABLE, record_from_raw
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.recovery.returns import Returns
from swarmd.swarm.steps.lease_desk import LeaseDesk
from swarmd.swarm.steps.stage_reports import StageReports
from swarmd.swarm.steps.succession import Succession
from swarmd.swarm.tasks import alongside, first_of
from swarmd.swarm.wire.messages.commit import AskRecord
from swarmd.swarm.wire.messages.move import AskMove, MoveOutlook
from swarmd.swarm.wire.messages.round import AskHoldings, StageReport
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0  # between two looks at who comes first, unless a card comes earlier
WORD_SECONDS = 1.0  # for others to hear of a takeover, and to say that they know better: the ballot would tell, too
VALIDATION_SECONDS = 30.0  # that a validation may last longer than its step
RETRY_SECONDS = 0.5
PATIENCE_SECONDS = 1.0  # after being outranked; doubles each time, so that two conductors don't duel for ever
PATIENCE_CEILING_SECONDS = 120.0
UNHEEDED_SECONDS = 30.0  # for which no head has asked the founder for leases, until it leaves the first step to others
UNREPORTED_TRIES = 4  # mandates, some 20 s, under which a stage had no report for the founder, until it does the same

Validate = Callable[[int], Awaitable[float | None]]
"""The validation loss of a version, None if it can't be had."""


class Conductor:
    """This peer as the conductor of steps."""

    def __init__(
        self,
        context: PeerContext,
        ballots: Ballots,
        returns: Returns,
        outlook: Outlook,
        validate: Validate,
    ) -> None:
        links, membership, history, tasks = context.links, context.membership, context.history, context.tasks
        self._run, self._links, self._membership, self._history = context.run, links, membership, history
        self._tasks, self._rng = tasks, context.rng
        self._ballots, self._returns, self._validate = ballots, returns, validate
        self._distribution = Distribution(links, membership, history, tasks)
        self._outranked = 0  # times in a row
        self._succession = Succession(links, membership, history, tasks, ballots.see)
        self.desk = LeaseDesk(context, self._succession)
        self._reports = StageReports(context.run, links, membership, history)
        self._wishes, self._outlook = Wishes(), outlook
        links.handle(AskMove, self._answer_move)

    def conductor_of(self, step: int) -> PeerId:
        """The peer that leads a step, in this peer's eyes; "" when it can't know."""
        return self._succession.conductor_of(step)

    def is_first(self, step: int) -> bool:
        """True if this peer is to lead a step."""
        return self.conductor_of(step) == self._membership.own.peer

    def sweep(self, now: float) -> float:
        """Looks for a conductor and heads that are silent. Returns the loop time at which more may be."""
        self._succession.take_over(now)
        self._succession.tell(now)
        if self.desk.unheeded_s(now) >= UNHEEDED_SECONDS:
            self._succession.cede()
        return self.desk.sweep(now)

    # ---------------------------------------------------------------------------------------------- a step

    async def run(self) -> None:
        """Leads every step for which this peer comes first, until the run is over."""
        while not self._history.finished:
            step, changes = self._history.version + 1, self._history.replacements

            def over(step: int = step, changes: int = changes) -> bool:
                return self._history.version >= step or self._history.replacements != changes

            await self._until(lambda step=step, over=over: over() or self.is_first(step))  # type: ignore[misc]
            if not over():
                await self._lead(step, over)

    async def _until(self, predicate: Callable[[], bool]) -> None:
        while not predicate():
            await self._membership.changed.wait(LOOK_SECONDS)

    async def _lead(self, step: int, ended: Callable[[], bool]) -> None:
        """Leads a step until it has committed, or someone else comes first."""
        try:
            await first_of(self._conduct(step), self._until(lambda: ended() or not self.is_first(step)))
            self._outranked = 0
        except Outranked as trouble:
            log.info("step %d: %s", step, trouble)
            self._ballots.see(step, trouble.number)
            self.desk.close()
            if not trouble.number and self._outranked >= UNREPORTED_TRIES:
                self._succession.cede()
            patience = min(PATIENCE_CEILING_SECONDS, PATIENCE_SECONDS * 2.0**self._outranked)
            self._outranked += 1
            await self._history.changed.until(ended, patience * (0.5 + self._rng.random()))
        finally:
            self.desk.close()

    async def _conduct(self, step: int) -> None:
        """Brings a step to its record. Raises Outranked."""
        again = self._takes_over(step)
        if again:
            await self._ask_around(step)
        async with alongside(self._returns.lost()) as lost:

            def complete() -> bool:  # or there is a way to go on all the same
                return self._is_complete() or lost.done()

            mandate = await self._ballots.seek(step, complete)
            if mandate.decided is not None:
                decision = Decision(mandate.decided, ())
                known = await self._history.confirms(mandate.decided, mandate.teller)
            else:  # what is bound may be decided: nothing else may be proposed
                record = mandate.bound if mandate.bound is not None else await self._next(mandate, again)
                decision, known = await self._ballots.propose(mandate, record, complete), True
        if known:
            await self._spread(decision)
        # It may not be able to apply it; there's no use in learning it again at once.
        await self._history.changed.until(lambda: self._history.version >= step, RETRY_SECONDS)

    async def _spread(self, decision: Decision) -> None:
        """Tells everyone of the step's record, and goes on by it; a return takes this peer back first."""
        record = decision.record
        telling = self._returns.tell(record) if record.after else self._distribution.spread(record, decision.voters)
        self._tasks.start(telling)
        await self._history.adopt(record, self._membership.own.peer)
        if record.after:
            await self._history.changed.until(lambda: self._history.record_hash == record.hash)

    async def _next(self, mandate: Mandate, again: bool) -> Record:
        """The record to propose: the step's, or a return if a stage stays lost."""
        return await first_of(self._train(mandate, again), self._returns.lost())

    def _is_complete(self) -> bool:
        """True if every stage is there: else it makes no sense to go on without the others."""
        return not self._membership.missing_stages(self._run.model.stages)

    async def _train(self, mandate: Mandate, again: bool) -> Record:
        """Leads the step under a mandate, from its leases to its reports."""
        loop, step = asyncio.get_running_loop(), mandate.step
        again = again or not mandate.fresh
        if again:
            self._succession.lead(mandate)
            await self._end_rounds(mandate)
        self.desk.open(step, again=again)
        self._wishes.begin(step)
        validation = asyncio.create_task(self._validation(step - 1))
        try:
            await self.desk.until_all_done()
            reports = await self._reports.collect(mandate, self.desk.blame)  # what is given again delays stage 0 alone
            await asyncio.wait({validation}, timeout=VALIDATION_SECONDS)
            return build_record(
                self._run,
                mandate.parent,
                step,
                reports,
                conductor=self._membership.own.peer,
                seconds=loop.time() - (self.desk.began or loop.time()),
                validation_loss=validation.result() if validation.done() else None,
                total_tokens=self._history.chain.total_tokens,
                moves=self._moves(step, reports),
                before=self._history.record,
            )
        finally:
            validation.cancel()

    async def _end_rounds(self, mandate: Mandate) -> None:
        """Has everyone's sum take in hops again that is frozen for a round of the lost conductor. Raises Outranked if
        that had a higher ballot: nobody would follow this one.
        """
        now, ending = asyncio.get_running_loop().time(), AskHoldings(mandate.step, mandate.parent, mandate.ballot)
        try:
            async with asyncio.TaskGroup() as group:
                for card in self._succession.speaking(now):
                    if card.state in AT_WORK:
                        group.create_task(self._end_round(card.peer, ending))
        except* Outranked as troubles:
            raise troubles.exceptions[0] from None

    async def _end_round(self, peer: PeerId, ending: AskHoldings) -> None:
        try:
            async with asyncio.timeout(WORD_SECONDS):  # over the greeting, too
                await self._links.ask(peer, ending, deadline_s=None)
        except Outvoted as trouble:
            raise Outranked(f"{short(peer)} has heard ballot {trouble.heard}", trouble.heard) from None
        except NO_ANSWER as trouble:
            log.debug("%s doesn't end its round: %s", short(peer), trouble)

    def _takes_over(self, step: int) -> bool:
        """True if it seems that someone led this step before; the ballot will tell for certain. In a large swarm a
        conductor, who is a head, knows the others that might have.
        """
        if step == self.desk.step:  # this peer led it before, and was thought lost meanwhile
            return True
        if (record := self._history.record) is None:
            return False
        first = rendezvous(f"conductor/{step}", record.stages[0].members or record.members())[:1]
        return first != [self._membership.own.peer]

    async def _ask_around(self, step: int) -> None:
        """Adopts the step's record if someone has it already: that is cheaper than to decide it once more."""
        own, now = self._membership.own.peer, asyncio.get_running_loop().time()
        others = [card.peer for card in self._succession.speaking(now) if card.peer != own]
        answers = await self._links.tell_all(others, AskRecord(step), deadline_s=WORD_SECONDS)
        for peer, commit in answers.items():
            try:
                await self._history.adopt(record_from_raw(self._run, commit.record), peer)
            except UNREADABLE as fault:
                log.warning("a bad record of step %d from %s: %s", step, short(peer), fault)

    async def _validation(self, version: int) -> float | None:
        every = self._run.validate_every
        if every and version and version % every == 0:
            return await self._validate(version)
        return None

    # ---------------------------------------------------------------------------------------------- moves

    async def _answer_move(self, peer: PeerId, ask: AskMove) -> MoveOutlook:
        """Keeps the wish for the step's record, unless it can't be granted as things are."""
        await self.desk.leases_of(ask.step, ask.record_hash, peer)
        if ask.step == self._run.steps:
            return MoveOutlook(False, "the run ends with this step")
        stages = range(self._run.model.stages)
        staying = {stage: [card.peer for card in self._membership.staying(stage)] for stage in stages}
        wish = Move(peer, ask.source, ask.target)
        if ask.balance and (why := self._outlook.objection(wish, self._wishes.others(peer))):
            return MoveOutlook(False, why)
        why = self._wishes.ask(wish, staying)
        return MoveOutlook(not why, why)

    def _moves(self, step: int, reports: list[StageReport]) -> tuple[Move, ...]:
        """The moves that the record grants: the replicas that stay must be able to go on alone."""
        if step == self._run.steps:
            return ()
        staying = self._membership.staying
        return self._wishes.plan({it.stage: able_alone(staying(it.stage), step, it) for it in reports})
