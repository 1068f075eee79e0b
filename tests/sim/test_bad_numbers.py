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
from swarmd.sim.world import World
from swarmd.stage.engine import StageEngine
from swarmd.swarm.commit import Record
from swarmd.values import Encoded, HopId
from tests.sim.toy import PAIRS, RUN, check_agreement, compute_of, moment, train

PLACES = {2: "activation", 4: "gradient", 6: "sum", 8: "average"}
"""What isn't finite in which step."""

INDEX = 5
COSTS = 1.5  # times the median: what a skipped step, or the one after it, may take
SINGLES = {"head": 0, "middle": 1, "tail": 2}
LAYOUTS = {"singles": SINGLES, "pairs": PAIRS}


class Spoiler:
    """Makes numbers of one engine come out not finite: those of its own arithmetic, as far as there is any."""

    def __init__(self, engine: StageEngine, spoiled: Callable[[HopId | int, str], bool]) -> None:
        self._engine, self._spoiled = engine, spoiled
        self._hop = HopId(0, 0)
        engine.module.register_forward_hook(self._forward)
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
        it.peer.history.on_commit(note)


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
            assert (digests[step] == digests.get(step - 1)) == (step in steps)


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
