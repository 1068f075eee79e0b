"""A peer's way out: it admits nothing new, finishes what it has begun, hands its sum on, and says goodbye.

All of it within a bound that its caller names; what isn't done by then is a death to the others, and repaired like
one. The sum goes to a sibling (`handover.py`) unless its round has begun: then the record has it, and the peer waits
for that. It also waits for the record when the swarm can't decide it without this peer's word. The last replica of a
stage leaves, too, as nobody asks whether the machine stays; it writes a checkpoint before.
"""

import asyncio
import logging
from dataclasses import dataclass

from swarmd.printable import counted
from swarmd.swarm.history.consensus import is_majority, plan_acceptors
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.states import STAYING
from swarmd.swarm.peer.saving import Saving
from swarmd.swarm.peer.served_stage import ServedStage
from swarmd.swarm.steps.conductor import Conductor
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

FINISH_SHARE = 0.5  # of the bound, for what is under way: the rest is for the sum
LOOK_SECONDS = 0.25  # between two looks at whether something holds that nobody tells of
SAVE_SECONDS = 60.0  # for a last replica's checkpoint, if the bound leaves so much


@dataclass(frozen=True)
class Drained:
    """The outcome of a drain."""

    heir: PeerId = ""  # who has this peer's sum of the present step; "": it had none
    handed_over: int = 0  # microbatches in it
    given_up: int = 0  # microbatches that were under way and are sent elsewhere
    lost: int = 0  # microbatches that others must do again, as nobody took this peer's sum
    stage_left_empty: bool = False

    def sentence(self) -> str:
        """For a person."""
        said = []
        if self.heir:
            said.append(f"{counted(self.handed_over, 'microbatch')} of the step went to {short(self.heir)}")
        if self.given_up:
            said.append(f"{counted(self.given_up, 'microbatch')} under way must go elsewhere")
        if self.lost:
            said.append(f"{self.lost} must be done again")
        if self.stage_left_empty:
            said.append("its stage is left empty, and the swarm waits for another peer there")
        return ", ".join(said) or "nothing of the step was left here"


class Drain:
    """One drain of this peer."""

    def __init__(
        self,
        context: PeerContext,
        conductor: Conductor,
        served: ServedStage,
        saving: Saving,
        bound_s: float,
    ) -> None:
        self._membership, self._history, self._conductor = context.membership, context.history, conductor
        self._served, self._journeys, self._sums = served, served.journeys, served.sums
        self._stages, self._saving = context.run.model.stages, saving
        self._deadline = asyncio.get_running_loop().time() + bound_s
        self._bound_s = bound_s
        step, heir = served.early_exit.heir  # it was about to leave its stage
        self._heir: tuple[int, PeerId, int] = (step, heir, 0)  # of which step, who, and how much
        self.doing = ""  # one sentence, to be shown

    async def run(self) -> Drained:
        """Returns when this peer may leave, or must."""
        given_up = await self._finish()
        await self._settle()
        lost, alone = len(self._sums.of(self._step).accumulated), not self._siblings() and not self._history.finished
        if alone:
            await self._keep_state()
        if lost and not alone:
            log.warning("nobody took this peer's sum: %d microbatches must be done again", lost)
        step, heir, count = self._heir
        if step != self._step:
            heir, count = "", 0
        return Drained(heir, count, given_up, lost, alone)

    @property
    def _step(self) -> int:
        return self._history.version + 1

    @property
    def _stage(self) -> int:
        return self._membership.own.stage

    def _left(self) -> float:
        """Seconds until the bound."""
        return self._deadline - asyncio.get_running_loop().time()

    def _siblings(self) -> list[PeerId]:
        own = self._membership.own
        others = [card for card in self._membership.stage(own.stage) if card.peer != own.peer and card.state in STAYING]
        order = rendezvous(f"heir/{self._step}/{own.stage}", [card.peer for card in others])
        ending = {card.peer for card in others if card.ending}  # better than nobody
        return sorted(order, key=lambda peer: peer in ending)

    # ---------------------------------------------------------------------------------------------- under way

    async def _finish(self) -> int:
        """Waits for what is under way, as long as it can come to its end. Returns how much was given up."""
        head = self._served.head
        until = self._left() - self._bound_s * (1.0 - FINISH_SHARE)
        end = asyncio.get_running_loop().time() + until
        while self._journeys.hops.busy or (head is not None and head.busy):
            self.doing = f"finishing {counted(len(self._journeys.hops), 'microbatch')}"
            if asyncio.get_running_loop().time() >= end or self._is_stuck() or self._history.finished:
                break
            await self._sums.changed.wait(LOOK_SECONDS)
        if head is not None:
            head.retire()
        given_up = self._journeys.give_up_all()
        while self._journeys.hops.busy and self._left() > 0 and given_up:  # what is on the device ends by itself
            await self._sums.changed.wait(LOOK_SECONDS)
            given_up += self._journeys.give_up_all()
        return given_up

    def _is_stuck(self) -> bool:
        """True if a stage is empty: nothing comes back from there."""
        return bool(self._membership.missing_stages(self._stages))

    # ---------------------------------------------------------------------------------------------- the sum

    async def _settle(self) -> None:
        """Returns when this peer's sum is with another, in a record, or can't be kept."""
        while (siblings := self._siblings()) and not self._history.finished and self._left() > 0:
            step_sum = self._sums.of(self._step)
            if step_sum.empty:
                if not self._is_needed():
                    return
                self.doing = f"waiting for step {self._step}, which can't be decided without this peer"
            elif step_sum.frozen or self._journeys.hops.busy:
                self.doing = f"waiting for step {self._step}, whose gradients are being averaged"
            else:
                self.doing = f"handing {counted(len(step_sum.accumulated), 'microbatch')} over"
                if await self._give(siblings):
                    continue
            await self._sums.changed.wait(min(LOOK_SECONDS, max(0.0, self._left())))

    async def _give(self, siblings: list[PeerId]) -> bool:
        step = self._step
        count = len(self._sums.of(step).accumulated)
        try:
            async with asyncio.timeout(max(0.0, self._left())):
                heir = await self._served.handovers.give(siblings)
        except TimeoutError:
            return False
        if heir:
            self._heir = step, heir, count
        return bool(heir)

    def _is_needed(self) -> bool:
        """True if the present step would wait for this peer, as an acceptor or because it leads the step's end."""
        if self._is_stuck():
            return False
        if self._served.rounds.leads(self._step) or self._conductor.desk.all_done:
            return True
        own, history = self._membership.own.peer, self._history
        acceptors = plan_acceptors(self._step, history.record, history.origin.founder)
        staying = [peer for peer in acceptors if self._stays(peer) or peer == own]
        others = [peer for peer in staying if peer != own]
        return is_majority(len(staying), len(acceptors)) and not is_majority(len(others), len(acceptors))

    def _stays(self, peer: PeerId) -> bool:
        card = self._membership.get(peer)
        return card is not None and card.state in STAYING and self._membership.is_live(peer)

    async def _keep_state(self) -> None:
        """Nobody else has this stage's state: it is written down."""
        self.doing = "writing a checkpoint"
        log.warning("stage %d is left empty: the swarm waits for another peer there", self._stage)
        try:
            async with asyncio.timeout(min(SAVE_SECONDS, max(0.0, self._left()))):
                if not await self._saving.save():
                    log.warning("the state of stage %d goes with this peer: it could not be written", self._stage)
        except TimeoutError:
            log.warning("there was no time for a checkpoint of the stage's state")
