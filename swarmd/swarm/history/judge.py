"""The roles of peers, by the last record and the present membership, as this peer knows them.

Views differ: a newcomer is in no record yet, a commit or a card may be on its way. So a role is refused only where no
honest peer could take itself for its holder, or where the asker asks again and has it by then. Relies on the table
`wire/roles.py` for what each request needs. It doesn't look at what a request would do: its handler does.
"""

import logging
from collections.abc import Collection

from swarmd.errors import NO_ANSWER, OutOfRange
from swarmd.swarm.history.consensus import BallotRange
from swarmd.swarm.history.history import History
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import ANY_STAGE, NO_BALLOT, Ballot, Message
from swarmd.swarm.wire.messages.round import AskAppointment
from swarmd.swarm.wire.roles import Needs, Role, Whose
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

VERSION_WAIT_SECONDS = 10.0  # for the record by which an order of a later step can be judged
APPOINTMENT_SECONDS = 2.0  # for a conductor to say whom it has asked; leaders wait for 5 s at least
APPOINTMENTS_KEPT = 64  # of the present step; a stage has few leaders that no record names


class RecordJudge:
    """Judges the peers of this history."""

    def __init__(self, links: Links, membership: Membership, history: History) -> None:
        self._links, self._membership, self._history = links, membership, history
        self._ballots = BallotRange()  # those of the orders that were heard
        self._appointed: set[tuple[int, Ballot, int, PeerId]] = set()  # step, ballot, stage, leader

    async def allows(self, peer: PeerId, message: Message, needs: Needs) -> bool:
        """Tells if a request counts from this peer. It waits for a record that may be on its way. Raises OutOfRange for
        an order under a ballot that no honest peer can have reached.
        """
        if needs.role in (Role.LEADER, Role.CONDUCTOR):
            counts = await self._may_order(peer, message, needs)
            if counts:
                self._check_ballot(message)
            return counts
        if needs.role is Role.MEMBER:
            return self._has_worked(peer)
        return needs.role is not Role.REPLICA or self._is_replica(peer, self._stages(message, needs.whose))

    # ---------------------------------------------------------------------------------------------- replicas

    def _stages(self, message: Message, whose: Whose) -> Collection[int]:
        """The stages at any of which a peer must be."""
        own = self._membership.own.stage
        match whose:
            case Whose.NAMED:
                return (message.stage,)
            case Whose.SOURCE:
                return (message.source,)
            case Whose.FIRST:
                return (0,)
            case Whose.OWN:
                return (own,)
            case Whose.BEFORE:
                return (own - 1,)
            case Whose.AFTER:
                return (own + 1,)
            case Whose.NEAR:
                return (own, own - 1)

    def _is_replica(self, peer: PeerId, stages: Collection[int]) -> bool:
        """Tells if the last record or the card of a peer says that it is of one of these stages."""
        if any(peer in self._members(stage) for stage in stages):
            return True
        card = self._membership.get(peer)
        return card is not None and card.stage in stages and self._membership.is_live(peer)

    def _members(self, stage: int) -> Collection[PeerId]:
        """The members of the last record at one stage."""
        record = self._history.record
        return record.stages[stage].members if record is not None and 0 <= stage < len(record.stages) else ()

    def _has_worked(self, peer: PeerId) -> bool:
        """Tells if a peer is in a record that is kept, or at work. A peer without any record can't tell."""
        if self._history.record is None or self._membership.is_live(peer):
            return True
        return self._history.chain.took_part(peer)

    # ---------------------------------------------------------------------------------------------- orders

    async def _may_order(self, peer: PeerId, message: Message, needs: Needs) -> bool:
        """Tells if a conductor's or leader's word counts. What is of no effect, as its step is over or another
        history's, is left to its handler, which says so.
        """
        if self._is_over(message, needs) or self._leads(peer, message, needs):
            return True
        base = message.step - 1
        if self._history.version < base:
            await self._history.changed.until(lambda: self._history.version >= base, VERSION_WAIT_SECONDS)
            if self._is_over(message, needs) or self._leads(peer, message, needs):
                return True
        return needs.role is Role.LEADER and await self._is_appointed(peer, message)

    def _check_ballot(self, message: Message) -> None:
        """Raises OutOfRange."""
        ballot = getattr(message, "ballot", NO_BALLOT)
        if not self._ballots.admits(message.step, ballot.number, self._history.version):
            raise OutOfRange(f"ballot {ballot.number} of step {message.step} is far above all that were heard of here")

    def _is_over(self, message: Message, needs: Needs) -> bool:
        """Tells if an order's step is over, or follows another record than this peer's."""
        version = self._history.version
        parent = getattr(message, needs.parent, self._history.record_hash)
        return message.step <= version or (message.step == version + 1 and parent != self._history.record_hash)

    def _leads(self, peer: PeerId, message: Message, needs: Needs) -> bool:
        if needs.role is Role.CONDUCTOR or message.stage == ANY_STAGE:
            return self._may_conduct(peer)
        if self._history.record is None:
            return self._is_replica(peer, (message.stage,))
        return peer in self._members(message.stage)

    def _may_conduct(self, peer: PeerId) -> bool:
        """Tells if a peer may come to lead a step: any member of the last record, since who dies before it is seen
        earlier by some than by others; a newcomer where no member is at work.
        """
        members = self._history.chain.members()
        if peer in members:
            return True
        return self._membership.is_live(peer) and not any(self._is_at_work(member) for member in members)

    def _is_at_work(self, peer: PeerId) -> bool:
        own = self._membership.own
        return own.state in AT_WORK if peer == own.peer else self._membership.is_live(peer)

    async def _is_appointed(self, peer: PeerId, message: Message) -> bool:
        """Tells if the conductor has asked this peer, which is no member of the stage, to lead the round."""
        conductor = message.ballot.peer
        appointment = (message.step, message.ballot, message.stage, peer)
        if appointment in self._appointed:
            return True
        if not self._may_conduct(conductor):  # nor may the nobody of a message without a ballot
            return False
        question = AskAppointment(message.step, message.stage, peer)
        try:
            answer = await self._links.ask(conductor, question, deadline_s=APPOINTMENT_SECONDS)
        except NO_ANSWER as trouble:
            log.info("%s doesn't say whether it asked %s to lead: %s", short(conductor), short(peer), trouble)
            return False
        if answer.appointed:
            kept = {it for it in self._appointed if it[0] > self._history.version}
            self._appointed = {*list(kept)[: APPOINTMENTS_KEPT - 1], appointment}
        return answer.appointed
