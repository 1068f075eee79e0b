"""A stage's engine: exactness against plain PyTorch, at-most-once accumulation, and what it refuses."""

import dataclasses
import threading
from collections.abc import Callable

import numpy
import pytest
import torch

from swarmd.config import CodecConfig, ComputeConfig, ComputeDtype, Recompute, RunConfig
from swarmd.errors import ConfigError, HopForgotten, NonFinite, PeerFault
from swarmd.sim.engines.training import plain_training, toy_tokens
from swarmd.stage.codec import decode, encode
from swarmd.stage.engine import StageEngine
from swarmd.values import Encoded, HopId
from tests.stage.toy import FP32, finish_step, journey, toy_run, train_pipeline

HOP = HopId(1, 0)


def engines(run: RunConfig, compute: ComputeConfig | None = None) -> tuple[StageEngine, StageEngine]:
    return StageEngine(run, 0, compute=compute), StageEngine(run, 1, compute=compute)


def gradient_for(run: RunConfig, value: float = 0.01) -> Encoded:
    return encode(torch.full((2, run.model.sequence_length, run.model.hidden), value), "fp32")


def nans(size: int) -> Encoded:
    """A gradient that no encoder gives, though it fits."""
    return Encoded("fp32", (size,), (numpy.full(size, numpy.nan, "<f4").tobytes(),))


@pytest.mark.parametrize("shared", [False, True])
def test_a_pipeline_equals_plain_training(shared: bool) -> None:
    """Promise 3 of the design: 1e-5 of each tensor's norm after 20 steps, when the wire loses nothing."""
    run = toy_run(shared=shared, steps=20)
    expected_losses, expected = plain_training(run)
    losses, trained = train_pipeline(run)
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    for engine in trained:
        for name, parameter in engine.module.named().items():
            reference = expected.named()[name]
            assert (parameter - reference).norm() <= 1e-5 * reference.norm(), name


def test_int8_on_the_wire_trains_almost_the_same() -> None:
    exact, _ = train_pipeline(toy_run())
    rounded, _ = train_pipeline(toy_run(codecs=CodecConfig("int8", "int8", "fp16")))
    assert rounded != exact
    assert rounded[-1] == pytest.approx(exact[-1], rel=0.01)
    assert exact[-1] < exact[0] - 1.0


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("recompute", ["always", "block"])
def test_recomputing_gives_the_same_bits_as_keeping_graphs(recompute: Recompute, dtype: ComputeDtype) -> None:
    run = toy_run(steps=3, shared=True)
    _, kept = train_pipeline(run, ComputeConfig(dtype, "never"))
    _, recomputed = train_pipeline(run, ComputeConfig(dtype, recompute))
    assert [engine.digest() for engine in kept] == [engine.digest() for engine in recomputed]


def kinds(engine: StageEngine) -> list[str]:
    """How each forward is kept, the first one first."""
    kept = [forward.passage for forward in engine.graphs._kept.values()]
    return ["source" if it is None else "graphs" if it.has_graphs else "inputs" for it in kept]


def test_auto_keeps_less_of_each_forward_as_room_gets_scarce_and_computes_the_same() -> None:
    run = toy_run()
    (scarce, _), (ample, _) = engines(run), engines(run)
    scarce.graphs.limit = scarce.keeping.graphs + scarce.keeping.inputs
    for engine in (scarce, ample):
        for index in range(3):
            engine.forward(HopId(1, index), toy_tokens(run, 1, index), None, codec="fp32")
    assert (kinds(scarce), kinds(ample)) == (["graphs", "inputs", "source"], ["graphs", "graphs", "graphs"])
    for engine in (scarce, ample):
        for index in range(3):
            assert engine.backward(HopId(1, index), gradient_for(run), codec="fp32").accumulated
    assert scarce.graphs.room == scarce.graphs.limit
    assert torch.equal(flat(scarce), flat(ample))


