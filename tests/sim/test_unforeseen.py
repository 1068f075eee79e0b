"""Devices that die, and code that fails where nobody foresaw it: the peer says so, others go on, nothing is lost."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from swarmd.config import RunConfig
from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.compute import torch_engine
from swarmd.sim.world.device import Speed
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.hops.ailing import FAILURES
from tests.sim.toy import (
    RUN,
    accumulated,
    check_agreement,
    check_exact,
    compute_of,
    everyone_at,
    journeys_of,
    moment,
    start_all,
    step_of,
)

STEP = 3  # in which it happens
NOTICED_SECONDS = 10.0  # from a device's death to the goodbye: two looks, and five seconds for the goodbye
LAYOUT = {f"{role}{n}": stage for stage, role in enumerate(("head", "middle", "tail")) for n in range(2)}


def unforeseen(it: SimPeer) -> list[BaseException]:
    """Makes failures at a peer a part of the test from now on."""
    heard: list[BaseException] = []
    it.peer.links.fence.heard = heard.append
    return heard


def play(befall: Callable[[World], Any], gaps: tuple[str, ...] = ()) -> World:
    """A run in which something befalls one of the peers in a step; it comes to its end, exactly. `gaps`: whose state
    is replaced.
    """

    async def main() -> World:
        world = World(RUN, Text(RUN))
        await start_all(world, LAYOUT)
        await moment(world, lambda: step_of(world) == STEP)
        await befall(world)
        await moment(world, lambda: everyone_at(world, RUN.steps))
        await world.finish()
        check_agreement(world, gaps)
        check_exact(world)
        return world

    return run_virtual(main())


@pytest.mark.parametrize("name", ["head1", "middle1", "tail1"])
def test_a_peer_whose_device_dies_says_goodbye_and_ends_and_its_work_is_done_by_others(name: str) -> None:
    async def befall(world: World) -> None:
        await moment(world, lambda: accumulated(world.peers[name], STEP) >= 1)
        it, began = world.peers[name], asyncio.get_running_loop().time()
        world.lose_device(name)
        await moment(world, lambda: name in world.dead)
        assert asyncio.get_running_loop().time() - began < NOTICED_SECONDS
        assert it.peer.state == "left"

    play(befall)


class Failing:
    """Makes a method of a peer's engine raise, so many times."""

    def __init__(self, it: SimPeer, method: str, times: int) -> None:
        self.left = times
        engine: Any = compute_of(it).engine
        right = getattr(engine, method)

        def fail(*arguments: Any, **named: Any) -> Any:
            if self.left > 0:
                self.left -= 1
                raise KeyError("hop is for a later step")
            return right(*arguments, **named)

        setattr(engine, method, fail)


@pytest.mark.parametrize(
    ("name", "method"),
    [("head1", "forward"), ("head1", "backward"), ("middle1", "forward"), ("middle1", "backward"), ("tail1", "tail")],
)
def test_a_hop_that_fails_here_is_tried_again_here_or_elsewhere(name: str, method: str) -> None:
    async def befall(world: World) -> None:
        heard = unforeseen(world.peers[name])
        failing = Failing(world.peers[name], method, FAILURES - 1)
        await moment(world, lambda: not failing.left and len(heard) >= FAILURES - 1)

    play(befall)


@pytest.mark.parametrize(("name", "method"), [("head1", "forward"), ("middle1", "forward"), ("tail1", "tail")])
def test_a_peer_at_which_every_hop_fails_takes_none_and_the_others_go_on(name: str, method: str) -> None:
    async def befall(world: World) -> None:
        heard = unforeseen(world.peers[name])
        failing = Failing(world.peers[name], method, 10**9)
        await moment(world, lambda: journeys_of(world.peers[name]).admission.resting)
        assert journeys_of(world.peers[name]).admission.room() == 0
        now = asyncio.get_running_loop().time()
        assert "microbatches fail at this peer" in journeys_of(world.peers[name]).admission.ailing.warning(now)
        await moment(world, lambda: step_of(world) >= STEP + 2)
        assert 10**9 - failing.left == len(heard) < 40, "the pauses between two tries grow"

    play(befall)


@pytest.mark.parametrize("name", ["head1", "middle1", "tail1"])
def test_a_device_that_fails_at_a_step_fetches_the_state_anew(name: str) -> None:
    async def befall(world: World) -> None:
        heard = unforeseen(world.peers[name])
        failing = Failing(world.peers[name], "apply", 1)
        await moment(world, lambda: not failing.left and bool(heard))
        assert "the state" in world.peers[name].view.waiting_for() or world.peers[name].peer.history.behind

    play(befall, (name,))


@pytest.mark.parametrize("name", ["head1", "middle1", "tail1"])
def test_a_round_in_which_a_device_fails_is_tried_again(name: str) -> None:
    async def befall(world: World) -> None:
        heard = unforeseen(world.peers[name])
        for method in ("contribution", "reduce", "assemble"):
            failing = Failing(world.peers[name], method, 1)
            await moment(world, lambda failing=failing: not failing.left)  # type: ignore[misc]
        await moment(world, lambda: bool(heard))

    play(befall)


def test_a_head_that_cannot_read_its_data_leaves_them_to_others() -> None:
    async def befall(world: World) -> None:
        heard = unforeseen(world.peers["head1"])
        head = world.peers["head1"].peer.served.head  # type: ignore[union-attr]
        assert head is not None

        class Torn:
            async def microbatch(self, step: int, index: int) -> bytes:
                raise OSError(5, "Input/output error")

        head._data = Torn()
        await moment(world, lambda: len(heard) >= FAILURES)

    play(befall)


def test_a_newcomer_at_which_loading_the_state_fails_tries_again_after_a_while() -> None:
    left = 3

    def engine(run: RunConfig, stage: int) -> Any:
        it: Any = torch_engine(run, stage)
        load = it.import_state

        def fail(state: Any) -> str:
            nonlocal left
            left -= 1
            if left >= 0:
                raise KeyError("no such tensor")
            return str(load(state))

        it.import_state = fail
        return it

    async def main() -> None:
        world = World(RUN, Text(RUN), engine=engine)
        await start_all(world, LAYOUT, speed=Speed(0.3, 0.6))
        await moment(world, lambda: step_of(world) == STEP)
        heard = unforeseen(await world.start("middle2", stage=1))
        began = asyncio.get_running_loop().time()
        await moment(world, lambda: world.peers["middle2"].peer.state == "serving")
        assert len(heard) == 3
        assert asyncio.get_running_loop().time() - began >= 1 + 2 + 4, "the pauses grow"
        await moment(world, lambda: everyone_at(world, RUN.steps))
        await world.finish()
        check_agreement(world)
        check_exact(world)

    run_virtual(main())
