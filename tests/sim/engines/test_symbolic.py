"""The symbolic engine: it keeps the torch engine's rules, its sums are exact, and what is wrong leaves its mark."""

import dataclasses
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from swarmd.config import CodecConfig, RunConfig
from swarmd.errors import HopForgotten, NonFinite, PeerFault
from swarmd.schedule import learning_rate_at
from swarmd.sim.engines.reference import Reference, Symbols, clip, round_is_spoiled, share, spoiled_at, spoiled_early
from swarmd.sim.engines.stamps import pack, stamped, tokens_of
from swarmd.sim.engines.symbolic import Factory, Foreign, SymbolicEngine
from swarmd.sim.engines.training import toy_tokens
from swarmd.stage.codec import encode
from swarmd.stage.engine import StageEngine
from swarmd.values import Encoded, HopId
from tests.stage.toy import toy_run

SYMBOLS = Symbols()
RUN = dataclasses.replace(toy_run(stages=2, steps=6), sequences_per_step=10)
HOP = HopId(1, 0)


def pair(run: RunConfig = RUN, symbols: Symbols = SYMBOLS) -> tuple[SymbolicEngine, SymbolicEngine]:
    factory = Factory(run, symbols)
    return factory(run, 0), factory(run, 1)


def journey(head: SymbolicEngine, tail: SymbolicEngine, hop: HopId) -> None:
    tokens = tokens_of(head.run, head.symbols, hop)
    activation = head.forward(hop, tokens, None, codec="fp32")
    result = tail.tail(hop, tokens, activation, codec="fp32")
    assert result.gradient is not None
    head.backward(hop, result.gradient, codec="fp32")


def finish(replicas: Sequence[Sequence[SymbolicEngine]], step: int) -> None:
    """The rounds and the commit of a step; replicas[stage] are a stage's engines."""
    run = replicas[0][0].run
    squares = []
    for engines in replicas:
        size = engines[0].gradient_size
        parts = [
            engines[0].reduce(
                [engine.contribution(step, start, stop, codec="fp32") for engine in engines],
                run.microbatches * run.tokens_per_microbatch,
                codec="fp32",
            )
            for start, stop in ((0, size // 3), (size // 3, size))
        ]
        summaries = {engine.assemble(step, parts) for engine in engines}
        squares.append(summaries.pop().squared_norm)
        assert not summaries
    for engines in replicas:
        for engine in engines:
            rate = learning_rate_at(run.optimizer, step, run.steps)
            engine.apply(step, learning_rate=rate, clip_factor=clip(run.optimizer, squares))


def test_two_replicas_a_stage_give_what_plain_arithmetic_gives() -> None:
    factory = Factory(RUN, SYMBOLS)
    replicas = [[factory(RUN, stage) for _ in range(2)] for stage in range(2)]
    for step in range(1, RUN.steps + 1):
        for index in range(RUN.microbatches):
            journey(replicas[0][index % 2], replicas[1][index % 3 % 2], HopId(step, index))
        finish(replicas, step)
    for stage, engines in enumerate(replicas):
        assert {engine.digest() for engine in engines} == {factory.reference.digest(RUN.steps, stage)}


@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [0, 1, 2, 3, 3, 4], [0, 1, 2, 3, 3]], ids=["lost", "double", "both"])
def test_what_is_missing_or_double_changes_the_parameters_for_good(indices: list[int]) -> None:
    factory = Factory(RUN, SYMBOLS)
    first, second, tail = factory(RUN, 0), factory(RUN, 0), factory(RUN, 1)
    for index in range(RUN.microbatches):
        journey(factory(RUN, 0), tail, HopId(1, index))
    for place, index in enumerate(indices):
        helper = factory(RUN, 1)
        journey((first, second)[place % 2], helper, HopId(1, index))
    finish([[first, second], [tail]], 1)
    assert tail.digest() != factory.reference.digest(0, 1)
    assert first.digest() != factory.reference.digest(1, 0)
    with pytest.raises(Foreign):  # parameters are on the stamps: nobody takes activations from wrong ones
        journey(first, tail, HopId(2, 0))


