"""A mover's way out of its stage in the middle of a step, so that it needn't wait for the step's record.

It leaves like one that drains: admits nothing new, ends what is under way, and hands its sum on. But the machine stays,
so nothing is urgent, and nothing may be lost: whoever can't leave so goes on where it is. The heir is a replica of the
same stage that has promised, before anything else happens, not to leave by its own choice before the step's record is
applied; so two replicas never leave the stage to each other.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from swarmd.config import RunConfig
from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.swarm.history.history import History
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.states import STAYING
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.ports import Compute
from swarmd.swarm.rounds.handover import HandOvers
from swarmd.swarm.rounds.member import Rounds
from swarmd.swarm.steps.conductor import Conductor
from swarmd.swarm.steps.head import Head
from swarmd.swarm.tasks import start_shared
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Ack, check_stage
from swarmd.swarm.wire.messages.move import AskStay
from swarmd.values import PeerId

log = logging.getLogger(__name__)

STAY_SECONDS = 5.0  # for a replica to promise that it stays
VERSION_WAIT_SECONDS = 3.0  # ... for which it must be at the step
FINISH_SECONDS = 5.0  # without work for the device: what is still under way is given up then, and others finish it ...
FINISH_LIMIT_SECONDS = 60.0  # ... or after this at the latest
LOOK_SECONDS = 0.25  # between two looks at whether something holds that nobody tells of

Depart = Callable[[PeerId], None]
"""Ends everything at the stage in this turn of the event loop, and names the heir to the others."""


class Departures:
    """This peer's own, and those for which it stays."""

    def __init__(
        self,
        run: RunConfig,
        links: Links,
        membership: Membership,
        history: History,
        conductor: Conductor,
        sums: StepSums,
        journeys: Journeys,
        rounds: Rounds,
        compute: Compute,
        handovers: HandOvers,
        head: Head | None,
        stage: int,
    ) -> None:
        self._run, self._links, self._membership, self._history = run, links, membership, history
        self._conductor, self._sums, self._journeys, self._rounds = conductor, sums, journeys, rounds
        self._compute, self._handovers, self._head, self._stage = compute, handovers, head, stage
        self.stays = 0  # until the record of this step is applied: so it has promised
        self.heir: tuple[int, PeerId] = (0, "")  # of which step, and who: has this peer's sum
        self.doing = ""  # one sentence, to be shown
        self._task: asyncio.Task[bool] | None = None
        self._wanted = self._ceased = False
        links.handle(AskStay, self._answer)

    # ---------------------------------------------------------------------------------------------- staying

    async def _answer(self, mover: PeerId, ask: AskStay) -> Ack:
        check_stage(ask.stage, self._stage)
        await self._history.await_version(ask.step - 1, ask.record, mover, VERSION_WAIT_SECONDS)
        state, history = self._membership.own.state, self._history
        own = self._membership.own.peer
        asks = self._task is not None and self._in_order(ask.step, [mover, own])[0] == mover
        if self._journeys.closed or state not in STAYING or self._membership.own.ending or asks:
            raise Refused(f"this peer is {state}, and may leave stage {self._stage} itself")
        if history.behind or not history.ready or history.crosses_at is not None:
            raise Refused("this peer may have to fetch the stage's state itself")
        self.stays = ask.step
        return Ack()

    # ---------------------------------------------------------------------------------------------- leaving

    def may(self) -> bool:
        """Whether this peer can be spared before the present step has committed: it has nothing to do with its end."""
        step = self._history.version + 1
        if self._ceased or self.stays >= step or self._history.crosses_at is not None or self._history.finished:
            return False
        if self._conductor.leader(step) == self._membership.own.peer or self._rounds.averaged(step):
            return False
        return not self._sums.is_frozen(step) and not self._membership.missing_stages(self._run.model.stages)

    async def leave(self, depart: Depart, set_state: Callable[[str], None]) -> bool:
        """Leaves if that is possible now. False if this peer stays, and goes on as before. Cancelling it gives the
        departure up, as far as that can be.
        """
        if self._task is not None or self._membership.own.state not in STAYING or not self.may():
            return False
        self._wanted = True
        task = self._task = start_shared(self._leave(depart, set_state), f"leave stage {self._stage}")
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and not (caller is not None and caller.cancelling()):  # a record was faster
                return False
            self._wanted = False  # a sum that was handed over isn't here any more: it ends by itself, with the step
            raise

    def _ended(self, task: "asyncio.Task[bool]") -> None:
        self._task, self.doing = None, ""

    async def cease(self) -> None:
        """This peer leaves the swarm: what was begun is left as it is."""
        self.close()
        if self._task is not None:
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Ends what is under way."""
        self._ceased = True
        if self._task is not None and self._task is not asyncio.current_task():  # it closes the assembly itself
            self._task.cancel()

    async def _leave(self, depart: Depart, set_state: Callable[[str], None]) -> bool:
        step, state, departures = self._history.version + 1, self._membership.own.state, self._history.departures
        heir = await self._find_heir(step)
        if not heir or not self._wanted or not self.may() or self._history.version + 1 != step:
            return False
        log.info("step %d: leaves stage %d to %s", step, self._stage, heir[-8:])
        self._journeys.hold_back(retiring=True)
        set_state("draining")
        try:
            await self._finish(step)
            while self._history.version + 1 == step and await self._try(step, heir, depart):
                if self._history.departures != departures:
                    return True
                await self._sums.changed.wait(LOOK_SECONDS)
            return False
        finally:
            if not self._ceased:
                self._go_on(state, set_state)

    def _go_on(self, state: str, set_state: Callable[[str], None]) -> None:
        self._journeys.go_on()
        if self._head is not None:
            self._head.go_on()
        if self._membership.own.state == "draining":
            set_state(state)

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
            self.doing = f"finishing {len(journeys.hops)} microbatches"
            await self._sums.changed.wait(LOOK_SECONDS)
            now = loop.time()
        if head is not None and self._goes_on(step):
            head.retire()
        while journeys.hops.busy and self._goes_on(step):  # what is on the device ends by itself
            journeys.give_up_all()
            await self._sums.changed.wait(LOOK_SECONDS)

    def _goes_on(self, step: int) -> bool:
        return self._wanted and self.may() and self._history.version + 1 == step

    async def _try(self, step: int, heir: PeerId, depart: Depart) -> bool:
        """One try to go. False if it stays, and may go on: once its sum is with another, or may be, it may not before
        the step is over, as the device still has that sum, and would add to it.
        """
        step_sum, given = self._sums.of(step), self.heir[0] == step
        if not self._goes_on(step) or self._journeys.hops.busy or not self._membership.is_live(heir):
            return given
        if not step_sum.empty:
            self.doing = f"handing {len(step_sum.accumulated)} microbatches over"
            if given or not await self._handovers.give([heir]):
                return self._handovers.unsure == heir  # its device takes its time; whoever went on would change the sum
            self.heir, given = (step, heir), True
        if await self._promise(heir, step):  # again: it may be gone by now
            async with self._history.lock:
                empty = self._sums.of(step).empty and not self._journeys.hops.busy
                if empty and self._goes_on(step) and self._membership.is_live(heir):
                    depart(heir)
                    return True
        return given

    # ---------------------------------------------------------------------------------------------- the heir

    async def _find_heir(self, step: int) -> PeerId:
        """Who stays, by its own word; "" if nobody gives it."""
        own, now = self._membership.own.peer, asyncio.get_running_loop().time()
        staying = [card.peer for card in self._membership.staying(self._stage) if card.peer != own]
        staying = [peer for peer in staying if not self._membership.is_silent(peer, now)]
        for sibling in self._in_order(step, staying):
            if await self._promise(sibling, step):
                return sibling
        return ""

    def _in_order(self, step: int, peers: Iterable[PeerId]) -> list[PeerId]:
        """Who stays rather than the next: of two that ask each other at the same time, one does."""
        return rendezvous(f"heir/{step}/{self._stage}", peers)

    async def _promise(self, sibling: PeerId, step: int) -> bool:
        question = AskStay(step, self._history.record_hash, self._stage)
        try:
            await self._links.ask(sibling, question, deadline_s=STAY_SECONDS)
        except (PeerUnreachable, TimeoutError, Refused, PeerFault) as trouble:
            log.info("%s doesn't promise to stay: %s", sibling[-8:], trouble)
            return False
        return True
