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
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

from swarmd.sim.world.machine import MACHINE, Gate, GatedTimer

T = TypeVar("T")

RESOLUTION_SECONDS = 1e-6  # must not vanish when it is added to the time: with 1e-9 the clock would stop after 97 days
SWEEP_TIMERS = 1000  # in fewer timers those that are cancelled may stay until they are due
SWEEP_SHARE = 0.5  # of all timers, that were cancelled since they were last swept out


class Deadlock(RuntimeError):
    """Every coroutine waits for something that nothing will bring."""


class _JumpingSelector(selectors.BaseSelector):
    """Selects nothing, ever; advances the time by as much as one would have waited."""

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
    """An event loop that lives in virtual seconds, from 0.

    Timers are kept in a heap of its own, ordered by time and then by the order in which they were set: a large world
    sets a million of them in a minute, and comparing handles is what a standard loop spends most of its time with.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_set = 0
        self._cancelled_timers = 0
        super().__init__(self._jumping)
        self._clock_resolution = RESOLUTION_SECONDS

    def time(self) -> float:
        return self._jumping.now

    @property
    def timers(self) -> int:
        """Number of timers kept, including those that were cancelled and not swept out yet."""
        return len(self._timers)

    def _run_once(self) -> None:
        """Runs everything that is ready now; if nothing is, the next timer, after a jump to its time."""
        timers, ready, jumping = self._timers, self._ready, self._jumping  # type: ignore[attr-defined]
        while timers and timers[0][2].cancelled():
            heappop(timers)
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            jumping.select(max(0.0, timers[0][0] - jumping.now) if timers else None)
        due = jumping.now + RESOLUTION_SECONDS
        while timers and timers[0][0] < due:
            ready.append(heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()  # noqa: SLF001 - what a loop does

    def call_soon(  # type: ignore[override]  # the stubs tie the arguments to the callback
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if context is None:  # an empty one is false
            context = contextvars.copy_context()
        machine = context.get(MACHINE)
        handle = (
            asyncio.Handle(callback, args, self, context)
            if machine is None
            else Gate(machine, callback, args, self, context)
        )
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._jumping.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        if context is None:  # an empty one is false
            context = contextvars.copy_context()
        machine = context.get(MACHINE)
        timer = (
            asyncio.TimerHandle(when, callback, args, self, context)
            if machine is None
            else GatedTimer(machine, when, callback, args, self, context)
        )
        self._timers_set += 1
        heappush(self._timers, (when, self._timers_set, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Sweeps the heap once most of it was cancelled: most timeouts are, long before they are due."""
        self._cancelled_timers += 1
        if self._cancelled_timers > SWEEP_SHARE * len(self._timers) and len(self._timers) > SWEEP_TIMERS:
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapify(self._timers)
            self._cancelled_timers = 0

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
