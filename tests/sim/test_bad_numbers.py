"""Numbers that aren't finite, wherever they arise: the step is skipped, at the price of any other, and nobody forks."""

import asyncio
import dataclasses
import math
import struct
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch

from swarmd.config import CodecConfig, CodecName, RunConfig
from swarmd.errors import RunEnded
from swarmd.sim.engines.reference import Symbols
from swarmd.sim.engines.stamps import SymbolicData
from swarmd.sim.engines.symbolic import Factory
from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import World
from swarmd.stage.engine import StageEngine
from swarmd.swarm.history.ballots import Decision
from swarmd.swarm.history.record import Record, clip_factor
from swarmd.swarm.peer.drain import Drained
from swarmd.swarm.peer.ending import LINGER_SECONDS
from swarmd.swarm.wire.messages.commit import Accept
from swarmd.swarm.wire.messages.hop import NOBODY, Blame
from swarmd.values import Encoded, HopId
from tests.sim.test_drains import drain
from tests.sim.toy import (
    PAIRS,
    RUN,
    Records,
    accumulated,
    check_agreement,
    compute_of,
    everyone_at,
    moment,
    served_of,
    start_all,
    train,
)

PLACES = {2: "activation", 4: "gradient", 6: "sum", 8: "average"}
"""What isn't finite in which step."""

INDEX = 5
COSTS = 1.5  # times the median: what a skipped step, or the one after it, may take
SINGLES = {"head": 0, "middle": 1, "tail": 2}
LAYOUTS = {"singles": SINGLES, "pairs": PAIRS}


Spoiled = Callable[[Any, str], bool]
"""Whether numbers of a hop, or of a step where they are a round's, are spoiled, by their kind."""


class Spoiler:
    """Makes numbers of one engine come out not finite: those of its own arithmetic, as far as there is any."""

    def __init__(self, engine: StageEngine, spoiled: Spoiled) -> None:
        self._engine, self._spoiled = engine, spoiled
        self._hop = HopId(0, 0)
        engine.module.segments()[-1].register_forward_hook(self._forward)
        for name in ("forward", "backward", "tail"):
            self._wrap(name, self._note)
        self._wrap("freeze", self._overflow)
        self._reduce = engine.reduce
        setattr(engine, "reduce", self._lie)  # noqa: B010

    def _wrap(self, name: str, before: Callable[[Any], None]) -> None:
        method = getattr(self._engine, name)

        def wrapped(first: Any, *arguments: Any, **options: Any) -> Any:
            before(first)
            return method(first, *arguments, **options)

        setattr(self._engine, name, wrapped)

    def _note(self, hop: HopId) -> None:
        self._hop = hop

    def _forward(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self._spoiled(self._hop, "gradient") and output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.nan)  # type: ignore[no-untyped-call]
        return output * math.nan if self._spoiled(self._hop, "activation") else output

    def _overflow(self, step: int) -> None:
        if self._spoiled(step, "sum"):
            self._engine.sum.flat[0] = math.inf

    def _lie(self, contributions: Any, tokens: int, *, codec: str) -> Encoded:
        reduced = self._reduce(contributions, tokens, codec=codec)
        if self._spoiled(self._engine.version + 1, "average"):
            return Encoded("fp32", reduced.shape, (struct.pack("<f", math.inf) * math.prod(reduced.shape),))
        return reduced


def run_with(codec: CodecName, steps: int = 10, **changes: Any) -> RunConfig:
    averaging: CodecName = "fp32" if codec == "fp32" else "fp16"
    return dataclasses.replace(RUN, codecs=CodecConfig(codec, codec, averaging), steps=steps, **changes)


def follow(world: World, times: dict[int, float]) -> None:
    """Notes when the first peer comes to each version."""

    def note(record: Record) -> None:
        times.setdefault(record.step, asyncio.get_running_loop().time())

    for it in world.peers.values():
        it.peer.history.listen(Records(note))


def durations(times: dict[int, float]) -> dict[int, float]:
    """Virtual seconds from commit to commit."""
    return {step: times[step] - times[step - 1] for step in times if step - 1 in times}


def check_skipped(world: World, steps: set[int]) -> None:
    """These were skipped, no others, with nothing changed or lost, and nobody forked."""
    check_agreement(world)
    for it in world.peers.values():
        digests = {line["step"]: line["digest"] for line in it.store.ledger}
        for line in it.store.ledger:
            step = line["step"]
            assert (line["skipped"], line["forked"]) == (step in steps, False), line
            assert (line["lost"], line["duplicated"], line["microbatches"]) == (0, 0, world.run.microbatches)
            assert step - 1 not in digests or (digests[step] == digests[step - 1]) == (step in steps)


