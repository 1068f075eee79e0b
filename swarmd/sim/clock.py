"""An asyncio event loop in virtual time: nothing waits, the clock jumps to the next timer.

A standard selector event loop whose selector, asked to wait, advances the clock by the timeout instead. With nothing
due and nothing ready the world is stuck, which is an error and not a hang.

What runs for a simulated machine passes through its gate (`machine.py`): a paused machine's callbacks and timers wait
there, a dead one's are dropped. What belongs to no machine costs one look at its context.
"""

import asyncio
import contextvars
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from swarmd.sim.machine import MACHINE, Gate

T = TypeVar("T")

RESOLUTION_SECONDS = 1e-6  # must not vanish when it is added to the time: with 1e-9 the clock would stop after 97 days


class Deadlock(RuntimeError):
    """Every coroutine waits for something that nothing will bring."""


class _JumpingSelector(selectors.BaseSelector):
    """Selects nothing, ever; time passes by as much as one would have waited."""

    def __init__(self) -> None:
        self.now = 0.0
        self._inner = selectors.SelectSelector()  # registers the loop's own wake-up socket, which is never used

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("virtual time has nothing left to wait for")
        self.now += max(0.0, timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def get_map(self) -> Any:
        return self._inner.get_map()

    def close(self) -> None:
        self._inner.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that lives in virtual seconds, from 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = RESOLUTION_SECONDS

    def time(self) -> float:
        return self._jumping.now

    def call_soon(  # type: ignore[override]  # the stubs tie the arguments to the callback
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        machine = MACHINE.get() if context is None else context.get(MACHINE)
        if machine is None:
            return super().call_soon(callback, *args, context=context)
        context = context or contextvars.copy_context()
        gate = Gate(machine, callback, args, context)
        gate.handle = super().call_soon(gate, context=context)
        return gate.handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        machine = MACHINE.get() if context is None else context.get(MACHINE)
        if machine is None:
            return super().call_at(when, callback, *args, context=context)
        context = context or contextvars.copy_context()
        gate = Gate(machine, callback, args, context)
        timer = gate.handle = super().call_at(when, gate, context=context)
        return timer

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        context = options.get("context")
        task: asyncio.Task[Any] = super().create_task(coro, **options)
        machine = MACHINE.get() if context is None else context.get(MACHINE)
        if machine is not None:
            machine.own(task)
        return task


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end in virtual time. Raises Deadlock when nothing can happen any more."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
