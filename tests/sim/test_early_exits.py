"""Peers that go to another stage in the middle of a step: another replica has their sum, and has promised to stay."""

import asyncio
import dataclasses
from typing import Any

import pytest

from swarmd.config import LimitsConfig
from swarmd.errors import Refused
from swarmd.sim.campaign.play import play
from swarmd.sim.faults import point_actions
from swarmd.sim.faults.commands import Move
from swarmd.sim.faults.connections import Partition
from swarmd.sim.faults.machines import Crash
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.move import AskMove, AskStay, MoveOutlook
from tests.sim.movers import ask, granted, members, swarm
from tests.sim.toy import RUN, accumulated, check_agreement, check_exact, everyone_at, long, moment, step_of, train

NOW = LimitsConfig(move_wait_s=0.0)
LONG = dataclasses.replace(
    RUN, steps=6, sequences_per_step=96, optimizer=dataclasses.replace(RUN.optimizer, learning_rate=2e-3)
)
CROWD = {"head1": 0, "head2": 0, "middle1": 1, "middle2": 1, "middle3": 1, "tail1": 2, "tail2": 2}


async def with_a_sum(world: World, name: str, least: int = 3) -> SimPeer:
    """Waits until a peer has something of the present step, which it doesn't lead."""
    it = world.peers[name]

    def has() -> bool:
        return accumulated(it, step_of(world)) >= least and not it.peer.conductor.is_first(step_of(world))

    await moment(world, has)
    return it


async def departure(world: World, name: str) -> tuple[int, str]:
    """Waits until a peer has left its stage: of which step it was, and who has its sum."""
    it = world.peers[name]
    await moment(world, lambda: it.peer.mover.between)
    return it.peer.history.version + 1, it.peer.membership.own.heir


# ------------------------------------------------------------------------------------------------- it leaves at once


@pytest.mark.parametrize(("name", "target"), [("tail2", 1), *long(("middle2", 0), ("middle2", 2), ("head2", 1))])
def test_with_real_gradients_nothing_changes(name: str, target: int) -> None:
    left: list[tuple[int, str, int]] = []

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        it = await with_a_sum(world, name)
        move = ask(it, target)
        step, heir = await departure(world, name)
        left.append((step, heir, accumulated(world.peers[heir], step)))
        await move
        assert (it.peer.stage, it.peer.state, it.peer.membership.own.heir) == (target, "serving", "")

    world = train(LONG, events, layout=CROWD, limits=NOW)
    check_agreement(world)
    check_exact(world)
    assert granted(world) == [], "no record was needed"
    ((step, heir, has),) = left
    assert has >= 3, "the heir has what the mover had"
    assert step not in members(world, name).get(CROWD[name], set()), "its own sum doesn't count in this step"
    assert step in members(world, heir)[CROWD[name]]
    ledger = world.peers["head1"].store.ledger
    assert not any(line["forked"] or line["skipped"] or line["lost"] or line["duplicated"] for line in ledger)


def test_if_the_step_is_over_soon_it_waits() -> None:
    async def events(world: World) -> None:
        await ask(await with_a_sum(world, "middle2"), 2)

    world = swarm(events, microbatches=60, limits=LimitsConfig(move_wait_s=60.0))
    assert granted(world) == [("middle2", 1, 2)]


def test_the_conductor_still_judges_whether_it_helps() -> None:
    async def events(world: World) -> None:
        it = await with_a_sum(world, "middle2")
        with pytest.raises(Refused, match="doesn't need it more"):
            await it.peer.mover.move(2, balance=True)
        assert (it.peer.stage, it.peer.state, it.peer.mover.target) == (1, "serving", None)

    assert granted(swarm(events, replicas=(2, 2, 2), microbatches=30, limits=NOW)) == []


def test_of_three_that_wish_at_once_one_stays() -> None:
    async def events(world: World) -> None:
        names = ("middle1", "middle2", "middle3")
        for it in world.peers.values():  # whoever leads grants everything, as two that don't hear each other may
            it.peer.links.handle(AskMove, grant)
        await with_a_sum(world, "middle2")
        moves = [ask(world.peers[name], 2) for name in names]
        await asyncio.sleep(30)
        assert sorted(it.peer.stage or 0 for it in world.peers.values()).count(1) == 1
        for move in moves:
            move.cancel()
        await asyncio.sleep(1)

    swarm(events, microbatches=30, limits=NOW, steps=60)


async def grant(peer: str, question: Any) -> MoveOutlook:
    return MoveOutlook(True)


def test_who_has_promised_stays_though_the_record_grants_its_move() -> None:
    async def events(world: World) -> None:
        it = world.peers["middle2"]
        early_exit: Any = it.peer.served.early_exit  # type: ignore[union-attr]
        early_exit.stays = 8
        await ask(it, 2)
        assert it.peer.history.version >= 9

    world = swarm(events, steps=30)
    assert set(range(1, 9)) <= members(world, "middle2")[1]


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("power", [False, *long(True)], ids=["crash", "power loss"])
@pytest.mark.parametrize(
    "point", ["asked.AskStay", "served.HandOver", "end.absorb", *long("ask.AskStay", "ask.HandOver", "asked.HandOver")]
)
def test_the_mover_or_its_heir_dies_meanwhile(point: str, power: bool) -> None:
    """At points of the mover the mover, at points of the heir the heir."""

    async def events(world: World) -> None:
        it = await with_a_sum(world, "middle2")
        action = point_actions.lose_power if power else point_actions.crash
        for name in ("middle1", "middle3") if point.startswith(("serve", "begin", "end")) else ("middle2",):
            world.fail_at(name, None, point, action)
        ask(it, 2)
        await moment(world, lambda: bool(world.dead))

    swarm(events, microbatches=30, limits=NOW)


