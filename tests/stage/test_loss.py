"""The loss in chunks: plain cross-entropy's numbers, each product once, and never all logits."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from swarmd.stage.loss import CHUNK, Loss, chunked_loss
from swarmd.stage.model import loss_sum

TOKENS, WIDTH, WORDS = 50, 24, 301


def drawn(tokens: int = TOKENS, width: int = WIDTH, words: int = WORDS, size: float = 1.0) -> tuple[Tensor, ...]:
    """Hidden states [N, D], the unembedding's weight [V, D], targets [N]."""
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, width, generator=draw) * size
    weight = torch.randn(words, width, generator=draw) * 0.3
    return hidden, weight, torch.randint(words, (tokens,), generator=draw)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[float, Tensor, Tensor]:
    """Loss and gradients by autograd, from all logits at once."""
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = loss_sum((leaves[0] @ leaves[1].T)[None], targets[None])
    d_hidden, d_weight = torch.autograd.grad(loss, leaves)
    return loss.item(), d_hidden, d_weight


def error(actual: Tensor | None, expected: Tensor) -> float:
    """The norm of the difference over the norm."""
    assert actual is not None
    assert actual.dtype is torch.float32
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("chunk", [1, 16, 25, 50, CHUNK])
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_it_is_the_loss_of_plain_cross_entropy(chunk: int, size: float) -> None:
    hidden, weight, targets = drawn(size=size)
    before = hidden.clone(), weight.clone()
    nats, d_hidden, d_weight = plain(hidden, weight, targets)
    loss = chunked_loss(hidden, weight, targets, chunk=chunk)
    assert loss.nats.item() == pytest.approx(nats, rel=1e-6)
    assert error(loss.hidden, d_hidden) <= 1e-6
    assert error(loss.weight, d_weight) <= 1e-6
    assert torch.equal(hidden, before[0])
    assert torch.equal(weight, before[1])


def test_the_same_again_has_the_same_bits() -> None:
    first, second = (chunked_loss(*drawn(), chunk=16) for _ in range(2))
    assert first.nats == second.nats
    for one, other in ((first.hidden, second.hidden), (first.weight, second.weight)):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_an_evaluation_has_the_same_loss_and_forms_no_gradient() -> None:
    loss = chunked_loss(*drawn(), chunk=16, gradients=False)
    assert loss == Loss(chunked_loss(*drawn(), chunk=16).nats, None, None)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiplications of matrix products, and notes the elements of the largest tensor that is made."""

    multiplications, elements = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.elements = max(self.elements, made.numel())
        if "mm" in func.name():
            left, right = args[-2:]
            self.multiplications += left.shape[0] * left.shape[1] * right.shape[1]
        return made


@pytest.mark.parametrize(("gradients", "products"), [(False, 1), (True, 3)])
def test_no_product_is_computed_twice(gradients: bool, products: int) -> None:
    with Watch() as watch:  # type: ignore[no-untyped-call]
        chunked_loss(*drawn(), chunk=16, gradients=gradients)
    assert watch.multiplications == products * TOKENS * WIDTH * WORDS


def test_it_never_holds_more_logits_than_a_chunk_s() -> None:
    with Watch() as watch:  # type: ignore[no-untyped-call]
        chunked_loss(*drawn(tokens=400), chunk=32)
    assert watch.elements == 32 * WORDS, "more than the weight's gradient"


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_products_in_half_precision_are_summed_in_full(dtype: torch.dtype, bound: float) -> None:
    hidden, weight, targets = drawn(tokens=512)
    nats, d_hidden, d_weight = plain(hidden, weight, targets)
    for chunk in (2, 512):  # 256 chunks, or one: a sum in half precision would lose what is added last
        loss = chunked_loss(hidden, weight.to(dtype), targets, chunk=chunk)
        assert loss.nats.item() == pytest.approx(nats, rel=bound)
        assert error(loss.hidden, d_hidden) <= bound
        assert error(loss.weight, d_weight) <= bound


def test_a_scale_keeps_small_gradients_that_half_precision_would_lose() -> None:
    hidden, weight, targets = drawn(tokens=4, words=50_000, size=0.01)
    half = weight.half()
    _, _, expected = plain(hidden.half().float(), half.float(), targets)
    others = torch.ones(len(weight), dtype=torch.bool)
    others[targets] = False  # words that aren't targets: 2e-5 each, below fp16's normal range
    lost, kept = (chunked_loss(hidden, half, targets, scale=scale).weight for scale in (1.0, 2.0**10))
    assert lost is not None
    assert kept is not None
    assert error(kept[others], expected[others]) < 1e-3
    assert error(lost[others], expected[others]) > 1e-2


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_bad_number_shows_in_the_loss(bad: float) -> None:
    hidden, weight, targets = drawn()
    hidden[TOKENS // 2, 3] = bad
    assert not math.isfinite(chunked_loss(hidden, weight, targets, chunk=16).nats.item())
