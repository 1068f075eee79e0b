"""AdamW against torch's own, LAMB against the paper written out, 8-bit ones against bitsandbytes' own."""

import copy
import importlib

import pytest
import torch
from torch import Tensor

from swarmd.config import OptimizerConfig
from swarmd.schedule import learning_rate_at
from swarmd.stage.optimizer import EightBitMoment, Optimizer

STEPS = 12


def parameters() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {"matrix": torch.randn(96, 64, generator=draw), "gain": torch.ones(64), "zero": torch.zeros(4, 4)}


def gradients(step: int, decades: float = 6.0) -> dict[str, Tensor]:
    """Columns of the matrix differ in size by so many powers of ten."""
    draw = torch.Generator().manual_seed(100 + step)
    return {
        "matrix": torch.randn(96, 64, generator=draw) * torch.logspace(-decades, 0, 64),
        "gain": torch.randn(64, generator=draw),
        "zero": torch.randn(4, 4, generator=draw),
    }


def train(config: OptimizerConfig, *, scale: float = 1.0, decades: float = 6.0) -> tuple[dict[str, Tensor], Optimizer]:
    values = parameters()
    optimizer = Optimizer(config, values)
    for step in range(1, STEPS + 1):
        rate = learning_rate_at(config, step, STEPS)
        grads = [gradients(step, decades)[name] for name in values]
        updated = optimizer.step(list(values.values()), grads, learning_rate=rate, scale=scale)
        values = dict(zip(values, updated, strict=True))
    return values, optimizer


def test_adamw_is_torchs_adamw() -> None:
    config = OptimizerConfig(learning_rate=0.01, betas=(0.9, 0.95), weight_decay=0.1, warmup_steps=3)
    values, _ = train(config, scale=0.5)
    expected = {name: torch.nn.Parameter(value) for name, value in parameters().items()}
    reference = torch.optim.AdamW(
        [
            {"params": [expected["matrix"], expected["zero"]], "weight_decay": 0.1},
            {"params": [expected["gain"]], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    for step in range(1, STEPS + 1):
        for group in reference.param_groups:
            group["lr"] = learning_rate_at(config, step, STEPS)
        for name, gradient in gradients(step).items():
            expected[name].grad = 0.5 * gradient
        reference.step()
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name].detach(), rtol=2e-6, atol=2e-7)


def test_lamb_is_the_papers_algorithm() -> None:
    """Algorithm 2 of You et al. 2020 in fp64, one element of it after the other."""
    config = OptimizerConfig(name="lamb", learning_rate=0.05, eps=1e-6, weight_decay=0.01, decay="constant")
    values, _ = train(config)
    for name, start in parameters().items():
        weight, mean, square = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
        decay = 0.01 if weight.ndim > 1 else 0.0
        for step in range(1, STEPS + 1):
            gradient = gradients(step)[name].double()
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            corrected = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-6)
            update = corrected + decay * weight
            ratio = (weight.norm() / update.norm()).item() if weight.norm() > 0 and update.norm() > 0 else 1.0
            weight = weight - 0.05 * ratio * update
        torch.testing.assert_close(values[name].double(), weight, rtol=1e-5, atol=1e-6)
    assert bool((values["zero"] != 0).any()), "a tensor of zeros can leave zero"


@pytest.mark.parametrize(("name", "plain"), [("adamw8bit", "adamw"), ("lamb8bit", "lamb")])
def test_eight_bit_moments_change_little_and_take_a_quarter(name: str, plain: str) -> None:
    eight, optimizer = train(OptimizerConfig(name=name, learning_rate=0.01), decades=1.0)  # type: ignore[arg-type]
    full, _ = train(OptimizerConfig(name=plain, learning_rate=0.01), decades=1.0)  # type: ignore[arg-type]
    moved = (full["matrix"] - parameters()["matrix"]).norm()
    assert 0 < (eight["matrix"] - full["matrix"]).norm() <= 0.1 * moved
    assert torch.equal(eight["gain"], full["gain"]), "small tensors keep fp32 moments"
    first, second = optimizer.moments["matrix"]
    assert isinstance(first, EightBitMoment)
    assert isinstance(second, EightBitMoment)
    size = sum(tensor.nbytes for moment in (first, second) for tensor in moment.tensors().values())
    assert size <= 2.04 * 96 * 64


def test_adamw8bit_is_about_bitsandbytes_own() -> None:
    optim = importlib.import_module("bitsandbytes.optim")
    config = OptimizerConfig(name="adamw8bit", learning_rate=0.01, weight_decay=0.1, decay="constant")
    values, _ = train(config)
    expected = torch.nn.Parameter(parameters()["matrix"])
    reference = optim.AdamW8bit([expected], lr=0.01, weight_decay=0.1)
    for step in range(1, STEPS + 1):
        expected.grad = gradients(step)["matrix"]
        reference.step()
    moved = (expected.detach() - parameters()["matrix"]).norm()
    assert (values["matrix"] - expected.detach()).norm() <= 0.05 * moved


@pytest.mark.parametrize("name", ["adamw", "lamb", "adamw8bit", "lamb8bit"])
def test_the_same_bits_whatever_the_number_of_threads(name: str) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.01)  # type: ignore[arg-type]
    one, _ = train(config)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two, _ = train(config)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", ["adamw", "lamb8bit"])
def test_old_parameters_stay_and_a_loaded_state_goes_on_with_the_same_bits(name: str) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.01)  # type: ignore[arg-type]
    values, optimizer = train(config)
    before = copy.deepcopy(values)
    state = {key: tensor.clone() for key, tensor in optimizer.tensors().items()}
    loaded = Optimizer(config, values)
    for key, tensor in loaded.tensors().items():
        tensor.copy_(state[key])
    loaded.updates = int(state["updates"])
    grads = [gradients(99)[key] for key in values]
    ours = optimizer.step(list(values.values()), grads, learning_rate=0.01, scale=1.0)
    theirs = loaded.step(list(values.values()), grads, learning_rate=0.01, scale=1.0)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert all(torch.equal(values[key], before[key]) for key in values), "graphs in flight use the old ones"
    assert all(torch.equal(grad, gradients(99)[key]) for grad, key in zip(grads, values, strict=True))
