"""An early exit: a peer that moves leaves its stage in the middle of a step, and needn't wait for the step's record.

It leaves like one that drains: admits nothing new, ends what is under way, and hands its sum on. But the machine stays,
so nothing is urgent, and nothing may be lost: a peer that can't leave so goes on where it is. The heir is a replica of
the same stage that has promised, before anything else happens, not to leave by its own choice before the step's record
is applied; so two replicas never leave the stage to each other.
"""

import asyncio
import logging
from collections.abc import Iterable

from swarmd.errors import NO_ANSWER, Refused
from swarmd.printable import counted
from swarmd.status import PeerState
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.states import STAYING
from swarmd.swarm.rounds.handover import HandOvers
from swarmd.swarm.rounds.member import Rounds
from swarmd.swarm.steps.conductor import Conductor
from swarmd.swarm.steps.head import Head
from swarmd.swarm.wire.messages.common import Ack, check_stage
from swarmd.swarm.wire.messages.move import AskStay
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

STAY_SECONDS = 5.0  # for a replica to promise that it stays
VERSION_WAIT_SECONDS = 3.0  # ... for which it must be at the step
FINISH_SECONDS = 5.0  # without work for the device: what is still under way is given up then, and others finish it ...
FINISH_LIMIT_SECONDS = 60.0  # ... or after this at the latest
LOOK_SECONDS = 0.25  # between two looks at whether something holds that nobody tells of


