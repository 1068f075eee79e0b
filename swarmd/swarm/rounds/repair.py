"""What a round's leader asks for: indices that no sum has are brought, those that two sums have are taken out of one.

Everything can be had again as long as every stage has a peer: from what was retained, else by computing it once more
from what the stage before has, and at a head from the data.
"""

import asyncio
import logging

from swarmd.config import LimitsConfig, RunConfig
from swarmd.errors import NO_ANSWER, HopForgotten, NonFinite, PeerFault, PeerUnreachable, Refused, SwarmError
from swarmd.swarm.history.history import History
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.tasks import joined, start_shared
from swarmd.swarm.wire.links import Scope
from swarmd.swarm.wire.messages.common import from_ranges, to_ranges
from swarmd.swarm.wire.messages.hop import AskHop, Hop, hop_id
from swarmd.swarm.wire.messages.round import Resend, Resent
from swarmd.values import Buffer, Encoded, HopId, PeerId

log = logging.getLogger(__name__)

INPUT_SECONDS = 300.0  # to have a message again: the stages before may have to compute it, one after another
SUBTRACTED_AT_ONCE = 4


class Repairs:
    """This peer's part in making the sums of its own stage and the next one whole."""

    def __init__(
        self,
        run: RunConfig,
        limits: LimitsConfig,
        scope: Scope,
        membership: Membership,
        history: History,
        sums: StepSums,
        journeys: Journeys,
        stage: int,
    ) -> None:
        self._run, self._links, self._membership, self._history = run, scope.links, membership, history
        self._sums, self._journeys, self._stage = sums, journeys, stage
        self._messages: dict[HopId, asyncio.Task[Hop]] = {}  # that are being computed again
        self._subtracting: dict[HopId, asyncio.Task[None]] = {}
        self._bringing: set[HopId] = set()
        self._pace = asyncio.Semaphore(limits.in_flight_hops)  # nothing of these can be evicted
        scope.handle(AskHop, self._answer_hop_question)

    # ---------------------------------------------------------------------------------------------- missing indices

    async def bring(self, resend: Resend) -> Resent:
        """Sets out to bring the indices to the members. Raises PeerFault, Refused."""
        if resend.stage != self._stage + 1 and (resend.stage, self._stage) != (0, 0):
            raise Refused(f"this peer is of stage {self._stage}")
        indices = from_ranges(resend.indices, self._run.microbatches)
        if blame := self._sums.of(resend.step).blame:  # skipped: the stage that asks may never get, and needs, no more
            return Resent((), blame)
        taken = [index for index in indices if self._bring(HopId(resend.step, index), resend)]
        return Resent(to_ranges(taken))

    def _bring(self, key: HopId, resend: Resend) -> bool:
        """Whether an index is on its way, or is now."""
        if resend.stage == 0 and self._journeys.retiring:  # what is begun here now would be lost
            return False
        if resend.stage == 0:
            if key in self._bringing:
                return True
            if self._journeys.hops.is_under_way(key) or self._sums.of(key.step).has(key.index):
                return True
            if self._journeys.tokens is None:
                return False
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
        self._journeys.tasks.start(self._renew(key, resend))

    async def _renew(self, key: HopId, resend: Resend) -> None:
        try:
            async with self._pace:
                if resend.stage == 0:
                    await self._train(key, resend.members)
                else:
                    await self._journeys.custodian.bring_anew(key, await self._message(key), resend.members)
        except (SwarmError, TimeoutError, MemoryError) as trouble:
            log.info("microbatch %s can't be had again here: %s", tuple(key), trouble)
        finally:
            self._bringing.discard(key)

    async def _train(self, key: HopId, members: tuple[PeerId, ...]) -> None:
        """A head trains a microbatch that is in no head's sum."""
        if await self._journeys.custodian.locate(key, 0, members):
            return
        assert self._journeys.tokens is not None
        tokens = await self._journeys.tokens(key)
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

    # ---------------------------------------------------------------------------------------------- messages again

    async def _answer_hop_question(self, peer: PeerId, ask: AskHop) -> Hop:
        key = HopId(ask.step, ask.index)
        if not 0 <= key.index < self._run.microbatches:
            raise PeerFault(f"hop {tuple(key)} is none of this run")
        if key.step != self._history.version + 1 or self._journeys.is_tail or not self._history.ready:
            raise Refused(f"hop {tuple(key)} isn't passed on here now")
        try:
            return await self._message(key)
        except (HopForgotten, NonFinite, PeerUnreachable, TimeoutError, MemoryError) as trouble:
            raise Refused(f"hop {tuple(key)} can't be had again here: {trouble}") from None

    async def _message(self, key: HopId) -> Hop:
        """What this peer passed on, or would: the retained message, else computed once more, once for all who ask."""
        if (kept := self._journeys.retention.retained(key)) is not None:
            return kept.hop
        if (task := self._messages.get(key)) is None:
            task = self._messages[key] = start_shared(self._compute_message(key), f"message {key}")
            task.add_done_callback(lambda _: self._messages.pop(key))
        return await joined(task, Refused(f"step {key.step} is over"))

    async def _compute_message(self, key: HopId) -> Hop:
        tokens, activation = await self._input(key)
        return await self._journeys.recompute(key, tokens, activation)

    async def _input(self, key: HopId) -> tuple[Buffer, Encoded | None]:
        """What this stage computes a microbatch from. Raises Refused when nobody gives it."""
        if self._stage == 0:
            if self._journeys.tokens is None:
                raise Refused("this head has no data")
            return await self._journeys.tokens(key), None
        live = [card.peer for card in self._membership.stage(self._stage - 1)]
        source = self._sums.of(key.step).sources.get(key.index, "")
        for peer in sorted(live, key=lambda peer: (peer != source, peer)):
            try:
                hop = await self._links.ask(peer, AskHop(*key), deadline_s=INPUT_SECONDS, urgency="hop")
            except NO_ANSWER as trouble:
                log.info("hop %s is not to be had from %s: %s", tuple(key), peer[-8:], trouble)
                continue
            if hop_id(hop) == key and hop.stage == self._stage:
                return hop.tokens, hop.activation
        raise Refused(f"nobody has the input of hop {tuple(key)}")

    # ---------------------------------------------------------------------------------------------- surplus indices

    async def subtract(self, step: int, indices: list[int]) -> None:
        """Takes indices out of this peer's sum. Raises Refused when that can't be done for all of them."""
        pace = asyncio.Semaphore(SUBTRACTED_AT_ONCE)

        async def one(key: HopId) -> None:
            async with pace:
                await asyncio.shield(self._subtraction(key))

        results = await asyncio.gather(*(one(HopId(step, index)) for index in indices), return_exceptions=True)
        left = [index for index in indices if index in self._sums.of(step).accumulated]
        if left:
            troubles = [str(it) for it in results if isinstance(it, BaseException)]
            raise Refused(f"{len(left)} indices stay in the sum: {'; '.join(troubles[:1])}")

    def _subtraction(self, key: HopId) -> "asyncio.Task[None]":
        """A task of its own: once the device has begun, the sum must hear of its end."""
        if (task := self._subtracting.get(key)) is None:
            task = self._subtracting[key] = start_shared(self._take_out(key), f"subtract {key}")
            task.add_done_callback(lambda _: self._subtracting.pop(key))
        return task

    async def _take_out(self, key: HopId) -> None:
        if key.index in self._sums.of(key.step).accumulated:
            tokens, activation = await self._input(key)
            await self._journeys.subtract(key, tokens, activation)

    # ---------------------------------------------------------------------------------------------- the end

    def end_step(self, step: int) -> None:
        """The step has committed: nothing of it is needed again."""
        for tasks in (self._messages, self._subtracting):
            for key, task in list(tasks.items()):
                if key.step <= step:
                    task.cancel()

    def close(self) -> None:
        for task in (*self._messages.values(), *self._subtracting.values()):
            task.cancel()
