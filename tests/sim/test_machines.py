"""Machines: a paused one does nothing and sees its timers late and in order; a dead one leaves nothing behind."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from swarmd.errors import PeerUnreachable
from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.compute import SimCompute
from swarmd.sim.world.device import FORWARD, Speed
from swarmd.sim.world.machine import MACHINE, Machine
from swarmd.sim.world.network import SimNetwork
from swarmd.sim.world.world import World
from swarmd.values import BackwardResult, HopId, TailResult
from tests.sim.nodes import Node, forever, now, play
from tests.sim.toy import PAIRS, SHORT, Records, check_agreement, check_exact, everyone_at, moment, start_all, train

# ------------------------------------------------------------------------------------------------- belonging


def test_what_a_task_starts_belongs_to_its_machine() -> None:
    async def main() -> None:
        machine = Machine("m")
        seen: list[Any] = []

        async def child() -> None:
            asyncio.get_running_loop().call_soon(lambda: seen.append(MACHINE.get()))
            asyncio.get_running_loop().call_later(1, lambda: seen.append(MACHINE.get()))
            await asyncio.sleep(2)

        async def parent() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                await asyncio.sleep(1)
                assert len(machine.tasks()) == 2

        await machine.spawn(parent())
        assert seen == [machine, machine]
        assert MACHINE.get() is None
        assert machine.tasks() == []

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- pause


async def tick(log: list[tuple[float, Any]], what: Any, seconds: float) -> None:
    await asyncio.sleep(seconds)
    log.append((now(), what))


def test_a_paused_machine_sees_its_timers_late_all_at_once_and_in_order() -> None:
    async def main() -> None:
        machine, other = Machine("m"), Machine("other")
        log: list[tuple[float, Any]] = []
        for seconds in (3, 1, 2, 20):
            machine.spawn(tick(log, seconds, seconds))
        other.spawn(tick(log, "other", 2.5))
        await asyncio.sleep(1.5)
        machine.pause()
        await asyncio.sleep(8.5)
        assert log == [(1, 1), (2.5, "other")]
        machine.resume()
        await asyncio.sleep(20)
        assert log == [(1, 1), (2.5, "other"), (10, 2), (10, 3), (20, 20)]

    run_virtual(main())


def test_what_was_cancelled_meanwhile_does_not_run() -> None:
    async def main() -> None:
        machine = Machine("m")
        ran: list[str] = []
        loop = asyncio.get_running_loop()
        soon = loop.call_soon(ran.append, "soon", context=machine.context)
        later = loop.call_later(1, ran.append, "later", context=machine.context)
        loop.call_later(2, ran.append, "kept", context=machine.context)
        machine.pause()
        await asyncio.sleep(3)
        soon.cancel()
        later.cancel()
        machine.resume()
        await asyncio.sleep(1)
        assert ran == ["kept"]

    run_virtual(main())


def test_a_timeout_that_passed_during_a_pause_comes_before_what_came_after_it() -> None:
    """As with a real SIGSTOP, an answer that came in time may still be too late."""

    async def main() -> None:
        machine = Machine("m")
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def wait() -> str:
            try:
                async with asyncio.timeout(2):
                    return await answer
            except TimeoutError:
                return "late"

        waiting = machine.spawn(wait())
        await asyncio.sleep(1)
        machine.pause()
        await asyncio.sleep(2)
        answer.set_result("answer")
        await asyncio.sleep(1)
        assert not waiting.done()
        machine.resume()
        assert await waiting == "late"

    run_virtual(main())


def test_a_machine_that_is_paused_again_at_once_goes_on_where_it_was() -> None:
    async def main() -> None:
        machine = Machine("m")
        log: list[tuple[float, Any]] = []
        for seconds in (1, 2):
            machine.spawn(tick(log, seconds, seconds))
        await asyncio.sleep(0)
        machine.pause()
        await asyncio.sleep(3)
        machine.resume()
        machine.pause()
        await asyncio.sleep(1)
        assert log == []
        machine.resume()
        await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert log == [(4, 1), (4, 2)]

    run_virtual(main())


def test_a_paused_peer_answers_when_it_goes_on_and_its_connections_stay() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        b.machine.pause()
        question = a.begin("b", "hello")
        await asyncio.sleep(0.1)
        with pytest.raises(TimeoutError):
            await a.ask("b", "quick", deadline_s=5)
        assert b.asked == []
        assert network.are_connected("a", "b")
        b.machine.resume()
        assert await question == "hello"
        assert [word for _, _, word in b.asked] == ["hello", "quick"], "what came meanwhile is read, in order"

    play(test)


def test_a_paused_peer_cannot_be_dialled_but_is_reached_later() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        network.cut("a", "b")
        b.machine.pause()
        began = now()
        with pytest.raises(PeerUnreachable, match="no answer within 10 s"):
            await a.ask("b")
        assert now() - began == 10
        b.machine.resume()
        assert await a.ask("b", "now") == "now"

    play(test)


# ------------------------------------------------------------------------------------------------- crash


def test_a_crash_ends_every_task_and_lets_none_speak() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        ended: list[str] = []

        async def stubborn() -> None:
            try:
                await forever()
            finally:
                try:
                    await a.transport.request("b", last_words())
                except PeerUnreachable:
                    ended.append("unheard")
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)
                ended.append("stubborn")

        async def parent() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(stubborn())
                group.create_task(forever())

        task = a.machine.spawn(parent())
        ran: list[int] = []
        asyncio.get_running_loop().call_later(3, ran.append, 1, context=a.machine.context)
        await asyncio.sleep(1)
        began = now()
        network.kill("a")
        a.machine.crash()
        await asyncio.wait({task})
        await asyncio.sleep(0)
        assert now() == began, "dying takes no time"
        await asyncio.sleep(10)
        assert ended == ["unheard", "stubborn"]
        assert ran == [], "its timers are dropped"
        assert (a.machine.state, a.machine.tasks(), b.asked) == ("dead", [], [])

    play(test)


def last_words() -> Any:
    from swarmd.values import Frame

    return Frame("Word", {"word": "last"})


def test_a_machine_that_crashes_while_paused_ends_too() -> None:
    async def main() -> None:
        machine = Machine("m")
        task = machine.spawn(forever())
        sleeper = machine.spawn(asyncio.sleep(1))
        await asyncio.sleep(0)
        machine.pause()
        await asyncio.sleep(2)
        machine.crash()
        await asyncio.wait({task, sleeper})
        await asyncio.sleep(0)
        assert machine.state == "dead"

    run_virtual(main())


def test_a_task_that_outlives_every_cancellation_is_a_failure() -> None:
    async def main() -> None:
        machine = Machine("m")
        heard: list[BaseException] = []
        machine.failed = heard.append

        async def immortal() -> None:
            while not heard:
                try:
                    await asyncio.sleep(1)
                except asyncio.CancelledError:
                    continue

        task = machine.spawn(immortal(), name="immortal")
        await asyncio.sleep(0)
        machine.crash()
        await asyncio.sleep(0.5)
        assert "immortal" in str(heard[0])
        machine.state, machine.runs = "running", True  # so that it can end
        task.cancel()
        await asyncio.sleep(2)

    run_virtual(main())


def test_a_dead_asker_cancels_what_is_answered_to_it() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        cancelled: list[float] = []

        async def slow(peer: str, frame: Any) -> Any:
            try:
                return await forever()
            except asyncio.CancelledError:
                cancelled.append(now())
                raise

        b.handler = slow
        a.begin("b")
        await asyncio.sleep(1)
        assert [task.get_name() for task in b.machine.tasks()] == ["serve Word"], "it runs at the answerer"
        died = now()
        network.kill("a")
        a.machine.crash()
        await asyncio.sleep(1)
        assert cancelled == [pytest.approx(died, abs=0.01)]
        assert [peer for _, peer in b.lost] == ["a"]
        assert b.machine.tasks() == []

    play(test)


# ------------------------------------------------------------------------------------------------- devices


class Engine:
    """Notes what it was called with."""

    gradient_size, codecs, version = 3, ("fp32",), 0

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.forgets: dict[HopId, int] = {}

    def attempt(self, hop: HopId) -> int:
        return self.forgets.get(hop, 0)

    def forward(self, hop: HopId, *arguments: Any, **options: Any) -> Any:
        self.calls.append(("forward", hop, now()))

    def backward(self, hop: HopId, gradient: Any, **options: Any) -> Any:
        self.calls.append(("backward", hop, options))
        return BackwardResult(None, True)

    def tail(self, hop: HopId, *arguments: Any, **options: Any) -> Any:
        self.calls.append(("tail", hop, options))
        return TailResult(0.0, 1, None, True)

    def freeze(self, step: int) -> None:
        self.calls.append(("freeze", step, now()))


def device(speed: Speed | None = None) -> tuple[Machine, Engine, SimCompute]:
    machine, engine = Machine("m"), Engine()
    return machine, engine, SimCompute(engine, speed or Speed(10, 20, 1), machine)


def forward(machine: Machine, compute: SimCompute, index: int = 0) -> "asyncio.Task[Any]":
    return machine.spawn(compute.forward(HopId(1, index), b"", None, codec="fp32"))


def on_device(test: Callable[[Machine, Engine, SimCompute], Awaitable[None]], speed: Speed | None = None) -> None:
    async def main() -> None:
        await test(*device(speed))

    run_virtual(main())


def test_a_pause_freezes_what_is_left_of_a_task() -> None:
    async def test(machine: Machine, engine: Engine, compute: SimCompute) -> None:
        done = forward(machine, compute)
        await asyncio.sleep(4)
        machine.pause()
        await asyncio.sleep(100)
        assert engine.calls == []
        machine.resume()
        await done
        assert engine.calls == [("forward", HopId(1, 0), 110)]

    on_device(test)


def test_a_slower_machine_takes_longer_also_for_what_it_has_begun() -> None:
    async def test(machine: Machine, engine: Engine, compute: SimCompute) -> None:
        first, second = forward(machine, compute, 0), forward(machine, compute, 1)
        await asyncio.sleep(5)
        machine.slowdown = 3
        await first
        assert now() == 20
        await second
        assert now() == 50
        assert compute.progress().forward_seconds == pytest.approx(10 + 0.9 * 0.1 * 10 + 0.1 * 20), "it is measured"
        machine.slowdown = 1
        await forward(machine, compute, 2)
        assert now() == 60

    on_device(test)


def test_a_hung_device_goes_on_when_it_is_unhung() -> None:
    async def test(machine: Machine, engine: Engine, compute: SimCompute) -> None:
        first, second = forward(machine, compute, 0), forward(machine, compute, 1)
        await asyncio.sleep(5)
        compute.device.hung = True
        await asyncio.sleep(100)
        assert not first.done()
        assert compute.progress().running == HopId(1, 0)
        assert compute.progress().busy_seconds == 105
        compute.device.hung = False
        await first
        assert now() == 105
        await second
        assert now() == 115

    on_device(test)


def test_a_hang_that_ends_during_a_pause_ends_with_the_pause() -> None:
    async def test(machine: Machine, engine: Engine, compute: SimCompute) -> None:
        done = forward(machine, compute)
        compute.device.hung = True
        await asyncio.sleep(20)
        machine.pause()
        compute.device.hung = False
        await asyncio.sleep(5)
        assert engine.calls == []
        machine.resume()
        await done
        assert now() == 25

    on_device(test)


def test_rounds_come_before_backward_before_forward_and_older_before_newer() -> None:
    async def test(machine: Machine, engine: Engine, compute: SimCompute) -> None:
        tasks = [forward(machine, compute, index) for index in (0, 2, 1)]
        await asyncio.sleep(1)
        tasks.append(machine.spawn(compute.backward(HopId(1, 7), None, codec="fp32")))  # type: ignore[arg-type]
        tasks.append(machine.spawn(compute.freeze(1)))
        await asyncio.gather(*tasks)
        order = [(call[0], call[1]) for call in engine.calls]
        assert order == [
            ("forward", (1, 0)), ("freeze", 1), ("backward", (1, 7)), ("forward", (1, 1)), ("forward", (1, 2)),
        ]  # fmt: skip

    on_device(test)


def test_subtract_reaches_the_engine_only_when_it_is_meant() -> None:
    async def test(machine: Machine, engine: Engine, compute: SimCompute) -> None:
        gradient: Any = None
        await machine.spawn(compute.backward(HopId(1, 0), gradient, codec="fp32"))
        await machine.spawn(compute.backward(HopId(1, 0), gradient, codec="fp32", subtract=True))
        await machine.spawn(compute.tail(HopId(1, 0), b"", None, codec="fp32", subtract=True))
        assert [options.get("subtract") for *_, options in engine.calls] == [None, True, True]

    on_device(test)


def test_durations_may_vary_by_a_share() -> None:
    async def test(machine: Machine, engine: Engine, compute: SimCompute) -> None:
        for index in range(20):
            await forward(machine, compute, index)
        times = [time for *_, time in engine.calls]
        taken = [after - before for before, after in zip([0, *times], times, strict=False)]
        assert all(8 <= seconds <= 12 for seconds in taken)
        assert len(set(taken)) == 20
        assert compute.device._seconds[FORWARD] != 10

    on_device(test, Speed(10, 20, 1, jitter=0.2))


def test_what_was_given_up_while_it_waited_takes_no_time() -> None:
    """The engine refuses it before it computes anything."""

    async def test(machine: Machine, engine: Engine, compute: SimCompute) -> None:
        first, second, third = (forward(machine, compute, index) for index in range(3))
        await asyncio.sleep(5)
        engine.forgets[HopId(1, 1)] = 1
        await asyncio.wait([first, second, third])
        assert [(hop.index, time) for _, hop, time in engine.calls] == [(0, 10), (1, 10), (2, 20)]

    on_device(test, Speed(10, 20, 1))


def test_a_device_ends_with_its_machine() -> None:
    async def test(machine: Machine, engine: Engine, compute: SimCompute) -> None:
        done = forward(machine, compute)
        await asyncio.sleep(5)
        machine.crash()
        await asyncio.wait({done})
        await asyncio.sleep(100)
        assert done.cancelled()
        assert engine.calls == []

    on_device(test)


# ------------------------------------------------------------------------------------------------- worlds


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
        assert world.peers["a"].peer.entries == ()
        assert world.peers["d"].peer.entries == ("a", "b", "c")
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
