"""The Compute port in virtual time: the real torch stage, run inline, charged with durations of a pretended device.

One task at a time, in the same order of precedence as the production worker: rounds, then backward, then forward;
older first.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from swarmd.config import RunConfig
from swarmd.stage.engine import StageEngine
from swarmd.values import (
    BackwardResult,
    Buffer,
    ComputeProgress,
    Encoded,
    GradientSummary,
    HopId,
    TailResult,
)

T = TypeVar("T")
ROUND, BACKWARD, FORWARD, EVALUATE = range(4)


@dataclass(frozen=True)
class Speed:
    """Virtual seconds that a device takes."""

    forward_s: float = 0.010
    backward_s: float = 0.020
    round_s: float = 0.002  # each task of a round


class SimCompute:
    """One stage on one pretended device."""

    def __init__(self, run: RunConfig, stage: int, speed: Speed) -> None:
        self.engine = StageEngine(run, stage)
        self._speed = speed
        self._queue: list[tuple[int, HopId, int, Callable[[], Any], float, asyncio.Future[Any], HopId | None]] = []
        self._order = itertools.count()
        self._device: asyncio.Task[None] | None = None
        self._counter = 0
        self._running: HopId | None = None
        self._since = 0.0
        self.hung = False  # the device never ends the task it is at

    @property
    def gradient_size(self) -> int:
        return self.engine.gradient_size

    @property
    def codecs(self) -> tuple[str, ...]:
        return self.engine.codecs

    def progress(self) -> ComputeProgress:
        busy = self._device is not None
        seconds = asyncio.get_running_loop().time() - self._since if busy else 0.0
        return ComputeProgress(self._counter, self._running, seconds, self._speed.forward_s, self._speed.backward_s)

    async def _do(
        self, rank: int, seconds: float, task: Callable[[], T], *, key: HopId | None = None, hop: HopId | None = None
    ) -> T:
        """Queues a task for the device and waits for its result."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (rank, key or HopId(0, 0), next(self._order), task, seconds, future, hop))
        if self._device is None:
            self._device = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._queue:
            _, _, _, task, seconds, future, hop = heapq.heappop(self._queue)
            if future.cancelled():
                continue
            self._running, self._since = hop, asyncio.get_running_loop().time()
            await asyncio.sleep(seconds)
            if self.hung:
                await asyncio.get_running_loop().create_future()
            try:
                result = task()
            except Exception as trouble:  # noqa: BLE001 - it belongs to whoever asked
                if not future.cancelled():
                    future.set_exception(trouble)
            else:
                if not future.cancelled():
                    future.set_result(result)
            self._counter += 1
            self._running = None
        self._device = None

    async def forward(
        self, hop: HopId, tokens: Buffer, activation: Encoded | None, *, codec: str, evaluate: bool = False
    ) -> Encoded:
        attempt = None if evaluate else self.engine.attempt(hop)
        return await self._do(
            EVALUATE if evaluate else FORWARD,
            self._speed.forward_s,
            lambda: self.engine.forward(hop, tokens, activation, codec=codec, evaluate=evaluate, attempt=attempt),
            key=hop,
            hop=hop,
        )

    async def backward(self, hop: HopId, gradient: Encoded, *, codec: str) -> BackwardResult:
        attempt = self.engine.attempt(hop)
        return await self._do(
            BACKWARD,
            self._speed.backward_s,
            lambda: self.engine.backward(hop, gradient, codec=codec, attempt=attempt),
            key=hop,
            hop=hop,
        )

    async def tail(
        self, hop: HopId, tokens: Buffer, activation: Encoded | None, *, codec: str, evaluate: bool = False
    ) -> TailResult:
        attempt = None if evaluate else self.engine.attempt(hop)
        return await self._do(
            EVALUATE if evaluate else FORWARD,
            self._speed.forward_s + (0.0 if evaluate else self._speed.backward_s),
            lambda: self.engine.tail(hop, tokens, activation, codec=codec, evaluate=evaluate, attempt=attempt),
            key=hop,
            hop=hop,
        )

    def forget(self, hop: HopId) -> None:
        self.engine.forget(hop)

    async def freeze(self, step: int) -> None:
        await self._do(ROUND, self._speed.round_s, lambda: self.engine.freeze(step))

    async def thaw(self, step: int) -> None:
        await self._do(ROUND, self._speed.round_s, lambda: self.engine.thaw(step))

    async def contribution(self, step: int, start: int, stop: int, *, codec: str) -> Encoded:
        return await self._do(
            ROUND, self._speed.round_s, lambda: self.engine.contribution(step, start, stop, codec=codec)
        )

    async def reduce(self, contributions: Sequence[Encoded], tokens: int, *, codec: str) -> Encoded:
        return await self._do(
            ROUND, self._speed.round_s, lambda: self.engine.reduce(contributions, tokens, codec=codec)
        )

    async def assemble(self, step: int, parts: Sequence[Encoded]) -> GradientSummary:
        return await self._do(ROUND, self._speed.round_s, lambda: self.engine.assemble(step, parts))

    async def apply(self, step: int, *, learning_rate: float, clip_factor: float) -> str:
        return await self._do(
            ROUND,
            self._speed.round_s,
            lambda: self.engine.apply(step, learning_rate=learning_rate, clip_factor=clip_factor),
        )

    async def skip(self, step: int) -> str:
        return await self._do(ROUND, self._speed.round_s, lambda: self.engine.skip(step))

    async def export_state(self) -> Buffer:
        return await self._do(ROUND, self._speed.round_s, self.engine.export_state)

    async def import_state(self, state: Buffer) -> str:
        return await self._do(ROUND, self._speed.round_s, lambda: self.engine.import_state(state))
