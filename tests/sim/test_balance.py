"""Peers that go where they are needed of their own accord: the swarm settles, stays settled, and loses nothing."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from swarmd.sim.campaign.play import Play, play
from swarmd.sim.faults.logical import PointFault
from swarmd.sim.faults.machines import Crash
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.points import ANYONE, GROUPS
from swarmd.sim.world.world import World
from swarmd.swarm.balance.balancer import rest_seconds
from swarmd.swarm.history.record import Move
from tests.sim.toy import RUN, check_agreement, check_exact, everyone_at, moment, train

PERIOD_SECONDS = 10.0
UNEVEN = Scenario(replicas=(5, 1, 1), steps=40, microbatches=12, speeds=(0.05,), rebalance_seconds=PERIOD_SECONDS)


def layout(world: World) -> list[int]:
    """The number of peers that serve each stage."""
    counts = Counter(it.peer.stage for it in world.peers.values() if it.peer.state == "serving")
    return [counts[stage] for stage in range(world.run.model.stages)]


def moves(world: World) -> list[Move]:
    """The moves in the records of the living."""
    records = {step: record for it in world.peers.values() for step, record in it.peer.history.chain._records.items()}
    return [move for step in sorted(records) for move in records[step].moves]


def swarm(scenario: Scenario, events: Callable[[World], Awaitable[None]], *, until: int) -> World:
    """A symbolic swarm to which something happens, and of which every promise is checked up to a version."""

    async def main() -> World:
        course = Play(scenario, trace=False)
        for peer, stage in scenario.peers.items():
            await course.start(peer, stage)
        await events(course.world)
        await course.world.until(lambda: everyone_at(course.world, until), 3600)
        course.watch.look()
        await course.stop()
        assert not course.watch.found, course.watch.found
        return course.world

    return run_virtual(main())


async def nothing(world: World) -> None:
    """Happens."""


# ------------------------------------------------------------------------------------------------- settling


def test_an_uneven_swarm_settles_at_the_best_placement_and_stays_there() -> None:
    """For longer than a peer rests after a move."""
    settled: list[float] = []

    async def events(world: World) -> None:
        await world.until(lambda: layout(world) == [3, 2, 2], 60)
        settled.append(asyncio.get_running_loop().time())
        reasons = [it.peer.balancer.reason for it in world.peers.values() if it.peer.balancer.reason]
        said = [reason.partition(":")[0] for reason in sorted(reasons)]
        assert said == ["stage 1 needs it more than stage 0", "stage 2 needs it more than stage 0"]
        while asyncio.get_running_loop().time() < settled[0] + 1.5 * rest_seconds(PERIOD_SECONDS):
            await asyncio.sleep(1)
            assert layout(world) == [3, 2, 2]

    world = swarm(dataclasses.replace(UNEVEN, steps=2000), events, until=60)
    assert settled[0] < 4 * PERIOD_SECONDS
    assert [(move.source, move.target) for move in moves(world)] in ([(0, 1), (0, 2)], [(0, 2), (0, 1)])


def test_it_goes_faster_for_it() -> None:
    async def events(world: World) -> None:
        await world.until(lambda: layout(world) == [3, 2, 2], 60)

    world = swarm(UNEVEN, events, until=40)
    records = {step: it for peer in world.peers.values() for step, it in peer.peer.history.chain._records.items()}
    assert records[39].seconds < 0.65 * records[2].seconds


def test_nobody_moves_where_it_is_switched_off_or_even() -> None:
    for replicas, period_s in (((5, 1, 1), 0.0), ((3, 2, 2), 5.0), ((2, 2), 5.0), ((1, 1, 1), 5.0)):
        scenario = dataclasses.replace(UNEVEN, replicas=replicas, rebalance_seconds=period_s)
        assert moves(swarm(scenario, nothing, until=20)) == []


def test_the_fast_one_goes_where_it_is_needed() -> None:
    """Stage 1 has two slow peers, stage 0 five fast ones."""
    scenario = dataclasses.replace(
        UNEVEN, replicas=(3, 2), speeds=(0.02, 0.2, 0.02, 0.2, 0.02), rebalance_seconds=PERIOD_SECONDS
    )

    async def events(world: World) -> None:
        await world.until(lambda: layout(world) == [2, 3], 60)

    world = swarm(scenario, events, until=40)
    assert [(move.source, move.target) for move in moves(world)] == [(0, 1)]


def test_whoever_is_to_go_soon_has_its_place_taken_before_it_goes() -> None:
    """It works on meanwhile, and nobody is lost when it goes."""
    told: list[float] = []

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 3))
        it = world.peers["middle1"]
        await it.machine.spawn(it.peer.end_soon(), name="end soon")
        told.append(asyncio.get_running_loop().time())
        await world.until(lambda: layout(world) == [3, 3, 2], 60)
        assert it.peer.state == "serving"
        await it.machine.spawn(it.peer.drain(20.0), name="drain")
        await world.until(lambda: layout(world) == [3, 2, 2], 60)

    world = swarm(dataclasses.replace(UNEVEN, replicas=(4, 2, 2)), events, until=30)
    assert [(move.source, move.target) for move in moves(world)] == [(0, 1)]


def test_a_stage_that_loses_peers_is_helped_soon() -> None:
    """Much sooner than the next look is due: deaths are news."""
    helped: list[float] = []

    async def events(world: World) -> None:
        await world.until(lambda: everyone_at(world, 3), 600)
        began = asyncio.get_running_loop().time()
        for name in ("middle1", "middle2"):
            world.crash(name)
        await world.until(lambda: layout(world) == [2, 2, 3], 600)
        helped.append(asyncio.get_running_loop().time() - began)

    scenario = dataclasses.replace(UNEVEN, replicas=(3, 3, 3), steps=60, rebalance_seconds=300.0)
    world = swarm(scenario, events, until=60)
    assert helped[0] < 60
    assert len(moves(world)) == 1


def test_real_gradients_stay_exact() -> None:
    run = dataclasses.replace(
        RUN, steps=24, rebalance_seconds=0.5, optimizer=dataclasses.replace(RUN.optimizer, learning_rate=2e-3)
    )
    crowd = {"head1": 0, "middle1": 1, "tail1": 2, "tail2": 2, "tail3": 2, "tail4": 2}

    async def events(world: World) -> None:
        await moment(world, lambda: layout(world) == [2, 2, 2])

    world = train(run, events, layout=crowd)
    assert len(moves(world)) == 2
    check_agreement(world)
    check_exact(world)


# ------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("action", ["crash", "pause"])
@pytest.mark.parametrize(
    "point", ["ask.AskChunk", "asked.AskMove", "serve.AskMove", "begin.import_state", "ask.Accept"]
)
def test_a_fault_at_a_move_costs_nothing_but_time(point: str, action: str) -> None:
    assert point in {it for group in GROUPS.values() for it in group.points()}
    fault = PointFault(0.0, ANYONE, None, point, action, seconds=20.0 if action == "pause" else 0.0)
    outcome = play(dataclasses.replace(UNEVEN, steps=10, rebalance_seconds=2.0, faults=(fault,)))
    assert outcome.passed, outcome.violations


def test_peers_move_while_others_crash_and_come_back() -> None:
    faults = tuple(
        Crash(0.7 * number + 1.0, name, power=number % 2 == 1, back_s=1.0)
        for number, name in enumerate(("head1", "middle1", "tail2", "head2", "head3", "middle2"))
    )
    scenario = Scenario(
        replicas=(4, 2, 2), steps=30, microbatches=12, speeds=(0.01, 0.03), rebalance_seconds=1.0, faults=faults
    )
    outcome = play(scenario)
    assert outcome.passed, outcome.violations
