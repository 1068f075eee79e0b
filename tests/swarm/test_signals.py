"""Signals wake whoever waits; and how many microbatches a head keeps under way."""

import asyncio

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.signals import Signal
from swarmd.swarm.steps.head import plan_slots


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


@pytest.mark.parametrize(
    ("peers", "heads", "limit", "slots"),
    [(6, 2, 64, 6), (7, 2, 64, 7), (1, 1, 64, 2), (100, 1, 64, 64), (3, 0, 64, 6), (6, 2, 1, 1), (6, 6, 64, 2)],
)
def test_heads_keep_their_share_of_what_keeps_all_busy(peers: int, heads: int, limit: int, slots: int) -> None:
    assert plan_slots(peers, heads, limit, 0.0, 0.0) == slots


@pytest.mark.parametrize(
    ("away", "service", "slots"), [(3.0, 10.0, 3), (3.0, 1.0, 5), (6.0, 1.0, 8), (60.0, 1.0, 12), (0.0, 1.0, 12)]
)
def test_a_slow_head_doesnt_hoard(away: float, service: float, slots: int) -> None:
    assert plan_slots(12, 2, 64, away, service) == slots
