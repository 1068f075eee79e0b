"""Checks that numbers are finite, or not too large: exact whatever their size, and one wait for the device for many."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from swarmd.errors import NonFinite
from swarmd.stage import transfer

LARGEST = float(numpy.finfo(numpy.float32).max)


@dataclass(frozen=True)
class _Check:
    """A number on the device that must be finite and not above a limit; a norm that is too large may be one of finite
    numbers, so the tensor is looked at then.
    """

    number: Tensor  # [], fp32
    limit: float
    of: Tensor | None  # of which it is the norm
    trouble: NonFinite


class Checks:
    """Numbers that are looked at together, once something has to be read from the device anyway."""

    def __init__(self) -> None:
        self._checks: list[_Check] = []
        self.values: Sequence[float] = ()  # of the numbers, once they were read

    def finite(self, tensors: Sequence[Tensor], trouble: NonFinite) -> None:
        """The tensors must be finite. They are kept until that is known, and mustn't change."""
        norms = torch._foreach_norm(list(tensors))  # noqa: SLF001 - documented
        self._checks += [
            _Check(norm.float(), LARGEST, tensor, trouble) for tensor, norm in zip(tensors, norms, strict=True)
        ]

    def at_most(self, number: Tensor, trouble: NonFinite, limit: float = LARGEST) -> int:
        """A number [] of fp32 must be finite and at most `limit`; its place among the numbers."""
        self._checks.append(_Check(number, limit, None, trouble))
        return len(self._checks) - 1

    def extremes(self, tensor: Tensor, trouble: NonFinite) -> None:
        """A tensor must be finite, of which nothing is kept: it may change, or go."""
        self.at_most(torch.stack(torch.aminmax(tensor)).abs().amax(), trouble)

    def numbers(self) -> Tensor:
        """The numbers on the device, [n]. There must be some."""
        return torch.stack([check.number for check in self._checks])

    def judge(self, numbers: Sequence[float]) -> None:
        """Keeps the numbers that were read. Raises the first trouble that there is."""
        self.values = numbers
        for check, number in zip(self._checks, numbers, strict=True):
            good = math.isfinite(number) and number <= check.limit
            if not good and not (check.of is not None and _extremes_finite(check.of)):
                raise check.trouble

    def settle(self) -> None:
        """Waits for the numbers, if there are any. Raises the first trouble that there is."""
        if self._checks:
            self.judge(transfer.read(self.numbers()).tolist())


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """True if no element is infinite or NaN. Mostly one pass and one wait for the device."""
    checks = Checks()
    checks.finite(tensors, NonFinite("a number is infinite or NaN"))
    try:
        checks.settle()
    except NonFinite:
        return False
    return True


def _extremes_finite(tensor: Tensor) -> bool:
    """The same from the extremes, which are NaN if anything is."""
    return bool(numpy.isfinite(transfer.read(torch.stack(torch.aminmax(tensor)).float())).all())
