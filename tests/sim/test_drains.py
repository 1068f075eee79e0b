"""Peers that drain: nothing that was computed is lost, whoever dies at whatever moment, and no step is decided by fewer
than before. Symbolic swarms, of which every promise is checked; one with real gradients.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import pytest

from swarmd.errors import Refused
from swarmd.sim.campaign.play import Play, play
from swarmd.sim.faults import point_actions
from swarmd.sim.faults.commands import Drain, Hold
from swarmd.sim.faults.machines import Crash
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import Action, SimPeer, World
from swarmd.swarm.peer.drain import Drained
from tests.sim.toy import (
    PAIRS,
    SHORT,
    check_agreement,
    check_exact,
    everyone_at,
    moment,
    step_of,
    sums_of,
    train,
)

BOUND = 60.0
MICROBATCHES = 60


def drain(world: World, name: str, bound_s: float = BOUND) -> "asyncio.Task[Drained]":
    """Has a peer drain, on its own machine, and its process end."""
    it = world.peers[name]

    async def end() -> None:
        await asyncio.wait([task])
        if world.peers.get(name) is it:
            world.crash(name)

    task = it.machine.spawn(it.peer.drain(bound_s), name=f"drain {name}")
    world.spawn(end())
    return task


async def half_done(world: World, name: str) -> None:
    """Until the peer has some of the present step in its sum, and the step is far from its end."""
    it = world.peers[name]

    def some() -> bool:
        book = sums_of(it).of(step_of(world))
        everyone = [len(sums_of(other).of(step_of(world)).accumulated) for other in world.peers.values()]
        return len(book.accumulated) >= 2 and sum(everyone) <= MICROBATCHES * 3 // 2

    await world.until(some, 60)


def swarm(
    events: Callable[[World], Awaitable[None]], *, replicas: tuple[int, ...] = (2, 3, 2), steps: int = 4
) -> World:
    """A symbolic swarm to which something happens, and of which every promise is checked."""
    scenario = Scenario(replicas=replicas, steps=steps, microbatches=MICROBATCHES, speeds=(0.05,))

    async def main() -> World:
        course = Play(scenario, trace=False)
        for peer, stage in scenario.peers.items():
            await course.start(peer, stage)
        await course.world.until(lambda: everyone_at(course.world, 2), 60)
        course.watch.look()
        course.leaving.update(scenario.peers)
        await events(course.world)
        await course.world.until(lambda: everyone_at(course.world, steps), 600)
        course.watch.look()
        course.watch.conclude()
        await course.stop()
        assert not course.watch.found, course.watch.found
        return course.world

    return run_virtual(main())


def ledgers(world: World) -> list[dict[str, object]]:
    return [line for it in world.peers.values() for line in it.store.ledger]


def check_nothing_repaired(world: World) -> None:
    """Nobody computed anything twice, and nobody went on alone."""
    for line in ledgers(world):
        assert (line["resent"], line["subtracted"], line["lost"], line["duplicated"]) == (0, 0, 0, 0), line
        assert not line["forked"]


def check_nothing_lost(world: World) -> None:
    """Hops that wait elsewhere may go to a peer that goes on: they count as sent again, and are in one sum."""
    for line in ledgers(world):
        assert (line["lost"], line["duplicated"], line["forked"]) == (0, 0, False), line


# ------------------------------------------------------------------------------------------------- the usual way


@pytest.mark.parametrize("name", ["head2", "middle2", "tail2"])
def test_who_drains_hands_its_sum_over_and_nothing_is_computed_twice(name: str) -> None:
    results: list[Drained] = []

    async def events(world: World) -> None:
        await half_done(world, name)
        before = step_of(world)
        drained = await drain(world, name)
        results.append(drained)
        assert step_of(world) <= before + 1, "it doesn't stay for more than the present step"

    world = swarm(events)
    assert results[0].handed_over >= 2
    assert results[0].heir[:-1] == name[:-1]
    assert (results[0].lost, results[0].given_up, results[0].stage_left_empty) == (0, 0, False)
    check_nothing_repaired(world)


def test_with_real_gradients_the_result_is_that_of_one_process() -> None:
    drains: list[Drained] = []

    async def events(world: World) -> None:
        for name in ("middle2", "tail2", "head2"):
            it = world.peers[name]
            await moment(world, lambda it=it: bool(sums_of(it).of(step_of(world)).accumulated))  # type: ignore[misc]
            drains.append(await drain(world, name))

    world = train(SHORT, events, layout=PAIRS)
    assert sum(drained.handed_over for drained in drains) > 0
    check_agreement(world)
    check_exact(world)


def test_the_last_replica_leaves_all_the_same_and_says_so() -> None:
    """A newcomer can't take its place without its state: here another replica comes before."""

    async def main() -> None:
        scenario = Scenario(replicas=(2, 1), steps=8, microbatches=MICROBATCHES)
        course = Play(scenario, trace=False)
        for peer, stage in scenario.peers.items():
            await course.start(peer, stage)
        world = course.world
        await moment(world, lambda: everyone_at(world, 2))
        it = world.peers["tail1"]
        drained = await drain(world, "tail1")
        assert drained.stage_left_empty
        assert drained.heir == ""
        assert max(version for version, _ in it.store.checkpoints) == it.peer.history.version, (
            "its state is on its disk"
        )
        await world.until(lambda: "stage 1" in world.peers["head1"].view.waiting_for(), 30)
        await course.stop()

    run_virtual(main())


