"""Forwards in segments: the gradients of one graph over all of them, bit for bit, whatever was kept."""

import pytest
import torch
from torch import Tensor, nn

from swarmd.config import ModelConfig
from swarmd.stage.model import StageModule, build_stage
from swarmd.stage.numerics import FP16, FP32, LADDER, Numerics
from swarmd.stage.passage import pass_through

(BF16,) = LADDER[torch.bfloat16]
APPLICATIONS = 16  # of one shared block, as in 13b-shared


def stage(*, first: bool = False, last: bool = False, shared: bool = True) -> StageModule:
    """A stage of 16 block applications."""
    stages = 1 + (not first) + (not last)
    model = ModelConfig(50, 16, 40, 2, APPLICATIONS * stages, stages, 12, shared=shared)
    return build_stage(model, 0 if first else 1, seed=7)


def drawn(module: StageModule) -> tuple[Tensor, Tensor]:
    """An input, and a gradient of the output."""
    draw = torch.Generator().manual_seed(2)
    gradient = torch.randn(2, 12, 16, generator=draw)
    if module.is_head:
        return torch.randint(50, (2, 12), generator=draw), gradient
    return torch.randn(2, 12, 16, generator=draw), gradient


def one_graph(module: StageModule, inputs: Tensor, gradient: Tensor, numerics: Numerics = FP32) -> list[Tensor]:
    """The gradients by plain autograd over the whole stage."""
    parameters = [it for it in module.parameters() if it is not (module.is_tail and module.unembedding())]
    leaf = inputs.clone()
    if not module.is_head:
        parameters.append(nn.Parameter(leaf))
        leaf = parameters[-1]
    with numerics.autocast(inputs.device):
        output = module.hidden(leaf)
    return list(torch.autograd.grad(output, parameters, gradient))


def by_segments(
    module: StageModule, inputs: Tensor, gradient: Tensor, numerics: Numerics = FP32, *, graphs: bool
) -> list[Tensor]:
    passage, output = pass_through(module, inputs, numerics, graphs=graphs)
    with numerics.autocast(inputs.device):
        assert torch.equal(output, module.hidden(inputs))
    assert passage.has_graphs == graphs
    totals, back = passage.backward(gradient)
    assert (back is None) == module.is_head
    return [*(totals[it] for it in module.parameters() if it in totals), *([] if back is None else [back])]


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("first", "last"), [(True, False), (False, False), (False, True), (True, True)])
def test_gradients_have_the_bits_of_one_graph(graphs: bool, shared: bool, first: bool, last: bool) -> None:
    module = stage(first=first, last=last, shared=shared)
    inputs, gradient = drawn(module)
    expected = one_graph(module, inputs, gradient)
    actual = by_segments(module, inputs, gradient, graphs=graphs)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("numerics", [BF16, FP16])
def test_in_halves_gradients_have_the_same_bits_whatever_was_kept(shared: bool, numerics: Numerics) -> None:
    module = stage(shared=shared)
    inputs, gradient = drawn(module)
    kept, again = (by_segments(module, inputs, gradient, numerics, graphs=graphs) for graphs in (True, False))
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert all(it.dtype is torch.float32 for it in kept)


def test_gradients_of_a_shared_block_are_summed_in_fp32() -> None:
    """One graph over 16 applications sums them in bf16, which is farther from the truth."""
    module = stage()
    inputs, gradient = drawn(module)
    truth, one = one_graph(module, inputs, gradient), one_graph(module, inputs, gradient, BF16)
    ours = by_segments(module, inputs, gradient, BF16, graphs=False)
    for name, *them in zip(module.named(), ours, one, truth, strict=False):
        if them[0].ndim > 1:
            assert (them[0] - them[2]).norm() < 0.8 * (them[1] - them[2]).norm(), name


def test_a_passage_holds_no_more_than_the_inputs_of_its_segments() -> None:
    module = stage(last=True)
    inputs, _ = drawn(module)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda it: sizes.append(it.numel()) or it, lambda it: it):  # type: ignore[func-returns-value]
        pass_through(module, inputs, FP32, graphs=False)
    assert not sizes, "no graph was made"
