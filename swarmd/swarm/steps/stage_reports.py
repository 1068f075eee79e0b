"""The close of a step as its conductor sees it: each stage's round leader is asked for the stage's report.

A leader that fails, is lost or falls silent is passed over for the next in order, however long a round may take.
"""

import asyncio
import logging

from swarmd.config import RunConfig
from swarmd.errors import NO_ANSWER, Outvoted
from swarmd.swarm.history.ballots import Mandate, Outranked
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import check_report
from swarmd.swarm.membership.order import leader_order
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.tasks import first_of
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.swarm.wire.messages.presence import Announce
from swarmd.swarm.wire.messages.round import Appointment, AskAppointment, Close, StageReport
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

CLOSE_SECONDS = 900.0  # bound on a round; a lost or silent leader ends the wait much sooner
PING_SECONDS = 2.0  # between two words to the leader of a round
SILENCE_SECONDS = 6.0  # of a leader whose connection is up: it is paused, or its loop hangs; the next one costs little
RETRY_SECONDS = 0.5
MANDATE_TRIES = 3  # times that all replicas of a stage were asked in vain to lead its round, before a new mandate


class StageReports:
    """The conductor's questions to the leaders of a step's rounds."""

    def __init__(self, run: RunConfig, links: Links, membership: Membership, history: History) -> None:
        self._run, self._links, self._membership, self._history = run, links, membership, history
        self._asked: set[tuple[int, int, PeerId]] = set()  # step, stage, leader: of the present step
        links.handle(AskAppointment, self._answer_appointment)

    async def _answer_appointment(self, peer: PeerId, ask: AskAppointment) -> Appointment:
        return Appointment((ask.step, ask.stage, ask.leader) in self._asked)

    async def collect(self, mandate: Mandate, blame: Blame) -> list[StageReport]:
        """Every stage's report, in their order. `blame`: the first number that isn't finite, as far as it is known.
        Raises Outranked.
        """
        self._asked.clear()
        try:
            async with asyncio.TaskGroup() as group:
                stages = range(self._run.model.stages)
                tasks = [group.create_task(self._report_of(mandate, stage, blame)) for stage in stages]
        except* Outranked as troubles:
            raise troubles.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _report_of(self, mandate: Mandate, stage: int, blame: Blame) -> StageReport:
        """Asks the stage's leader; when it is lost or silent, the next in order. Raises Outranked when nobody follows
        this mandate: a higher one may have been given where this peer couldn't hear of it.
        """
        close, tries = Close(mandate.step, mandate.parent, mandate.ballot, stage, blame), 0
        while True:
            live, now = [card.peer for card in self._membership.stage(stage)], asyncio.get_running_loop().time()
            order = leader_order(mandate.step, stage, live, self._history.chain.members(stage))
            for leader in sorted(order, key=lambda peer: self._membership.is_silent(peer, now)):
                report = await self._ask(leader, close)
                if report is not None:
                    return report
            tries += bool(live)
            if tries == MANDATE_TRIES:
                raise Outranked(f"no leader of stage {stage} reports under ballot {mandate.ballot.number}")
            await asyncio.sleep(RETRY_SECONDS)

    async def _ask(self, leader: PeerId, close: Close) -> StageReport | None:
        """One leader's report. None when it fails, is lost, or falls silent. Raises Outranked if its round has heard a
        higher ballot.
        """
        self._asked.add((close.step, close.stage, leader))
        question = self._links.ask(leader, close, deadline_s=CLOSE_SECONDS)
        try:
            report = await first_of(question, self._silence(leader))
            if isinstance(report, StageReport):
                check_report(report, close.stage, self._run.microbatches)
                return report
            log.warning("step %d: %s, who leads a round, %s", close.step, short(leader), report)
        except NO_ANSWER as trouble:
            # A round that went on under an earlier conductor's ballot may end because members have heard this one.
            if isinstance(trouble, Outvoted) and trouble.asked == close.ballot.number:
                raise Outranked(f"ballot {trouble.heard} was heard in stage {close.stage}", trouble.heard) from None
            log.warning("step %d: %s gives no report of its round: %s", close.step, short(leader), trouble)
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