def test_a_foreign_activation_is_a_bug_and_a_damaged_one_a_fault() -> None:
    head, tail = pair()
    tokens = tokens_of(RUN, SYMBOLS, HOP)
    right = head.forward(HOP, tokens, None, codec="fp32")
    other = head.forward(HopId(1, 1), tokens_of(RUN, SYMBOLS, HopId(1, 1)), None, codec="fp32")
    for wrong in (other, Encoded("fp32", right.shape, (stamped(b"ACTV", SYMBOLS.activation_bytes, 1, 0, 0, 1, 7),))):
        with pytest.raises(Foreign):
            tail.tail(HOP, tokens, wrong, codec="fp32")
    with pytest.raises(Foreign):
        tail.tail(HOP, tokens_of(RUN, SYMBOLS, HopId(2, 0)), right, codec="fp32")
    assert len(tail.bugs) == 3
    data = bytes(right.data[0])
    for damaged in (data[:-1], b"GRAD" + data[4:], data[:9] + b"\xff" + data[10:], b""):
        with pytest.raises(PeerFault):
            tail.tail(HOP, tokens, Encoded("fp32", right.shape, (damaged,)), codec="fp32")
    with pytest.raises(PeerFault):
        tail.tail(HOP, tokens[:7], right, codec="fp32")
    with pytest.raises(PeerFault):
        tail.tail(HOP, tokens, None, codec="fp32")
    assert len(tail.bugs) == 3


def test_parts_that_are_malformed_are_refused() -> None:
    head, _ = pair()
    with pytest.raises(PeerFault):
        head.assemble(1, [pack([1.0], "fp32")])
    with pytest.raises(PeerFault):
        head.reduce([pack([1.0], "fp32"), pack([1.0, 2.0], "fp32")], 4, codec="fp32")
    with pytest.raises(PeerFault):
        head.reduce([Encoded("fp32", (2,), (b"1234567",))], 4, codec="fp32")


def test_hops_that_are_not_finite_are_drawn_by_seed_and_skip_their_step() -> None:
    symbols = Symbols(spoiled=0.1)
    run = dataclasses.replace(RUN, sequences_per_step=80)
    reference = Reference(run, symbols)
    assert {reference.skipped(step) for step in range(1, 9)} == {True, False}
    hops = {hop: spoiled_at(run.seed, hop, 2, 0.1) for hop in (HopId(1, index) for index in range(40))}
    assert {*hops.values()} == {None, 0, 1}
    head, tail = pair(run, symbols)
    for hop, stage in hops.items():
        if stage is None:
            journey(head, tail, hop)
        else:
            with pytest.raises(NonFinite):
                journey(head, tail, hop)
        at_the_tail = stage is None or (stage == 0 and not spoiled_early(run.seed, hop))
        assert (hop in head.counted, hop in tail.counted) == (stage is None, at_the_tail)
    assert {spoiled_early(run.seed, HopId(1, index)) for index in range(400)} == {True, False}


def test_rounds_whose_average_is_not_finite_are_drawn_by_seed_and_skip_their_step() -> None:
    symbols = Symbols(spoiled_rounds=0.3)
    reference = Reference(RUN, symbols)
    skipped = [reference.skipped(step) for step in range(1, 9)]
    assert {*skipped} == {True, False}
    for stage, engine in enumerate(pair(RUN, symbols)):
        size = engine.gradient_size
        for step in range(1, 9):
            if round_is_spoiled(RUN.seed, step, stage, 0.3):
                assert skipped[step - 1]
                with pytest.raises(NonFinite):
                    engine.reduce([pack([1.0] * size, "fp32")], 4, codec="fp32")
            else:
                engine.reduce([pack([1.0] * size, "fp32")], 4, codec="fp32")
            engine.skip(step)


def test_subtracting_takes_a_hop_out_unless_the_sum_is_frozen() -> None:
    head, tail = pair()
    journey(head, tail, HOP)
    journey(head, tail, HopId(1, 1))
    before, tokens = list(head.sum), tokens_of(RUN, SYMBOLS, HOP)

    def subtract() -> tuple[bool, bool]:
        out = head.forward(HOP, tokens, None, codec="fp32")
        result = tail.tail(HOP, tokens, out, codec="fp32", subtract=True)
        assert result.gradient is not None
        return head.backward(HOP, result.gradient, codec="fp32", subtract=True).accumulated, result.accumulated

    head.freeze(1)
    tail.freeze(1)
    assert subtract() == (True, True)
    assert head.sum == before
    head.thaw(1)
    tail.thaw(1)
    assert subtract() == (False, False)
    assert subtract() == (False, False)  # it isn't there any more: nothing happens
    assert head.counted == tail.counted == {HopId(1, 1)}
    assert head.sum == list(share(RUN.seed, HopId(1, 1), 0, head.gradient_size))
    journey(head, tail, HOP)
    assert head.sum == before


