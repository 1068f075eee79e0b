"""The numerics in which a hop's products are computed: their dtype, and how far gradients are scaled to fit it.

Peers of a stage need not agree on them: what replicas share are averaged gradients, and those are in fp32. Products in
fp16 have a narrow range, 6e-8 to 65504. So gradients are multiplied by a power of two before they enter, and what comes
of them is divided by it in fp32: no bit changes but those that would be lost. The factor follows from the hop alone, so
that a hop computed twice has the same bits, and no state has to be agreed on. What leaves fp16 all the same is computed
again, from its input: with a smaller factor, and then in fp32. Where bf16 has units it is used instead, since it needs
none of this. Shapes: N tokens of a microbatch.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from swarmd.config import ComputeDtype, RunConfig
from swarmd.stage import device as cards
from swarmd.stage.loss import CHUNK

BF16_SINCE = (8, 0)  # compute capability of Ampere
FP16_SINCE = (7, 0)  # of Volta; older cards have fp16 units for storage only, or slow ones
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOP_BITS = 11  # a sum stays below 2 ** 16 though activations it is multiplied with are up to 2 ** 5
LESS_BITS = 8  # by which a hop is scaled less that has left fp16's range
EXPONENT_BITS, EXPONENT_BIAS = 23, 127  # of fp32: where its exponent begins, and what it is counted from
LARGEST_EXPONENT = 126  # of a factor whose inverse is no subnormal number either


class Numerics(NamedTuple):
    """One way to compute a hop."""

    dtype: torch.dtype
    less_bits: int = 0  # a gradient is scaled by so many powers of two less than it could be

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which products are in this dtype."""
        return torch.autocast(device.type, dtype=self._half, enabled=self.dtype is not torch.float32)

    @property
    def _half(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype is torch.float32 else self.dtype

    def scale(self, gradient: Tensor, tokens: int) -> Tensor | None:
        """The power of two [] by which a gradient is multiplied before it goes through a stage; None: by none.

        Its largest element becomes as large as it may be for a sum over all tokens to stay in range. Doesn't wait for
        the device.
        """
        if self.dtype is not torch.float16:
            return None
        _, exponent = torch.frexp(gradient.abs().amax())
        wanted = TOP_BITS - math.ceil(math.log2(tokens)) - self.less_bits
        return power_of_two(wanted - exponent)

    @property
    def loss_scale(self) -> float:
        """The same for the gradients of logits, which are 1 at most and summed over a chunk of tokens."""
        if self.dtype is not torch.float16:
            return 1.0
        return 2.0 ** (TOP_BITS - math.ceil(math.log2(CHUNK)) - self.less_bits)


FP32 = Numerics(torch.float32)
FP16 = Numerics(torch.float16)
LADDER = {
    torch.float32: (FP32,),
    torch.bfloat16: (Numerics(torch.bfloat16),),
    torch.float16: (FP16, Numerics(torch.float16, LESS_BITS), FP32),
}
"""The numerics that are tried for a hop one after another, as long as its numbers aren't finite in the one before."""


def power_of_two(exponent: Tensor) -> Tensor:
    """2 to the power of an integer [], exactly, for whatever device rounds powers; at most 2 ** 126, at least its
    inverse.
    """
    bits = exponent.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).to(torch.int32) + EXPONENT_BIAS
    return (bits << EXPONENT_BITS).view(torch.float32)


def choose_dtype(run: RunConfig, device: torch.device, wanted: ComputeDtype) -> torch.dtype:
    """The dtype of a node's products: what the run demands, or else what the node's user wants, or else what is fast on
    the device and exact enough.
    """
    if run.precision == "fp32":
        return torch.float32
    return DTYPES[wanted if wanted != "auto" else fast_dtype(device)]


def fast_dtype(device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """bf16 where a GPU has units for it, else fp16; fp32 on CPUs, where most have units for nothing else."""
    if device.type != "cuda":
        return "fp32"
    capability = cards.look_at_card(device.index or 0).capability
    if capability >= BF16_SINCE:
        return "bf16"
    return "fp16" if capability >= FP16_SINCE else "fp32"
