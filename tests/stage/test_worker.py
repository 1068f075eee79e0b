"""The thread that owns torch: order of work, cancellation, failures, its end."""

import asyncio
import gc
import itertools
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch

from swarmd.errors import ConfigError, DeviceLost, HopForgotten, NonFinite, PeerFault
from swarmd.schedule import learning_rate_at
from swarmd.sim.engines.training import toy_tokens
from swarmd.stage import worker as worker_module
from swarmd.stage.codec import decode, encode
from swarmd.stage.engine import StageEngine
from swarmd.stage.worker import Worker
from swarmd.values import Encoded, HopId
from tests.stage.toy import toy_run, train_pipeline

RUN = toy_run()
DEADLINE_S = 10.0


def gradient() -> Encoded:
    return encode(torch.full((2, RUN.model.sequence_length, RUN.model.hidden), 0.01), "fp32")


@pytest.fixture
async def head() -> AsyncIterator[Worker]:
    worker = await Worker.start(RUN, 0, threads=1)
    yield worker
    await worker.close()


class Gate:
    """Holds the compute thread inside a task until it is opened."""

    def __init__(self, worker: Worker) -> None:
        self._opened, self._reached = threading.Event(), threading.Event()
        self._task = asyncio.ensure_future(worker._do(0, None, self._wait))

    def _wait(self, _stage: StageEngine) -> None:
        self._reached.set()
        assert self._opened.wait(DEADLINE_S)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, DEADLINE_S)

    async def open(self) -> None:
        self._opened.set()
        await self._task


async def until(holds: Callable[[], bool]) -> None:
    """Gives the event loop turns until something holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0)


async def queued(calls: list[Any]) -> list["asyncio.Task[Any]"]:
    """The calls as tasks that have run up to the queue."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    return tasks


