"""Worlds: their peers die and come back, their failures are raised, and nothing is left at their end."""

import asyncio
from typing import Any

import pytest

from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import World
from tests.sim.toy import PAIRS, SHORT, Records, check_agreement, check_exact, everyone_at, moment, start_all, train


def test_a_crashed_peer_leaves_no_task_behind_and_comes_back_as_itself() -> None:
    before: list[Any] = []

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        old = world.peers["middle1"]
        world.crash("middle1")
        await asyncio.sleep(0.5)
        assert old.machine.state == "dead"
        assert old.machine.tasks() == []
        assert world.dead["middle1"] is old
        before.append(old)
        lines = len(old.store.ledger)
        new = await world.restart("middle1")
        assert new.peer.membership.own.incarnation > old.peer.membership.own.incarnation
        assert new.store is old.store
        assert len(new.store.ledger) == lines
        assert new.setup == old.setup
        assert "middle1" not in world.dead

    world = train(SHORT, events)
    check_exact(world)
    assert world.past == before
    assert world.peers["middle1"].peer.stage == 1


def test_a_peer_that_lost_its_disk_starts_with_an_empty_one() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        await world.restart("tail2", disk=False)

    world = train(SHORT, events)
    check_agreement(world)
    check_exact(world)
    assert world.peers["tail2"].store.ledger[0]["step"] > 2
    assert world.past[0].store.ledger[0]["step"] == 1


def test_what_a_dying_machine_writes_is_not_written() -> None:
    async def events(world: World) -> None:
        world.fail_at("tail2", 3, "ledger", lambda world, name: world.crash(name))

    world = train(SHORT, events)
    assert [line["step"] for line in world.dead["tail2"].store.ledger] == [1, 2]


def test_newcomers_know_several_of_the_living() -> None:
    async def main() -> None:
        world = World(SHORT, Text(SHORT))
        for name in ("a", "b", "c", "d"):
            await world.start(name)
        assert world.peers["a"].peer.entrance.entries == ()
        assert world.peers["d"].peer.entrance.entries == ("a", "b", "c")
        await world.start("e")
        world.preempt(["a", "b"])
        await asyncio.sleep(5)
        assert world.peers["e"].peer.stage is not None
        await world.stop()

    run_virtual(main())


def test_what_a_peer_fails_with_is_remembered_and_raised() -> None:
    async def main() -> None:
        world = World(SHORT, Text(SHORT))
        await start_all(world)
        world.peers["middle1"].peer.history.listen(Records(fail))
        with pytest.raises(ZeroDivisionError):
            await world.until(lambda: everyone_at(world, 3), 100)
        assert [(name, type(trouble)) for name, trouble in world.failures] == [("middle1", ZeroDivisionError)]
        world.failures.clear()
        await world.stop()

    def fail(record: Any) -> None:
        raise ZeroDivisionError

    run_virtual(main())


def test_after_the_end_nothing_is_left() -> None:
    async def main(finish: bool) -> None:
        world = World(SHORT, Text(SHORT))
        await start_all(world)
        await moment(world, lambda: everyone_at(world, 2))
        world.pause("middle2")
        await asyncio.sleep(1)
        world.crash("head2")
        if finish:
            world.heal()
            await world.finish()
        else:
            await world.stop()
        assert [it.machine.tasks() for it in (*world.peers.values(), *world.dead.values())] == [[]] * len(PAIRS)
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main(finish=False))
    run_virtual(main(finish=True))


def test_a_paused_a_slow_and_a_hung_peer_are_well_again_after_healing() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 1))
        world.pause("middle1")
        world.slow("tail1", 4)
        world.hang("head2")
        world.network.block("tail2", "middle2")
        await asyncio.sleep(1)
        world.heal()
        assert not world.peers["middle1"].machine.paused
        assert world.peers["tail1"].machine.slowdown == 1

    check_agreement(train(SHORT, events))
