"""Swarms in virtual time that train the toy model with the real torch stage, and what must hold of them."""

import asyncio
import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from swarmd.config import LimitsConfig
from swarmd.errors import NonFinite
from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.compute import SimCompute
from swarmd.sim.world.device import Speed
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.world.world import World
from swarmd.values import Encoded, HopId, TailResult
from tests.sim.toy import (
    PAIRS,
    RUN,
    SHORT,
    accumulated,
    check_agreement,
    check_exact,
    codecs,
    compute_of,
    everyone_at,
    journeys_of,
    ledger_of,
    moment,
    reference,
    start_all,
    trace,
    train,
)

GOLDEN = Path(__file__).with_name("golden.json")
GOLDEN_TOLERANCE = 2e-4  # relative: other CPUs add in another order, and ten steps let that grow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained() -> World:
    """Three stages of two replicas, fp32 on every wire."""
    return train(RUN)


def losses(world: World) -> list[float]:
    return [line["loss"] for line in ledger_of(world)]


# ------------------------------------------------------------------------------------------------- exactness


def test_a_swarm_trains_what_a_single_process_trains(trained: World) -> None:
    check_exact(trained)
    assert losses(trained) == pytest.approx(reference(RUN)[0], rel=1e-5)


def test_replicas_are_identical_after_every_step(trained: World) -> None:
    check_agreement(trained)
    lines = [line for it in trained.peers.values() for line in it.store.ledger]
    assert len(lines) == 6 * RUN.steps
    assert len({(line["stage"], line["digest"]) for line in lines}) == 3 * RUN.steps, "one digest a stage and step"


def test_everyone_took_part(trained: World) -> None:
    for stage, names in enumerate((["head1", "head2"], ["middle1", "middle2"], ["tail1", "tail2"])):
        lines = [line for it in trained.peers.values() for line in it.store.ledger if line["stage"] == stage]
        assert [line["members"] for line in lines].count(names) >= 0.8 * len(lines)


def test_with_int8_on_the_wire_the_loss_falls_as_it_does_without() -> None:
    """So large a learning rate blows rounding up: single steps differ by several percent either way."""
    world = train(dataclasses.replace(RUN, codecs=codecs("int8")))
    check_agreement(world)
    assert fmean(losses(world)[-5:]) == pytest.approx(fmean(reference(RUN)[0][-5:]), rel=0.03)


def test_the_loss_curve_is_the_golden_one(trained: World) -> None:
    """A change that should not alter numbers must leave this curve as it is. To accept another one, write
    `losses(trained)` to golden.json and say why in the commit.
    """
    assert losses(trained) == pytest.approx(json.loads(GOLDEN.read_text())["loss"], rel=GOLDEN_TOLERANCE)


@pytest.mark.parametrize(
    ("stages", "layout"),
    [
        (1, {"solo": 0}),
        (1, {"one": 0, "two": 0, "three": 0}),
        (3, {"head": 0, "middle": 1, "tail": 2}),
        (3, {"head": 0, "middle": 1, "tail1": 2, "tail2": 2, "tail3": 2}),
    ],
    ids=["alone", "replicas only", "pipeline only", "uneven"],
)
def test_swarms_of_other_shapes_are_exact(stages: int, layout: dict[str, int]) -> None:
    world = train(dataclasses.replace(SHORT, model=dataclasses.replace(RUN.model, stages=stages)), layout=layout)
    check_agreement(world)
    check_exact(world)


def test_newcomers_spread_evenly_over_the_stages() -> None:
    async def main() -> list[int | None]:
        world = World(SHORT, Text(SHORT))
        for number in range(7):
            await world.start(f"p{number}")
        await moment(world, lambda: everyone_at(world, 1))
        stages = [it.peer.stage for it in world.peers.values()]
        await world.stop()
        return stages

    stages = run_virtual(main())
    assert sorted(stages.count(stage) for stage in range(3)) == [2, 2, 3]


def test_faster_replicas_do_more() -> None:
    async def main() -> dict[str, int]:
        run = dataclasses.replace(SHORT, sequences_per_step=96, steps=3)
        world = World(run, Text(run))
        await world.start("head", stage=0, speed=Speed(0.001, 0.001))
        await world.start("slow", stage=1, speed=Speed(0.04, 0.08))
        await world.start("fast", stage=1, speed=Speed(0.01, 0.02))
        await world.start("tail", stage=2, speed=Speed(0.001, 0.001))
        done = {"slow": 0, "fast": 0}
        for version in range(1, run.steps):
            await moment(world, functools.partial(everyone_at, world, version))
            await moment(world, lambda step=version + 1: accumulated(world.peers["head"], step) >= 47)  # type: ignore[misc]
            for name in done:
                done[name] += accumulated(world.peers[name], version + 1)
        await world.stop()
        return done

    done = run_virtual(main())
    assert 3.0 <= done["fast"] / done["slow"] <= 5.0, "a replica four times as fast gets about four times as much"


