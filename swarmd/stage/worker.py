"""The thread that owns torch: the Compute port for an event loop, over a `StageEngine`.

Decides in which order work is done: rounds first, because the whole stage waits for them; then backward before
forward, because it frees memory and others wait for it; older hops before younger; evaluation last. The event loop
never waits for the device, and a task whose awaiting coroutine was cancelled is dropped while it is queued. torch is
imported in the thread, so that a daemon listens before it is loaded. The thread alone holds the stage: at its end the
stage and its memory are gone, whoever still has the worker.
"""

import asyncio
import contextlib
import heapq
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, TypeVar

from swarmd.config import ComputeConfig, RunConfig
from swarmd.errors import DeviceLost, Stopped
from swarmd.memory import give_back
from swarmd.stage.device_errors import as_ours, judged
from swarmd.values import BackwardResult, Buffer, ComputeProgress, Encoded, GradientSummary, HopId, TailResult

if TYPE_CHECKING:
    from swarmd.stage.engine import StageEngine

log = logging.getLogger(__name__)

ROUND, BACKWARD, FORWARD, EVALUATE = range(4)
"""The order of kinds of work. The tail's task counts as forward: it admits new work, though it includes a backward."""

WARM_UP_TASKS = 5  # of a kind, until which only the newest counts: the first ones page memory in and compile kernels
CLOSE_LIMIT_S = 10.0  # seconds to wait at close for the task that runs; a hung device must not stop the daemon's end
OPEN_LIMIT_S = 120.0  # at Python's end, for a stage that is being opened: it hangs on nothing
AVERAGE_WEIGHT = 0.1  # of the newest measurement in the moving averages: follows a change within some twenty hops

Result = TypeVar("Result")


@dataclass(eq=False)
class Task:
    """One call for the thread, and the future that gets its result."""

    kind: int
    hop: HopId | None
    call: "Callable[[StageEngine], Any]"
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop


