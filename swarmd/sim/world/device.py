"""A simulated machine's device: tasks one at a time, in the production worker's order of precedence, in virtual time.

Rounds come first, then backward, then forward; older first. The device stops while its machine is paused, goes slower
or hangs when told to, and ends with it. It measures how long hops take, as the production worker does.
"""

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmd.errors import DeviceLost
from swarmd.sim.world.machine import WORLD, Machine
from swarmd.sim.world.trace import Trace
from swarmd.values import ComputeProgress, HopId

ROUND, BACKWARD, FORWARD, EVALUATE = range(4)
AVERAGE_WEIGHT = 0.1  # of the newest measurement in the moving averages, as in the production worker
ROUNDING_SECONDS = 1e-5  # a measured duration is off by some of the loop's resolution of 1e-6


@dataclass(frozen=True)
class Speed:
    """Virtual seconds that a device takes."""

    forward_s: float = 0.010
    backward_s: float = 0.020
    round_s: float = 0.002  # each task of a round
    jitter: float = 0.0  # each duration is off by up to this share, either way
    rounds: Mapping[str, float] = field(default_factory=dict)  # those tasks of a round that take another time
    open_s: float = 0.0  # until it has opened a stage


@dataclass(eq=False)
class Task:
    """One call for the device."""

    rank: int
    method: str
    step: int  # -1: of none
    hop: HopId | None
    call: Callable[[], Any]
    usual: float  # seconds that it takes at the device's usual speed
    is_void: Callable[[], bool]  # its hop was given up, or its step is over: it is refused at once
    left: float = 0.0  # seconds that remain, at the usual speed
    future: asyncio.Future[Any] = field(init=False)


class Device:
    """One device of one machine."""

    def __init__(self, speed: Speed, machine: Machine, rng: random.Random, trace: Trace) -> None:
        self._speed, self._machine, self._rng, self._trace = speed, machine, rng, trace
        self._queue: list[tuple[int, HopId, int, Task]] = []
        self._order = itertools.count()
        self._counter = 0
        self._seconds = {FORWARD: speed.forward_s, BACKWARD: speed.backward_s}
        self._task: Task | None = None  # the one that runs
        self._since = 0.0  # when it began
        self._seen = 0.0  # when `left` was brought up to date
        self._pace = 1.0  # how fast `left` shrinks since then
        self._timer: asyncio.TimerHandle | None = None
        self._waking = False
        self._hung = self._stuck = False
        self._lost = ""  # why it computes no more
        machine.watch(self._adjust)

    @property
    def hung(self) -> bool:
        """True while the device is stuck in its task."""
        return self._hung

    @hung.setter
    def hung(self, hung: bool) -> None:
        self._hung = hung
        if not hung and self._stuck:
            self._stuck = False
            self._finish()

    @property
    def waiting(self) -> int:
        """Tasks in the queue."""
        return len(self._queue)

    def progress(self) -> ComputeProgress:
        task = self._task
        seconds = asyncio.get_running_loop().time() - self._since if task else 0.0
        return ComputeProgress(
            self._counter,
            task.hop if task else None,
            seconds,
            self._seconds[FORWARD],
            self._seconds[BACKWARD],
            self._lost,
        )

    def lose(self, why: str) -> None:
        """Ends the device, as when its thread has died: all that wait for it get DeviceLost."""
        self._lost = why
        waiting = [task for *_, task in self._queue] + ([self._task] if self._task else [])
        self._queue.clear()
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in waiting:
            if not task.future.done():
                task.future.set_exception(DeviceLost(why))

    async def run(self, task: Task) -> Any:
        """Queues a task and waits for its result. Raises DeviceLost, and what the task's call raises."""
        if self._lost:
            raise DeviceLost(self._lost)
        task.future = asyncio.get_running_loop().create_future()
        task.left = task.usual
        if self._speed.jitter:
            task.left *= 1.0 + self._speed.jitter * self._rng.uniform(-1.0, 1.0)
        heapq.heappush(self._queue, (task.rank, task.hop or HopId(0, 0), next(self._order), task))
        self._wake()
        return await task.future

    def _wake(self) -> None:
        if self._task is None and not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._next, context=WORLD)

    def _next(self) -> None:
        """Begins the most urgent task."""
        self._waking = False
        while self._queue and self._machine.alive:
            *_, task = heapq.heappop(self._queue)
            if not task.future.cancelled():
                self._machine.set_busy(True)
                self._task = task
                if task.is_void():
                    task.left = 0.0  # refused before anything is computed
                self._since = self._seen = asyncio.get_running_loop().time()
                self._arm()
                return
        self._machine.set_busy(False)

    def _arm(self) -> None:
        """Sets the timer for the present task's end, at the present pace."""
        assert self._task is not None
        machine = self._machine
        self._pace = 1.0 / machine.slowdown if machine.state == "running" else 0.0
        if self._pace:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._task.left / self._pace, self._finish, context=WORLD)

    def _adjust(self) -> None:
        """Brings the present task's timer up to date: the machine pauses, goes on, has another speed, or is dead."""
        if self._task is None or self._stuck:
            return
        now = asyncio.get_running_loop().time()
        self._task.left = max(0.0, self._task.left - (now - self._seen) * self._pace)
        self._seen = now
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._machine.alive:
            self._arm()

    def _finish(self) -> None:
        """Ends the present task: its time is over."""
        self._timer = None
        if self._hung:
            self._stuck = True
            return
        task = self._task
        if task is None or not self._machine.alive:
            return
        if self._machine.paused:  # unhung while it was paused
            task.left, self._seen, self._pace = 0.0, asyncio.get_running_loop().time(), 0.0
            return
        self._run(task)
        self._counter += 1
        self._measure(task)
        self._task = None
        self._next()

    def _run(self, task: Task) -> None:
        if self._trace.on:
            index = task.hop.index if task.hop else -1
            now = asyncio.get_running_loop().time()
            self._trace.add(now, self._machine.name, task.method, "", task.step, index)
        try:
            result = task.call()
        except Exception as trouble:  # noqa: BLE001 - it belongs to the task's caller
            if not task.future.cancelled():
                task.future.set_exception(trouble)
        else:
            if not task.future.cancelled():
                task.future.set_result(result)

    def _measure(self, task: Task) -> None:
        """Measures a task's time. Equal devices stay exactly equal: swarms break ties by chance, and not by the
        loop's resolution.
        """
        if task.rank not in self._seconds or not task.usual:
            return
        taken = asyncio.get_running_loop().time() - self._since
        times = 1.0 if abs(taken - task.usual) < ROUNDING_SECONDS else taken / task.usual
        usual = self._speed.forward_s if task.rank == FORWARD else self._speed.backward_s
        self._seconds[task.rank] += AVERAGE_WEIGHT * (times * usual - self._seconds[task.rank])
