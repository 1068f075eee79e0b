"""In a swarm of more peers than one knows one by one, everybody still counts all of them."""

import asyncio

import pytest

from swarmd.sim.measure.figures import SECONDS, open_world, plan_run, speed_of
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.membership.reach import count_unseen
from swarmd.swarm.membership.table import SMALL_SWARM, Membership

STAGES, REPLICAS = 8, 8
SETTLED_SECONDS = 30.0  # virtual; the first summaries have gone round


def counted(members: Membership) -> list[int]:
    unseen = count_unseen(members, STAGES)
    return [len(members.stage(stage)) + unseen.get(stage, 0) for stage in range(STAGES)]


@pytest.mark.slow
def test_every_peer_of_a_large_swarm_counts_all_of_them() -> None:
    async def main() -> None:
        assert STAGES * REPLICAS > SMALL_SWARM
        world, loop = open_world(plan_run(STAGES, 256, 2)), asyncio.get_running_loop()
        for number in range(STAGES * REPLICAS):
            await world.start(f"peer{number:02d}", stage=number % STAGES, speed=speed_of(SECONDS))
        await world.until(lambda: loop.time() > SETTLED_SECONDS, 2 * SETTLED_SECONDS)
        members = [each.peer.membership for each in world.peers.values()]
        assert all(counted(each) == [REPLICAS] * STAGES for each in members)
        assert min(len(each.stage(stage)) for each in members for stage in range(STAGES)) < REPLICAS, "not by its cards"
        await world.stop()

    run_virtual(main())
