"""Numerics of a hop: scaled gradients keep their digits in fp16, and what leaves its range is computed again."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from swarmd.config import ComputeConfig, ComputeDtype, RunConfig
from swarmd.errors import NonFinite
from swarmd.sim.engines.training import toy_tokens
from swarmd.stage import device, numerics
from swarmd.stage.codec import decode, encode
from swarmd.stage.engine import StageEngine
from swarmd.stage.model import UNEMBEDDING
from swarmd.stage.numerics import FP16, FP32, LADDER, choose_dtype, fast_dtype, power_of_two
from swarmd.values import Encoded, HopId
from tests.stage.toy import toy_run

HOP, RUN = HopId(1, 0), toy_run(stages=3, shared=True)
WIDE = dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, layers=6))
"""Three stages of a shared block that is applied twice."""


def engine(stage: int, dtype: ComputeDtype, recompute: bool = False) -> StageEngine:
    return StageEngine(WIDE, stage, compute=ComputeConfig(dtype, "block" if recompute else "never"))


def activation(stage: int) -> Encoded | None:
    """A stage's input."""
    shape = (2, WIDE.model.sequence_length, WIDE.model.hidden)
    return encode(torch.randn(shape, generator=torch.Generator().manual_seed(4)), "fp32") if stage else None


def gradient(size: float = 1.0) -> Encoded:
    """A gradient of a stage's output."""
    shape = (2, WIDE.model.sequence_length, WIDE.model.hidden)
    return encode(size * torch.randn(shape, generator=torch.Generator().manual_seed(3)), "fp32")


def run_hop(it: StageEngine, incoming: Encoded, hop: HopId = HOP, *, subtract: bool = False) -> list[Tensor]:
    """One hop there and back; the gradients of the parameters in the sum, and that of the input."""
    tokens = toy_tokens(WIDE, 1, 0)
    if it.module.is_tail:
        back = it.tail(hop, tokens, activation(it.stage), codec="fp32", subtract=subtract).gradient
    else:
        it.forward(hop, tokens, activation(it.stage), codec="fp32")
        back = it.backward(hop, incoming, codec="fp32", subtract=subtract).gradient
    return [*(view.clone() for view in it.sum.views), *([] if back is None else [decode(back, it.device)])]


def errors(ours: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Relative errors, the smallest first."""
    return sorted(((one - other).norm() / other.norm()).item() for one, other in zip(ours, exact, strict=True))


def spoil(it: StageEngine, change: Callable[[dict[str, Tensor]], None]) -> StageEngine:
    """Changes an engine's parameters."""
    with torch.no_grad():
        change(dict(it.module.named()))
    return it


# ------------------------------------------------------------------------------------------------- scaling


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e4])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_in_fp16_gradients_are_within_a_thousandth_whatever_their_size(stage: int, size: float) -> None:
    ours, exact = engine(stage, "fp16"), engine(stage, "fp32")
    found = errors(run_hop(ours, gradient(size)), run_hop(exact, gradient(size)))
    assert 0 < found[len(found) // 2] < 1e-3, "the goal is 3e-3"
    assert found[-1] < 3e-3
    assert (ours.hops, ours.repeats) == (1 if stage == 2 else 2, 0)


def test_without_scaling_small_gradients_would_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics.Numerics, "scale", lambda *_: None)
    found = errors(run_hop(engine(1, "fp16"), gradient(1e-7)), run_hop(engine(1, "fp32"), gradient(1e-7)))
    assert found[len(found) // 2] > 0.1


def test_powers_of_two_are_exact() -> None:
    for exponent in (-126, -125, -24, -1, 0, 1, 15, 126):
        assert power_of_two(torch.tensor(exponent)).item() == 2.0**exponent
    assert power_of_two(torch.tensor(400)).item() == 2.0**126
    assert power_of_two(torch.tensor(-400)).item() == 2.0**-126


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-38, 1e-7, 0.75, 1.0, 1e30])
@pytest.mark.parametrize("tokens", [1, 512, 8192])
def test_a_gradient_is_scaled_so_that_a_sum_over_all_tokens_has_room(size: float, tokens: int) -> None:
    scale = FP16.scale(torch.tensor([size, -size / 3]), tokens)
    assert scale is not None
    scaled = scale.item() * size
    assert scaled * tokens <= 2**numerics.TOP_BITS
    assert size < 1e-36 or scaled * tokens > 2**numerics.TOP_BITS / 4, "no more room than that"
    assert FP32.scale(torch.tensor([size]), tokens) is None


# ------------------------------------------------------------------------------------------------- again


def too_wide_inside(parameters: dict[str, Tensor]) -> None:
    """SwiGLU's product is about 1e6, and what is made of it as small as ever."""
    for name, parameter in parameters.items():
        if name.endswith(("gate.weight", "up.weight")):
            parameter.mul_(1e3 / parameter.std() / parameter.shape[1] ** 0.5)
        if name.endswith("down.weight"):
            parameter.mul_(1e-6)


