"""One peer ten times slower than the rest: late hops go to idle replicas, late leases are given a second time."""

import asyncio
import dataclasses

import pytest

from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.device import Speed
from swarmd.sim.world.world import World
from tests.sim.toy import RUN, check_agreement, check_exact, everyone_at, long, moment

NORMAL, SLOW = Speed(0.5, 1.0, 0.01), Speed(5.0, 10.0, 0.01)
LAYOUT = {f"{role}{n}": stage for stage, role in enumerate(("head", "middle", "tail")) for n in range(4)}
LONG = dataclasses.replace(RUN, steps=3, sequences_per_step=96)  # 48 microbatches, as many seconds' work as in practice
FIRST = 1  # the version from which time is taken: routing has measured everyone by then


def seconds(slow: str | None) -> float:
    """Virtual seconds that steps after the first take with one slow peer."""

    async def main() -> float:
        world = World(LONG, Text(LONG))
        for name, stage in LAYOUT.items():
            await world.start(name, stage=stage, speed=SLOW if name == slow else NORMAL)
        await moment(world, lambda: everyone_at(world, FIRST))
        began = asyncio.get_running_loop().time()
        await moment(world, lambda: everyone_at(world, LONG.steps), 3600)
        ended = asyncio.get_running_loop().time()
        await world.finish()
        check_agreement(world)
        check_exact(world)
        return ended - began

    return run_virtual(main())


@pytest.mark.parametrize("slow", ["head1", *long("middle1", "tail1")])
def test_a_slow_peer_costs_little_more_than_what_it_lacks(slow: str) -> None:
    """Relative to the capacity that is left: 3.1 of 4 replicas."""
    capacity = (3 + NORMAL.forward_s / SLOW.forward_s) / 4
    assert seconds(None) / seconds(slow) >= 0.9 * capacity
