"""The speed of this machine: block applications at several widths, a hop's other costs, the parts of a round.

Measured with the production engine, so that codecs, checks and sums are in it. Processes of their own measure at once,
as daemons that share a machine do; how much slower each gets is part of the profile. Plain data comes out, which
`swarmctl plan` reads. Knows nothing of plans or peers.
"""

import itertools
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy
import psutil
import torch

from swarmd import exits
from swarmd.config import CodecConfig, ModelConfig, RunConfig
from swarmd.errors import SwarmError
from swarmd.stage.engine import StageEngine, check_device
from swarmd.values import HopId

CPU_WIDTHS = (64, 128, 256, 512)
CUDA_WIDTHS = (512, 1024, 2048, 4096)
TOKENS = {"cpu": (4, 128), "cuda": (4, 512)}  # sequences, and tokens of each
FEW, MANY = 1, 3  # blocks of the two engines whose difference is a block, and whose rest is a hop's fixed part
VOCABULARY = 256
REPEATS = 11  # the median of so many counts
CROWD_WIDTH = 256  # where processes are timed together
CROWD_SECONDS = 1.5  # each computes for so long
STAGES = 3  # so that stage 1 is neither head nor tail


@dataclass(frozen=True)
class Timed:
    """Median seconds of one engine's work on a microbatch."""

    forward_s: float
    backward_s: float
    tail_s: float


def measure_profile(
    device: str, threads: int, *, crowded: bool = True, told: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Everything about this machine, as JSON-ready data; `crowded`: also how processes that compute at once get on.

    Raises ConfigError if there is no such device.
    """
    kind = check_device(device).type
    if threads:
        torch.set_num_threads(threads)
    cores = psutil.cpu_count() or 1
    points = []
    for hidden in CPU_WIDTHS if kind == "cpu" else CUDA_WIDTHS:
        told(f"width {hidden}")
        points.append(measure_point(device, hidden))
    told("the parts of a round")
    round_s = measure_round(device)
    crowd = [1.0]
    if kind == "cpu" and crowded:
        told("processes that compute at once")
        crowd = measure_crowd(threads, max(1, cores // (threads or cores)))
    memory = psutil.virtual_memory().total if kind == "cpu" else torch.cuda.get_device_properties(device).total_memory
    return {
        "name": "this-machine",
        "device": f"{device}, {torch.get_num_threads()} threads"
        if kind == "cpu"
        else torch.cuda.get_device_name(device),
        "cores": max(1, cores // torch.get_num_threads()) if kind == "cpu" else 0,
        "memory_bytes": memory,
        "points": points,
        "round_s": round_s,
        "crowd": crowd,
    }


def plan_probe(hidden: int, kind: str, blocks: int) -> RunConfig:
    """A run of `blocks` blocks a stage, as wide as asked."""
    sequences, tokens = TOKENS[kind]
    model = ModelConfig(
        vocabulary=VOCABULARY,
        hidden=hidden,
        ffn=round(hidden * 8 / 3 / 16) * 16,
        heads=max(1, hidden // 64),
        layers=blocks * STAGES,
        stages=STAGES,
        sequence_length=tokens,
        compute_dtype="fp32" if kind == "cpu" else "bf16",
    )
    return RunConfig(
        name="profile",
        model=model,
        sequences_per_step=sequences,
        sequences_per_microbatch=sequences,
        codecs=CodecConfig(),
        recompute=False,
    )


def measure_point(device: str, hidden: int) -> dict[str, float]:
    """One width: seconds of a block, and of the rest of a hop."""
    kind = check_device(device).type
    probes = [Probe(plan_probe(hidden, kind, blocks), device) for blocks in (FEW, MANY)]
    for _ in range(REPEATS + 1):  # in turns, as a machine's speed drifts
        for probe in probes:
            probe.step()
    few, many = (probe.timed() for probe in probes)
    run = plan_probe(hidden, kind, FEW)
    tokens = run.tokens_per_microbatch
    forward = max(1e-9, (many.forward_s - few.forward_s) / (MANY - FEW))
    backward = max(1e-9, (many.backward_s - few.backward_s) / (MANY - FEW))
    flops = block_flops(run.model, tokens)
    fixed_forward, fixed_backward = max(0.0, few.forward_s - forward), max(0.0, few.backward_s - backward)
    head = 2.0 * tokens * hidden * VOCABULARY * (forward + backward) / flops
    rest = few.tail_s - forward - backward - fixed_forward - fixed_backward - head
    return {
        "hidden": hidden,
        "tokens": tokens,
        "forward_flops": flops,
        "forward_s": forward,
        "backward_s": backward,
        "forward_fixed_s": fixed_forward,
        "backward_fixed_s": fixed_backward,
        "logit_s": max(0.0, rest / tokens / VOCABULARY),
    }


def block_flops(model: ModelConfig, tokens: int) -> float:
    """Operations of a block's forward: its matrices, and the half of attention's scores that a causal mask leaves."""
    weights = 4 * model.hidden**2 + 3 * model.hidden * model.ffn + 2 * model.hidden
    return 2.0 * tokens * weights + 2.0 * tokens * model.sequence_length * model.hidden


class Probe:
    """Three stages in one process, and the seconds that the work of a middle one and of the tail takes."""

    def __init__(self, run: RunConfig, device: str) -> None:
        self._device, self._codecs = device, run.codecs
        self._middle, self._tail = StageEngine(run, 1, device), StageEngine(run, STAGES - 1, device)
        self._tokens = sample(run)
        self._activation = StageEngine(run, 0, device).forward(
            HopId(1, 0), self._tokens, None, codec=run.codecs.activations
        )
        self._seconds: list[tuple[float, float, float]] = []

    def step(self) -> None:
        """One microbatch through middle and tail and back."""
        hop, codec = HopId(1, len(self._seconds)), self._codecs.activations
        times = [_now(self._device)]
        passed = self._middle.forward(hop, self._tokens, self._activation, codec=codec)
        times.append(_now(self._device))
        result = self._tail.tail(hop, self._tokens, passed, codec=codec)
        times.append(_now(self._device))
        assert result.gradient is not None
        self._middle.backward(hop, result.gradient, codec=codec)
        times.append(_now(self._device))
        forward, tail, backward = (late - early for early, late in itertools.pairwise(times))
        self._seconds.append((forward, backward, tail))

    def timed(self) -> Timed:
        """Medians; the first microbatch, which warms up, doesn't count."""
        forwards, backwards, tails = zip(*self._seconds[1:], strict=True)
        return Timed(statistics.median(forwards), statistics.median(backwards), statistics.median(tails))


def sample(run: RunConfig) -> bytes:
    """Tokens of a microbatch."""
    shape = (run.sequences_per_microbatch, run.model.sequence_length + 1)
    return numpy.zeros(shape, dtype="<i4").tobytes()


def measure_round(device: str) -> dict[str, float]:
    """Seconds per element of what a round does, two members' contributions to a part."""
    run = plan_probe(CROWD_WIDTH, check_device(device).type, MANY)
    engine = StageEngine(run, 1, device)
    size = engine.gradient_size
    seconds: dict[str, list[float]] = {"contribution": [], "reduce": [], "assemble": [], "apply": []}
    for step in range(1, REPEATS + 2):
        engine.freeze(step)
        times = [_now(device)]
        part = engine.contribution(step, 0, size, codec=run.codecs.averaging)
        times.append(_now(device))
        averaged = engine.reduce([part, part], 1, codec=run.codecs.averaging)
        times.append(_now(device))
        engine.assemble(step, [averaged])
        times.append(_now(device))
        engine.apply(step, learning_rate=1e-4, clip_factor=1.0)
        times.append(_now(device))
        for method, (early, late) in zip(seconds, itertools.pairwise(times), strict=True):
            seconds[method].append(late - early)
    per = {"contribution": size, "reduce": 2 * size, "assemble": size, "apply": size}
    return {method: statistics.median(each[1:]) / per[method] for method, each in seconds.items()}


def _now(device: str) -> float:
    """Seconds. One CPU thread is timed by what it used, so that other work on the machine doesn't lengthen it."""
    if device != "cpu":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.thread_time()
    return time.perf_counter()


# ------------------------------------------------------------------------------------------------- at once


class Crowd:
    """Processes that compute when told to, so many at a time. Each holds a small stage."""

    def __init__(self, most: int, threads: int) -> None:
        command = [sys.executable, "-m", "swarmd.stage.profile", str(threads)]
        self._workers = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the parent, and its end is theirs
                preexec_fn=exits.with_parent(signal.SIGKILL),  # noqa: PLW1509 - one call of the kernel
            )
            for _ in range(most)
        ]

    def __enter__(self) -> Self:
        for worker in self._workers:
            _hear(worker)  # it is ready
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
            worker.communicate()

    def speed(self, count: int) -> float:
        """The speed of each of `count` processes at once: microbatches per second of the clock, over those of a CPU.

        1.0 is a core for each. Other work on the machine takes its part, as it does from daemons.
        """
        for worker in self._workers[:count]:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return float(statistics.mean(json.loads(_hear(worker)) for worker in self._workers[:count]))


