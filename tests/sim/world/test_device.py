"""A machine's device: tasks in their order of precedence, slowed down, paused, hung, and ended with their machine."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.compute import SimCompute
from swarmd.sim.world.device import FORWARD, Speed
from swarmd.sim.world.machine import Machine
from swarmd.values import BackwardResult, HopId, TailResult
from tests.sim.nodes import now


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
            ("forward", (1, 0)),
            ("freeze", 1),
            ("backward", (1, 7)),
            ("forward", (1, 1)),
            ("forward", (1, 2)),
        ]

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
