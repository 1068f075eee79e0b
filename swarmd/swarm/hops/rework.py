"""Computing a hop of this peer once more: for its message to the next stage, or to take it out of the sum.

Everything can be had again as long as every stage has a peer: from what was retained, else by computing it once more
from what the stage before has, and at a head from the data.
"""

import asyncio
import logging

from swarmd.errors import NO_ANSWER, HopForgotten, NonFinite, OutOfRange, PeerUnreachable, Refused
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.hops.under_way import HopUnderWay
from swarmd.swarm.ports import Data
from swarmd.swarm.tasks import joined, start_shared
from swarmd.swarm.wire.messages.hop import AskHop, Hop, hop_id
from swarmd.values import Buffer, Encoded, HopId, PeerId, short

log = logging.getLogger(__name__)

INPUT_SECONDS = 300.0  # to have a message again: the stages before may have to compute it, one after another
SUBTRACTED_AT_ONCE = 4


class Rework:
    """The side tasks with hops at this peer: nobody waits for their answers, and hops that come meanwhile wait."""

    def __init__(self, context: StageContext, journeys: Journeys, data: Data | None) -> None:
        peer = context.peer
        self._run, self._links, self._membership, self._history = peer.run, peer.links, peer.membership, peer.history
        self._sums, self._compute, self._stage = context.sums, context.compute, context.stage
        self._journeys, self._data = journeys, data
        self._messages: dict[HopId, asyncio.Task[Hop]] = {}  # that are being computed again
        self._subtracting: dict[HopId, asyncio.Task[None]] = {}
        context.scope.handle(AskHop, self._answer_hop_question)

    async def input(self, key: HopId) -> tuple[Buffer, Encoded | None]:
        """A microbatch's tokens, and the activation that the stage before computed. Raises Refused if nobody has it."""
        if self._stage == 0:
            assert self._data is not None, "a first stage is opened with its data"
            return await self._data.microbatch(*key), None
        live = [card.peer for card in self._membership.stage(self._stage - 1)]
        source = self._sums.of(key.step).sources.get(key.index, "")
        for peer in sorted(live, key=lambda peer: (peer != source, peer)):
            try:
                hop = await self._links.ask(peer, AskHop(*key), deadline_s=INPUT_SECONDS, urgency="hop")
            except NO_ANSWER as trouble:
                log.info("hop %s is not to be had from %s: %s", tuple(key), short(peer), trouble)
                continue
            if hop_id(hop) == key and hop.stage == self._stage:
                return hop.tokens, hop.activation
        raise Refused(f"nobody has the input of hop {tuple(key)}")

    # ---------------------------------------------------------------------------------------------- messages again

    async def _answer_hop_question(self, peer: PeerId, ask: AskHop) -> Hop:
        key = HopId(ask.step, ask.index)
        if not 0 <= key.index < self._run.microbatches:
            raise OutOfRange(f"hop {tuple(key)} is none of this run")
        is_tail = self._stage == self._run.model.stages - 1
        if key.step != self._history.version + 1 or is_tail or not self._history.ready:
            raise Refused(f"hop {tuple(key)} isn't passed on here now")
        try:
            return await self.message(key)
        except (HopForgotten, NonFinite, PeerUnreachable, TimeoutError, MemoryError) as trouble:
            raise Refused(f"hop {tuple(key)} can't be had again here: {trouble}") from None

    async def message(self, key: HopId) -> Hop:
        """The message to the next stage: the retained one, else computed once more, once for all who ask."""
        if (retained := self._journeys.custodian.retention.retained(key)) is not None:
            return retained.hop
        if (task := self._messages.get(key)) is None:
            task = self._messages[key] = start_shared(self._compute_message(key), f"message {key}")
            task.add_done_callback(lambda _: self._messages.pop(key))
        return await joined(task, Refused(f"step {key.step} is over"))

    async def _compute_message(self, key: HopId) -> Hop:
        tokens, activation = await self.input(key)
        await self._journeys.hops.absent(key)
        now = asyncio.get_running_loop().time()
        it = HopUnderWay(key, "", 0, admitted=now, since=now, side_task=True)
        hop: Hop = await asyncio.shield(self._journeys.start(it, self._forward(key, tokens, activation)))
        return hop

    async def _forward(self, key: HopId, tokens: Buffer, activation: Encoded | None) -> Hop:
        custodian = self._journeys.custodian
        try:
            codec = custodian.codec(self._compute.codecs)
            out = await self._compute.forward(key, tokens, activation, codec=codec)
        finally:
            self._compute.forget(key)  # no backward follows
        return custodian.message(key, tokens, out, again=True)

    # ---------------------------------------------------------------------------------------------- subtracting

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
        """An index goes out of the sum by the way it came in."""
        if key.index not in self._sums.of(key.step).accumulated:
            return
        tokens, activation = await self.input(key)
        await self._journeys.hops.absent(key)
        if key.index not in self._sums.of(key.step).accumulated:
            return
        now = asyncio.get_running_loop().time()
        it = HopUnderWay(key, "", 0, admitted=now, since=now, subtract=True, side_task=True)
        journey = self._journeys.travel(it, tokens, activation, again=True, codec="fp32")
        await asyncio.shield(self._journeys.start(it, journey))

    # ---------------------------------------------------------------------------------------------- the end

    def end_step(self, step: int) -> None:
        """The step has committed: nothing of it is needed again."""
        for tasks in (self._messages, self._subtracting):
            for key, task in list(tasks.items()):
                if key.step <= step:
                    task.cancel()

    def close(self) -> None:
        """Ends what is under way."""
        for task in (*self._messages.values(), *self._subtracting.values()):
            task.cancel()