@pytest.mark.parametrize(("recompute", "again"), [("auto", 0), ("block", 3), ("always", 0)])
def test_the_tail_runs_segments_again_only_where_its_graphs_do_not_fit(recompute: Recompute, again: int) -> None:
    run = toy_run()
    first, last = engines(run, ComputeConfig(recompute=recompute))
    activation = first.forward(HOP, toy_tokens(run, 1, 0), None, codec="fp32")
    applied: list[torch.nn.Module] = []
    for module in dict.fromkeys(last.module.segments()):
        module.register_forward_hook(lambda it, _, __: applied.append(it))
    last.tail(HOP, toy_tokens(run, 1, 0), activation, codec="fp32")
    assert len(applied) == 3 + again, "two blocks and the norm"
    applied.clear()
    last.graphs.limit = 0
    last.tail(HopId(1, 1), toy_tokens(run, 1, 1), activation, codec="fp32")
    assert len(applied) == (3 if recompute == "always" else 6)


def test_replicas_end_every_step_with_the_same_digest() -> None:
    run = toy_run(codecs=CodecConfig("int8", "int8", "int8"), steps=3)
    replicas = [[StageEngine(run, stage) for _ in range(2)] for stage in range(2)]
    seen = set()
    for step in (1, 2, 3):
        for index in range(run.microbatches):
            journey(run, [replicas[0][index % 2], replicas[1][(index + step) % 2]], HopId(step, index))
        for one, other in finish_step(run, replicas, step):
            assert one == other
            seen.add(one)
    assert len(seen) == 6


def test_the_split_among_replicas_does_not_change_the_gradient() -> None:
    run = toy_run(steps=1)
    (alone,), (first, second) = ([StageEngine(run, 0)], [StageEngine(run, 0), StageEngine(run, 0)])
    for index in range(2):
        hop = HopId(1, index)
        for engine in (alone, (first, second)[index]):
            engine.forward(hop, toy_tokens(run, 1, index), None, codec="fp32")
            engine.backward(hop, gradient_for(run), codec="fp32")
    size = alone.gradient_size
    together = first.reduce([e.contribution(1, 0, size, codec="fp32") for e in (first, second)], 96, codec="fp32")
    expected = alone.reduce([alone.contribution(1, 0, size, codec="fp32")], 96, codec="fp32")
    torch.testing.assert_close(decode(together), decode(expected), rtol=1e-6, atol=1e-9)


def test_a_hop_counts_once_however_often_it_is_computed() -> None:
    run = toy_run()
    first, _ = engines(run)
    for _ in range(2):
        first.forward(HOP, toy_tokens(run, 1, 0), None, codec="fp32")
        assert first.backward(HOP, gradient_for(run), codec="fp32").accumulated
        total = decode(first.contribution(1, 0, first.gradient_size, codec="fp32"))
    other, _ = engines(run)
    other.forward(HOP, toy_tokens(run, 1, 0), None, codec="fp32")
    other.backward(HOP, gradient_for(run), codec="fp32")
    assert torch.equal(total, decode(other.contribution(1, 0, other.gradient_size, codec="fp32")))


