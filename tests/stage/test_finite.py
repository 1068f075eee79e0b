"""Checks of numbers: many at one reading, and the first trouble is the one that is told."""

import math
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from swarmd.errors import NonFinite
from swarmd.stage import transfer
from swarmd.stage.finite import Checks

FIRST, SECOND, THIRD = (NonFinite(word) for word in ("first", "second", "third"))


def all_three(one: float, number: float, other: float) -> Checks:
    """Two tensors and a number, of which these are elements."""
    checks = Checks()
    checks.finite([torch.ones(3), torch.tensor([1.0, one])], FIRST)
    checks.at_most(torch.tensor(number), SECOND, 10.0)
    changing = torch.tensor([2.0, other])
    checks.extremes(changing, THIRD)
    changing.zero_()
    return checks


def test_numbers_are_read_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    read, times = transfer.read, []

    def counted(tensor: Tensor) -> Any:
        times.append(tensor)
        return read(tensor)

    monkeypatch.setattr(transfer, "read", counted)
    checks = all_three(2.0, 7.5, -3.0)
    checks.settle()
    assert len(times) == 1
    assert checks.values[2] == 7.5
    Checks().settle()
    assert len(times) == 1, "there is nothing to read"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_trouble_is_told(bad: float) -> None:
    cases = ((bad, bad, bad, FIRST), (1.0, bad, bad, SECOND), (1.0, 10.5, bad, SECOND), (1.0, 10.0, bad, THIRD))
    for one, number, other, trouble in cases:
        with pytest.raises(NonFinite) as found:
            all_three(one, number, other).settle()
        assert found.value is trouble


def test_a_norm_that_overflows_is_no_trouble() -> None:
    checks = Checks()
    checks.finite([torch.full((100,), 1e30)], FIRST)
    checks.settle()
    assert math.isinf(checks.values[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.uint8])
def test_what_is_read_is_what_is_there(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).to(dtype).view(3, 4)
    for it in (tensor, tensor.T, tensor[1, 2]):
        found = transfer.read(it)
        assert found.shape == it.shape
        assert numpy.array_equal(found, it.numpy())
