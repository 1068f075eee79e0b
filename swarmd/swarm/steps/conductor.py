"""Leading a step: leases, completions, close, commit.

Every peer runs one `Conductor`; it is at work while this peer is first in the order of conductors. It begins a step by
asking the step's acceptors for the right to propose its record (`ballots.py`), and proposes at once what they have
accepted already. Whoever takes over from a lost one hears every head out before it gives leases. Decides nothing about
gradients: the rounds report, and the record follows from the reports. Whatever it waits for is bounded, or watched.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable

from swarmd.config import RunConfig
from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.swarm.balance.grants import Wishes
from swarmd.swarm.balance.outlook import Outlook
from swarmd.swarm.history.ballots import Ballots, Mandate, Outranked
from swarmd.swarm.history.distribution import Distribution
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Move, Record, build_record, check_report
from swarmd.swarm.history.record_codec import record_from_plain
from swarmd.swarm.membership.order import leader_order, rendezvous
from swarmd.swarm.membership.rhythm import Pulse
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.recovery.returns import Returns
from swarmd.swarm.signals import Signal
from swarmd.swarm.steps.leases import Leases
from swarmd.swarm.steps.succession import Succession
from swarmd.swarm.tasks import Tasks, alongside, first_of
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.commit import AskRecord
from swarmd.swarm.wire.messages.common import from_ranges, to_ranges
from swarmd.swarm.wire.messages.hop import NOBODY, Blame
from swarmd.swarm.wire.messages.move import AskMove, Wished
from swarmd.swarm.wire.messages.presence import Announce, Card
from swarmd.swarm.wire.messages.round import AskHoldings, Close, StageReport
from swarmd.swarm.wire.messages.step import AskLease, Lease, Revoke
from swarmd.values import HopId, PeerId

log = logging.getLogger(__name__)

LEASE_POLL_SECONDS = 5.0  # a head that asks when nothing is free is answered after this at the latest
HEARING_SECONDS = 4.0  # a new conductor waits so long for every head to say what it holds
WORD_SECONDS = 1.0  # for others to hear of a takeover, and to say that they know better: the ballot would tell, too
VERSION_WAIT_SECONDS = 30.0
START_SECONDS = 2.0  # a head may ask before the conductor has noticed that it comes first
CLOSE_SECONDS = 900.0  # bound on a round; a lost or silent leader ends the wait much sooner
PING_SECONDS = 2.0  # between two words to the leader of a round
SILENCE_SECONDS = 6.0  # of a leader whose connection is up: it is paused, or its loop hangs; the next one costs little
VALIDATION_SECONDS = 30.0  # that a validation may last longer than its step
RETRY_SECONDS = 0.5
LATE_LOOK_SECONDS = 1.0  # between two looks at whether a lease is late enough to be given to a head that waits
MANDATE_TRIES = 3  # times that all replicas of a stage were asked in vain to lead its round, before a new mandate
PATIENCE_SECONDS = 1.0  # after being outranked; doubles each time, so that two conductors don't duel for ever
PATIENCE_CEILING_SECONDS = 120.0
REVOKE_SECONDS = 5.0
PACE_SHARE = 0.25  # of a step that must be done before its own pace counts
HORIZON_FLOOR_SECONDS = 0.001  # 0 would mean unknown

Validate = Callable[[int], Awaitable[float | None]]
"""The validation loss of a version, None if it can't be had."""