def test_a_state_is_exported_and_imported_whole_or_not_at_all() -> None:
    factory = Factory(RUN, dataclasses.replace(SYMBOLS, state_bytes=10_000))
    donor, joiner, other = factory(RUN, 0), factory(RUN, 0), factory(RUN, 1)
    for index in range(RUN.microbatches):
        journey(donor, other, HopId(1, index))
    finish([[donor], [other]], 1)
    state = bytes(donor.export_state())
    assert len(state) > 10_000
    untouched = joiner.digest()
    older = bytes(joiner.export_state())
    for wrong in (state[:-1], b"x" + state[1:], state[:5_000] + older[5_000:], bytes(other.export_state())):
        with pytest.raises(ValueError):
            joiner.import_state(wrong)
        assert (joiner.digest(), joiner.version) == (untouched, 0)
    assert joiner.import_state(memoryview(state)) == donor.digest()
    assert (joiner.version, joiner.parameters) == (1, donor.parameters)


def test_it_needs_no_torch() -> None:
    """A campaign starts two processes, and neither should load 200 MB to add whole numbers."""
    program = "import swarmd.sim.engines.symbolic, sys; assert not {'torch', 'numpy'} & set(sys.modules), 'loaded'"
    subprocess.run([sys.executable, "-c", program], check=True)


# ------------------------------------------------------------------------------------------------- the same rules


class Twins:
    """A torch engine and a symbolic one that are asked the same."""

    def __init__(self, stage: int, stages: int) -> None:
        self.run = dataclasses.replace(toy_run(stages=stages, steps=9, codecs=CodecConfig("fp32", "fp32", "fp32")))
        self.stage = stage
        factory = Factory(self.run, SYMBOLS)
        self.real, self.symbolic = StageEngine(self.run, stage), factory(self.run, stage)

    def ask(self, real: Callable[[], Any], symbolic: Callable[[], Any]) -> None:
        found = outcome(symbolic)
        assert found == outcome(real)
        assert self.symbolic.version == self.real.version
        assert (self.symbolic.counted, self.symbolic.frozen) == (self.real.sum.counted, self.real.sum.frozen)
        assert self.symbolic.kept == self.real.kept

    def forward(self, hop: HopId, attempt: int | None, evaluate: bool = False) -> None:
        name = "tail" if self.symbolic.is_tail else "forward"
        shape = (self.run.sequences_per_microbatch, self.run.model.sequence_length, self.run.model.hidden)
        real_in = encode(torch.zeros(shape), "fp32") if self.stage else None
        tokens = HopId(0, hop.index - self.run.microbatches) if evaluate else hop
        named = (*hop, self.stage - 1, self.symbolic.version, self.mark(self.stage - 1))
        size = SYMBOLS.activation_bytes
        symbolic_in = Encoded("fp32", (size,), (stamped(b"ACTV", size, *named),)) if self.stage else None
        words = {"codec": "fp32", "evaluate": evaluate, "attempt": attempt}
        self.ask(
            lambda: getattr(self.real, name)(hop, toy_tokens(self.run, *hop), real_in, **words),
            lambda: getattr(self.symbolic, name)(hop, tokens_of(self.run, SYMBOLS, tokens), symbolic_in, **words),
        )

    def mark(self, stage: int) -> int:
        if stage < 0:
            return 0
        return self.symbolic._fields(HOP, stage)[-1]

    def backward(self, hop: HopId, attempt: int | None) -> None:
        shape = (self.run.sequences_per_microbatch, self.run.model.sequence_length, self.run.model.hidden)
        size = SYMBOLS.activation_bytes
        named = (*hop, self.stage + 1, self.symbolic.version, self.mark(self.stage + 1))
        symbolic_in = Encoded("fp32", (size,), (stamped(b"GRAD", size, *named),))
        self.ask(
            lambda: self.real.backward(hop, encode(torch.ones(shape), "fp32"), codec="fp32", attempt=attempt),
            lambda: self.symbolic.backward(hop, symbolic_in, codec="fp32", attempt=attempt),
        )

    def same(self, name: str, *arguments: Any, **words: Any) -> None:
        self.ask(
            lambda: getattr(self.real, name)(*arguments, **words),
            lambda: getattr(self.symbolic, name)(*arguments, **words),
        )

    def end(self, step: int) -> None:
        self.ask(
            lambda: self.real.assemble(step, [self.real.contribution(step, 0, self.real.gradient_size, codec="fp32")]),
            lambda: self.symbolic.assemble(
                step, [self.symbolic.contribution(step, 0, self.symbolic.gradient_size, codec="fp32")]
            ),
        )
        self.same("skip", step)  # applying wrong sums would part them from the reference