def beyond_fp32(parameters: dict[str, Tensor]) -> None:
    for name in ("gate", "up"):
        parameters[f"blocks.s1.ffn.{name}.weight"].mul_(1e30)


def too_wide_logits(parameters: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        if name.startswith(UNEMBEDDING):
            parameter.mul_(1e7)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_forward_that_overflows_in_fp16_alone_is_computed_in_fp32(stage: int, recompute: bool) -> None:
    ours, exact = (spoil(engine(stage, dtype, recompute), too_wide_inside) for dtype in ("fp16", "fp32"))
    found = run_hop(ours, gradient())
    assert all(torch.equal(one, other) for one, other in zip(found, run_hop(exact, gradient()), strict=True))
    assert ours.repeats == (2 if stage == 2 else 1), "the backward knows in what its forward ran"


def test_logits_beyond_fp16_are_computed_in_fp32() -> None:
    ours, exact = (spoil(engine(2, dtype), too_wide_logits) for dtype in ("fp16", "fp32"))
    found, wanted = run_hop(ours, gradient()), run_hop(exact, gradient())
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_backward_that_overflows_is_scaled_less(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over tokens, where all of them push the same way."""
    monkeypatch.setattr(numerics, "TOP_BITS", 26)
    ours, exact = engine(1, "fp16", recompute), engine(1, "fp32")
    found = errors(run_hop(ours, gradient()), run_hop(exact, gradient()))
    assert found[-1] < 3e-3
    assert ours.repeats == 1


def test_a_shared_block_s_sum_over_its_uses_may_leave_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each use is in range; their sum isn't, and is formed in fp32."""
    monkeypatch.setattr(numerics, "TOP_BITS", 21)
    run = dataclasses.replace(WIDE, model=dataclasses.replace(WIDE.model, layers=3 * 16))
    it = StageEngine(run, 1, compute=ComputeConfig("fp16", "never"))
    it.forward(HOP, toy_tokens(run, 1, 0), activation(1), codec="fp32")
    it.backward(HOP, gradient(), codec="fp32")
    assert it.repeats == 0
    scale = FP16.scale(decode(gradient(), it.device), 48)
    assert scale is not None
    assert (it.sum.flat.abs().max() * scale).item() > 2 * torch.finfo(torch.float16).max


def test_what_is_not_finite_in_fp32_either_is_refused_and_leaves_no_trace() -> None:
    it = spoil(engine(1, "fp16"), beyond_fp32)
    with pytest.raises(NonFinite):
        it.forward(HOP, toy_tokens(WIDE, 1, 0), activation(1), codec="fp32")
    assert not it.kept
    assert it.repeats == 1


def test_a_hop_computed_again_keeps_no_graph() -> None:
    it = spoil(engine(1, "fp16"), too_wide_inside)
    it.forward(HOP, toy_tokens(WIDE, 1, 0), activation(1), codec="fp32")
    (forward,) = it.graphs._kept.values()
    assert (forward.passage, forward.numerics, forward.nbytes) == (None, FP32, 0)


@pytest.mark.parametrize("change", [lambda _: None, too_wide_inside])
def test_a_subtraction_takes_out_what_was_added_in_whatever_numerics(
    change: Callable[[dict[str, Tensor]], None],
) -> None:
    for stage in range(3):
        it, other = HopId(1, 1), spoil(engine(stage, "fp16"), change)
        run_hop(other, gradient(3.0), it)
        before = other.sum.flat.clone()
        run_hop(other, gradient())
        run_hop(other, gradient(), subtract=True)
        assert (other.sum.flat - before).norm() <= 1e-6 * before.norm()


# ------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("capability", "dtype"), [((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")]
)
def test_the_dtype_of_a_gpu_is_what_it_has_units_for(
    capability: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "look_at_card", lambda number: device.Card("a card", capability))
    assert fast_dtype(torch.device("cuda", 0)) == dtype
    assert fast_dtype(torch.device("cpu")) == "fp32"


@pytest.mark.parametrize(
    ("precision", "wanted", "dtype"),
    [("any", "auto", torch.float32), ("any", "fp16", torch.float16), ("fp32", "fp16", torch.float32)],
)
def test_a_run_may_demand_fp32(precision: str, wanted: ComputeDtype, dtype: torch.dtype) -> None:
    run: RunConfig = dataclasses.replace(RUN, precision=precision)  # type: ignore[arg-type]
    assert choose_dtype(run, torch.device("cpu"), wanted) is dtype
    assert StageEngine(run, 0, compute=ComputeConfig(wanted)).ladder == LADDER[dtype]
