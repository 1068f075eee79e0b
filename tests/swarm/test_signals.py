"""Signals wake whoever waits."""

import asyncio

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.signals import Signal


def test_a_change_wakes_everyone_who_waits_once() -> None:
    async def main() -> None:
        signal, woken = Signal(), []

        async def wait(name: str) -> None:
            assert await signal.wait()
            woken.append(name)

        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(wait(name))
            await asyncio.sleep(1)
            assert woken == []
            signal.notify()
        assert woken == ["a", "b", "c"]
        assert not await signal.wait(1.0), "a change that is over wakes nobody"
        assert signal._waiters == []

    run_virtual(main())


def test_a_condition_is_looked_at_again_after_each_change() -> None:
    async def main() -> None:
        loop, signal, state = asyncio.get_running_loop(), Signal(), [0]

        async def count() -> None:
            for _ in range(5):
                await asyncio.sleep(1)
                state[0] += 1
                signal.notify()

        counting = asyncio.create_task(count())
        assert await signal.until(lambda: state[0] >= 3)
        assert loop.time() == 3
        assert not await signal.until(lambda: state[0] >= 9, 10)
        assert loop.time() == 13
        assert await signal.until(lambda: True, 0)
        await counting

    run_virtual(main())


def test_who_is_cancelled_waits_no_more() -> None:
    async def main() -> None:
        signal = Signal()
        waiting = asyncio.create_task(signal.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert signal._waiters == []
        signal.notify()

    run_virtual(main())