# ------------------------------------------------------------------------------------------------- determinism

SCRIPT = """
import asyncio
from tests.sim.toy import SHORT, everyone_at, moment, trace, train

end = []

async def events(world):
    await moment(world, lambda: everyone_at(world, 1))
    await asyncio.sleep(0.1)
    world.crash("middle2")
    await world.start("new")
    await moment(world, lambda: everyone_at(world, 5))
    end.append(asyncio.get_running_loop().time())

print(trace(train(SHORT, events, seed=11), end[0]))
"""


def test_the_same_seed_gives_the_same_history_whatever_the_hash_seed() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    answers = [process.communicate(timeout=50) for process in runs]
    assert all(process.returncode == 0 for process in runs), answers
    assert answers[0][0] == answers[1][0]
    assert len(answers[0][0].strip()) == 16


def test_another_seed_gives_another_history() -> None:
    link = LinkSpec(jitter_s=0.002)  # calm machines on links that never vary leave nothing to chance
    worlds = [train(RUN, seed=seed, link=link) for seed in (0, 1)]
    assert trace(worlds[0], 0.0) != trace(worlds[1], 0.0)
    for world in worlds:
        check_exact(world)


# ------------------------------------------------------------------------------------------------- waiting


def test_a_swarm_that_lacks_a_stage_waits_says_which_and_goes_on() -> None:
    async def main() -> World:
        world = World(SHORT, Text(SHORT))
        await start_all(world, {"head1": 0, "head2": 0, "middle1": 1})
        await asyncio.sleep(30)
        for it in world.peers.values():
            assert it.peer.history.version == 0
            assert "stage 2" in it.view.waiting_for()
        await world.start("tail1", stage=2)
        await moment(world, lambda: everyone_at(world, 1), 10)
        assert all(it.view.waiting_for() == "" for it in world.peers.values())
        await world.finish()
        return world

    world = run_virtual(main())
    check_agreement(world)
    check_exact(world)


def test_a_stage_that_dies_out_stops_the_swarm_without_breaking_it() -> None:
    """Its parameters are gone; coming back from a checkpoint is another matter."""

    async def main() -> None:
        world = World(SHORT, Text(SHORT))
        await start_all(world)
        await moment(world, lambda: everyone_at(world, 2))
        world.crash("middle1")
        world.crash("middle2")
        await asyncio.sleep(60)
        versions = [it.peer.history.version for it in world.peers.values()]
        await world.start("late", stage=1)
        await asyncio.sleep(60)
        assert [it.peer.history.version for it in world.peers.values()][:-1] == versions
        assert all("stage 1" in it.view.waiting_for() for it in world.peers.values())
        assert not any(it.task.done() for it in world.peers.values())
        await world.stop()

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- bad numbers


def refuse_loss(compute: SimCompute, hop: HopId) -> None:
    """This microbatch's loss is not finite, wherever it is computed."""
    tail = compute.engine.tail

    def spoiled(key: HopId, *arguments: Any, **options: Any) -> TailResult:
        if key == hop:
            raise NonFinite("the loss is nan")
        return tail(key, *arguments, **options)

    setattr(compute.engine, "tail", spoiled)  # noqa: B010 - mypy forbids it in any other way


def spoil_gradient(compute: SimCompute, hop: HopId) -> None:
    """The tail hands back infinities for this microbatch, having counted it itself."""
    tail = compute.engine.tail

    def spoiled(key: HopId, *arguments: Any, **options: Any) -> TailResult:
        result = tail(key, *arguments, **options)
        if key == hop and result.gradient is not None:
            bad = b"\x00\x00\x80\x7f" * (result.gradient.nbytes // 4)  # +inf in fp32
            return dataclasses.replace(result, gradient=Encoded("fp32", result.gradient.shape, (bad,)))
        return result

    setattr(compute.engine, "tail", spoiled)  # noqa: B010 - mypy forbids it in any other way


@pytest.mark.parametrize("spoil", [refuse_loss, spoil_gradient])
def test_a_step_with_bad_numbers_is_skipped_and_training_goes_on(spoil: Any) -> None:
    bad = HopId(3, 5)

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 1))
        for name in ("tail1", "tail2"):
            spoil(compute_of(world.peers[name]), bad)

    world = train(SHORT, events)
    check_agreement(world)
    for it in world.peers.values():
        before, skipped, after = it.store.ledger[1:4]
        assert (skipped["step"], skipped["skipped"], skipped["loss"], skipped["lost"]) == (3, True, None, 0)
        assert skipped["digest"] == before["digest"], "a skipped step changes no parameter"
        assert after["digest"] != before["digest"]
        assert not before["skipped"]
        assert not after["skipped"]
    assert losses(world)[-1] < losses(world)[1]