def test_who_drains_before_the_first_step_leaves_no_checkpoint() -> None:
    """Version 0 is made from the seed, and has no record with which a run could go on from it."""

    async def main() -> None:
        scenario = Scenario(replicas=(1, 1), steps=8, microbatches=MICROBATCHES)
        course = Play(scenario, trace=False)
        for peer, stage in scenario.peers.items():
            await course.start(peer, stage)
        world = course.world
        await world.until(lambda: all(it.peer.state == "serving" for it in world.peers.values()), 30)
        for name in list(world.peers):
            it = world.peers[name]
            drained = await drain(world, name, 2.0)
            assert (it.peer.history.version, drained.stage_left_empty) == (0, True)
            assert not it.store.checkpoints
        await course.stop()

    run_virtual(main())


def test_all_drain_at_once_within_the_bound() -> None:
    async def main() -> None:
        scenario = Scenario(replicas=(2, 2, 2), steps=50, microbatches=MICROBATCHES, speeds=(0.05,))
        course = Play(scenario, trace=False)
        for peer, stage in scenario.peers.items():
            await course.start(peer, stage)
        world = course.world
        await moment(world, lambda: everyone_at(world, 2))
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(drain(world, name, 20.0) for name in list(world.peers)))
        assert asyncio.get_running_loop().time() - began <= 20.0
        await course.stop()

    run_virtual(main())


def test_a_bound_that_is_too_short_is_kept() -> None:
    async def events(world: World) -> None:
        await half_done(world, "middle1")
        world.hang("middle1")
        began = asyncio.get_running_loop().time()
        await drain(world, "middle1", 1.0)
        assert asyncio.get_running_loop().time() - began < 1.5

    swarm(events)


def test_who_drains_while_it_moves_stays_at_its_old_stage_and_leaves() -> None:
    async def events(world: World) -> None:
        it = world.peers["middle2"]
        moving = it.machine.spawn(it.peer.mover.move(2))
        moving.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.sleep(0.01)
        await drain(world, "middle2")

    swarm(events)


# ------------------------------------------------------------------------------------------------- faults on the way

POINTS = ["ask.HandOver", "serve.HandOver", "served.HandOver", "asked.HandOver", "begin.absorb", "end.absorb"]


FAULTS = [
    *(("middle2", point, point_actions.crash) for point in POINTS),
    *(("head2", point, point_actions.lose_power) for point in POINTS[1:4]),
    *(("tail2", point, point_actions.drop_frame) for point in POINTS[:4]),
    ("tail2", "begin.absorb", point_actions.run_out_of_memory),
    ("head2", "end.absorb", point_actions.crash),
]