class EarlyExit:
    """This peer's early exit from a stage, and its promises to stay for another's."""

    def __init__(
        self,
        context: StageContext,
        conductor: Conductor,
        journeys: Journeys,
        rounds: Rounds,
        handovers: HandOvers,
        head: Head | None,
    ) -> None:
        peer = context.peer
        self._run, self._links, self._membership, self._history = peer.run, peer.links, peer.membership, peer.history
        self._sums, self._compute, self._stage = context.sums, context.compute, context.stage
        self._tasks, self._own = context.tasks, peer.own
        self._conductor, self._journeys, self._rounds = conductor, journeys, rounds
        self._handovers, self._head = handovers, head
        self.stays = 0  # until the record of this step is applied: so it has promised
        self.heir: tuple[int, PeerId] = (0, "")  # of which step, and who: has this peer's sum
        self.doing = ""  # one sentence, to be shown
        self._leaving = self._closed = False
        context.scope.handle(AskStay, self._answer)

    # ---------------------------------------------------------------------------------------------- staying

    async def _answer(self, mover: PeerId, ask: AskStay) -> Ack:
        check_stage(ask.stage, self._stage)
        await self._history.await_version(ask.step - 1, ask.record_hash, mover, VERSION_WAIT_SECONDS)
        state, history = self._membership.own.state, self._history
        own = self._membership.own.peer
        asks = self._leaving and self._in_order(ask.step, [mover, own])[0] == mover
        if self._journeys.admission.closed or state not in STAYING or self._membership.own.ending or asks:
            raise Refused(f"this peer is {state}, and may leave stage {self._stage} itself")
        if history.behind or not history.ready or history.crosses_at is not None:
            raise Refused("this peer may have to fetch the stage's state itself")
        self.stays = ask.step
        return Ack()

    # ---------------------------------------------------------------------------------------------- leaving

    def _can_be_spared(self) -> bool:
        """True if this peer can be spared before the present step has committed: it has nothing to do with its end."""
        step = self._history.version + 1
        if self._closed or self.stays >= step or self._history.crosses_at is not None or self._history.finished:
            return False
        if self._conductor.conductor_of(step) == self._membership.own.peer or self._rounds.averaged(step):
            return False
        return not self._sums.is_frozen(step) and not self._membership.missing_stages(self._run.model.stages)

    async def leave(self) -> PeerId:
        """Hands what this peer has of the present step to a replica that stays. Returns that one as soon as nothing of
        the step is here: the caller closes the stage in the same turn of the event loop, before anything can come.
        Returns "" if this peer stays, and goes on as before.
        """
        step = self._history.version + 1
        if self._membership.own.state not in STAYING or not self._can_be_spared():
            return ""
        self._leaving = True
        try:
            heir = await self._find_heir(step)
            return heir if heir and self._goes_on(step) and await self._leave_to(heir, step) else ""
        finally:
            self._leaving, self.doing = False, ""

    def close(self) -> None:
        """The stage is left, or this peer drains: it goes on no more."""
        self._closed = True

    async def _leave_to(self, heir: PeerId, step: int) -> bool:
        state, left = self._own.state, False
        log.info("step %d: leaves stage %d to %s", step, self._stage, short(heir))
        self._journeys.admission.pause(retiring=True)
        self._become("draining")
        try:
            await self._finish(step)
            left = await self._hand_over(step, heir)
        finally:
            if not left and self._history.version + 1 == step == self.heir[0]:
                self._tasks.start(self._go_on_after(step, state))
            elif not left:
                self._go_on(state)
        return left

    async def _go_on_after(self, step: int, state: PeerState) -> None:
        """Goes on when a step is over: the device still has the sum that was handed over, and would add to it."""
        await self._history.left(step)
        self._go_on(state)

    def _go_on(self, state: PeerState) -> None:
        if self._closed:
            return
        self._journeys.admission.resume()
        if self._head is not None:
            self._head.go_on()
        if self._membership.own.state == "draining":
            self._become(state)

    def _become(self, state: PeerState) -> None:
        self._own.become(state)
        self._tasks.start(self._own.announce())

    async def _finish(self, step: int) -> None:
        """Waits for what is under way while the device works at it, and gives up what doesn't come to its end so."""
        loop, head, journeys = asyncio.get_running_loop(), self._head, self._journeys
        worked = now = loop.time()
        limit = now + FINISH_LIMIT_SECONDS
        while (journeys.hops.busy or (head is not None and head.busy)) and now < limit and self._goes_on(step):
            if self._compute.progress().running is not None:
                worked = now
            elif now - worked >= FINISH_SECONDS:
                break
            self.doing = f"finishing {counted(len(journeys.hops), 'microbatch')}"
            await self._sums.changed.wait(LOOK_SECONDS)
            now = loop.time()
        if head is not None and self._goes_on(step):
            head.retire()
        while journeys.hops.busy and self._goes_on(step):  # what is on the device ends by itself
            journeys.give_up_all()
            await self._sums.changed.wait(LOOK_SECONDS)

    def _goes_on(self, step: int) -> bool:
        return self._can_be_spared() and self._history.version + 1 == step

    async def _hand_over(self, step: int, heir: PeerId) -> bool:
        """Hands the sum to the heir. True once nothing of the step is here any more, and the heir stays; False if this
        peer stays. As long as the heir has the sum, or may have it, it is asked again.
        """
        while self._history.version + 1 == step:
            able = self._goes_on(step) and not self._journeys.hops.busy and self._membership.is_live(heir)
            # The promise is asked for again: the heir may be gone by now.
            if able and await self._give(step, heir) and await self._promise(heir, step):
                async with self._history.lock:
                    empty = self._sums.of(step).empty and not self._journeys.hops.busy
                    if empty and self._goes_on(step) and self._membership.is_live(heir):
                        return True
            unsure = able and self._handovers.unsure == heir  # its device takes its time: this sum stays the one it has
            if not unsure and self.heir[0] != step:
                return False
            await self._sums.changed.wait(LOOK_SECONDS)
        return False

    async def _give(self, step: int, heir: PeerId) -> bool:
        """Hands the sum over unless it is empty or the heir has it. True if nothing is left here."""
        step_sum = self._sums.of(step)
        if step_sum.empty:
            return True
        self.doing = f"handing {counted(len(step_sum.accumulated), 'microbatch')} over"
        if self.heir[0] == step or not await self._handovers.give([heir]):
            return False
        self.heir = (step, heir)
        return True

    # ---------------------------------------------------------------------------------------------- the heir

    async def _find_heir(self, step: int) -> PeerId:
        """A replica that has promised to stay; "" if none does."""
        own, now = self._membership.own.peer, asyncio.get_running_loop().time()
        staying = [card.peer for card in self._membership.staying(self._stage) if card.peer != own]
        staying = [peer for peer in staying if not self._membership.is_silent(peer, now)]
        for sibling in self._in_order(step, staying):
            if await self._promise(sibling, step):
                return sibling
        return ""

    def _in_order(self, step: int, peers: Iterable[PeerId]) -> list[PeerId]:
        """Replicas in the order in which they rather stay: of two that ask each other at the same time, one does."""
        return rendezvous(f"heir/{step}/{self._stage}", peers)

    async def _promise(self, sibling: PeerId, step: int) -> bool:
        question = AskStay(step, self._history.record_hash, self._stage)
        try:
            await self._links.ask(sibling, question, deadline_s=STAY_SECONDS)
        except NO_ANSWER as trouble:
            log.info("%s doesn't promise to stay: %s", short(sibling), trouble)
            return False
        return True
