"""Numbers that aren't finite, or would not be on the wire: each is refused where it arises, and says what it is."""

import dataclasses
import math
from typing import Literal

import numpy
import pytest
import torch

from swarmd.config import CodecConfig, CodecName, RunConfig
from swarmd.errors import NonFinite
from swarmd.sim.engines.training import toy_tokens
from swarmd.stage.codec import LARGEST_SENT, decode, encode
from swarmd.stage.engine import StageEngine
from swarmd.stage.finite import all_finite
from swarmd.values import Encoded, HopId
from tests.stage.toy import toy_run

HOP = HopId(1, 0)
CODECS: list[CodecName] = ["fp32", "fp16", "bf16", "int8"]
BAD = [math.nan, math.inf, -math.inf]
FLOAT = numpy.dtype("<f4")


def raw(values: torch.Tensor) -> Encoded:
    """Bytes that no encoder of ours gives: fp32 as it is."""
    return Encoded("fp32", tuple(values.shape), (values.numpy().astype(FLOAT).tobytes(),))


def activation_of(run: RunConfig, value: float) -> torch.Tensor:
    shape = (run.sequences_per_microbatch, run.model.sequence_length, run.model.hidden)
    return torch.full(shape, value)


def with_parameter(engine: StageEngine, value: float) -> StageEngine:
    with torch.no_grad():
        engine.parameters[0].view(-1)[:] = value
    return engine


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("size", [1e10, 1e25])
def test_finite_means_finite_however_large(bad: float, size: float) -> None:
    """A norm in fp32 is infinite from 1.8e19 on, and nothing else is."""
    tensors = [torch.full((1000,), size), torch.zeros(0), torch.ones(3, 7)]
    assert all_finite(tensors)
    tensors[0][17] = bad
    assert not all_finite(tensors)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("stage", [0, 1])
def test_an_activation_that_is_not_finite_goes_nowhere(codec: CodecName, evaluate: bool, stage: int) -> None:
    run = toy_run(stages=4)
    engine = with_parameter(StageEngine(run, stage), math.nan)
    activation = encode(activation_of(run, 0.1), "fp32") if stage else None
    with pytest.raises(NonFinite, match=r"activation.*\(1, 0\)") as found:
        engine.forward(HOP, toy_tokens(run, *HOP), activation, codec=codec, evaluate=evaluate)
    assert (found.value.what, found.value.source) == ("activation", None)
    assert not engine.kept


@pytest.mark.parametrize("bad", BAD)
def test_what_comes_so_from_another_is_refused_and_it_is_said_that_it_came(bad: float) -> None:
    run = toy_run(stages=3)
    middle, tail = StageEngine(run, 1), StageEngine(run, 2)
    tokens, good = toy_tokens(run, *HOP), encode(activation_of(run, 0.1), "fp32")
    one_bad = activation_of(run, 0.1)
    one_bad[1, 2, 3] = bad
    for engine in (middle.forward, tail.tail):
        with pytest.raises(NonFinite) as found:
            engine(HOP, tokens, raw(one_bad), codec="int8")
        assert (found.value.what, found.value.source) == ("activation", 0)
    middle.forward(HOP, tokens, good, codec="fp32")
    with pytest.raises(NonFinite) as found:
        middle.backward(HOP, raw(one_bad), codec="fp32")
    assert (found.value.what, found.value.source) == ("gradient", 0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [6e4, 7e4, 1e30, 3.38e38])
def test_what_is_finite_here_is_finite_there(codec: CodecName, value: float) -> None:
    arrived = decode(encode(torch.tensor([value, -value, 1.0]), codec))
    assert bool(torch.isfinite(arrived).all())
    assert float(arrived[0]) == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_what_rounding_would_make_infinite_is_refused_by_its_sender(codec: CodecName) -> None:
    assert torch.finfo(torch.float32).max > LARGEST_SENT
    with pytest.raises(NonFinite):
        encode(torch.tensor([1.0, torch.finfo(torch.float32).max]), codec)


