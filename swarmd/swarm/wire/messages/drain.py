"""A peer that leaves hands its sum over."""

from dataclasses import dataclass

from swarmd.swarm.wire.messages.common import Ranges, Request
from swarmd.values import Encoded


@dataclass(frozen=True)
class SumTaken:
    """`whole`: the sum that was handed over is part of this peer's now; else more slices are awaited."""

    whole: bool


@dataclass(frozen=True)
class HandOver(Request[SumTaken]):
    """A peer that leaves to a replica of its stage: a slice [start, stop) of its sum, which is to become part of yours.
    Slices come in order; the last one has the whole added, or nothing.
    """

    step: int
    record_hash: str
    stage: int
    start: int
    stop: int
    data: Encoded
    indices: Ranges  # in the whole sum; the same in all slices, like everything below
    spoiled: Ranges  # whose numbers were not finite
    loss_sum: float  # tail only, else 0
    resent: int
    subtracted: int
