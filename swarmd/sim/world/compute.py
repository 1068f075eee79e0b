"""The Compute port in virtual time: a real or symbolic stage, run inline, charged with durations of a pretended device.

The device (`device.py`) decides when a task runs. Knows no torch unless the engine is one.
"""

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from swarmd.config import RunConfig
from swarmd.sim.world.device import BACKWARD, EVALUATE, FORWARD, ROUND, Device, Speed, Task
from swarmd.sim.world.machine import Machine
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

OpenEngine = Callable[[RunConfig, int], Any]
"""Builds the engine of a stage: something with the methods of `StageEngine`."""


def torch_engine(run: RunConfig, stage: int) -> Any:
    """The production engine, on the CPU."""
    from swarmd.stage.engine import StageEngine

    return StageEngine(run, stage)


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
        self.engine: StageEngine = engine  # or another with its methods
        self._speed, self._machine = speed, machine
        self.device = Device(speed, machine, rng or random.Random(0), trace or Trace())

    @property
    def gradient_size(self) -> int:
        return int(self.engine.gradient_size)

    @property
    def codecs(self) -> tuple[str, ...]:
        return tuple(self.engine.codecs)

    def progress(self) -> ComputeProgress:
        return self.device.progress()

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
        """Has the device do a task, and waits for its result."""
        points = self._machine.points
        if points.armed:
            await self._machine.at(f"begin.{method}", step)

        def is_void() -> bool:
            if hop is None or attempt is None:
                return False
            return hop.step <= self.engine.version or self.engine.attempt(hop) != attempt

        task = Task(rank, method, -1 if step is None else step, hop, call, seconds, is_void)
        result: T = await self.device.run(task)
        if points.armed:
            await self._machine.at(f"end.{method}", step)
        return result

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