@pytest.mark.parametrize("codec", CODECS)
def test_a_sum_of_finite_gradients_may_not_be_finite(codec: CodecName) -> None:
    engine = StageEngine(toy_run(), 0)
    for _ in range(2):
        engine.sum.add([torch.full_like(parameter, 3e38) for parameter in engine.parameters])
    with pytest.raises(NonFinite, match=r"sum of step 1") as found:
        engine.contribution(1, 0, engine.gradient_size, codec=codec)
    assert found.value.what == "sum"


@pytest.mark.parametrize("codec", CODECS)
def test_neither_may_an_average_be(codec: CodecName) -> None:
    engine = StageEngine(toy_run(), 0)
    shares = [encode(torch.full((6,), 3e38), codec)] * 2
    with pytest.raises(NonFinite) as found:
        engine.reduce(shares, 1, codec=codec)
    assert (found.value.what, found.value.source) == ("average", None)
    good, bad = encode(torch.ones(6), "fp32"), raw(torch.tensor([1.0, math.nan, 1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(NonFinite) as found:
        engine.reduce([good, bad], 1, codec=codec)
    assert (found.value.what, found.value.source) == ("sum", 1), "and who brought it is known"


def test_a_part_that_is_not_finite_is_named_and_no_gradient_comes_of_it() -> None:
    engine = StageEngine(toy_run(), 0)
    rest = engine.gradient_size - 2
    parts = [encode(torch.ones(rest), "fp16"), raw(torch.tensor([1.0, math.inf]))]
    with pytest.raises(NonFinite) as found:
        engine.assemble(1, parts)
    assert (found.value.what, found.value.source) == ("average", 1)
    with pytest.raises(AssertionError):
        engine.apply(1, learning_rate=0.1, clip_factor=1.0)


def test_the_norm_of_a_large_gradient_is_its_norm() -> None:
    engine = StageEngine(toy_run(), 0)
    summary = engine.assemble(1, [encode(torch.full((engine.gradient_size,), 1e30), "fp32")])
    assert math.sqrt(summary.squared_norm) == pytest.approx(1e30 * math.sqrt(engine.gradient_size))


@pytest.mark.parametrize(
    ("gradient", "rate", "name"),
    [(1.0, 3e38, "adamw"), (1e25, 1e-3, "adamw"), (1.0, 3e38, "lamb")],
    ids=["parameters", "moments", "lamb"],
)
def test_parameters_that_would_not_be_finite_never_replace_the_old(
    gradient: float, rate: float, name: Literal["adamw", "lamb"]
) -> None:
    """The second case leaves the parameters finite, and a moment not: from then on they would never change again."""
    run = toy_run()
    run = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, name=name, weight_decay=0.0))
    engine = with_parameter(StageEngine(run, 0), -3e38)
    good, before = engine.export_state(), [parameter.clone() for parameter in engine.parameters]
    engine.assemble(1, [encode(torch.full((engine.gradient_size,), gradient), "fp32")])
    with pytest.raises(NonFinite, match="parameters after step 1") as found:
        engine.apply(1, learning_rate=rate, clip_factor=1.0)
    assert found.value.what == "parameters"
    assert engine.version == 0
    assert all(torch.equal(one, other) for one, other in zip(engine.parameters, before, strict=True))
    with pytest.raises(NonFinite):
        engine.export_state()
    assert engine.import_state(good) == engine.digest()
    assert bytes(engine.export_state()) == bytes(good)


def test_validation_of_bad_numbers_says_so() -> None:
    run = toy_run(codecs=CodecConfig("int8", "int8", "fp16"))
    tail = with_parameter(StageEngine(run, 1), math.nan)
    with pytest.raises(NonFinite) as found:
        tail.tail(HOP, toy_tokens(run, *HOP), encode(activation_of(run, 0.1), "int8"), codec="fp32", evaluate=True)
    assert found.value.what == "loss"
