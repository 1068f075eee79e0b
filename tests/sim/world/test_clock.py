"""Virtual time: it jumps instead of waiting, in order, and says so when nothing can happen any more."""

import asyncio
import time

import pytest

from swarmd.sim.world.clock import SWEEP_TIMERS, Deadlock, VirtualLoop, run_virtual


def test_hours_pass_at_once() -> None:
    async def main() -> float:
        await asyncio.sleep(3600 * 24 * 365)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert run_virtual(main()) == 3600 * 24 * 365
    assert time.monotonic() - began < 5


def test_sleepers_wake_in_the_order_of_their_time() -> None:
    async def main() -> list[tuple[float, float]]:
        woken: list[tuple[float, float]] = []

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append((seconds, asyncio.get_running_loop().time()))

        await asyncio.gather(*(sleep(seconds) for seconds in (3, 1, 2, 0.5, 1)))
        return woken

    assert run_virtual(main()) == [(0.5, 0.5), (1, 1), (1, 1), (2, 2), (3, 3)]


def test_timeouts_are_of_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await asyncio.get_running_loop().create_future()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 100


def test_work_takes_no_time_unless_it_sleeps() -> None:
    async def main() -> float:
        for _ in range(1000):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 0


def test_a_world_in_which_nothing_can_happen_is_an_error_and_no_hang() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run_virtual(main())


def test_timers_of_one_moment_come_in_the_order_in_which_they_were_set() -> None:
    async def main() -> list[int]:
        loop, order = asyncio.get_running_loop(), list[int]()
        for number in range(50):
            loop.call_at(1.0, order.append, number)
        await asyncio.sleep(2)
        return order

    assert run_virtual(main()) == list(range(50))


def test_cancelled_timers_do_not_pile_up_and_others_still_come() -> None:
    async def main() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        last = asyncio.create_task(asyncio.sleep(2e6))
        for _ in range(20 * SWEEP_TIMERS):
            loop.call_later(1e6, int).cancel()
            await asyncio.sleep(0)
        kept = loop.timers
        await last
        return kept, loop.time()

    kept, ended = run_virtual(main())
    assert kept <= 2 * SWEEP_TIMERS
    assert ended == 2e6


def test_each_world_begins_at_0() -> None:
    async def main() -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        return began

    assert [run_virtual(main()), run_virtual(main())] == [0, 0]