def outcome(action: Callable[[], Any]) -> Any:
    """The results of an engine, as far as both kinds have them."""
    try:
        result = action()
    except (HopForgotten, KeyError, NonFinite, PeerFault, AssertionError) as trouble:
        return type(trouble).__name__
    if isinstance(result, int):
        return result
    return getattr(result, "accumulated", None), getattr(result, "gradient", None) is None


@pytest.mark.parametrize(("stage", "stages"), [(0, 2), (1, 4), (1, 2), (0, 1)])
def test_it_follows_the_torch_engine_through_anything(stage: int, stages: int) -> None:
    for seed in range(12):
        rng, twins = random.Random(seed), Twins(stage, stages)
        for _ in range(40):
            step = twins.symbolic.version + rng.choice((0, 1, 1, 1, 1, 1, 2))
            hop = HopId(step, rng.randrange(3))
            attempt = rng.choice((None, None, None, 0, 1))
            match rng.randrange(12):
                case 0 | 1 | 2:
                    twins.forward(hop, attempt)
                case 3 | 4 | 5 | 6 if not twins.symbolic.is_tail:
                    twins.backward(hop, attempt)
                case 7:
                    twins.same("forget", hop)
                    twins.same("attempt", hop)
                case 8:
                    twins.same(rng.choice(("freeze", "thaw")), step)
                case 9:
                    twins.forward(HopId(step, twins.run.microbatches + 1), None, evaluate=True)
                case 10 if rng.random() < 0.3:
                    twins.end(step)
        assert not twins.symbolic.bugs


def test_a_sum_is_taken_over_whole_or_not_at_all() -> None:
    factory = Factory(RUN, SYMBOLS)
    ours, theirs, alone = ((factory(RUN, 0), factory(RUN, 1)) for _ in range(3))
    for index, engines in ((0, ours), (1, theirs), (2, theirs)):
        journey(*engines, HopId(1, index))
        journey(*alone, HopId(1, index))
    for own, other, whole in zip(ours, theirs, alone, strict=True):
        slices = [other.contribution(1, 0, 1, codec="fp32"), other.contribution(1, 1, own.gradient_size, codec="fp32")]
        with pytest.raises(PeerFault):
            own.absorb(1, [1, 2], slices[1:])
        assert not own.absorb(1, [0, 1], slices), "an index counts once"
        own.freeze(1)
        assert not own.absorb(1, [1, 2], slices)
        own.thaw(1)
        assert own.absorb(1, [1, 2], slices)
        assert (own.sum, own.counted) == (whole.sum, whole.counted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_numbers_that_fp32_does_not_hold_are_not_finite_wherever_they_come_from(bad: float) -> None:
    engine, _ = pair()
    size = engine.gradient_size
    good, spoiled = pack([1.0] * size, "fp32"), pack([bad] * size, "fp32")
    with pytest.raises(PeerFault):
        engine.absorb(1, [0], [spoiled])
    with pytest.raises(NonFinite) as reduced:
        engine.reduce([good, spoiled], 1, codec="fp32")
    with pytest.raises(NonFinite) as assembled:
        engine.assemble(1, [pack([1.0], "fp32"), pack([bad] * (size - 1), "fp32")])
    assert (reduced.value.what, reduced.value.source) == ("sum", 1)
    assert (assembled.value.what, assembled.value.source) == ("average", 1)