class Worker:
    """Implements `ports.Compute`. Made by `Worker.start`; methods are called from one event loop."""

    def __init__(self, run: RunConfig, stage: int, device: str, threads: int, compute: ComputeConfig) -> None:
        self._engine: StageEngine | None = None  # set and taken away by the thread
        self._gradient_size, self._codecs = 0, tuple[str, ...]()  # the stage's
        self._build = (run, stage, device, threads, compute)
        self._queue: list[tuple[int, int, int, int, Task]] = []
        self._order = itertools.count()
        self._ready = threading.Condition()  # over the queue and `_closing`
        self._closing = False
        self._opening = True  # the thread loads torch or builds the stage
        self._counter = 0
        self._running: tuple[HopId | None, float] | None = None  # what runs, and since when
        self._seconds = {FORWARD: 0.0, BACKWARD: 0.0}
        self._measured = {FORWARD: 0, BACKWARD: 0}
        self._ended: asyncio.Future[None]  # done when the thread is
        self._task: Task | None = None  # the one that runs
        self._thread: threading.Thread
        self._lost = ""  # why nothing is computed any more, a sentence

    @classmethod
    async def start(
        cls, run: RunConfig, stage: int, device: str = "cpu", threads: int = 0, compute: ComputeConfig | None = None
    ) -> "Worker":
        """Builds the stage in its thread, with so many threads of torch (0: its own choice). Raises ConfigError."""
        worker = cls(run, stage, device, threads, compute or ComputeConfig())
        loop = asyncio.get_running_loop()
        built: asyncio.Future[None] = loop.create_future()
        worker._ended = loop.create_future()
        worker._thread = threading.Thread(target=worker._main, args=(loop, built), name=f"stage-{stage}", daemon=True)
        _workers.add(worker)
        worker._thread.start()
        try:
            await built
        except BaseException:
            worker._stop()
            raise
        return worker

    async def close(self, limit_s: float | None = CLOSE_LIMIT_S) -> None:
        """Drops what is queued, and waits so long (None: without a limit) for what runs. Then the stage is gone; until
        then it is in a daemon thread.
        """
        self._stop()
        await asyncio.wait({self._ended}, timeout=limit_s)

    def leave(self) -> None:
        """Waits for the thread before Python takes itself down: under a thread that is in C++ then, the process would
        end with an abort.
        """
        self._stop()
        self._thread.join(OPEN_LIMIT_S if self._opening else CLOSE_LIMIT_S)

    # --------------------------------------------------------------------------------------------- the port

    @property
    def gradient_size(self) -> int:
        return self._gradient_size

    @property
    def codecs(self) -> tuple[str, ...]:
        return self._codecs

    def progress(self) -> ComputeProgress:
        """The thread's pulse. The last stage has its whole time in `forward_seconds`, since it does both at once."""
        running, since = self._running or (None, time.monotonic())
        if not self._thread.is_alive() and not self._closing:  # it said nothing, or we would have heard
            self._lose("the compute thread has ended without a word")
        engine = self._engine
        return ComputeProgress(
            counter=self._counter,
            running=running,
            busy_seconds=time.monotonic() - since,
            forward_seconds=self._seconds[FORWARD],
            backward_seconds=self._seconds[BACKWARD],
            lost=self._lost,
            dtype=engine.dtype if engine else "",
            hops=engine.hops if engine else 0,
            repeats=engine.repeats if engine else 0,
        )

    async def forward(
        self, hop: HopId, tokens: Buffer, activation: Encoded | None, *, codec: str, evaluate: bool = False
    ) -> Encoded:
        attempt = self._attempt(hop)
        return await self._do(
            EVALUATE if evaluate else FORWARD,
            hop,
            lambda engine: engine.forward(hop, tokens, activation, codec=codec, evaluate=evaluate, attempt=attempt),
        )

    async def backward(self, hop: HopId, gradient: Encoded, *, codec: str, subtract: bool = False) -> BackwardResult:
        attempt = self._attempt(hop)
        return await self._do(
            BACKWARD,
            hop,
            lambda engine: engine.backward(hop, gradient, codec=codec, attempt=attempt, subtract=subtract),
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
        attempt = self._attempt(hop)
        return await self._do(
            EVALUATE if evaluate else FORWARD,
            hop,
            lambda engine: engine.tail(
                hop, tokens, activation, codec=codec, evaluate=evaluate, attempt=attempt, subtract=subtract
            ),
        )

    def forget(self, hop: HopId) -> None:
        if (engine := self._engine) is not None:
            engine.forget(hop)

    def _attempt(self, hop: HopId) -> int:
        """The attempt to hold work on a hop to. Without a stage none will be done (`_do`)."""
        return 0 if (engine := self._engine) is None else engine.attempt(hop)

    async def freeze(self, step: int) -> None:
        await self._do(ROUND, None, lambda engine: engine.freeze(step))

    async def thaw(self, step: int) -> None:
        await self._do(ROUND, None, lambda engine: engine.thaw(step))

    async def absorb(self, step: int, indices: Sequence[int], slices: Sequence[Encoded]) -> bool:
        return await self._do(ROUND, None, lambda engine: engine.absorb(step, indices, slices))

    async def contribution(self, step: int, start: int, stop: int, *, codec: str) -> Encoded:
        return await self._do(ROUND, None, lambda engine: engine.contribution(step, start, stop, codec=codec))

    async def reduce(self, contributions: Sequence[Encoded], tokens: int, *, codec: str) -> Encoded:
        return await self._do(ROUND, None, lambda engine: engine.reduce(contributions, tokens, codec=codec))

    async def assemble(self, step: int, parts: Sequence[Encoded]) -> GradientSummary:
        return await self._do(ROUND, None, lambda engine: engine.assemble(step, parts))

    async def apply(self, step: int, *, learning_rate: float, clip_factor: float) -> str:
        return await self._end_step(
            lambda engine: engine.apply(step, learning_rate=learning_rate, clip_factor=clip_factor)
        )

    async def skip(self, step: int) -> str:
        return await self._end_step(lambda engine: engine.skip(step))

    async def _end_step(self, call: "Callable[[StageEngine], str]") -> str:
        """Ends a step; memory that it left behind is given back."""

        def end(engine: "StageEngine") -> str:
            digest = call(engine)
            give_back()
            return digest

        return await self._do(ROUND, None, end)

    async def export_state(self) -> Buffer:
        return await self._do(ROUND, None, lambda engine: engine.export_state())

    async def import_state(self, state: Buffer) -> str:
        return await self._do(ROUND, None, lambda engine: engine.import_state(state))

    # --------------------------------------------------------------------------------------------- the queue

    async def _do(self, kind: int, hop: HopId | None, call: "Callable[[StageEngine], Result]") -> Result:
        """Queues a call, which gets the stage, and waits for its result. Cancelling this drops the call unless it has
        begun.
        """
        loop = asyncio.get_running_loop()
        task = Task(kind, hop, call, loop.create_future(), loop)
        step, index = hop if hop is not None else (0, 0)
        with self._ready:
            if self._closing:
                raise asyncio.CancelledError
            if self._lost:
                raise DeviceLost(self._lost)
            heapq.heappush(self._queue, (kind, step, index, next(self._order), task))
            self._ready.notify()
        result: Result = await task.future
        return result

    def _stop(self) -> None:
        """Lets the thread end after the task that runs; cancels those that wait."""
        with self._ready:
            self._closing = True
            waiting = self._take_all()
            self._ready.notify()
        for task in waiting:
            task.future.cancel()

    def _take_all(self) -> list[Task]:
        """Takes all tasks out of the queue. With the lock held."""
        waiting = [entry[-1] for entry in self._queue]
        self._queue.clear()
        return waiting

    def _lose(self, why: str) -> None:
        """Computes nothing any more, and tells all that wait. From any thread; the first reason stays."""
        with self._ready:
            if self._lost or self._closing:
                return
            self._lost = why
            waiting = self._take_all()
            if self._task is not None:
                waiting.append(self._task)
            self._ready.notify()
        log.error("%s", why)
        for task in waiting:
            _post(task.loop, _deliver, task.future, None, DeviceLost(why))

    def _next(self) -> Task | None:
        """The next call, once there is one; None at the end."""
        with self._ready:
            while True:
                self._ready.wait_for(lambda: self._queue or self._closing or self._lost)
                if self._closing or self._lost:
                    return None
                task = heapq.heappop(self._queue)[-1]
                if not task.future.cancelled():
                    self._task = task
                    return task

    # --------------------------------------------------------------------------------------------- the thread

    def _main(self, loop: asyncio.AbstractEventLoop, built: "asyncio.Future[None]") -> None:
        failure: Exception | None = None
        try:
            try:
                engine = self._engine = self._make_engine()
                self._gradient_size, self._codecs = engine.gradient_size, engine.codecs
                self._opening = False
                del engine
            except Exception as error:  # noqa: BLE001 - becomes the exception of `start`
                clear_frames(error.__traceback__)  # they hold what there was of the stage
                failure = as_ours(error)
            _post(loop, _deliver, built, None, failure)
            while failure is None and (task := self._next()) is not None:
                self._run(task)
        except BaseException as error:  # noqa: BLE001 - the thread's end must not go unheard
            self._lose(f"the compute thread has died: {error!r}")
            _post(loop, _deliver, built, None, DeviceLost(f"the compute thread has died: {error!r}"))
        finally:
            self._let_go()
            _post(loop, _deliver, self._ended, None, None)

    def _let_go(self) -> None:
        """Takes the stage away, and gives its memory back."""
        if self._engine is None:
            return
        from swarmd.stage.release import release

        device, self._engine = self._engine.device, None
        with contextlib.suppress(RuntimeError):  # of a device that is lost, which has nothing to give back
            release(device)

    def _make_engine(self) -> "StageEngine":
        run, stage, device, threads, compute = self._build
        import torch

        from swarmd.stage.engine import StageEngine

        if self._closing:
            raise Stopped("the stage is not wanted any more")
        if threads:
            torch.set_num_threads(threads)
        return StageEngine(run, stage, device, compute)

    def _run(self, task: Task) -> None:
        """Runs one call and hands its result, or what it raised, to the event loop."""
        started = time.monotonic()
        self._running = (task.hop, started)
        result, failure = None, None
        try:
            assert self._engine is not None, "a stage is open while tasks are run"
            result = task.call(self._engine)
        except Exception as error:  # noqa: BLE001 - becomes the exception of its future
            clear_frames(error.__traceback__)  # tensors in them would stay for as long as the error
            failure = judged(error, self._probe)
        if isinstance(failure, DeviceLost):
            self._lose(str(failure))
        self._task = self._running = None
        self._counter += 1
        if failure is None and task.kind in self._seconds:
            self._measure(task.kind, time.monotonic() - started)
        _post(task.loop, _deliver, task.future, result, failure)

    def _probe(self) -> None:
        if self._engine is not None:
            self._engine.probe()

    def _measure(self, kind: int, seconds: float) -> None:
        self._measured[kind] += 1
        weight = AVERAGE_WEIGHT if self._measured[kind] > WARM_UP_TASKS else 1.0
        self._seconds[kind] += weight * (seconds - self._seconds[kind])


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: object) -> None:
    """Calls back in the event loop, if that still runs."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *arguments)


def _deliver(future: "asyncio.Future[Any]", result: Any, failure: Exception | None) -> None:
    if future.done():
        return  # cancelled while it ran
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)


_workers: "weakref.WeakSet[Worker]" = weakref.WeakSet()


def _leave_all() -> None:
    for worker in list(_workers):
        worker.leave()


# Before what `atexit` calls: torch lets go of parts of itself there, which a stage that is being built still uses.
threading._register_atexit(_leave_all)  # type: ignore[attr-defined]  # noqa: SLF001 - as concurrent.futures does
