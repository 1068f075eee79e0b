"""In a swarm of more peers than one knows one by one, everybody still counts all of them."""

import asyncio

import pytest

from swarmd.sim.measure.figures import SECONDS, open_world, plan_run, speed_of
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import World
from swarmd.swarm.membership import gossip, reach
from swarmd.swarm.membership.gossip import CHANGE_SECONDS
from swarmd.swarm.membership.reach import count_unseen
from swarmd.swarm.membership.states import PRESENT
from swarmd.swarm.membership.table import FEW, HEARTBEAT_SECONDS, SMALL_SWARM, Membership
from swarmd.swarm.peer.ending import Ending
from swarmd.values import PeerId

STAGES, REPLICAS = 8, 8
SETTLED_SECONDS = 30.0  # virtual; the first summaries have gone round
LIMIT_SECONDS = 600.0  # virtual, of a short run


def known(members: Membership, stages: int) -> list[int]:
    cards = [card.stage for card in members.cards() if card.state in PRESENT]
    return [cards.count(stage) for stage in range(stages)]


def counted(members: Membership, stages: int) -> list[int]:
    unseen = count_unseen(members, stages)
    return [count + unseen.get(stage, 0) for stage, count in enumerate(known(members, stages))]


async def open_crowd(stages: int, replicas: int, microbatches: int) -> World:
    world = open_world(plan_run(stages, microbatches, 2))
    for number in range(stages * replicas):
        await world.start(f"peer{number:02d}", stage=number % stages, speed=speed_of(SECONDS))
    return world


@pytest.mark.slow
def test_every_peer_of_a_large_swarm_counts_all_of_them() -> None:
    async def main() -> None:
        assert STAGES * REPLICAS > SMALL_SWARM
        world, loop = await open_crowd(STAGES, REPLICAS, 256), asyncio.get_running_loop()
        await world.until(lambda: loop.time() > SETTLED_SECONDS, 2 * SETTLED_SECONDS)
        members = [each.peer.membership for each in world.peers.values()]
        assert all(counted(each, STAGES) == [REPLICAS] * STAGES for each in members)
        assert min(min(known(each, STAGES)) for each in members) < REPLICAS, "not by its cards"
        await world.stop()

    run_virtual(main())


def test_at_the_end_of_its_run_those_who_have_finished_and_are_there_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A large swarm here is one of more than 12; everyone stays for one that is late."""
    for module in (gossip, reach):
        monkeypatch.setattr(module, "SMALL_SWARM", 12)
    monkeypatch.setattr(gossip, "SUMMARY_CARDS", FEW)
    late: set[PeerId] = {"late"}
    monkeypatch.setattr(Ending, "_late", lambda _: late)
    stages, replicas = 4, 5

    async def main() -> None:
        world = await open_crowd(stages, replicas, 50)
        members = [each.peer.membership for each in world.peers.values()]
        await world.until(lambda: all(it.own.state == "finished" for it in members), LIMIT_SECONDS)
        await world.sleep(CHANGE_SECONDS + 2 * HEARTBEAT_SECONDS)  # summaries of those at work are replaced
        assert {it.peers for each in members for it in each.summaries().values()} == {0}
        assert [counted(it, stages) for it in members] == [[replicas] * stages] * len(members)
        assert min(min(known(it, stages)) for it in members) < replicas, "not by its cards"
        await world.stop()

    run_virtual(main())
