"""A run is founded twice, by halves that don't see each other. Where both go on from disks, one history wins when they
meet; where both begin anew and lack each other's stages, one founder leaves the first step to the other.
"""

import pytest

from swarmd.config import LimitsConfig
from swarmd.sim.campaign.play import Play
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import World
from tests.sim.toy import everyone_at

SCENARIO = Scenario(
    replicas=(2, 2, 2),
    steps=60,
    speeds=(0.05,),
    checkpoint_every=3,
    limits=LimitsConfig(stage_lost_timeout_s=20.0, fork_timeout_s=10.0),
)
HALVES = [[name for name in SCENARIO.peers if name.endswith(number)] for number in ("1", "2")]
SECONDS = 300.0  # virtual


async def found_twice(course: Play, apart_s: float) -> None:
    """Everyone goes down; each half comes back alone, and its first peer founds the run from what is on disks."""
    world = course.world
    await world.until(lambda: everyone_at(world, 8), SECONDS)
    world.preempt(list(world.peers))
    world.network.partition(HALVES)
    for founder, *others in HALVES:
        await course.restart(founder, disk=True, entries=())
        for name in others:
            await course.restart(name, disk=True, entries=(founder,))
        await world.sleep(apart_s)
    await world.until(lambda: everyone_at(world, 9), SECONDS)
    for half in HALVES:
        assert {world.peers[name].peer.history.origin.founder for name in half} == {half[0]}
    assert len(histories(world)) == 2


def histories(world: World, version: int = 9) -> set[str]:
    return {it.peer.history.chain.hash_at(version) for it in world.peers.values()}


async def meet(world: World, one: str, other: str) -> None:
    """Lets one peer greet another, as a daemon greets those that its home knows."""
    world.peers[one].transport.learn(other, ())
    await world.peers[one].peer.links.greet(other)


@pytest.mark.parametrize(
    ("apart_s", "names"), [(0.0, (HALVES[0][0], HALVES[1][0])), (4.0, (HALVES[1][2], HALVES[0][1]))]
)
def test_two_foundings_meet_as_a_fork_and_one_history_wins(apart_s: float, names: tuple[str, str]) -> None:
    async def main() -> World:
        course = Play(SCENARIO, trace=False)
        for peer, stage in SCENARIO.peers.items():
            await course.start(peer, stage)
        await found_twice(course, apart_s)
        course.world.network.heal()
        await meet(course.world, *names)
        await course.world.until(lambda: len(histories(course.world)) == 1, SECONDS)
        assert all(not it.peer.history.finished for it in course.world.peers.values()), "they went on together"
        await course.world.until(lambda: everyone_at(course.world, SCENARIO.steps), SECONDS)
        course.watch.look()
        course.watch.conclude()
        await course.stop()
        assert not course.watch.found, course.watch.found
        return course.world

    world = run_virtual(main())
    crossed = {name for name, it in world.peers.items() if any(line["step"] >= 9 for line in it.store.voided)}
    assert crossed in (set(HALVES[0]), set(HALVES[1])), "one half took the other's history"


NEW = Scenario(replicas=(2, 2, 2), steps=3, speeds=(0.05,), limits=LimitsConfig(fork_timeout_s=10.0))


@pytest.mark.parametrize(
    "halves",
    [
        (("head1", "tail1"), ("middle1",)),  # no head follows the second founder
        (("middle1", "tail1"), ("head1",)),  # nor the first one
        (("head1", "middle1"), ("head2", "tail1")),  # each has its own head, and no stage of the other's reports
    ],
)
def test_two_that_found_a_new_run_and_lack_each_others_stages_go_on_together(
    halves: tuple[tuple[str, ...], ...],
) -> None:
    async def main() -> None:
        course = Play(NEW, trace=False)
        world = course.world
        for founder, *others in halves:
            for name in (founder, *others):
                entries = () if name == founder else (founder,)
                await world.start(
                    name, stage=NEW.peers[name], speed=NEW.speed(name), limits=NEW.limits, entries=entries
                )
                course.watch.listen()
        await meet(world, halves[0][0], halves[1][0])
        await world.until(lambda: everyone_at(world, NEW.steps), SECONDS)
        course.watch.look()
        course.watch.conclude()
        await course.stop()
        assert not course.watch.found, course.watch.found
        assert len(histories(world, 1)) == 1

    run_virtual(main())
