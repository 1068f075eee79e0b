"""The roles of peers, by the last record and the present membership, as this peer knows them.

Views differ: a newcomer is in no record yet, a commit or a card may be on its way. So a role is refused only where no
honest peer could take itself for its holder, or where the asker asks again and has it by then. Relies on the table
`wire/roles.py` for what each request needs. It doesn't look at what a request would do: its handler does.
"""

import asyncio
import logging
from collections.abc import Collection

from swarmd.errors import NO_ANSWER, OutOfRange, Refused
from swarmd.swarm.history.consensus import BallotRange
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.membership.reach import leads_first
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.common import ANY_STAGE, NO_BALLOT, Ballot, Message, from_ranges, to_ranges
from swarmd.swarm.wire.messages.drain import HandOver
from swarmd.swarm.wire.messages.hop import AskGiven, Given, Hop
from swarmd.swarm.wire.messages.round import AskAppointment
from swarmd.swarm.wire.roles import Needs, Role, Whose
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

VERSION_WAIT_SECONDS = 10.0  # for the record by which an order of a later step can be judged
APPOINTMENT_SECONDS = 2.0  # for a conductor to say whom it has asked; leaders wait for 5 s at least
GIVEN_SECONDS = 4.0  # for a giver to look into its memory; longer than a handshake takes on a slow line
GIVERS_ASKED = 64  # of a sum
APPOINTMENTS_KEPT = 64  # of the present step; a stage has few leaders that no record names

NOTHING = Given(())