def check_costs(times: dict[int, float]) -> None:
    taken = durations(times)
    usual = median(taken.values())
    assert max(taken.values()) <= COSTS * usual, {step: round(seconds, 3) for step, seconds in taken.items()}


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_step_with_bad_numbers_costs_what_any_other_does(
    codec: CodecName, layout: str, stage: int, caplog: pytest.LogCaptureFixture
) -> None:
    times: dict[int, float] = {}

    def spoiled(where: HopId | int, what: str) -> bool:
        step = where if isinstance(where, int) else where.step
        return PLACES.get(step) == what and (isinstance(where, int) or where.index == INDEX)

    async def events(world: World) -> None:
        await moment(world, lambda: all(it.compute is not None for it in world.peers.values()))
        for it in world.peers.values():
            if it.peer.stage == stage:
                Spoiler(compute_of(it).engine, spoiled)
        follow(world, times)

    with caplog.at_level("WARNING"):
        world = train(run_with(codec), events, layout=LAYOUTS[layout])
    check_skipped(world, set(PLACES))
    check_costs(times)
    names = [name for name, at in LAYOUTS[layout].items() if at == stage]
    for step, what in PLACES.items():
        kinds = ("loss",) if what == "activation" and stage == 2 else (what,)
        said = [it.getMessage() for it in caplog.records if f"step {step} is to be skipped" in it.getMessage()]
        told = [f"the {kind}" for kind in kinds]
        assert any(
            any(word in line for word in told) and f"at stage {stage}" in line and any(name in line for name in names)
            for line in said
        ), (step, what, said)


def test_a_hundred_skipped_steps_in_a_row_fork_nobody() -> None:
    """Every index is spoiled somewhere: at the first stage, too, so that the others get nothing at all."""
    steps, ended = 101, list[float]()
    run = run_with("fp32", steps, skips_limit=0, sequences_per_step=6, validate_every=10)
    factory = Factory(run, Symbols(spoiled=1.0))

    async def main() -> World:
        world = World(run, SymbolicData(run), engine=factory)
        await start_all(world)
        await world.until(lambda: everyone_at(world, steps), 600.0)
        ended.append(asyncio.get_running_loop().time())
        await world.finish()
        return world

    world = run_virtual(main())
    check_skipped(world, set(range(1, steps + 1)))
    for it in world.peers.values():
        assert {len(line["members"]) for line in it.store.ledger} == {2}, "everyone takes part in every step"
        assert it.peer.history.record is not None
        assert it.peer.history.record.skips == steps
    assert ended[0] < steps * 0.5 + 20.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_after_so_many_skipped_steps_everyone_ends_at_the_same_version(layout: str) -> None:
    """From step 6 on nothing is finite any more; checkpoints of what led to that don't push out the good ones."""
    run = run_with("int8", 40, skips_limit=7, checkpoint_every=2)

    async def main() -> World:
        world = World(run, Text(run))
        await start_all(world, LAYOUTS[layout])
        await moment(world, lambda: all(it.compute is not None for it in world.peers.values()))
        for it in world.peers.values():
            if it.peer.stage == 1:
                Spoiler(compute_of(it).engine, lambda where, what: what == "activation" and where >= (6, 0))
        with pytest.raises(BaseExceptionGroup):
            await world.finish(100.0)
        await asyncio.wait([it.task for it in world.peers.values()], timeout=LINGER_SECONDS + 5.0)
        for it in world.peers.values():
            (said,) = it.view.warnings()
            assert said.startswith("the last 7 steps were skipped: the activation of microbatch")
            assert said.endswith("the run ends when 7 in a row are")
        return world

    world = run_virtual(main())
    for it in world.peers.values():
        assert it.peer.history.version == 12
        assert sorted(version for version, stage in it.store.checkpoints if stage == it.peer.stage) == [2, 4]
        (end,) = found_in(it.task.exception())
        assert end.checkpoint == 4
        assert "7 steps in a row were skipped, up to step 12 (skips_limit = 7)" in str(end)
        assert "at stage 1, peer middle" in str(end)