class Conductor:
    """This peer as the leader of steps."""

    def __init__(
        self,
        run: RunConfig,
        links: Links,
        membership: Membership,
        history: History,
        validate: Validate,
        tasks: Tasks,
        ballots: Ballots,
        rng: random.Random,
        returns: Returns,
        outlook: Outlook,
    ) -> None:
        self._run, self._links, self._membership, self._history = run, links, membership, history
        self._returns = returns
        self._validate, self._tasks, self._ballots, self._rng = validate, tasks, ballots, rng
        self._distribution = Distribution(links, membership, history, tasks)
        self._outranked = 0  # times in a row
        self._succession = Succession(links, membership, history, tasks)
        self._leases: Leases | None = None
        self._step = 0
        self._hearing_until = 0.0
        self._progress = Signal()
        self._pulses: dict[PeerId, Pulse] = {}  # of heads, as they ask
        self._began: float | None = None  # loop time of the step's first lease
        self._wishes, self._outlook = Wishes(), outlook
        self._blames: dict[
            PeerId, Blame
        ] = {}  # what heads say of indices that are done, but whose numbers aren't finite
        links.handle(AskLease, self._answer_lease)
        links.handle(AskMove, self._answer_move)

    def leader(self, step: int) -> PeerId:
        """Who leads a step, in this peer's eyes. "" when it can't know."""
        return self._succession.leader(step)

    def is_first(self, step: int) -> bool:
        return self.leader(step) == self._membership.own.peer

    def completed(self) -> int | None:
        """Microbatches of the present step that are done, if this peer leads it."""
        return self._leases.completed if self._leases is not None else None

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
            await self._membership.changed.wait(LEASE_POLL_SECONDS)

    async def _lead(self, step: int, ended: Callable[[], bool]) -> None:
        """Leads a step until it has committed, or someone else comes first."""
        try:
            await first_of(self._conduct(step), self._until(lambda: ended() or not self.is_first(step)))
            self._outranked = 0
        except Outranked as trouble:
            log.info("step %d: %s", step, trouble)
            self._leases = None
            patience = min(PATIENCE_CEILING_SECONDS, PATIENCE_SECONDS * 2.0**self._outranked)
            self._outranked += 1
            await self._history.changed.until(ended, patience * (0.5 + self._rng.random()))
        finally:
            self._leases = None

    async def _conduct(self, step: int) -> None:
        """Brings a step to its record. Raises Outranked."""
        again = self._takes_over(step)
        if again:
            await self._ask_around(step)
        async with alongside(self._returns.lost()) as lost:

            def complete() -> bool:  # or there is a way to go on all the same
                return self._is_complete() or lost.done()

            mandate = await self._ballots.seek(step, complete)
            record = mandate.decided
            if record is None and mandate.bound is not None:  # it may be decided: nothing else may be proposed
                record = await self._ballots.propose(mandate, mandate.bound, complete)
            if record is None:
                record = await self._ballots.propose(mandate, await self._next(mandate, again), complete)
        self._tasks.start(self._returns.tell(record) if record.after else self._distribution.spread(record))
        await self._history.adopt(record, self._membership.own.peer)
        if record.after:  # this peer's way back ends the step
            await self._history.changed.until(lambda: self._history.record_hash == record.hash)
        else:  # it may not be able to apply it; there's no use in learning it again at once
            await self._history.changed.until(lambda: self._history.version >= step, RETRY_SECONDS)

    async def _next(self, mandate: Mandate, again: bool) -> Record:
        """What to propose: the step's record, or a return if a stage stays lost."""
        return await first_of(self._train(mandate, again), self._returns.lost())

    def _is_complete(self) -> bool:
        """Whether every stage is there: else it makes no sense to go on without the others."""
        return not self._membership.missing_stages(self._run.model.stages)

    async def _train(self, mandate: Mandate, again: bool) -> Record:
        """Leads the step under a mandate, from its leases to its reports."""
        loop, step = asyncio.get_running_loop(), mandate.step
        again = again or not mandate.fresh
        if again:
            self._succession.lead(mandate)
            everyone = [card.peer for card in self._speaking() if card.state in AT_WORK]
            question = AskHoldings(
                step, mandate.parent, mandate.ballot
            )  # ends rounds that the lost conductor had begun
            await self._links.tell_all(everyone, question, deadline_s=WORD_SECONDS)
            self._hearing_until = loop.time() + HEARING_SECONDS
        self._pulses, self._step, self._leases = {}, step, Leases(self._run.microbatches, again=again)
        self._began, self._blames = None, {}
        self._wishes.begin(step)
        self._progress.notify()
        validation = asyncio.create_task(self._validation(step - 1))
        try:
            reports = await self._conclude(mandate)
            await asyncio.wait({validation}, timeout=VALIDATION_SECONDS)
            return build_record(
                self._run,
                mandate.parent,
                step,
                reports,
                conductor=self._membership.own.peer,
                seconds=loop.time() - (self._began or loop.time()),
                validation_loss=validation.result() if validation.done() else None,
                total_tokens=self._history.chain.total_tokens,
                moves=self._moves(step, reports),
                before=self._history.record,
            )
        finally:
            validation.cancel()

    def _takes_over(self, step: int) -> bool:
        """Whether it seems that someone led this step before; the ballot will tell for certain. In a large swarm a
        conductor, who is a head, knows the others that might have.
        """
        if step == self._step:  # this peer led it before, and was thought lost meanwhile
            return True
        if (record := self._history.record) is None:
            return False
        first = rendezvous(f"conductor/{step}", record.stages[0].members or record.members())[:1]
        return first != [self._membership.own.peer]

    async def _ask_around(self, step: int) -> None:
        """Someone may have the step's record already: that is cheaper than to decide it once more."""
        own = self._membership.own.peer
        others = [card.peer for card in self._speaking() if card.peer != own]
        answers = await self._links.tell_all(others, AskRecord(step), deadline_s=WORD_SECONDS)
        for peer, commit in answers.items():
            try:
                await self._history.adopt(record_from_plain(self._run, commit.record), peer)
            except PeerFault as fault:
                log.warning("a bad record of step %d from %s: %s", step, peer[-8:], fault)

    def _speaking(self) -> list[Card]:
        """Of the kin, those that were heard of lately: nobody waits for the others."""
        now = asyncio.get_running_loop().time()
        return [card for card in self._membership.kin() if not self._membership.is_silent(card.peer, now)]

    async def _validation(self, version: int) -> float | None:
        every = self._run.validate_every
        if every and version and version % every == 0:
            return await self._validate(version)
        return None

    async def _conclude(self, mandate: Mandate) -> list[StageReport]:
        """Waits for all indices, then for every stage's round. Indices given again meanwhile delay only the first
        stage.
        """
        assert self._leases is not None
        await self._progress.until(lambda: self._leases is not None and self._leases.done)
        blame = next(iter(self._blames.values()), NOBODY)
        try:
            async with asyncio.TaskGroup() as group:
                stages = range(self._run.model.stages)
                tasks = [group.create_task(self._stage_report(mandate, stage, blame)) for stage in stages]
        except* Outranked as troubles:
            raise Outranked(str(troubles.exceptions[0])) from None
        return [task.result() for task in tasks]

    async def _stage_report(self, mandate: Mandate, stage: int, blame: Blame) -> StageReport:
        """Asks the stage's leader; when it is lost or silent, the next in order. Raises Outranked when nobody follows
        this mandate: a higher one may have been given where this peer couldn't hear of it.
        """
        close, tries = Close(mandate.step, mandate.parent, mandate.ballot, stage, blame), 0
        while True:
            live, now = [card.peer for card in self._membership.stage(stage)], asyncio.get_running_loop().time()
            order = leader_order(mandate.step, stage, live)
            for leader in sorted(order, key=lambda peer: self._membership.is_silent(peer, now)):
                report = await self._ask_leader(leader, close)
                if report is not None:
                    return report
            tries += bool(live)
            if tries == MANDATE_TRIES:
                raise Outranked(f"no leader of stage {stage} reports under ballot {mandate.ballot.number}")
            await asyncio.sleep(RETRY_SECONDS)

    async def _ask_leader(self, leader: PeerId, close: Close) -> StageReport | None:
        """One leader's report. None when it fails, is lost, or falls silent."""
        question = self._links.ask(leader, close, deadline_s=CLOSE_SECONDS)
        try:
            report = await first_of(question, self._silence(leader))
            if isinstance(report, StageReport):
                check_report(report, close.stage, self._run.microbatches)
                return report
            log.warning("step %d: %s, who leads a round, %s", close.step, leader[-8:], report)
        except (PeerUnreachable, TimeoutError, Refused, PeerFault) as trouble:
            log.warning("step %d: %s gives no report of its round: %s", close.step, leader[-8:], trouble)
        return None

    async def _silence(self, peer: PeerId) -> str:
        """Returns, with the reason, when a peer is lost or answers no more."""
        loop, own = asyncio.get_running_loop(), self._membership.own.peer
        answered = loop.time()
        while self._membership.is_live(peer) and loop.time() - answered < SILENCE_SECONDS:
            asked, ping = loop.time(), Announce(self._membership.own)
            heard = peer == own or await self._links.tell_all([peer], ping, deadline_s=SILENCE_SECONDS / 2)
            if heard or loop.time() - asked > SILENCE_SECONDS:  # the latter: this peer itself was stopped
                answered = loop.time()
                await self._membership.changed.wait(PING_SECONDS)
            elif self._membership.is_silent(peer, loop.time()):  # since before it was asked
                break
            else:
                await self._membership.changed.wait(RETRY_SECONDS)
        return "is silent" if self._membership.is_live(peer) else "is lost"

    # ---------------------------------------------------------------------------------------------- heads

    async def _leads(self, step: int, record: str, asker: PeerId) -> Leases:
        """The leases of a step that someone asks about. Raises Refused if this peer doesn't lead it."""
        await self._history.await_version(step - 1, record, asker, VERSION_WAIT_SECONDS)
        leading = await self._progress.until(lambda: self._leases is not None and self._step == step, START_SECONDS)
        if self._leases is None or not leading:
            raise Refused(f"this peer doesn't lead step {step}")
        return self._leases

    async def _answer_lease(self, head: PeerId, ask: AskLease) -> Lease:
        leases = await self._leads(ask.step, ask.record, head)
        if self._membership.get(head) is None:  # what is kept of heads is bounded as the membership is
            raise Refused("this peer doesn't know you any more")
        loop = asyncio.get_running_loop()
        if ask.blame:
            self._blames.setdefault(head, ask.blame)
        held = from_ranges(ask.held, leases.microbatches)
        completed = from_ranges(ask.completed, leases.microbatches)
        away = from_ranges(ask.away, leases.microbatches)
        before = leases.completed, leases.free
        for late, indices in leases.heard(head, completed, held, loop.time(), away).items():
            self._tasks.start(self._revoke(late, Revoke(ask.step, to_ranges(indices))))
        if head not in self._pulses or (leases.completed, leases.free) != before:  # nobody waits for a mere pulse
            self._progress.notify()
        self._pulses.setdefault(head, Pulse()).beat(loop.time())
        if ask.want <= 0:
            return Lease(ask.step, (), False)
        deadline = loop.time() + LEASE_POLL_SECONDS
        while self._leases is leases and loop.time() < deadline:
            if self._may_give():
                horizon = self._horizon_s(leases)
                heads = len(self._membership.stage(0))
                indices, again = leases.give(head, ask.want, heads, loop.time(), horizon or math.inf)
                if indices:
                    self._began = self._began or loop.time()
                    return Lease(ask.step, to_ranges(indices), again, horizon)
            await self._progress.wait(min(LATE_LOOK_SECONDS, deadline - loop.time()))
        return Lease(ask.step, (), False)

    async def _revoke(self, head: PeerId, revoke: Revoke) -> None:
        """At once: what the head adds to its sum before it hears must be subtracted again."""
        await self._links.tell_all([head], revoke, deadline_s=REVOKE_SECONDS)

    def _horizon_s(self, leases: Leases) -> float:
        """Seconds until the last index is given, at this step's pace so far or the last step's; 0: unknown."""
        if self._began is not None and leases.completed >= leases.microbatches * PACE_SHARE:
            rate = leases.completed / max(1e-6, asyncio.get_running_loop().time() - self._began)
        elif self._history.record is not None and self._history.record.seconds > 0:
            rate = leases.microbatches / self._history.record.seconds
        else:
            return 0.0
        return max(HORIZON_FLOOR_SECONDS, leases.free / rate)

    def _may_give(self) -> bool:
        """No leases while a stage is empty or the others may have another conductor by now, nor, after taking over,
        before every head was heard.
        """
        now = asyncio.get_running_loop().time()
        if self._membership.missing_stages(self._run.model.stages) or self._succession.is_cut_off(now):
            return False
        if now >= self._hearing_until:
            return True
        return {
            card.peer for card in self._speaking() if card.stage == 0 and card.state in AT_WORK
        } <= self._pulses.keys()

    # ---------------------------------------------------------------------------------------------- moves

    async def _answer_move(self, peer: PeerId, ask: AskMove) -> Wished:
        """Keeps the wish for the step's record, unless it can't be granted as things are."""
        await self._leads(ask.step, ask.record, peer)
        if ask.step == self._run.steps:
            return Wished(False, "the run ends with this step")
        stages = range(self._run.model.stages)
        staying = {stage: [card.peer for card in self._membership.staying(stage)] for stage in stages}
        wish = Move(peer, ask.source, ask.target)
        if ask.balance and (why := self._outlook.objection(wish, self._wishes.others(peer))):
            return Wished(False, why)
        why = self._wishes.ask(wish, staying)
        return Wished(not why, why)

    def _moves(self, step: int, reports: list[StageReport]) -> tuple[Move, ...]:
        """What the record grants. A stage's replicas are those at work that have the step's whole gradient: whoever
        stays must be able to go on alone.
        """
        if step == self._run.steps:
            return ()
        able: dict[int, list[PeerId]] = {}
        for report in reports:
            staying = [card.peer for card in self._membership.staying(report.stage)]
            having = report.holders or report.members  # of a step to be skipped nobody needs the gradient
            able[report.stage] = [peer for peer in staying if peer in having]
        return self._wishes.plan(able)

    def leased_to(self, head: PeerId) -> set[HopId]:
        """What this conductor waits for a head to finish."""
        return {HopId(self._step, index) for index in self._leases.held_by(head)} if self._leases else set()

    def sweep(self, now: float) -> float:
        """Gives leases of silent heads to others; a head is as quickly found silent as a holder of hops. It may follow
        another conductor, or not reach this one. What it has completed stays: it is in its sum. Returns the loop
        time at which more may be silent.
        """
        self._succession.take_over(now)
        self._succession.tell(now)
        for head in sorted(self._leases.holders()) if self._leases is not None else ():
            pulse = self._pulses.get(head)
            if self._leases is None or pulse is None or not pulse.silent(now):
                continue
            if withdrawn := self._leases.withdraw(head):
                log.info("head %s is silent: %d microbatches are given to others", head[-8:], len(withdrawn))
                self._progress.notify()
        return math.inf if self._leases is None else now

    @property
    def closing(self) -> bool:
        """Whether this peer leads a step whose indices are all done."""
        return self._leases is not None and self._leases.done

    def peer_lost(self, peer: PeerId, heir: PeerId = "") -> None:
        """A head is gone: what it had is given again; what it had finished only if no heir has it."""
        if self._leases is not None and (lost := self._leases.lose(peer, heir)):
            log.info("head %s is lost: %d microbatches of step %d are given again", peer[-8:], len(lost), self._step)
        if not heir:  # or its heir says the same
            self._blames.pop(peer, None)
        self._progress.notify()