@pytest.mark.parametrize("seconds", [5.0, *long(3.0, 9.0)])
def test_an_heir_whose_device_takes_its_time(seconds: float) -> None:
    """Longer than an answer is awaited: the mover asks again, and doesn't go on, or its sum would be another."""

    async def events(world: World) -> None:
        def hang(world: World, name: str) -> None:
            world.hang(name)
            asyncio.get_running_loop().call_later(seconds, world.unhang, name)

        it = await with_a_sum(world, "middle2")
        for name in ("middle1", "middle3"):
            world.fail_at(name, None, "begin.absorb", hang)
        move = ask(it, 2)
        step, heir = await departure(world, "middle2")
        assert step == step_of(world)
        assert accumulated(world.peers[heir], step) >= 3
        await move

    world = swarm(events, microbatches=90, limits=NOW)
    assert granted(world) == [], "no record was needed"
    assert not any(line["subtracted"] for it in world.peers.values() for line in it.store.ledger)


@pytest.mark.parametrize("power", [False, *long(True)], ids=["crash", "power loss"])
def test_the_heir_dies_later_in_the_step(power: bool) -> None:
    """The mover's sum is lost with it, and computed again."""

    async def events(world: World) -> None:
        move = ask(await with_a_sum(world, "middle2"), 2)
        step, heir = await departure(world, "middle2")
        assert step == step_of(world)
        world.crash(heir, power=power)
        await move

    world = swarm(events, microbatches=30, limits=NOW)
    assert resent(world) > 0


def resent(world: World) -> int:
    """At the stage that the mover has left."""
    sums = [it.store.ledger for it in world.peers.values() if it.peer.stage == 1]
    return sum(line["resent"] for line in sums[0])


@pytest.mark.parametrize("point", ["asked.AskStay", "ask.HandOver", "asked.HandOver"])
def test_the_mover_is_told_to_leave_the_swarm_meanwhile(point: str) -> None:
    """Also when it has handed its sum over already."""

    async def events(world: World) -> None:
        it = await with_a_sum(world, "middle2")

        def drain(world: World, name: str) -> None:
            it.machine.spawn(it.peer.drain(20.0), name="drain")

        world.fail_at("middle2", None, point, drain)
        ask(it, 2)
        await moment(world, lambda: it.peer.state == "left")

    world = swarm(events, microbatches=30, limits=NOW)
    assert resent(world) <= 12


@pytest.mark.parametrize("point", ["asked.AskStay", "ask.HandOver", "asked.HandOver"])
def test_the_move_is_given_up_meanwhile(point: str) -> None:
    """The mover goes on at its stage: with the next step, if another has its sum already."""

    async def events(world: World) -> None:
        it = await with_a_sum(world, "middle2")
        tasks: list[asyncio.Task[None]] = []
        world.fail_at("middle2", None, point, lambda world, name: tasks[0].cancel())
        tasks.append(ask(it, 2))
        await asyncio.wait(tasks)
        step = step_of(world)
        await moment(world, lambda: step_of(world) > step)
        await asyncio.sleep(0.1)
        assert (it.peer.stage, it.peer.state, it.peer.mover.target) == (1, "serving", None)
        await moment(world, lambda: accumulated(it, step_of(world)) > 0)

    swarm(events, microbatches=30, limits=NOW)


def test_a_refused_promise_leaves_everything_as_it_was() -> None:
    async def events(world: World) -> None:
        async def refuse(peer: str, question: AskStay) -> Ack:
            raise Refused("no")

        for it in world.peers.values():
            it.peer.links.handle(AskStay, refuse)
        await ask(await with_a_sum(world, "middle2"), 2)

    assert granted(swarm(events, microbatches=30, limits=NOW)) == [("middle2", 1, 2)]


@pytest.mark.parametrize("kind", [AskMove, AskStay], ids=lambda kind: kind.__name__)
def test_the_record_grants_it_while_it_still_asks(kind: Any) -> None:
    """It has left by the time the answer comes."""

    async def events(world: World) -> None:
        await with_a_sum(world, "middle2")
        for it in world.peers.values():
            give = it.peer.links._handlers[kind]

            async def slow(peer: str, question: Any, give: Any = give) -> Any:
                answer, step = await give(peer, question), question.step
                await moment(world, lambda: step_of(world) > step)
                return answer

            it.peer.links.handle(kind, slow)
        await ask(world.peers["middle2"], 2)
        assert (world.peers["middle2"].peer.stage, world.peers["middle2"].peer.state) == (2, "serving")

    assert granted(swarm(events, microbatches=30, limits=NOW)) == [("middle2", 1, 2)]


def test_movers_all_over_while_peers_crash_and_are_cut_off() -> None:
    faults = (
        Move(0.5, "head1", 2),
        Move(0.5, "tail1", 1),
        Crash(0.9, "head2", back_s=0.5),
        Move(1.0, "middle1", 0),
        Partition(1.2, (("middle3", "tail3"),), 4.0),
        Crash(6.0, "tail2", power=True, back_s=1.0),
        Move(6.2, "head3", 1),
        Move(6.3, "middle2", 2),
    )
    outcome = play(Scenario(replicas=(3, 3, 3), steps=12, microbatches=120, limits=NOW, faults=faults))
    assert outcome.passed, outcome.violations
    assert outcome.struck["move"] >= 3
