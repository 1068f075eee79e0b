"""Parameters that a step would make not finite: they replace nothing, the swarm returns to a checkpoint, and where that
doesn't help the run ends, for everyone at the same version.
"""

import asyncio
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from swarmd import chunks
from swarmd.config import RunConfig
from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.device import Speed
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.peer.ending import LINGER_SECONDS
from tests.sim.test_bad_numbers import SINGLES, found_in
from tests.sim.toy import PAIRS, RUN, check_agreement, check_exact, compute_of, everyone_at, moment, start_all

STEP = 8
SAVING = dataclasses.replace(RUN, steps=12, checkpoint_every=3)
ALONE = dataclasses.replace(SAVING, model=dataclasses.replace(RUN.model, stages=1))
SECONDS = 300.0  # virtual: far less than it takes to find a stage lost and go back for that
SLOW = Speed(0.05, 0.1)  # a step takes longer than half the time between two cards
Broken = Callable[[str, int], bool]
"""Whether a peer's parameters come out not finite, at the so many-th time that it takes the step."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2048)


def spoil(it: SimPeer, broken: Broken) -> None:
    """The optimizer's arithmetic overflows at the step."""
    engine, times = compute_of(it).engine, [0]
    step = engine.optimizer.step

    def wrapped(*arguments: Any, **options: Any) -> Any:
        values = step(*arguments, **options)
        times[0] += engine.version + 1 == STEP
        if engine.version + 1 == STEP and broken(it.name, times[0]):
            values[0] = values[0] * math.inf
        return values

    setattr(engine.optimizer, "step", wrapped)  # noqa: B010


def play(
    run: RunConfig,
    layout: dict[str, int],
    stage: int,
    broken: Broken,
    *,
    ends: bool = False,
    speed: Speed | None = None,
) -> World:
    async def main() -> World:
        world = World(run, Text(run))
        await start_all(world, layout, speed=speed)
        await moment(world, lambda: all(it.compute is not None for it in world.peers.values()))
        for it in world.peers.values():
            if it.peer.stage == stage:
                spoil(it, broken)
        if not ends:
            await world.until(lambda: everyone_at(world, run.steps), SECONDS)
            await world.finish(SECONDS)
            return world
        with pytest.raises(BaseExceptionGroup):
            await world.finish(SECONDS)
        await asyncio.wait([it.task for it in world.peers.values()], timeout=LINGER_SECONDS + 5.0)
        return world

    return run_virtual(main())


def check_chain(world: World) -> None:
    """Every step is in every ledger once, and nobody has a checkpoint of the version that was refused."""
    for it in world.peers.values():
        assert [line["step"] for line in it.store.ledger] == list(range(1, world.run.steps + 1))
        assert not any(line["forked"] for line in it.store.ledger)
    check_exact(world)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("layout", [SINGLES, PAIRS], ids=["singles", "pairs"])
def test_the_swarm_returns_to_the_newest_whole_checkpoint(layout: dict[str, int], stage: int) -> None:
    world = play(SAVING, layout, stage, lambda name, times: times == 1)
    check_chain(world)
    for it in world.peers.values():
        returned = it.peer.history.returned
        assert returned is not None
        assert (returned.step, returned.after_version, returned.broke_at, returned.ends) == (6, STEP, STEP, False)
        assert f"the parameters of stage {stage} came out not finite at step {STEP}" in returned.why
        if it.peer.stage != stage:
            assert [line["step"] for line in it.store.voided] == [6, 7, STEP], "what came after it is void"


def test_a_swarm_of_one_stage_returns_too() -> None:
    world = play(ALONE, {"one": 0, "two": 0}, 0, lambda name, times: times == 1)
    check_chain(world)
    assert {it.peer.history.returned.step for it in world.peers.values() if it.peer.history.returned} == {6}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_second_time_at_the_same_step_the_run_ends(stage: int) -> None:
    world = play(SAVING, PAIRS, stage, lambda name, times: True, ends=True)
    for it in world.peers.values():
        assert it.peer.history.version == STEP
        assert max(version for version, _ in it.store.checkpoints) == 6
        (end,) = found_in(it.task.exception())
        assert end.checkpoint == 6
        assert f"the parameters of stage {stage} came out not finite at step {STEP}, also after" in str(end)


def test_where_there_is_no_checkpoint_the_run_ends_at_once() -> None:
    run = dataclasses.replace(SAVING, checkpoint_every=100)
    world = play(run, PAIRS, 1, lambda name, times: True, ends=True)
    for it in world.peers.values():
        assert it.peer.history.version == STEP
        assert not it.store.checkpoints
        (end,) = found_in(it.task.exception())
        assert end.checkpoint is None
        assert "there is no checkpoint to return to" in str(end)


def test_one_replica_whose_arithmetic_fails_takes_the_others_state() -> None:
    """One bad device sends nobody back."""
    run = dataclasses.replace(SAVING, steps=20)
    world = play(run, PAIRS, 1, lambda name, times: name == "middle1", speed=SLOW)
    check_agreement(world, gaps=["middle1"])
    check_exact(world)
    assert not any(it.peer.history.returned for it in world.peers.values())
    assert STEP not in [line["step"] for line in world.peers["middle1"].store.ledger]


def test_at_the_last_step_the_run_ends_without_that_version() -> None:
    run = dataclasses.replace(SAVING, steps=STEP)
    world = play(run, PAIRS, 1, lambda name, times: True, ends=True)
    for it in world.peers.values():
        found = found_in(it.task.exception() if not it.task.cancelled() else None)
        assert bool(found) == (it.peer.stage == 1)
        assert (STEP, 1) not in it.store.checkpoints
