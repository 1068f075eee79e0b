"""A peer that leaves hands its sum over."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from swarmd.swarm.wire.bounds import AtMost
from swarmd.swarm.wire.messages.common import Request
from swarmd.swarm.wire.messages.fields import (
    PEERS_LIMIT,
    SETS_BYTES,
    WORDS_BYTES,
    Count,
    Hash,
    LossSum,
    Peer,
    Ranges,
    Stage,
    Step,
    Tally,
    Tensor,
)


@dataclass(frozen=True)
class SumTaken:
    """`whole`: the sum that was handed over is part of this peer's now; else more slices are awaited."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    whole: bool


@dataclass(frozen=True)
class HandOver(Request[SumTaken]):
    """A peer that leaves to a replica of its stage: a slice [start, stop) of its sum, which is to become part of yours.
    Slices come in order; the last one has the whole added, or nothing.
    """

    header_bytes: ClassVar[int] = SETS_BYTES
    step: Step
    record_hash: Hash
    stage: Stage
    start: Count
    stop: Count
    data: Tensor
    indices: Ranges  # in the whole sum; the same in all slices, like everything below
    spoiled: Ranges  # whose numbers were not finite
    loss_sum: LossSum  # tail only, else 0
    resent: Tally
    subtracted: Tally
    sources: Annotated[tuple[Peer, ...], AtMost(PEERS_LIMIT)] = ()  # who gave it the indices: custodians, a conductor
