"""Peers that fell behind or were restarted come back like newcomers."""

import asyncio
import dataclasses
import functools
from typing import Any

import pytest

from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.device import Speed
from swarmd.sim.world.world import World
from swarmd.swarm.history import chain
from swarmd.swarm.history.record import Record
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.served_stage import ServedStage
from swarmd.swarm.peer.stage_switch import Switch
from swarmd.swarm.wire.framing import to_frame
from swarmd.swarm.wire.messages.common import INCARNATION_STEP
from swarmd.values import PeerId
from tests.sim.toy import (
    RUN,
    check_exact,
    everyone_at,
    long,
    moment,
    start_all,
    step_of,
    train,
)
from tests.sim.transfers import LONG, check_same, serve_slowly

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("disk", [True, False])
def test_a_peer_that_restarts_comes_back_like_a_newcomer(disk: bool) -> None:
    async def main() -> None:
        world = World(RUN, Text(RUN))
        await start_all(world)
        await moment(world, lambda: everyone_at(world, 3))
        await world.restart("middle1", disk=disk)
        await world.until(lambda: everyone_at(world, RUN.steps), 600)
        await world.finish()
        check_same(world)

    run_virtual(main())


@pytest.mark.parametrize("name", ["middle1", "head1"])
@pytest.mark.parametrize("clocks", [(0,), (1 << 60, 7), (4, 2)])
def test_a_peer_whose_clock_was_set_back_is_known_in_its_new_life(name: PeerId, clocks: tuple[int, ...]) -> None:
    async def main() -> None:
        world = World(RUN, Text(RUN))
        await start_all(world)
        for number, clock in enumerate(clocks):
            version = 2 + 3 * number
            await moment(world, functools.partial(everyone_at, world, version))
            before = world.peers[name].peer.membership.own.incarnation
            await world.restart(name, incarnation=clock)
            life = world.peers[name].peer.membership

            def known(it: Membership = life) -> bool:
                others = [other.peer.membership for other in world.peers.values() if other.name != name]
                return all(
                    (card := each.get(name)) is not None and card.incarnation == it.own.incarnation for each in others
                )

            await world.until(known, 10)
            assert life.own.incarnation == (clock if clock > before else before + INCARNATION_STEP)
        await world.until(lambda: everyone_at(world, RUN.steps), 600)
        await world.finish()
        check_same(world)
        check_exact(world)

    run_virtual(main())


def test_who_hears_of_a_later_life_of_its_own_by_gossip_goes_above_it() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        victim = world.peers["middle1"].peer
        later = dataclasses.replace(victim.membership.own, incarnation=1000, addresses=("/nowhere",))
        for name in ("head1", "middle1", "tail2"):
            world.peers[name].peer.gossip._hear("middle1", to_frame(later))
        assert world.peers["head1"].peer.membership.get("middle1") == later

        def mended() -> bool:
            card = world.peers["head1"].peer.membership.get("middle1")
            return card is not None and card.incarnation == 1000 + INCARNATION_STEP == victim.membership.own.incarnation

        await world.until(mended, 10)

    world = train(RUN, events)
    check_exact(world)


def test_newcomers_are_numbered_as_they_come() -> None:
    async def main() -> None:
        world = World(RUN, Text(RUN))
        await start_all(world)
        await world.until(lambda: everyone_at(world, 1), 60)
        arrivals = [it.peer.membership.own.arrival for it in world.peers.values()]
        assert arrivals[0] == 0
        assert arrivals == sorted(set(arrivals)), arrivals
        await world.finish()

    run_virtual(main())


@pytest.mark.parametrize("name", ["middle2", *long("head2", "tail1")])
def test_a_peer_that_lost_a_gradient_for_good_comes_back_like_a_newcomer(name: PeerId) -> None:
    states: list[str] = []

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        it = world.peers[name]
        serve_slowly(world, 0.2)
        gradients: Any = it.peer.history.gradients
        gather = gradients.gather

        async def lost(record: Record) -> bool:
            gradients.gather = gather
            return False

        gradients.gather = lost
        await moment(world, lambda: it.peer.state == "joining")
        assert it.peer.history.behind
        began = step_of(world)
        await moment(world, lambda: step_of(world) > began + 1)
        states.append(it.peer.state)
        others = [other for other in world.peers.values() if other is not it]
        assert all(
            name not in [card.peer for card in other.peer.membership.stage(it.peer.stage or 0)] for other in others
        )
        assert all(other.peer.membership.get(name) is not None for other in others), "it keeps its place"
        await moment(world, lambda: it.peer.state == "serving")

    world = train(LONG, events)
    check_exact(world)
    assert states == ["joining"]
    ledger = world.peers[name].store.ledger
    missing = set(range(1, LONG.steps + 1)) - {line["step"] for line in ledger}
    assert missing, "the steps in the state have no line"
    assert any(name in line["members"] for line in ledger if line["step"] > max(missing))
    digests = {it.peer.history.digest for it in world.peers.values() if it.peer.stage == world.peers[name].peer.stage}
    assert len(digests) == 1


def test_a_peer_that_was_away_for_longer_than_records_are_kept_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "RECORDS_KEPT", 2)

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        rest = [name for name in world.peers if name != "middle2"]
        world.network.partition([["middle2"], rest])
        await moment(world, lambda: all(world.peers[name].peer.history.version >= 7 for name in rest))
        world.network.heal()

    world = train(LONG, events)
    check_same(world)
    assert world.peers["middle2"].peer.joiner.downloaded  # type: ignore[union-attr]


def test_who_is_cut_off_before_it_has_arrived_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told its place by a swarm that had begun. While its device gets ready, all others are lost to it."""
    open_at_once = Switch.open

    async def open_slowly(switch: Switch, stage: int, *, pull: bool = False) -> ServedStage:
        await asyncio.sleep(25)
        return await open_at_once(switch, stage, pull=pull)

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        monkeypatch.setattr(Switch, "open", open_slowly)
        new = await world.start("new", stage=1)
        await moment(world, lambda: new.peer.history.origin.heard > 0)
        assert new.peer.history.version == 0
        others = [name for name in world.peers if name != "new"]
        world.network.partition([["new"], others])
        await asyncio.sleep(40)
        assert new.peer.state == "joining"
        world.network.heal()

    slow = Speed(forward_s=0.5, backward_s=1.0)  # so that the others are still there afterwards
    world = train(dataclasses.replace(LONG, steps=12), events, speed=slow)
    check_same(world)
