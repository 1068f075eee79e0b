"""The Compute port in virtual time: a real or symbolic stage, run inline, charged with durations of a pretended device.

One task at a time, in the same order of precedence as the production worker: rounds, then backward, then forward;
older first. The device belongs to its machine: it stops while that is paused, goes slower or hangs when told to, and
ends with it. Knows no torch unless the engine is one.
"""

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from swarmd.config import RunConfig
from swarmd.errors import DeviceLost
from swarmd.sim.world.machine import WORLD, Machine
from swarmd.sim.world.trace import Trace
from swarmd.values import (
    BackwardResult,
    Buffer,
    ComputeProgress,
    Encoded,
    GradientSummary,
    HopId,
    TailResult,
)

if TYPE_CHECKING:
    from swarmd.stage.engine import StageEngine

T = TypeVar("T")
ROUND, BACKWARD, FORWARD, EVALUATE = range(4)
AVERAGE_WEIGHT = 0.1  # of the newest measurement in the moving averages, as in the production worker
ROUNDING_SECONDS = 1e-5  # a measured duration is off by some of the loop's resolution of 1e-6

OpenEngine = Callable[[RunConfig, int], Any]
"""Builds the engine of a stage: something with the methods of `StageEngine`."""


def torch_engine(run: RunConfig, stage: int) -> Any:
    """The production engine, on the CPU."""
    from swarmd.stage.engine import StageEngine

    return StageEngine(run, stage)


@dataclass(frozen=True)
class Speed:
    """Virtual seconds that a device takes."""

    forward_s: float = 0.010
    backward_s: float = 0.020
    round_s: float = 0.002  # each task of a round
    jitter: float = 0.0  # each duration is off by up to this share, either way
    rounds: Mapping[str, float] = field(default_factory=dict)  # those tasks of a round that take another time
    open_s: float = 0.0  # until it has opened a stage


@dataclass
class _Task:
    """One call for the device and who waits for it."""

    rank: int
    method: str
    step: int
    hop: HopId | None
    call: Callable[[], Any]
    future: asyncio.Future[Any]
    usual: float  # seconds that it takes at the device's usual speed
    left: float  # of these, what remains
    attempt: int | None = None  # the hop was begun with this one; another since makes the task void


