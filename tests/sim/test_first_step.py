"""The first step, which the run's founder leads and alone decides: who dies in it, or is away, and who alone has its
record then.
"""

import dataclasses

import pytest

from swarmd.config import LimitsConfig
from swarmd.sim.campaign.play import Play, play, report
from swarmd.sim.faults.logical import PointFault
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.points import GROUPS, all_points
from swarmd.sim.world.world import World
from swarmd.values import PeerId
from tests.sim.toy import everyone_at

SCENARIO = Scenario(replicas=(3, 2), microbatches=4, steps=3)
FOUNDER, *OTHERS = SCENARIO.peers
DECIDING = [point for group in ("lease", "round", "commit") for point in GROUPS[group].points()]


def check(*faults: PointFault) -> None:
    scenario = dataclasses.replace(SCENARIO, faults=faults)
    outcome = play(scenario, trace=False)
    assert outcome.passed, "\n".join(report(scenario, outcome))


def dies(peer: PeerId, point: str, **more: float) -> PointFault:
    return PointFault(0.0, peer, 1, point, "crash", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("only", OTHERS)
@pytest.mark.parametrize("others", ["don't hear of it", "come back without it", "die or don't hear of it"])
def test_where_one_peer_alone_has_the_first_record_nobody_stands_still(only: PeerId, others: str) -> None:
    """The founder tells it and dies. Those that were in the round see that the record says what came out of it; those
    that weren't do the step again, and the one that has the record crosses over to them.
    """
    rest = [peer for peer in OTHERS if peer != only]
    unheard = [PointFault(0.0, peer, 1, "serve.Commit", "drop") for peer in rest]
    faults = {
        "don't hear of it": unheard,
        "come back without it": [dies(peer, "serve.Commit", back_s=1.0) for peer in rest],
        "die or don't hear of it": [dies(rest[0], "serve.Commit"), *unheard[1:]],
    }
    check(dies(FOUNDER, "asked.Commit"), *faults[others])


@pytest.mark.parametrize("point", DECIDING)
def test_wherever_the_founder_dies_in_the_first_step_the_others_go_on(point: str) -> None:
    check(dies(FOUNDER, point))


@pytest.mark.long
@pytest.mark.parametrize("peer", SCENARIO.peers)
@pytest.mark.timeout(900)
def test_wherever_a_peer_dies_in_the_first_step_the_others_go_on(peer: PeerId) -> None:
    for point in all_points():
        for more in ({}, {"back_s": 1.0}):
            check(dies(peer, point, **more))


# ------------------------------------------------------------------------------------------------- away for a while

LONG = Scenario(replicas=(2, 2, 2), microbatches=24, steps=2, speeds=(0.5,), limits=LimitsConfig(fork_timeout_s=10.0))
TAKEN_OVER_SECONDS = 60.0  # virtual: silence, and a wait for the only acceptor
STEP_SECONDS = 60.0  # virtual: twice what the first step takes without faults
AWAY_AT = 3.0  # virtual


def takes_over(world: World, founder: PeerId) -> bool:
    """True if somebody else gives leases of the first step."""
    desks = [it.peer.conductor.desk for name, it in world.peers.items() if name != founder]
    return any(desk.completed is not None for desk in desks)


@pytest.mark.parametrize("founder", ["head1", "middle1", "tail2"])
@pytest.mark.parametrize("cut_off", [False, True])
def test_a_founder_that_comes_back_when_another_leads_the_first_step_leads_it_to_its_end(
    founder: PeerId, cut_off: bool
) -> None:
    async def main() -> World:
        course = Play(LONG, trace=False)
        world, peers = course.world, LONG.peers
        for peer in (founder, *(it for it in peers if it != founder)):
            await course.start(peer, peers[peer])
        await world.sleep(AWAY_AT)
        if cut_off:
            world.network.partition([[founder], [peer for peer in peers if peer != founder]])
        else:
            world.pause(founder)
        await world.until(lambda: takes_over(world, founder), TAKEN_OVER_SECONDS)
        world.heal()
        await world.until(lambda: everyone_at(world, 1), STEP_SECONDS)
        await world.until(lambda: everyone_at(world, LONG.steps), STEP_SECONDS)
        course.watch.look()
        course.watch.conclude()
        await course.stop()
        assert not course.watch.found, course.watch.found
        return world

    world = run_virtual(main())
    records = [it.peer.history.chain.at(1) for it in world.peers.values()]
    assert {it.ballot[1] for it in records if it is not None} == {founder}
    assert not any(it.forked for it in records if it is not None)
