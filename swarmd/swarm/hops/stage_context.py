"""The surroundings of a served stage's parts, in one object: the peer's context, and what is of this stage only."""

from dataclasses import dataclass

from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.hops.under_way import HopsUnderWay
from swarmd.swarm.ports import Compute
from swarmd.swarm.tasks import Tasks
from swarmd.swarm.wire.links import Scope


@dataclass(frozen=True)
class StageContext:
    """One stage's surroundings at one peer, from its opening until the peer leaves it."""

    peer: PeerContext
    stage: int
    compute: Compute
    scope: Scope  # answers end with the stage
    tasks: Tasks  # and so do these
    sums: StepSums
    hops: HopsUnderWay

    @property
    def is_tail(self) -> bool:
        """True at the last stage, which computes the loss."""
        return self.stage == self.peer.run.model.stages - 1