def _hear(worker: "subprocess.Popen[str]") -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SwarmError("a process that measures ended; see above why.")
    return line


def measure_crowd(threads: int, most: int) -> list[float]:
    """Speed of each of 1 .. `most` processes that compute at once. Microbatches per second of CPU are those of one
    alone: caches and memory that several share are in it.
    """
    with Crowd(most, threads) as crowd:
        return [crowd.speed(count) for count in range(1, most + 1)]


def _work(arguments: Sequence[str]) -> None:
    """One of several processes: learns what a microbatch takes; then computes for a while whenever it is told to."""
    torch.set_num_threads(max(1, int(arguments[0])))
    run = plan_probe(CROWD_WIDTH, "cpu", MANY)
    tail = StageEngine(run, STAGES - 1)
    tokens = sample(run)
    activation = StageEngine(run, 0).forward(HopId(1, 0), tokens, None, codec=run.codecs.activations)

    def compute(number: int) -> float:
        begun = _now("cpu")
        tail.tail(HopId(1, number), tokens, activation, codec=run.codecs.gradients)
        return _now("cpu") - begun

    numbers = itertools.count()
    alone = statistics.median([compute(next(numbers)) for _ in range(REPEATS)][1:])
    print("ready", flush=True)  # noqa: T201 - its parent reads it
    for _ in sys.stdin:
        begun, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < CROWD_SECONDS:
            compute(next(numbers))
            count += 1
        print(json.dumps(count * alone / spent), flush=True)  # noqa: T201


if __name__ == "__main__":
    _work(sys.argv[1:])