class SimCompute:
    """One stage on one pretended device."""

    def __init__(
        self,
        engine: Any,
        speed: Speed,
        machine: Machine,
        *,
        rng: random.Random | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.engine: StageEngine = engine  # or whatever has its methods
        self._speed, self._machine = speed, machine
        self._rng, self._trace = rng or random.Random(0), trace or Trace()
        self._queue: list[tuple[int, HopId, int, _Task]] = []
        self._order = itertools.count()
        self._counter = 0
        self._seconds = {FORWARD: speed.forward_s, BACKWARD: speed.backward_s}
        self._task: _Task | None = None  # the one that runs
        self._since = 0.0  # when it began
        self._seen = 0.0  # when `left` was brought up to date
        self._pace = 1.0  # how fast `left` shrinks since then
        self._timer: asyncio.TimerHandle | None = None
        self._waking = False
        self._hung = self._stuck = False
        self._lost = ""  # why it computes no more
        machine.watch(self._adjust)

    @property
    def gradient_size(self) -> int:
        return int(self.engine.gradient_size)

    @property
    def codecs(self) -> tuple[str, ...]:
        return tuple(self.engine.codecs)

    @property
    def hung(self) -> bool:
        """The device never ends the task it is at."""
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
        """The device computes no more, as when its thread has died: whoever waits for it hears so."""
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

    # ------------------------------------------------------------------------------------------------- the device

    async def _do(
        self,
        rank: int,
        method: str,
        step: int | None,
        seconds: float,
        call: Callable[[], T],
        hop: HopId | None = None,
        attempt: int | None = None,
    ) -> T:
        """Queues a task for the device and waits for its result."""
        points = self._machine.points
        if points.armed:
            await self._machine.at(f"begin.{method}", step)
        if self._lost:
            raise DeviceLost(self._lost)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        left = seconds
        if self._speed.jitter:
            left *= 1.0 + self._speed.jitter * self._rng.uniform(-1.0, 1.0)
        task = _Task(rank, method, -1 if step is None else step, hop, call, future, seconds, left, attempt)
        heapq.heappush(self._queue, (rank, hop or HopId(0, 0), next(self._order), task))
        self._wake()
        result = await future
        if points.armed:
            await self._machine.at(f"end.{method}", step)
        return result

    def _wake(self) -> None:
        if self._task is None and not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._next, context=WORLD)

    def _next(self) -> None:
        """The device takes the most urgent task."""
        self._waking = False
        while self._queue and self._machine.alive:
            *_, task = heapq.heappop(self._queue)
            if not task.future.cancelled():
                self._machine.set_busy(True)
                self._task = task
                if self._is_void(task):
                    task.left = 0.0  # refused before anything is computed
                self._since = self._seen = asyncio.get_running_loop().time()
                self._arm()
                return
        self._machine.set_busy(False)

    def _is_void(self, task: _Task) -> bool:
        """Whether a task's hop was given up, or its step is over, while it waited."""
        if task.hop is None or task.attempt is None:
            return False
        return task.hop.step <= self.engine.version or self.engine.attempt(task.hop) != task.attempt

    def _arm(self) -> None:
        """Sets the timer for the present task's end, at the present pace."""
        assert self._task is not None
        machine = self._machine
        self._pace = 1.0 / machine.slowdown if machine.state == "running" else 0.0
        if self._pace:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._task.left / self._pace, self._finish, context=WORLD)

    def _adjust(self) -> None:
        """The machine was paused, goes on, has another speed, or is dead: what is left of the task takes longer."""
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
        """The present task's time is over."""
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

    def _run(self, task: _Task) -> None:
        if self._trace.on:
            index = task.hop.index if task.hop else -1
            now = asyncio.get_running_loop().time()
            self._trace.add(now, self._machine.name, task.method, "", task.step, index)
        try:
            result = task.call()
        except Exception as trouble:  # noqa: BLE001 - it belongs to whoever asked
            if not task.future.cancelled():
                task.future.set_exception(trouble)
        else:
            if not task.future.cancelled():
                task.future.set_result(result)

    def _measure(self, task: _Task) -> None:
        """Follows how long things take. Equal devices stay exactly equal: swarms break ties by chance, and not by the
        loop's resolution.
        """
        if task.rank not in self._seconds or not task.usual:
            return
        taken = asyncio.get_running_loop().time() - self._since
        times = 1.0 if abs(taken - task.usual) < ROUNDING_SECONDS else taken / task.usual
        usual = self._speed.forward_s if task.rank == FORWARD else self._speed.backward_s
        self._seconds[task.rank] += AVERAGE_WEIGHT * (times * usual - self._seconds[task.rank])

    # ------------------------------------------------------------------------------------------------- the port

    async def forward(
        self, hop: HopId, tokens: Buffer, activation: Encoded | None, *, codec: str, evaluate: bool = False
    ) -> Encoded:
        attempt = None if evaluate else self.engine.attempt(hop)
        return await self._do(
            EVALUATE if evaluate else FORWARD,
            "forward",
            hop.step,
            self._speed.forward_s,
            lambda: self.engine.forward(hop, tokens, activation, codec=codec, evaluate=evaluate, attempt=attempt),
            hop,
            attempt,
        )

    async def backward(self, hop: HopId, gradient: Encoded, *, codec: str, subtract: bool = False) -> BackwardResult:
        attempt = self.engine.attempt(hop)
        more = {"subtract": True} if subtract else {}
        return await self._do(
            BACKWARD,
            "backward",
            hop.step,
            self._speed.backward_s,
            lambda: self.engine.backward(hop, gradient, codec=codec, attempt=attempt, **more),
            hop,
            attempt,
        )

    async def tail(
        self,
        hop: HopId,
        tokens: Buffer,
        activation: Encoded | None,
        *,
        codec: str,
        evaluate: bool = False,
        subtract: bool = False,
    ) -> TailResult:
        attempt = None if evaluate else self.engine.attempt(hop)
        more = {"subtract": True} if subtract else {}
        return await self._do(
            EVALUATE if evaluate else FORWARD,
            "tail",
            hop.step,
            self._speed.forward_s + (0.0 if evaluate else self._speed.backward_s),
            lambda: self.engine.tail(hop, tokens, activation, codec=codec, evaluate=evaluate, attempt=attempt, **more),
            hop,
            attempt,
        )

    def forget(self, hop: HopId) -> None:
        self.engine.forget(hop)

    async def _round(self, method: str, step: int | None, call: Callable[[], T]) -> T:
        return await self._do(ROUND, method, step, self._speed.rounds.get(method, self._speed.round_s), call)

    async def freeze(self, step: int) -> None:
        await self._round("freeze", step, lambda: self.engine.freeze(step))

    async def thaw(self, step: int) -> None:
        await self._round("thaw", step, lambda: self.engine.thaw(step))

    async def absorb(self, step: int, indices: Sequence[int], slices: Sequence[Encoded]) -> bool:
        return await self._round("absorb", step, lambda: self.engine.absorb(step, indices, slices))

    async def contribution(self, step: int, start: int, stop: int, *, codec: str) -> Encoded:
        return await self._round("contribution", step, lambda: self.engine.contribution(step, start, stop, codec=codec))

    async def reduce(self, contributions: Sequence[Encoded], tokens: int, *, codec: str) -> Encoded:
        return await self._round("reduce", None, lambda: self.engine.reduce(contributions, tokens, codec=codec))

    async def assemble(self, step: int, parts: Sequence[Encoded]) -> GradientSummary:
        return await self._round("assemble", step, lambda: self.engine.assemble(step, parts))

    async def apply(self, step: int, *, learning_rate: float, clip_factor: float) -> str:
        return await self._round(
            "apply", step, lambda: self.engine.apply(step, learning_rate=learning_rate, clip_factor=clip_factor)
        )

    async def skip(self, step: int) -> str:
        return await self._round("skip", step, lambda: self.engine.skip(step))

    async def export_state(self) -> Buffer:
        return await self._round("export_state", None, self.engine.export_state)

    async def import_state(self, state: Buffer) -> str:
        return await self._round("import_state", None, lambda: self.engine.import_state(state))
