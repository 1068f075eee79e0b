"""A holder that beats, names its hops, claims what it likes, and never answers: others do its work, within a bound."""

import asyncio
from typing import Any

import pytest

from swarmd.errors import Refused
from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.device import Speed
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.hops.custody import MUTE_TIMES, UNANSWERED_FLOOR_SECONDS
from swarmd.swarm.hops.under_way import HopUnderWay
from swarmd.swarm.hops.validation import EVALUATE_SECONDS
from swarmd.values import HopId
from tests.sim.nodes import forever
from tests.sim.toy import (
    RUN,
    check_agreement,
    check_exact,
    everyone_at,
    journeys_of,
    long,
    moment,
    served_of,
    start_all,
    step_of,
)

LAYOUT = {f"{role}{n}": stage for stage, role in enumerate(("head", "middle", "tail")) for n in range(3)}
STEP = 2  # at the end of which everyone has been measured
DEVICE = Speed(0.05, 0.1, 0.002)


class Liar:
    """From now on a peer says of each hop that it has just come into a state, and neither does it nor lets it go."""

    def __init__(self, it: SimPeer, state: str) -> None:
        self.taken = 0
        self._journeys, self._state = journeys_of(it), state
        lying: Any = self._journeys
        lying.travel, lying.give_up = self._travel, lambda key: None

    async def _travel(self, work: HopUnderWay, *_: Any, **__: Any) -> None:
        self.taken += 1
        work.move(self._state)
        await asyncio.get_running_loop().create_future()

    async def claim(self) -> None:
        while True:
            for work in self._journeys.hops:
                work.since = asyncio.get_running_loop().time()
            await asyncio.sleep(0.5)


LIES = [(name, state) for name in ("middle1", "tail1") for state in ("passed", "backward", "waiting", "computing")]
SHORT = ("middle1", "passed"), ("tail1", "computing")


@pytest.mark.parametrize(("name", "state"), [*SHORT, *long(*(lie for lie in LIES if lie not in SHORT))])
def test_hops_of_a_holder_that_never_answers_go_elsewhere_within_a_bound(name: str, state: str) -> None:
    async def main() -> None:
        world = World(RUN, Text(RUN))
        await start_all(world, LAYOUT, speed=DEVICE)
        await moment(world, lambda: step_of(world) > STEP)
        liar = Liar(world.peers[name], state)
        claiming = asyncio.ensure_future(liar.claim())
        slowest = 0.0
        for step in range(STEP + 1, RUN.steps + 1):
            began = asyncio.get_running_loop().time()
            await moment(world, lambda step=step: everyone_at(world, step))  # type: ignore[misc]
            slowest = max(slowest, asyncio.get_running_loop().time() - began)
        assert liar.taken
        assert slowest < UNANSWERED_FLOOR_SECONDS + 20, "and before, without end"
        claiming.cancel()
        await world.finish()
        check_exact(world)
        check_agreement(world)

    run_virtual(main())


def test_while_a_stage_is_empty_nobody_is_blamed() -> None:
    """Hops that were passed on wait for a stage that has nobody, far longer than any bound."""

    async def main() -> None:
        world = World(RUN, Text(RUN))
        await start_all(world, LAYOUT, speed=DEVICE)
        await moment(world, lambda: step_of(world) > STEP)
        for name in ("tail0", "tail1"):
            world.crash(name)
        world.pause("tail2")
        await world.sleep(1.0)
        for name in ("head0", "head1", "head2", "middle0", "middle1", "middle2"):
            assert not journeys_of(world.peers[name]).custodian.custody._mute
        world.resume("tail2")
        await moment(world, lambda: everyone_at(world, RUN.steps))
        await world.finish()
        check_exact(world)
        for name in ("head0", "head1", "head2", "middle0", "middle1", "middle2"):
            custody = journeys_of(world.peers[name]).custodian.custody
            assert not custody._mute
            assert MUTE_TIMES * UNANSWERED_FLOOR_SECONDS > custody.usual.mean > 0

    run_virtual(main())


def test_a_validation_that_a_holder_keeps_ends_everywhere() -> None:
    """A question takes one of a peer's places until it is answered."""

    async def main() -> None:
        world = World(RUN, Text(RUN))
        await start_all(world, LAYOUT, speed=DEVICE)
        await moment(world, lambda: step_of(world) > STEP)
        for name, stage in LAYOUT.items():
            validation: Any = served_of(world.peers[name]).validation
            if stage == 0:
                await world.peers[name].machine.spawn(world.peers[name].peer.pause())
            elif stage == 2:
                validation.evaluate = forever
        head, began = world.peers["head0"], asyncio.get_running_loop().time()
        tokens = await Text(RUN).held_out(0)
        key = HopId(step_of(world), RUN.microbatches)
        with pytest.raises((Refused, TimeoutError)):
            await head.machine.spawn(served_of(head).validation.evaluate(key, tokens))
        assert asyncio.get_running_loop().time() - began < EVALUATE_SECONDS + 10
        await world.stop()

    run_virtual(main())