def test_a_frozen_sum_does_not_change_but_gradients_are_still_answered() -> None:
    run = toy_run()
    first, last = engines(run)
    journey(run, (first, last), HOP)
    activation = first.forward(HopId(1, 1), toy_tokens(run, 1, 1), None, codec="fp32")
    for engine in (first, last):
        engine.freeze(1)
    before = [decode(e.contribution(1, 0, e.gradient_size, codec="fp32")) for e in (first, last)]
    answer = last.tail(HopId(1, 1), toy_tokens(run, 1, 1), activation, codec="fp32")
    assert not answer.accumulated
    assert answer.gradient is not None
    assert not first.backward(HopId(1, 1), answer.gradient, codec="fp32").accumulated
    after = [decode(e.contribution(1, 0, e.gradient_size, codec="fp32")) for e in (first, last)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_contributions_keep_their_numbers_when_the_step_ends() -> None:
    run = toy_run()
    first, last = engines(run)
    journey(run, (first, last), HOP)
    share = first.contribution(1, 0, first.gradient_size, codec="fp32")
    before = decode(share)
    assert bool((before != 0).any())
    first.skip(1)
    assert torch.equal(decode(share), before)


def test_a_forgotten_hop_is_not_accumulated() -> None:
    run = toy_run()
    first, _ = engines(run)
    first.forward(HOP, toy_tokens(run, 1, 0), None, codec="fp32")
    first.forget(HOP)
    with pytest.raises(HopForgotten):
        first.backward(HOP, gradient_for(run), codec="fp32")
    assert not decode(first.contribution(1, 0, first.gradient_size, codec="fp32")).any()
    with pytest.raises(KeyError):
        first.backward(HopId(1, 2), gradient_for(run), codec="fp32")


def test_forgetting_reaches_a_task_that_already_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop's thread forgets the hop while autograd is at work on it."""
    run = toy_run()
    first, last = engines(run)
    activation = first.forward(HOP, toy_tokens(run, 1, 0), None, codec="fp32")
    backward: Callable[..., None] = torch.autograd.backward

    def slow(*arguments: object, **options: object) -> None:
        backward(*arguments, **options)
        other = threading.Thread(target=last.forget, args=(HOP,))
        other.start()
        other.join()

    monkeypatch.setattr(torch.autograd, "backward", slow)
    with pytest.raises(HopForgotten):
        last.tail(HOP, toy_tokens(run, 1, 0), activation, codec="fp32")
    assert not decode(last.contribution(1, 0, last.gradient_size, codec="fp32")).any()
    monkeypatch.undo()
    assert last.tail(HOP, toy_tokens(run, 1, 0), activation, codec="fp32").accumulated, "a new attempt counts"


def test_work_queued_before_a_forget_is_void_and_work_queued_after_is_not() -> None:
    run = toy_run()
    first, _ = engines(run)
    early = first.attempt(HOP)
    first.forget(HOP)
    late = first.attempt(HOP)
    with pytest.raises(HopForgotten):
        first.forward(HOP, toy_tokens(run, 1, 0), None, codec="fp32", attempt=early)
    assert not first.kept
    first.forward(HOP, toy_tokens(run, 1, 0), None, codec="fp32", attempt=late)
    assert first.backward(HOP, gradient_for(run), codec="fp32", attempt=late).accumulated


def test_evaluation_keeps_and_accumulates_nothing() -> None:
    run = toy_run()
    first, last = engines(run)
    loss, tokens = journey(run, (first, last), HopId(7, 0), evaluate=True)
    assert tokens == run.tokens_per_microbatch
    assert loss / tokens == pytest.approx(5.54, abs=0.3)
    assert not first.kept
    for engine in (first, last):
        assert not decode(engine.contribution(1, 0, engine.gradient_size, codec="fp32")).any()


def test_calls_for_other_steps_change_nothing() -> None:
    run = toy_run()
    first, last = engines(run)
    activation = first.forward(HOP, toy_tokens(run, 1, 0), None, codec="fp32")
    with pytest.raises(KeyError):
        first.forward(HopId(2, 0), toy_tokens(run, 1, 0), None, codec="fp32")
    for engine in (first, last):
        engine.skip(1)
    assert not first.kept, "graphs go with their step"
    with pytest.raises(HopForgotten):
        first.backward(HOP, gradient_for(run), codec="fp32")
    with pytest.raises(HopForgotten):
        last.tail(HOP, toy_tokens(run, 1, 0), activation, codec="fp32")
    with pytest.raises(KeyError):
        first.freeze(1)
    with pytest.raises(KeyError):
        first.contribution(1, 0, 1, codec="fp32")
    with pytest.raises(KeyError):
        first.apply(3, learning_rate=0.1, clip_factor=1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_are_refused_before_accumulation(bad: float) -> None:
    run = toy_run()
    first, last = engines(run)
    activation = first.forward(HOP, toy_tokens(run, 1, 0), None, codec="fp32")
    with pytest.raises(NonFinite):
        first.backward(HOP, gradient_for(run, bad), codec="fp32")
    with pytest.raises(NonFinite):
        last.tail(HOP, toy_tokens(run, 1, 0), gradient_for(run, bad), codec="fp32")
    with torch.no_grad():
        last.parameters[0][0] = 1e30  # finite activations, but gradients beyond fp32
    with pytest.raises(NonFinite):
        last.tail(HOP, toy_tokens(run, 1, 0), gradient_for(run, 3e38), codec="fp32")
    for engine in (first, last):
        assert not decode(engine.contribution(1, 0, engine.gradient_size, codec="fp32")).any()
    assert first.backward(HOP, gradient_for(run), codec="fp32").accumulated, "a good gradient may still come"
    assert activation.shape == (2, run.model.sequence_length, run.model.hidden)


def test_a_parameter_update_leaves_graphs_in_flight_valid() -> None:
    run = toy_run()
    first, _ = engines(run)
    gradients = []
    for index in (0, 1):
        first.forward(HopId(1, index), toy_tokens(run, 1, 0), None, codec="fp32")
    passages = [first.graphs._kept[HopId(1, index)].passage for index in (0, 1)]
    direction = torch.ones(2, run.model.sequence_length, run.model.hidden)
    for passage in passages:
        assert passage is not None
        gradients.append(passage.backward(direction)[0])
        before = first.digest()
        first.assemble(first.version + 1, [encode(torch.ones(first.gradient_size), "fp32")])
        assert first.apply(first.version + 1, learning_rate=0.1, clip_factor=1.0) != before
    early, late = gradients
    assert early.keys() == late.keys()
    assert all(torch.equal(early[parameter], late[parameter]) for parameter in early)


@pytest.mark.parametrize("recompute", ["never", "always", "block"])
def test_what_strangers_send_is_checked(recompute: Recompute) -> None:
    run = toy_run()
    first, last = engines(run, ComputeConfig(recompute=recompute))
    tokens = toy_tokens(run, 1, 0)
    good = first.forward(HOP, tokens, None, codec="fp32")
    ids = numpy.frombuffer(tokens, dtype="<i4").copy()
    for strange in (256, -1):
        ids[3] = strange
        with pytest.raises(PeerFault, match="vocabulary"):
            last.tail(HOP, ids.tobytes(), good, codec="fp32")
    for short in (tokens[:-4], b"", tokens + tokens):
        with pytest.raises(PeerFault, match="bytes of tokens"):
            last.tail(HOP, short, good, codec="fp32")
    narrow = encode(torch.zeros(2, run.model.sequence_length, 8), "fp32")
    for strange_activation in (None, narrow):
        with pytest.raises(PeerFault, match="activation"):
            last.tail(HOP, tokens, strange_activation, codec="fp32")
    with pytest.raises(PeerFault, match="gradient of shape"):
        first.backward(HOP, narrow, codec="fp32")
    with pytest.raises(PeerFault, match="contributions of shapes"):
        first.reduce([narrow, good], 1, codec="fp32")
    with pytest.raises(PeerFault, match="parts of"):
        first.assemble(1, [good])
    assert first.backward(HOP, gradient_for(run), codec="fp32").accumulated


def test_an_imported_state_goes_on_exactly_where_the_other_was() -> None:
    run = toy_run(steps=4)
    _, trained = train_pipeline(dataclasses.replace(run, steps=2))
    copy = StageEngine(run, 1)
    assert copy.import_state(memoryview(trained[1].export_state())) == trained[1].digest()
    assert copy.version == 2
    for engine in (copy, trained[1]):
        engine.assemble(3, [encode(torch.linspace(-1, 1, engine.gradient_size), "fp32")])
    assert copy.apply(3, learning_rate=0.01, clip_factor=0.5) == trained[1].apply(
        3, learning_rate=0.01, clip_factor=0.5
    )


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    run = toy_run()
    first, last = engines(run)
    before, state = first.digest(), bytes(first.export_state())
    wide = StageEngine(dataclasses.replace(run, model=dataclasses.replace(run.model, ffn=128)), 0)
    for strange in (b"", b"not a state", state[:-1], last.export_state(), wide.export_state()):
        with pytest.raises(ValueError, match="state"):
            first.import_state(strange)
    assert first.digest() == before
    assert first.version == 0


def test_a_device_that_is_not_there_is_named() -> None:
    for device in ("cuda:99", "tpu", "cuda:x"):
        with pytest.raises(ConfigError, match=device):
            StageEngine(toy_run(), 0, device)


def test_one_stage_is_head_and_tail_at_once() -> None:
    run = toy_run(stages=1, steps=2)
    expected, _ = plain_training(run)
    losses, _ = train_pipeline(run)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert run.codecs == FP32


# ------------------------------------------------------------------------------------------------- taking out again


def flat(engine: StageEngine) -> torch.Tensor:
    """The step's sum so far."""
    return decode(engine.contribution(1, 0, engine.gradient_size, codec="fp32"))


def pass_through(run: RunConfig, pair: tuple[StageEngine, StageEngine], hop: HopId, *, subtract: bool) -> bool:
    """One microbatch through both stages, added to both sums or taken out of them. Whether both count it now."""
    first, last = pair
    tokens = toy_tokens(run, *hop)
    activation = first.forward(hop, tokens, None, codec="fp32")
    tail = last.tail(hop, tokens, activation, codec="fp32", subtract=subtract)
    assert tail.gradient is not None
    back = first.backward(hop, tail.gradient, codec="fp32", subtract=subtract)
    assert tail.accumulated == back.accumulated
    return back.accumulated


@pytest.mark.parametrize("recompute", ["never", "always", "block"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_hop_taken_out_leaves_the_sum_as_if_it_had_never_come(recompute: Recompute, dtype: ComputeDtype) -> None:
    run, compute = toy_run(), ComputeConfig(dtype, recompute)
    pair, twins = engines(run, compute), engines(run, compute)
    for index in (0, 1, 2):
        assert pass_through(run, pair, HopId(1, index), subtract=False)
        if index != 1:
            pass_through(run, twins, HopId(1, index), subtract=False)
    assert not pass_through(run, pair, HopId(1, 1), subtract=True)
    for one, other in zip(pair, twins, strict=True):
        assert (flat(one) - flat(other)).norm() <= 1e-6 * flat(other).norm()


def test_what_is_not_in_the_sum_is_not_taken_out_and_may_come_in_again() -> None:
    run = toy_run()
    pair = engines(run)
    assert not pass_through(run, pair, HOP, subtract=True)
    assert not any(bool(flat(engine).any()) for engine in pair)
    assert pass_through(run, pair, HOP, subtract=False)
    before = [flat(engine) for engine in pair]
    assert not pass_through(run, pair, HOP, subtract=True)
    assert not pass_through(run, pair, HOP, subtract=True), "twice is once"
    assert pass_through(run, pair, HOP, subtract=False)
    for one, other in zip(before, pair, strict=True):
        assert (one - flat(other)).norm() <= 1e-6 * one.norm()


def test_nothing_is_taken_out_of_a_frozen_sum() -> None:
    run = toy_run()
    pair = engines(run)
    pass_through(run, pair, HOP, subtract=False)
    before = [flat(engine) for engine in pair]
    for engine in pair:
        engine.freeze(1)
    assert pass_through(run, pair, HOP, subtract=True), "it still counts"
    assert all(torch.equal(one, flat(other)) for one, other in zip(before, pair, strict=True))


def test_a_sum_is_taken_over_whole_or_not_at_all() -> None:
    """The sum of two replicas is that of one which did all of it, up to the order of fp32 additions."""
    run = toy_run()
    ours, theirs, alone = engines(run), engines(run), engines(run)
    for index, pair in ((0, ours), (1, theirs), (2, theirs)):
        assert pass_through(run, pair, HopId(1, index), subtract=False)
        pass_through(run, alone, HopId(1, index), subtract=False)
    for own, other, whole in zip(ours, theirs, alone, strict=True):
        size, middle = own.gradient_size, own.gradient_size // 3
        slices = [other.contribution(1, start, stop, codec="fp32") for start, stop in ((0, middle), (middle, size))]
        before = own.sum.flat.clone()
        with pytest.raises(PeerFault):
            own.absorb(1, [1, 2], slices[:1])
        with pytest.raises(PeerFault):
            own.absorb(1, [1, 2], [nans(size)])
        assert not own.absorb(1, [0, 1], slices), "an index counts once"
        own.freeze(1)
        assert not own.absorb(1, [1, 2], slices)
        own.thaw(1)
        assert torch.equal(own.sum.flat, before)
        assert own.absorb(1, [1, 2], slices)
        assert own.sum.counted == whole.sum.counted
        torch.testing.assert_close(own.sum.flat, whole.sum.flat)
        with pytest.raises(KeyError):
            own.absorb(2, [3], slices)
    assert not pass_through(run, ours, HopId(1, 1), subtract=True), "what was taken over can be taken out"
    assert not pass_through(run, alone, HopId(1, 1), subtract=True)
    for own, whole in zip(ours, alone, strict=True):
        torch.testing.assert_close(own.sum.flat, whole.sum.flat, rtol=1e-4, atol=1e-4)