async def test_rounds_then_backward_then_older_forward_then_evaluation(
    head: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in (0, 1):
        await head.forward(HopId(1, index), toy_tokens(RUN, 1, index), None, codec="fp32")
    done: list[str] = []
    engine: Any = head._engine

    def noting(name: str) -> Callable[..., Any]:
        call = getattr(engine, name)

        def wrapped(first: Any, *arguments: Any, **named: Any) -> Any:
            label = f"{name} {first[1]}" if isinstance(first, HopId) else name
            done.append(f"evaluate {first[1]}" if named.get("evaluate") else label)
            return call(first, *arguments, **named)

        return wrapped

    for name in ("forward", "backward", "freeze"):
        monkeypatch.setattr(engine, name, noting(name))
    gate = Gate(head)
    await gate.reached()
    tasks = await queued(
        [
            head.forward(HopId(1, 0), toy_tokens(RUN, 1, 0), None, codec="fp32", evaluate=True),
            head.forward(HopId(1, 7), toy_tokens(RUN, 1, 7), None, codec="fp32"),
            head.forward(HopId(1, 2), toy_tokens(RUN, 1, 2), None, codec="fp32"),
            head.backward(HopId(1, 1), gradient(), codec="fp32"),
            head.backward(HopId(1, 0), gradient(), codec="fp32"),
            head.freeze(1),
        ]
    )
    await gate.open()
    results = await asyncio.gather(*tasks)
    assert done == ["freeze", "backward 0", "backward 1", "forward 2", "forward 7", "evaluate 0"]
    assert [result.accumulated for result in results[3:5]] == [False, False], "the round came first"


async def test_a_cancelled_call_is_dropped_while_it_is_queued(head: Worker) -> None:
    gate = Gate(head)
    await gate.reached()
    before = head.progress().counter
    (task,) = await queued([head.forward(HopId(1, 0), toy_tokens(RUN, 1, 0), None, codec="fp32")])
    task.cancel()
    await gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(KeyError):
        await head.backward(HopId(1, 0), gradient(), codec="fp32")
    assert head.progress().counter == before + 2, "the gate and the backward, no forward"


async def test_a_hop_forgotten_while_queued_is_not_accumulated_and_may_come_again(head: Worker) -> None:
    hop = HopId(1, 0)
    await head.forward(hop, toy_tokens(RUN, 1, 0), None, codec="fp32")
    gate = Gate(head)
    await gate.reached()
    (late,) = await queued([head.backward(hop, gradient(), codec="fp32")])
    head.forget(hop)
    again = await queued([head.forward(hop, toy_tokens(RUN, 1, 0), None, codec="fp32")])
    await gate.open()
    with pytest.raises(HopForgotten):
        await late
    await again[0]
    assert (await head.backward(hop, gradient(), codec="fp32")).accumulated


async def test_a_hop_is_taken_out_of_the_sum_again(head: Worker) -> None:
    hop, size = HopId(1, 0), head.gradient_size
    for subtract in (False, True):
        await head.forward(hop, toy_tokens(RUN, 1, 0), None, codec="fp32")
        assert (await head.backward(hop, gradient(), codec="fp32", subtract=subtract)).accumulated != subtract
    share = await head.contribution(1, 0, size, codec="fp32")
    assert float(decode(share).abs().max()) < 1e-6
    tail = await Worker.start(RUN, 1, threads=1)
    activation = encode(torch.full((2, RUN.model.sequence_length, RUN.model.hidden), 0.1), "fp32")
    losses = []
    for subtract in (False, True):
        result = await tail.tail(hop, toy_tokens(RUN, 1, 0), activation, codec="fp32", subtract=subtract)
        assert result.accumulated != subtract
        losses.append(result.loss_sum)
    assert losses[0] == losses[1]
    await tail.close()


async def test_a_slow_first_task_does_not_count_for_the_speed(head: Worker) -> None:
    for seconds in (60.0, *[1.0] * worker_module.WARM_UP_TASKS):
        head._measure(worker_module.FORWARD, seconds)
    assert head.progress().forward_seconds == pytest.approx(1.0)
    head._measure(worker_module.FORWARD, 2.0)
    assert head.progress().forward_seconds == pytest.approx(1.0 + worker_module.AVERAGE_WEIGHT)


async def test_the_event_loop_stays_free_and_sees_the_pulse(head: Worker) -> None:
    assert head.progress().forward_seconds == 0.0
    gate = Gate(head)
    await gate.reached()
    first = head.progress()
    assert first.running is None
    await until(lambda: head.progress().busy_seconds > first.busy_seconds)
    await gate.open()
    hop = HopId(1, 0)
    await head.forward(hop, toy_tokens(RUN, 1, 0), None, codec="fp32")
    await head.backward(hop, gradient(), codec="fp32")
    last = head.progress()
    assert last.counter == first.counter + 3
    assert last.forward_seconds > 0
    assert last.backward_seconds > 0


async def test_failures_come_to_whoever_asked_and_the_thread_goes_on(
    head: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PeerFault):
        await head.forward(HopId(1, 0), b"", None, codec="fp32")
    await head.forward(HopId(1, 0), toy_tokens(RUN, 1, 0), None, codec="fp32")
    shape = (2, RUN.model.sequence_length, RUN.model.hidden)
    bad = Encoded("fp32", shape, (torch.full(shape, float("nan")).numpy().tobytes(),))  # `encode` refuses to
    with pytest.raises(NonFinite):
        await head.backward(HopId(1, 0), bad, codec="fp32")

    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")

    with monkeypatch.context() as patched:
        assert head._engine is not None
        patched.setattr(head._engine, "forward", no_memory)
        with pytest.raises(MemoryError):
            await head.forward(HopId(1, 1), toy_tokens(RUN, 1, 1), None, codec="fp32")
    assert (await head.backward(HopId(1, 0), gradient(), codec="fp32")).accumulated


async def test_what_cannot_be_built_is_said_and_leaves_no_thread() -> None:
    with pytest.raises(ConfigError, match="cuda:99"):
        await Worker.start(RUN, 0, "cuda:99")
    await until(lambda: all(thread.name != "stage-0" for thread in threading.enumerate()))


async def test_close_cancels_what_waits_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await Worker.start(RUN, 0, threads=1)
    gate = Gate(worker)
    await gate.reached()
    (waiting,) = await queued([worker.freeze(1)])
    started = time.monotonic()
    await worker.close(0.05)
    assert time.monotonic() - started < DEADLINE_S / 2
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await gate.open()
    await worker.close()
    with pytest.raises(asyncio.CancelledError):
        await worker.freeze(1)


async def test_training_through_workers_gives_the_engines_bits() -> None:
    run = toy_run(steps=2)
    _, engines = train_pipeline(run)
    workers = [await Worker.start(run, stage, threads=1) for stage in range(2)]
    tokens = run.microbatches * run.tokens_per_microbatch
    digests: list[str] = []
    for step in (1, 2):
        for index in range(run.microbatches):
            hop, sequences = HopId(step, index), toy_tokens(run, step, index)
            activation = await workers[0].forward(hop, sequences, None, codec="fp32")
            result = await workers[1].tail(hop, sequences, activation, codec="fp32")
            assert result.gradient is not None
            await workers[0].backward(hop, result.gradient, codec="fp32")
        summaries = []
        for worker in workers:
            await worker.freeze(step)
            size = worker.gradient_size
            cuts = [0, size // 2, size]
            shares = [await worker.contribution(step, a, b, codec="fp32") for a, b in itertools.pairwise(cuts)]
            parts = [await worker.reduce([share], tokens, codec="fp32") for share in shares]
            summaries.append(await worker.assemble(step, parts))
        clip = min(1.0, run.optimizer.clip_norm / sum(summary.squared_norm for summary in summaries) ** 0.5)
        rate = learning_rate_at(run.optimizer, step, run.steps)
        digests = [await worker.apply(step, learning_rate=rate, clip_factor=clip) for worker in workers]
    assert digests == [engine.digest() for engine in engines]
    state = await workers[1].export_state()
    assert await workers[1].import_state(state) == digests[1]
    for worker in workers:
        await worker.close()


def test_torch_is_not_imported_by_the_event_loops_thread() -> None:
    program = "import sys, swarmd.stage.worker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)


# ------------------------------------------------------------------------------------------------- its death


def die(_stage: object = None) -> None:
    raise SystemExit(3)


async def test_when_the_thread_dies_everyone_who_waits_hears_so_and_whoever_comes_later(head: Worker) -> None:
    gate = Gate(head)
    await gate.reached()
    fatal = asyncio.ensure_future(head._do(0, None, die))
    waiting = await queued([head.forward(HopId(1, 1), toy_tokens(RUN, 1, 1), None, codec="fp32"), head.export_state()])
    assert not head.progress().lost
    await gate.open()
    async with asyncio.timeout(DEADLINE_S):
        ends = await asyncio.gather(fatal, *waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [DeviceLost] * 3
        await asyncio.shield(head._ended)
    assert "SystemExit" in head.progress().lost
    with pytest.raises(DeviceLost, match="SystemExit"):
        await head.forward(HopId(1, 2), toy_tokens(RUN, 1, 2), None, codec="fp32")


async def test_what_is_raised_outside_of_a_task_is_the_thread_s_death_too(
    head: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(task: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(head, "_run", broken)
    with pytest.raises(DeviceLost, match="a bug of ours"):
        async with asyncio.timeout(DEADLINE_S):
            await head.export_state()
    assert head.progress().lost


async def test_a_thread_that_is_gone_without_a_word_is_noticed(head: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(head)
    await gate.reached()
    monkeypatch.setattr(head._thread, "is_alive", lambda: False)
    assert "without a word" in head.progress().lost
    with pytest.raises(DeviceLost):
        async with asyncio.timeout(DEADLINE_S):
            await gate._task
    monkeypatch.undo()
    gate._opened.set()


async def test_a_thread_that_dies_while_it_builds_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "_make_engine", lambda self: die())
    with pytest.raises(DeviceLost, match="SystemExit"):
        async with asyncio.timeout(DEADLINE_S):
            await Worker.start(RUN, 0, threads=1)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later", DeviceLost),
        ("CUDA error: an illegal memory access was encountered", DeviceLost),
        ("CUDA error: invalid argument", RuntimeError),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", MemoryError),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", MemoryError),
        ("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory", MemoryError),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ],
)
async def test_what_torch_s_runtime_errors_mean(head: Worker, said: str, kind: type[Exception]) -> None:
    def fail(_stage: object) -> None:
        raise RuntimeError(said)

    with pytest.raises(kind) as trouble:
        async with asyncio.timeout(DEADLINE_S):
            await head._do(0, None, fail)
    assert type(trouble.value) is kind
    assert bool(head.progress().lost) == (kind is DeviceLost)


async def test_a_device_that_does_not_answer_after_a_failure_is_lost(head: Worker) -> None:
    def fail(_stage: object) -> None:
        raise RuntimeError("nobody foresaw it")

    with pytest.raises(RuntimeError, match="nobody foresaw it"):
        await head._do(0, None, fail)
    assert not head.progress().lost  # it has answered

    def silent() -> None:
        raise RuntimeError("CUDA error: the context is gone")

    assert head._engine is not None
    head._engine.probe = silent  # type: ignore[method-assign]
    with pytest.raises(DeviceLost, match="the context is gone, after 'nobody foresaw it'"):
        await head._do(0, None, fail)
    assert "the context is gone" in head.progress().lost


# ------------------------------------------------------------------------------------------------- one stage at a time


async def test_a_stage_that_is_closed_is_gone_whoever_has_the_worker_and_what_was_waiting(head: Worker) -> None:
    stage = weakref.ref(head._engine)

    def fail(engine: StageEngine) -> None:
        raise RuntimeError(f"of stage {engine.stage}")

    gc.disable()  # it is gone at once, not at the collector's leisure
    try:
        failed = await asyncio.gather(head._do(0, None, fail), return_exceptions=True)
        hops = [head.forward(HopId(1, index), toy_tokens(RUN, 1, index), None, codec="fp32") for index in range(3)]
        waiting = await queued(hops)
        sizes = head.gradient_size, head.codecs
        await head.close(None)
        assert stage() is None
    finally:
        gc.enable()
    assert "of stage 0" in str(failed[0])
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (head.gradient_size, head.codecs) == sizes
    head.forget(HopId(1, 1))
    with pytest.raises(asyncio.CancelledError):
        await head.forward(HopId(1, 4), toy_tokens(RUN, 1, 4), None, codec="fp32")


async def test_memory_is_given_back_in_the_stage_s_thread_before_the_close_returns(
    head: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, found = weakref.ref(head._engine), list[tuple[str, bool]]()

    def given_back(device: torch.device) -> None:
        found.append((threading.current_thread().name, stage() is None))

    monkeypatch.setattr("swarmd.stage.release.release", given_back)
    await head.close()
    assert found == [("stage-0", True)]


async def test_a_stage_that_can_not_be_opened_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[weakref.ref[StageEngine]] = []

    def half(engine: StageEngine, *_: object) -> None:
        built.append(weakref.ref(engine))
        raise MemoryError("no more")

    monkeypatch.setattr(StageEngine, "__init__", half)
    gc.disable()
    try:
        with pytest.raises(MemoryError) as caught:
            await Worker.start(RUN, 0, threads=1)
        assert [engine() for engine in built] == [None]
    finally:
        gc.enable()
    assert str(caught.value) == "no more"
