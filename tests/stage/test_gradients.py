"""Digests and norms: the same whatever the cut and the threads, another for every change."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmd.stage import gradients
from swarmd.stage.codec import encode
from swarmd.stage.finite import all_finite
from swarmd.stage.gradients import GradientSum, bytes_digest, parameter_digest, squared_norm

CHANGES: tuple[Callable[[list[torch.Tensor]], object], ...] = (
    lambda tensors: tensors[0].mul_(-1),
    lambda tensors: tensors[0].view(-1)[3].add_(1e-6),
    lambda tensors: tensors[1][4].neg_(),
)


def test_a_digest_tells_values_places_and_signs_apart() -> None:
    base = [torch.arange(12.0).view(3, 4), torch.ones(5)]
    digests = {parameter_digest(base)}
    for change in CHANGES:
        tensors = [tensor.clone() for tensor in base]
        change(tensors)
        digests.add(parameter_digest(tensors))
    swapped = [tensor.clone() for tensor in base]
    swapped[0][0, 1], swapped[0][2, 2] = base[0][2, 2], base[0][0, 1]
    digests.add(parameter_digest(swapped))
    assert len(digests) == 5
    assert parameter_digest([tensor.clone() for tensor in base]) in digests


def test_a_digest_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "PIECE", 7)
    tensors = [torch.randn(3, 5), torch.randn(9)]
    bits = torch.cat([tensor.view(-1) for tensor in tensors]).view(torch.int32).tolist()
    total = sum(value * (2 * place + 1) for place, value in enumerate(bits))
    assert parameter_digest(tensors) == f"{total * gradients.MIXER % (1 << 64):016x}"


@given(st.lists(st.floats(-(2.0**50), 2.0**50, width=32), max_size=50))
def test_squared_norm_is_the_sum_of_squares_in_fp64(values: list[float]) -> None:
    expected = math.fsum(value * value for value in values)
    assert squared_norm(torch.tensor(values)) == pytest.approx(expected, rel=1e-12)


def test_norms_do_not_depend_on_threads() -> None:
    flat = torch.randn(300_001, generator=torch.Generator().manual_seed(4))
    once = squared_norm(flat)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert squared_norm(flat) == once
    finally:
        torch.set_num_threads(threads)
    assert math.isnan(squared_norm(torch.tensor([1.0, float("nan")])))


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_one_bad_number_among_many_is_found(bad: float) -> None:
    tensors = [torch.ones(100), torch.ones(3, 7)]
    assert all_finite(tensors)
    tensors[1][2, 6] = bad
    assert not all_finite(tensors)


def test_parts_are_put_together_in_order_and_named_by_their_bytes() -> None:
    total = GradientSum([torch.zeros(3, 4), torch.zeros(5)])
    flat = torch.arange(17.0)
    parts = [encode(flat[:6], "fp32"), encode(flat[6:6], "fp32"), encode(flat[6:], "fp32")]
    summary = total.assemble(parts)
    assert total.averaged is not None
    assert torch.equal(total.averaged, flat)
    assert summary.squared_norm == float((flat.double() ** 2).sum())
    assert summary.digest == bytes_digest(parts)
    assert bytes_digest(parts) != bytes_digest(parts[::-1])
    matrix, vector = total.cut(total.averaged)
    assert torch.equal(matrix, torch.arange(12.0).view(3, 4))
    assert torch.equal(vector, torch.arange(12.0, 17.0))
