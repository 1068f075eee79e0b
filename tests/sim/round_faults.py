"""Faults of rounds, and the checks after a run in which nothing was lost for good."""

import random

import pytest

from swarmd.sim.world.world import SimPeer, World
from tests.sim.toy import (
    check_agreement,
    check_exact,
    journeys_of,
    ledger_of,
    moment,
    reference,
    step_of,
    sums_of,
)

STEP = 3
CROWD = {f"{role}{n}": stage for stage, role in enumerate(("head", "middle", "tail")) for n in range(3)}
SEEDS = range(4)


def check(world: World) -> None:
    """Everything that must hold after a run in which nothing was lost for good."""
    check_agreement(world)
    check_exact(world)
    assert [line["loss"] for line in ledger_of(world)] == pytest.approx(reference(world.run)[0], rel=1e-5)


def believe_dead(it: SimPeer, victim: str) -> None:
    """This peer thinks that another one is gone, until it hears of it again."""
    it.peer.membership.suspect(victim)
    journeys_of(it).custodian.peer_lost(victim)
    if it.peer.conductor is not None:
        it.peer.conductor.desk.peer_lost(victim)


async def frozen(world: World, stage: int) -> None:
    """Until a round of the step has begun."""
    await moment(world, lambda: step_of(world) == STEP)
    await moment(world, lambda: any(sums_of(it).is_frozen(STEP) for it in of_stage(world, stage)))


def of_stage(world: World, stage: int) -> list[SimPeer]:
    return [it for it in world.peers.values() if it.peer.stage == stage]


def fool(world: World, draw: random.Random) -> None:
    victim, who = draw.sample(sorted(world.peers), 2)
    believe_dead(world.peers[who], victim)
