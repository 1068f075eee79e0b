"""The loss of held-out microbatches: forward only, from a head to the tail, and nothing of it is kept."""

import logging
import math

from swarmd.errors import HopForgotten, NonFinite, PeerUnreachable, Refused, SwarmError
from swarmd.swarm.hops.custodian import Custodian
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.ports import Data
from swarmd.swarm.wire.messages.hop import Hop, Loss, hop_id
from swarmd.values import Buffer, Encoded, HopId

log = logging.getLogger(__name__)

EVALUATE_SECONDS = 900.0  # nobody asks for a validation loss any more by then: a holder that keeps one answers no more


class Validation:
    """This peer's part in validation losses."""

    def __init__(self, context: StageContext, custodian: Custodian) -> None:
        self._run, self._links, self._custodian = context.peer.run, context.peer.links, custodian
        self._compute, self._is_tail = context.compute, context.is_tail

    async def mean_loss(self, data: Data, version: int) -> float | None:
        """Mean loss of a version, over the run's held-out microbatches; None if it can't be had."""
        total, tokens = 0.0, 0
        try:
            for index in range(self._run.validation_microbatches):
                key = HopId(version + 1, self._run.microbatches + index)
                loss = await self.evaluate(key, await data.held_out(index))
                total, tokens = total + loss.loss_sum, tokens + loss.tokens
        except (SwarmError, TimeoutError, MemoryError) as trouble:
            log.warning("no validation loss of version %d: %s", version, trouble)
            return None
        return total / tokens if tokens > 0 and 0 <= total < math.inf else None  # they are a peer's word

    async def answer(self, hop: Hop) -> Loss:
        """The loss of a held-out microbatch that comes from the stage before. Raises Refused."""
        try:
            return await self.evaluate(hop_id(hop), hop.tokens, hop.activation)
        except (PeerUnreachable, TimeoutError, HopForgotten, NonFinite) as trouble:
            raise Refused(f"no validation loss from the next stage: {trouble}") from None

    async def evaluate(self, key: HopId, tokens: Buffer, activation: Encoded | None = None) -> Loss:
        """Loss of held-out tokens, from this stage on. Raises like `Links.ask`."""
        if self._is_tail:
            tail = await self._compute.tail(key, tokens, activation, codec="fp32", evaluate=True)
            return Loss(tail.loss_sum, tail.tokens)
        codec = self._custodian.codec(self._compute.codecs)
        out = await self._compute.forward(key, tokens, activation, codec=codec, evaluate=True)
        hop = self._custodian.message(key, tokens, out, again=False, evaluate=True)
        holder = await self._custodian.choose(hop)
        addressed = self._custodian.address(hop, holder)
        loss = await self._links.ask(holder, addressed, deadline_s=EVALUATE_SECONDS, urgency="hop")
        assert isinstance(loss, Loss)
        return loss
