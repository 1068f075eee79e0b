"""A stage at work at a peer: its hops, rounds, state transfers, head and beats, built and torn down together.

A peer serves one stage at a time. When it goes to another one the whole is closed at once, in the same turn of the
event loop in which the record that grants the move was applied, or in which its sum was found to be with its heir:
nothing more gets into the old sum. From then on its questions are refused, until the next stage's handlers are there.
"""

from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.hops.admission import Admission
from swarmd.swarm.hops.beats import Beats
from swarmd.swarm.hops.custodian import Custodian
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.rework import Rework
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.hops.under_way import HopsUnderWay
from swarmd.swarm.hops.validation import Validation
from swarmd.swarm.membership.table import not_admitting
from swarmd.swarm.peer.early_exit import EarlyExit
from swarmd.swarm.ports import Compute, Data
from swarmd.swarm.rounds.averaged import AveragedGradients
from swarmd.swarm.rounds.committed import CommittedGradients
from swarmd.swarm.rounds.handover import HandOvers
from swarmd.swarm.rounds.member import Rounds
from swarmd.swarm.rounds.repair import Repairs
from swarmd.swarm.state.donor import Donor
from swarmd.swarm.state.joiner import Joiner
from swarmd.swarm.steps.conductor import Conductor
from swarmd.swarm.steps.head import Head
from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import PeerId


class ServedStage:
    """A stage at work at this peer."""

    def __init__(
        self,
        context: PeerContext,
        conductor: Conductor,
        compute: Compute,
        data: Data | None,
        stage: int,
        joiner: Joiner,
    ) -> None:
        sums, hops = StepSums(), HopsUnderWay()
        stage_context = StageContext(context, stage, compute, context.links.scope(), context.tasks.child(), sums, hops)
        self.stage, self.compute, self.data, self.sums, self.hops = stage, compute, data, sums, hops
        self._peer, self._context, self.tasks = context, stage_context, stage_context.tasks
        self._serving = False
        self.admission = Admission(stage_context)
        self.custodian = Custodian(stage_context)
        self.validation = Validation(stage_context, self.custodian)
        self.journeys = Journeys(stage_context, self.admission, self.custodian, self.validation)
        rework = Rework(stage_context, self.journeys, data)
        repairs = Repairs(stage_context, self.journeys, rework)
        averaged = AveragedGradients(context.limits.held_gradients)
        self.committed = CommittedGradients(stage_context, averaged)
        self.rounds = Rounds(stage_context, rework, repairs, averaged, self.committed)
        self.donor = Donor(stage_context.scope, context.history, compute, stage)
        self.joiner = joiner
        self.head: Head | None = None
        if stage == 0:
            assert data is not None, "a first stage is opened with its data"
            self.head = Head(stage_context, self.journeys, conductor, data)
        self.handovers = HandOvers(stage_context, self.head.inherit if self.head is not None else lambda indices: None)
        self.early_exit = EarlyExit(stage_context, conductor, self.journeys, self.rounds, self.handovers, self.head)
        context.history.attach(stage, compute, self.committed)
        joiner.opened(compute, self.committed.hold)

    def serve(self) -> None:
        """Takes part from now on, if it doesn't yet: the stage's state is here."""
        if self._serving:
            return
        self._serving = True
        self.tasks.keep(Beats(self._context, self.custodian.custody).run)
        if self.head is not None:
            self.tasks.keep(self.head.run)

    def on_card(self, card: Card) -> None:
        """Hears of room at the next stage."""
        if card.stage == self.stage + 1 and card.room > 0 and self._peer.membership.is_live(card.peer):
            self.custodian.peer_has_room(card.peer)

    def sweep(self, now: float) -> float:
        """Looks at what may be late. Returns the loop time at which more may be."""
        due = self.custodian.look_for_late(now, self._is_stalled)
        self.donor.sweep(now)
        return due

    def _is_stalled(self) -> bool:
        """True if no hop can be expected to be answered: a stage is empty, or takes nothing, or the sums are frozen."""
        membership, stages = self._peer.membership, self._peer.run.model.stages
        frozen = self.sums.is_frozen(self._peer.history.version + 1)
        return frozen or bool(membership.missing_stages(stages) or not_admitting(membership, stages))

    def suspect(self, peer: PeerId) -> None:
        """Gives up a peer that can't be reached: its hops are sent elsewhere, and it is given no more state."""
        self.donor.lost(peer)
        self.custodian.custody.disconnected(peer)

    def peer_lost(self, peer: PeerId, heir: PeerId) -> None:
        """A peer is gone, and its sum with it, unless it has an heir."""
        self.admission.peer_lost(peer)
        self.custodian.peer_lost(peer, heir)

    def end_step(self, step: int) -> None:
        """Forgets a step that has committed."""
        self.journeys.end_step(step)
        self.rounds.end_step(step)
        self.handovers.end_step()

    def abandon(self) -> None:
        """Voids what is under way: another version, or another history, is the stage's state now."""
        self.journeys.abandon()
        self.rounds.abandon()
        self.handovers.end_step()
        self.donor.forget()

    def leave(self) -> None:
        """Ends everything here in this turn of the event loop, as this peer goes to another stage: nothing is answered
        any more.
        """
        self._context.scope.close()
        self.donor.close()
        self.close()

    def close(self) -> None:
        """Ends what is under way."""
        self.joiner.close()
        self.journeys.close()
        self.rounds.close()
        self.handovers.close()
        self.early_exit.close()
        self.tasks.cancel()
