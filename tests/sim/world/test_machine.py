"""Machines: a paused one does nothing and sees its timers late and in order; a dead one leaves nothing behind."""

import asyncio
import contextlib
from typing import Any

import pytest

from swarmd.errors import PeerUnreachable
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.machine import MACHINE, Machine
from swarmd.sim.world.network import SimNetwork
from tests.sim.nodes import Node, forever, now, play


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
    """An answer that came in time may still be too late, as with a real SIGSTOP."""

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
