"""Bringing indices that no sum has to the members whose sums count, as a round's leader asks.

A message is sent again from what was retained, else from what is computed once more (`hops/rework.py`); a head trains
what no head has.
"""

import asyncio
import logging

from swarmd.errors import Refused, SwarmError
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.rework import Rework
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.wire.messages.common import from_ranges, to_ranges
from swarmd.swarm.wire.messages.round import Resend, Resent
from swarmd.values import HopId, PeerId

log = logging.getLogger(__name__)


class Repairs:
    """This peer's part in making the sums of its own stage and the next one whole."""

    def __init__(self, context: StageContext, journeys: Journeys, rework: Rework) -> None:
        self._run, self._history, self._sums = context.peer.run, context.peer.history, context.sums
        self._handouts = context.peer.handouts
        self._journeys, self._rework, self._stage, self._tasks = journeys, rework, context.stage, context.tasks
        self._bringing: set[HopId] = set()
        self._pace = asyncio.Semaphore(context.peer.limits.in_flight_hops)  # nothing of these can be evicted

    async def bring(self, leader: PeerId, resend: Resend) -> Resent:
        """Sets out to bring the indices to the members, as a leader asks. Raises PeerFault, Refused."""
        if resend.stage != self._stage + 1 and (resend.stage, self._stage) != (0, 0):
            raise Refused(f"this peer is of stage {self._stage}")
        indices = from_ranges(resend.indices, self._run.microbatches)
        # A step that will be skipped: the stage that asks may never get what it lacks, and needn't.
        if blame := self._sums.of(resend.step).blame:
            return Resent((), blame)
        self._handouts.take(resend.step, self._stage, indices, leader)
        taken = [index for index in indices if self._bring(HopId(resend.step, index), resend)]
        return Resent(to_ranges(taken))

    def _bring(self, key: HopId, resend: Resend) -> bool:
        """True if an index is on its way already, or is now."""
        if resend.stage == 0 and self._journeys.admission.retiring:  # what is begun here now would be lost
            return False
        if resend.stage == 0:
            if key in self._bringing:
                return True
            if self._journeys.hops.is_under_way(key) or self._sums.of(key.step).has(key.index):
                return True
            self._start(key, resend)
            return True
        if self._journeys.custodian.bring_to(key, resend.members) or self._journeys.hops.is_under_way(key):
            return True
        if key in self._bringing:
            return True
        if resend.anew or self._sums.of(key.step).has(key.index):
            self._start(key, resend)
            return True
        return False

    def _start(self, key: HopId, resend: Resend) -> None:
        self._bringing.add(key)
        self._tasks.start(self._renew(key, resend))

    async def _renew(self, key: HopId, resend: Resend) -> None:
        try:
            async with self._pace:
                if resend.stage == 0:
                    await self._train(key, resend.members)
                else:
                    await self._journeys.custodian.bring_anew(key, await self._rework.message(key), resend.members)
        except (SwarmError, TimeoutError, MemoryError) as trouble:
            log.info("microbatch %s can't be had again here: %s", tuple(key), trouble)
        finally:
            self._bringing.discard(key)

    async def _train(self, key: HopId, members: tuple[PeerId, ...]) -> None:
        """A head trains a microbatch that is in no head's sum."""
        if await self._journeys.custodian.locate(key, 0, members):
            return
        tokens, _ = await self._rework.input(key)
        await self._journeys.hops.undisturbed(key)
        if key.step == self._history.version + 1:
            await asyncio.shield(self._journeys.train(key, tokens, again=True))

    def spare(self, step: int, indices: list[int]) -> None:
        """Others have these in their sums after all. At a head that is the conductor's business, but for what is begun
        here for a round.
        """
        for key in (HopId(step, index) for index in indices):
            if self._stage > 0 or key in self._bringing:
                self._journeys.spare(key)