@pytest.mark.parametrize(("name", "point", "action"), FAULTS)
def test_either_side_may_die_at_any_moment(name: str, point: str, action: Action) -> None:
    async def events(world: World) -> None:
        world.fail_at("*", None, point, action)
        await half_done(world, name)
        await asyncio.wait([drain(world, name)])
        assert world.points.fired, "the drain passed that point"

    replicas = {"head2": (3, 2, 2), "middle2": (2, 3, 2), "tail2": (2, 2, 3)}
    swarm(events, replicas=replicas[name])


@pytest.mark.parametrize("point", ["serve.Freeze", "served.Freeze", "ask.Plan", "served.Commit"])
def test_a_drain_that_begins_in_the_round(point: str) -> None:
    """Its sum is in the record then, or with a sibling, but not in both."""

    async def events(world: World) -> None:
        begun: list[str] = []

        def act(world: World, name: str) -> None:
            begun.append(name)

        for name in ("head2", "middle2", "tail2"):
            world.fail_at(name, None, point, act)
        await moment(world, lambda: bool(begun))
        await asyncio.wait([drain(world, begun[0])])

    world = swarm(events, replicas=(2, 2, 2))
    assert all(line["lost"] == line["duplicated"] == 0 for line in ledgers(world))


def test_the_heir_dies_afterwards() -> None:
    async def events(world: World) -> None:
        await half_done(world, "middle2")
        drained = await drain(world, "middle2")
        assert drained.heir
        world.crash(drained.heir)

    swarm(events)


def test_drains_all_over_while_others_crash_and_come_back() -> None:
    faults = (
        Drain(0.5, "head1", 30.0),
        Drain(0.6, "tail2", 5.0),
        Crash(0.9, "head2", back_s=0.5),
        Hold(0.4, "middle1", 1.0),
        Drain(1.4, "middle3", 30.0),
        Crash(1.4, "tail1", power=True, back_s=1.0),
        Drain(1.6, "tail3", 0.2),
    )
    outcome = play(Scenario(replicas=(3, 3, 3), steps=30, microbatches=12, faults=faults))
    assert outcome.passed, outcome.violations
    assert outcome.struck["drain"] >= 3


# ------------------------------------------------------------------------------------------------- pausing


def test_who_pauses_gets_no_more_hops_attends_rounds_and_goes_on() -> None:
    async def events(world: World) -> None:
        it = world.peers["middle2"]
        await it.machine.spawn(it.peer.pause())
        assert it.peer.state == "paused"
        began = step_of(world)
        await moment(world, lambda: everyone_at(world, began + 1))
        paused = [line for line in it.store.ledger if line["step"] == began + 1]
        assert len(paused) == 1, "it takes the step with the others"
        assert "middle2" not in paused[0]["members"], "and had nothing in its sum"
        await it.machine.spawn(it.peer.resume())
        await moment(world, lambda: bool(sums_of(it).of(step_of(world)).accumulated))

    check_nothing_lost(swarm(events, steps=8))


def test_a_stage_that_pauses_as_a_whole_waits_until_it_goes_on() -> None:
    async def events(world: World) -> None:
        tails = [world.peers["tail1"], world.peers["tail2"]]
        for it in tails:
            await it.machine.spawn(it.peer.pause())
        await asyncio.sleep(5)
        began = step_of(world)
        await asyncio.sleep(30)
        assert step_of(world) == began
        assert "paused" in world.peers["head1"].view.waiting_for()
        for it in tails:
            await it.machine.spawn(it.peer.resume())

    check_nothing_lost(swarm(events, steps=6))


def test_what_cannot_pause_says_why() -> None:
    async def events(world: World) -> None:
        it: SimPeer = world.peers["middle2"]
        with pytest.raises(Refused, match="not paused"):
            await it.peer.resume()
        moving = it.machine.spawn(it.peer.mover.move(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="moves"):
            await it.peer.pause()
        await asyncio.wait([moving])

    swarm(events)


def test_scenarios_draw_drains() -> None:
    from swarmd.sim.faults.draw import draw_scenario

    drawn = [type(fault) for seed in range(60) for fault in draw_scenario(seed).faults]
    assert drawn.count(Drain) > 3
    assert drawn.count(Hold) > 1
    assert dataclasses.is_dataclass(Drain)