class RecordJudge:
    """Judges the peers of this history."""

    def __init__(self, context: PeerContext) -> None:
        self._links, self._membership, self._history = context.links, context.membership, context.history
        self._run, self._handouts = context.run, context.handouts
        self._indices = context.run.microbatches + context.run.validation_microbatches  # of a step
        self._ballots = BallotRange()  # those of the orders that were heard
        self._links.handle(AskGiven, self._answer_given)
        self._appointed: set[tuple[int, Ballot, int, PeerId]] = set()  # step, ballot, stage, leader

    async def allows(self, peer: PeerId, message: Message, needs: Needs) -> bool:
        """Tells if a request counts from this peer. It waits for a record that may be on its way. Raises OutOfRange for
        a step that the run doesn't have, and for an order under a ballot that no honest peer can have reached.
        """
        self._check_step(message)
        if needs.role in (Role.LEADER, Role.CONDUCTOR):
            counts = await self._may_order(peer, message, needs)
            if counts:
                self._check_ballot(message)
            return counts
        if needs.role is Role.MEMBER:
            return self._may_tell(peer, message)
        if needs.role not in (Role.REPLICA, Role.PROVEN, Role.GIVEN):
            return True
        return self._is_replica(peer, self._stages(message, needs.whose)) and (
            needs.role is Role.REPLICA or await self._may_work(peer, message, needs)
        )

    def _check_step(self, message: Message) -> None:
        """Raises OutOfRange."""
        step, last = getattr(message, "step", 0), self._membership.last_version
        if step > last + 1:  # whoever is at the last one may still name the next
            raise OutOfRange(f"step {step} is past the run's last one, {last}")

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

    def _may_tell(self, peer: PeerId, commit: Commit) -> bool:
        """Tells if a peer may bring a record: who is named by one may, or may conduct. What doesn't follow this peer's
        own may be of members that it doesn't know; and where nobody else of its stage is named, a newcomer passes
        records on. Raises PeerFault or UnknownFormat for what can't be read, as its handler does.
        """
        chain, own = self._history.chain, self._membership.own
        if not chain.is_newcomer(peer) or self._may_conduct(peer):
            return True
        if not self._membership.is_live(peer):
            return False
        siblings = [card.peer for card in self._membership.stage(own.stage) if card.peer != own.peer]
        if all(map(chain.is_newcomer, siblings)):
            return True
        record, newest = record_from_raw(self._run, commit.record), self._history.record_hash
        return newest not in (record.parent, record.after)

    # ---------------------------------------------------------------------------------------------- newcomers

    async def _may_work(self, peer: PeerId, message: Message, needs: Needs) -> bool:
        """Tells if a replica's word counts: a newcomer's only for what it was given. What belongs to a step that is
        over is left to its handler, which says so.
        """
        chain = self._history.chain
        base: int = message.step - 1
        if chain.is_newcomer(peer) and chain.version < base:  # the record that names it may be on its way
            await self._history.changed.until(lambda: chain.version >= base, VERSION_WAIT_SECONDS)
        if not chain.is_newcomer(peer):
            return True
        match message:
            case Hop():
                over = chain.version > base and not message.evaluate
                return over or await self._may_pass_on(peer, message)
            case HandOver():
                return chain.version > base or await self._was_given_sum(peer, message)
        return chain.version > base

    async def _may_pass_on(self, peer: PeerId, hop: Hop) -> bool:
        """Tells if a newcomer's hop counts, and notes that this peer has it from there. Who sends a microbatch again
        that came from others may hear what became of it: its handler does nothing else for a newcomer that this peer
        doesn't have it from.
        """
        own = self._membership.own.stage
        if not 0 <= hop.index < self._indices:
            return False
        question = AskGiven(hop.step, own - 1, to_ranges((hop.index,)), peer, hop.source)
        if self._may_conduct(peer) or await self._was_given(question):
            self._handouts.take(hop.step, own, (hop.index,), peer)
            return True
        return hop.again and not hop.evaluate and self._handouts.source(hop.step, own, hop.index) != ""

    async def _was_given(self, ask: AskGiven) -> bool:
        """Tells if a newcomer was given a microbatch, as it says. A giver that is a newcomer, too, must have been given
        it itself, and so on: there are as many of them as stages before; or the conductor has asked it to lead a round.
        """
        given, giver = await self._ask_giver(ask), ask.giver
        if given.indices != ask.indices:
            return False
        if self._may_give(giver):
            return True
        before = AskGiven(ask.step, ask.stage - 1, ask.indices, giver, given.source)
        if ask.stage > 0 and await self._was_given(before):
            return True
        return await self._was_asked_to_lead(giver, ask, given.source)

    async def _was_given_sum(self, peer: PeerId, message: HandOver) -> bool:
        """Tells if a newcomer was given all that it says to have in its sum."""
        givers = sorted(message.sources, key=lambda it: not self._may_give(it))[:GIVERS_ASKED]
        asks = [AskGiven(message.step, message.stage, message.indices, peer, giver) for giver in givers]
        try:
            given = {index for indices in await asyncio.gather(*map(self._given_by, asks)) for index in indices}
            return not message.spoiled and given >= {*from_ranges(message.indices, self._indices)}
        except OutOfRange:
            return False

    async def _given_by(self, ask: AskGiven) -> list[int]:
        """The microbatches that a giver says to have given, if it is believed by itself, or leads a round. Raises
        OutOfRange.
        """
        given = await self._ask_giver(ask)
        believed = self._may_give(ask.giver) or await self._was_asked_to_lead(ask.giver, ask, given.source)
        return from_ranges(given.indices, self._indices) if believed else []

    def _may_give(self, peer: PeerId) -> bool:
        """Tells if a peer's word is enough that it has given something."""
        return not self._history.chain.is_newcomer(peer) or self._may_conduct(peer)

    async def _was_asked_to_lead(self, peer: PeerId, ask: AskGiven, conductor: PeerId) -> bool:
        """Tells if a newcomer leads a round that may lack something of a stage: of that after it, or of the first."""
        rounds = [ask.stage + 1] if ask.stage > 0 else [0, 1]
        return any([await self._says_appointed(conductor, AskAppointment(ask.step, stage, peer)) for stage in rounds])

    async def _ask_giver(self, ask: AskGiven) -> Given:
        """The word of a giver, from itself or through another peer of its stage: it may be far from here, in a large
        swarm, or not be reached.
        """
        before, giver = max(0, ask.stage - 1), ask.giver
        near = [card.peer for card in self._membership.stage(before) if self._may_give(card.peer)]
        ways = [giver] if self._membership.get(giver) is not None else []
        for way in (*ways, *[it for it in near if it != giver][:1]) if giver else ():
            try:
                return await self._links.ask(way, ask, deadline_s=GIVEN_SECONDS)
            except NO_ANSWER as trouble:
                log.info("%s doesn't say what %s gave %s: %s", short(way), short(giver), short(ask.peer), trouble)
        return NOTHING

    async def _answer_given(self, peer: PeerId, ask: AskGiven) -> Given:
        if ask.giver != self._membership.own.peer:
            if self._membership.get(ask.giver) is None:
                raise Refused(f"{short(ask.giver)} isn't known here")
            return await self._links.ask(ask.giver, ask, deadline_s=GIVEN_SECONDS / 2)
        indices = from_ranges(ask.indices, self._indices)
        given = self._handouts.given(ask.step, ask.stage, indices, ask.peer)
        return Given(to_ranges(given), self._handouts.warrant(ask.step, ask.stage, given[0]) if given else "")

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
        return peer in self._members(message.stage)

    def _may_conduct(self, peer: PeerId) -> bool:
        """Tells if a peer may come to lead a step: any member of the last record, since who dies before it is seen
        earlier by some than by others; a newcomer where no member is at work. Before the first record there is none:
        the founder leads until it falls silent.
        """
        if self._history.record is None and self._history.origin.founder:
            return self._may_begin(peer)
        members = self._history.chain.members()
        if peer in members:
            return True
        return self._membership.is_live(peer) and not any(self._is_at_work(member) for member in members)

    def _may_begin(self, peer: PeerId) -> bool:
        """Tells if a peer may come to lead the first step."""
        founder, now = self._history.origin.founder, asyncio.get_running_loop().time()
        return peer == founder or (self._membership.is_live(peer) and not leads_first(self._membership, founder, now))

    def _is_at_work(self, peer: PeerId) -> bool:
        own = self._membership.own
        return own.state in AT_WORK if peer == own.peer else self._membership.is_live(peer)

    async def _is_appointed(self, peer: PeerId, message: Message) -> bool:
        """Tells if the conductor has asked this peer, which is no member of the stage, to lead the round."""
        conductor = message.ballot.peer
        appointment = (message.step, message.ballot, message.stage, peer)
        if appointment in self._appointed:
            return True
        if not await self._says_appointed(conductor, AskAppointment(message.step, message.stage, peer)):
            return False
        kept = {it for it in self._appointed if it[0] > self._history.version}
        self._appointed = {*list(kept)[: APPOINTMENTS_KEPT - 1], appointment}
        return True

    async def _says_appointed(self, conductor: PeerId, question: AskAppointment) -> bool:
        """Tells if a conductor says that it has asked a peer to lead."""
        if not self._may_conduct(conductor):  # nor may the nobody of a message without a ballot
            return False
        try:
            return (await self._links.ask(conductor, question, deadline_s=APPOINTMENT_SECONDS)).appointed
        except NO_ANSWER as trouble:
            leader = short(question.leader)
            log.info("%s doesn't say whether it asked %s to lead: %s", short(conductor), leader, trouble)
            return False