# ------------------------------------------------------------------------------------------------- bounds


def test_peers_with_room_for_one_hop_say_busy_and_let_the_run_end() -> None:
    ended, told_busy = 0.0, 0

    async def events(world: World) -> None:
        nonlocal ended, told_busy
        middle = world.peers["middle"].peer
        await moment(world, lambda: middle.journeys is not None and bool(middle.journeys.admission._told_busy))
        told_busy += 1
        await moment(world, lambda: everyone_at(world, SHORT.steps))
        ended = asyncio.get_running_loop().time()

    layout = {"head1": 0, "head2": 0, "head3": 0, "middle": 1, "tail": 2}
    world = train(SHORT, events, layout=layout, limits=LimitsConfig(in_flight_hops=1))
    check_agreement(world)
    check_exact(world)
    assert told_busy == 1
    # 48 hops of 0.07 s, one after another. Waiting for heartbeats instead of for word of room would take minutes.
    assert ended < 20


def test_messages_that_had_to_be_evicted_cost_no_exactness() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        await moment(world, lambda: accumulated(world.peers["middle1"], 4) >= 2)
        evicted = [it.peer.journeys.custodian.retention.evicted for it in world.peers.values() if it.peer.journeys]
        assert sum(evicted) > 0, "the bound was meant to be tight"
        world.crash("middle1")

    world = train(SHORT, events, limits=LimitsConfig(retained_bytes=1000))
    check_agreement(world)
    check_exact(world)


def test_memory_of_a_step_ends_with_it(trained: World) -> None:
    for it in trained.peers.values():
        journeys, custodian = journeys_of(it), journeys_of(it).custodian
        assert (custodian.retention.nbytes, len(journeys.hops), custodian.custody.waiting()) == (0, 0, {})
        assert len(compute_of(it).engine.kept) == 0


# ------------------------------------------------------------------------------------------------- ledger


def test_validation_loss_appears_every_so_many_steps() -> None:
    world = train(dataclasses.replace(SHORT, validate_every=2, validation_microbatches=3))
    for it in world.peers.values():
        values = {line["step"]: line["validation_loss"] for line in it.store.ledger}
        # The loss of version 2 is in the record of step 3, and so on.
        assert [step for step, value in values.items() if value is not None] == [3, 5]
        assert 0 < values[5] < values[3] < 5
    check_exact(world)


def test_a_ledger_tells_what_each_step_contained(trained: World) -> None:
    for it in trained.peers.values():
        for step, line in enumerate(it.store.ledger, start=1):
            assert line["step"] == step
            assert line["tokens"] == RUN.microbatches * RUN.tokens_per_microbatch
            assert line["lr"] == pytest.approx(RUN.optimizer.learning_rate * min(1, step / 2))
            assert 0 < line["seconds"] < 2
            assert line["grad_norm"] > 0


def test_checkpoints_are_written_at_their_versions_and_at_the_end() -> None:
    world = train(dataclasses.replace(SHORT, checkpoint_every=4))
    for it in world.peers.values():
        assert sorted(version for version, stage in it.store.checkpoints if stage == it.peer.stage) == [4, 6]
    for one, other in (("head1", "head2"), ("middle1", "middle2"), ("tail1", "tail2")):
        mine, its = (world.peers[name].store.checkpoints for name in (one, other))
        stage = world.peers[one].peer.stage or 0
        assert [mine[version, stage] for version in (4, 6)] == [its[version, stage] for version in (4, 6)]


def test_status_words_are_there_while_it_runs() -> None:
    async def main() -> None:
        world = World(SHORT, Text(SHORT))
        await start_all(world)
        await moment(world, lambda: accumulated(world.peers["middle1"], 2) >= 2)
        peer, view = world.peers["middle1"].peer, world.peers["middle1"].view
        assert peer.figures.microbatches_per_second() > 1
        assert 0 < view.progress() <= 1
        assert view.queues().in_flight == len(view.rows())
        assert {row.peer_id for row in view.peer_rows()} == set(PAIRS)
        await world.stop()

    run_virtual(main())
