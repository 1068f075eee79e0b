"""The optimizers that make the next version of a stage's parameters: AdamW and LAMB, with fp32 or 8-bit moments.

Parameters are updated out of place: `step` returns new tensors, so graphs that were built on the old ones stay valid.
Moments change in place. Every operation is elementwise, or a sum on one thread, so that replicas on the same kind of
device, whatever their number of threads, end with the same bits. Doesn't know the schedule, clipping norms or other
stages.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from swarmd.config import OptimizerConfig
from swarmd.stage import bnb

MOMENT_BLOCK = 256  # elements per scale of an 8-bit moment, as in bitsandbytes' own optimizers
SMALLEST_8BIT = 4096  # elements; smaller tensors keep fp32 moments, as in bitsandbytes: they are few, and sensitive


class Moment(Protocol):
    """A running average of one parameter's gradients or of their squares."""

    def read(self) -> Tensor:
        """The values, fp32, for changing in place."""

    def write(self, values: Tensor) -> None:
        """Keeps the changed values."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a snapshot, by suffix of the name."""


class PlainMoment:
    """A moment in fp32."""

    def __init__(self, like: Tensor) -> None:
        self.values = torch.zeros_like(like, requires_grad=False)

    def read(self) -> Tensor:
        return self.values

    def write(self, values: Tensor) -> None:
        assert values is self.values, "an fp32 moment changes in place"

    def tensors(self) -> dict[str, Tensor]:
        return {"": self.values}


class EightBitMoment:
    """A moment in bitsandbytes' blockwise dynamic code: a byte per element and a scale per block (Dettmers et al.
    2022).
    """

    def __init__(self, like: Tensor, *, signed: bool) -> None:
        self.shape, self.signed = like.shape, signed
        flat = torch.zeros(like.numel(), device=like.device)
        self.codes, self.scales = bnb.quantise(flat, MOMENT_BLOCK, signed=signed)

    def read(self) -> Tensor:
        return bnb.dequantise(self.codes, self.scales, MOMENT_BLOCK, signed=self.signed).view(self.shape)

    def write(self, values: Tensor) -> None:
        self.codes, self.scales = bnb.quantise(values.view(-1), MOMENT_BLOCK, signed=self.signed)

    def tensors(self) -> dict[str, Tensor]:
        return {".codes": self.codes, ".scales": self.scales}


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) or LAMB (You et al. 2020) over one stage's named parameters."""

    def __init__(self, config: OptimizerConfig, parameters: dict[str, Tensor]) -> None:
        self.config = config
        self.updates = 0  # steps that changed parameters; skipped ones don't count in the bias correction
        self.names = tuple(parameters)
        eight_bit = config.name.endswith("8bit")
        self.moments = {name: _moments(value, eight_bit) for name, value in parameters.items()}

    @torch.no_grad()
    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], *, learning_rate: float, scale: float
    ) -> list[Tensor]:
        """The next version's tensors, in the order of the names. Gradients are multiplied by `scale` and left
        unchanged.
        """
        self.updates += 1
        update = _lamb if self.config.name.startswith("lamb") else _adamw
        return [
            update(self.config, parameter, self._direction(name, gradient * scale), learning_rate)
            for name, parameter, gradient in zip(self.names, parameters, gradients, strict=True)
        ]

    def _direction(self, name: str, gradient: Tensor) -> Tensor:
        """Adam's update m / (sqrt(v) + eps), both corrected for their start at zero; moves the moments on."""
        beta1, beta2 = self.config.betas
        first, second = self.moments[name]
        mean = first.read().mul_(beta1).add_(gradient, alpha=1 - beta1)
        square = second.read().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt().mul_((1 - beta2**self.updates) ** -0.5).add_(self.config.eps)
        direction = (mean / root).mul_(1 / (1 - beta1**self.updates))
        first.write(mean)
        second.write(square)
        return direction

    def tensors(self) -> dict[str, Tensor]:
        """The state for a snapshot: `updates` and each parameter's moments."""
        state = {"updates": torch.tensor(self.updates, dtype=torch.int64)}
        for name, (first, second) in self.moments.items():
            for kind, moment in (("first", first), ("second", second)):
                state.update({f"{kind}.{name}{suffix}": value for suffix, value in moment.tensors().items()})
        return state

    def numbers(self) -> list[Tensor]:
        """The numbers that must be finite for the next steps to be: moments, or the scales of those in 8 bits."""
        return [value for name, value in self.tensors().items() if name != "updates" and value.is_floating_point()]


def _moments(parameter: Tensor, eight_bit: bool) -> tuple[Moment, Moment]:
    if eight_bit and parameter.numel() >= SMALLEST_8BIT:
        return EightBitMoment(parameter, signed=True), EightBitMoment(parameter, signed=False)
    return PlainMoment(parameter), PlainMoment(parameter)


def _decay(config: OptimizerConfig, parameter: Tensor) -> float:
    """Gains of norms are not decayed towards zero."""
    return config.weight_decay if parameter.ndim > 1 else 0.0


def _adamw(config: OptimizerConfig, parameter: Tensor, direction: Tensor, learning_rate: float) -> Tensor:
    """w (1 - rate * decay) - rate * direction."""
    return (parameter * (1 - learning_rate * _decay(config, parameter))).sub_(direction, alpha=learning_rate)


def _lamb(config: OptimizerConfig, parameter: Tensor, direction: Tensor, learning_rate: float) -> Tensor:
    """w - rate * |w| / |u| * u with u = direction + decay * w: each tensor moves in proportion to its own norm
    (algorithm 2).

    The ratio is 1 where either norm is zero, so that a tensor of zeros can leave zero.
    """
    update = direction.add_(parameter, alpha=_decay(config, parameter))
    with one_thread():
        weight_norm, update_norm = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(update)
    usable = (weight_norm > 0) & (update_norm > 0)
    ratio = torch.where(usable, weight_norm / update_norm, torch.ones_like(weight_norm))
    return parameter - update.mul_(ratio).mul_(learning_rate)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Runs the block on one thread: on the CPU a sum's order, and so its last bits, depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