def found_in(trouble: BaseException | None) -> list[RunEnded]:
    """The exceptions that a peer's task ended with, out of their groups."""
    if isinstance(trouble, BaseExceptionGroup):
        return [found for it in trouble.exceptions for found in found_in(it)]
    return [trouble] if isinstance(trouble, RunEnded) else []


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_that_never_gets_an_index_learns_it_from_whom_it_asks(stage: int) -> None:
    """The conductor doesn't hear that it is spoiled: the one before may be gone, with the head's word."""
    times: dict[int, float] = {}

    async def events(world: World) -> None:
        await moment(world, lambda: all(it.compute is not None for it in world.peers.values()))
        for it in world.peers.values():
            report = it.peer.conductor._reports._report_of

            async def deaf(mandate: Any, stage: int, blame: Blame, report: Any = report) -> Any:
                return await report(mandate, stage, NOBODY)

            setattr(it.peer.conductor._reports, "_report_of", deaf)  # noqa: B010
            if it.peer.stage == stage:
                Spoiler(compute_of(it).engine, lambda where, what: what == "activation" and where == (3, INDEX))
        follow(world, times)

    world = train(run_with("int8", 5), events)
    check_skipped(world, {3})
    assert durations(times)[3] < 4.0, "nobody asks for it again and again"


def test_validation_of_bad_numbers_neither_hangs_nor_spoils() -> None:
    run = run_with("fp32", 6, validate_every=2)

    async def events(world: World) -> None:
        await moment(world, lambda: all(it.compute is not None for it in world.peers.values()))
        for it in world.peers.values():
            if it.peer.stage == 1:
                Spoiler(compute_of(it).engine, lambda where, what: what == "activation" and (5, 8) <= where < (6, 0))

    world = train(run, events)
    check_skipped(world, set())
    values = {line["step"]: line["validation_loss"] for line in world.peers["head1"].store.ledger}
    assert values[3] is not None
    assert values[5] is None


def test_who_drains_with_a_sum_that_is_not_finite_hands_over_nothing_and_goes() -> None:
    """No replica is given an infinity: the step in whose sum it is is skipped, and the drain comes to its end."""
    drained: list[Drained] = []

    async def events(world: World) -> None:
        await moment(world, lambda: accumulated(world.peers["middle1"], 3) >= 2)
        compute_of(world.peers["middle1"]).engine.sum.flat[0] = math.inf
        drained.append(await drain(world, "middle1"))

    world = train(run_with("fp32", 6, sequences_per_step=64), events)
    assert [it.heir for it in drained] == [""]
    check_skipped(world, {3})


# ------------------------------------------------------------------------------------------------- norms


@pytest.mark.parametrize("factor", [1.0 + 1e-4, 2.0, 0.0])
def test_a_record_whose_norm_is_not_its_gradients_is_never_applied(
    factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of the stage know its gradient: they refuse the record as acceptors, and when they hear of it."""
    told: list[bool] = []

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 3))
        it = next(it for it in world.peers.values() if it.peer.conductor.is_first(4))
        propose = it.peer.ballots.propose

        async def lie(mandate: Any, record: Record, complete: Any) -> Decision:
            if record.step == 4 and not told:
                told.append(True)
                entry = record.stages[1]
                false = dataclasses.replace(entry, squared_norm=entry.squared_norm * factor)
                stages = (record.stages[0], false, record.stages[2])
                norm, clip = clip_factor([stage.squared_norm for stage in stages], world.run.optimizer.clip_norm)
                made = dataclasses.replace(record, stages=stages, grad_norm=norm, clip_factor=clip)
                question = Accept(mandate.step, mandate.parent, mandate.ballot, made.raw)
                others = [name for name in world.peers if name != it.name]
                answers = await it.peer.links.tell_all(others, question, deadline_s=5.0)
                assert {"tail1", "tail2"} <= answers.keys()
                assert not {"middle1", "middle2"} & answers.keys(), "who knows better doesn't accept it"
                for other in world.peers.values():
                    if other.peer.stage == 1:
                        await other.peer.history.adopt(made, it.name)
                        assert other.peer.history.version == 3
            decision: Decision = await propose(mandate, record, complete)
            return decision

        setattr(it.peer.ballots, "propose", lie)  # noqa: B010

    with caplog.at_level("WARNING"):
        world = train(run_with("fp32", 6), events)
    assert told
    check_skipped(world, set())
    said = [it.getMessage() for it in caplog.records if "is refused" in it.getMessage()]
    assert any("the squared norm of stage 1" in line and "head" in line for line in said), said


def test_norms_may_differ_by_the_order_of_their_sum() -> None:
    world = train(run_with("fp32", 1))
    committed = served_of(world.peers["middle1"]).committed
    committed._norms["digest"] = (1, 2.0)
    record = world.peers["middle1"].peer.history.record
    assert record is not None
    for norm, fits in ((2.0, True), (2.0 * (1 + 1e-9), True), (2.0 * (1 + 1e-5), False)):
        stages = [dataclasses.replace(entry, digest="digest", squared_norm=norm) for entry in record.stages]
        assert (committed.objection(dataclasses.replace(record, stages=tuple(stages))) == "") == fits
