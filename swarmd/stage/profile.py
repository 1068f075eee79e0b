"""The speed of this machine: block applications at several widths, a hop's other costs, the parts of a round.

Widths that don't fit into the device's free memory are left out. Processes of their own measure at once, as daemons
that share a machine do; how much slower each gets is part of the profile. Plain data comes out, which `swarmctl plan`
reads. What one stage takes is timed by `probe.py`. Knows nothing of plans or peers.
"""

import itertools
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import psutil
import torch

from swarmd import exits
from swarmd.config import ModelConfig
from swarmd.errors import ConfigError, SwarmError
from swarmd.stage.device import check_device
from swarmd.stage.device_errors import as_ours
from swarmd.stage.engine import StageEngine
from swarmd.stage.numerics import fast_dtype
from swarmd.stage.probe import TAIL, VOCABULARY, Timed, measure_addition, now, plan_probe, sample
from swarmd.stage.release import release
from swarmd.values import HopId

CPU_WIDTHS = (64, 128, 256, 512)
CUDA_WIDTHS = (512, 1024, 2048, 4096)
FEW, MANY = 1, 3  # blocks of the two engines whose difference is a block, and whose rest is a hop's fixed part
REPEATS = 11  # the median of so many counts
TURNS, TURN_REPEATS = 3, 4  # few blocks and many are measured in turns, as a machine's speed drifts
CROWD_WIDTH = 256  # where processes are timed together
CROWD_SECONDS = 1.5  # each computes for so long


def measure_profile(
    device: str, threads: int, *, crowded: bool = True, told: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Everything about this machine, as JSON-ready data; `crowded`: also how processes that compute at once get on.

    Raises ConfigError if there is no such device, or no memory for the narrowest width.
    """
    kind = check_device(device).type
    if threads:
        torch.set_num_threads(threads)
    cores = psutil.cpu_count() or 1
    points = measure_points(device, CPU_WIDTHS if kind == "cpu" else CUDA_WIDTHS, told)
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
        "dtype": fast_dtype(check_device(device)),
        "points": points,
        "round_s": round_s,
        "crowd": crowd,
    }


def measure_points(device: str, widths: Sequence[int], told: Callable[[str], None]) -> list[dict[str, float]]:
    """Every width that fits, narrow ones first. Raises ConfigError if none does."""
    points = []
    for hidden in widths:
        told(f"width {hidden}")
        point = _measure_if_it_fits(device, hidden)
        release(check_device(device))
        if point is None:
            told(f"width {hidden} doesn't fit into the free memory of {device}, and is left out")
            break  # wider ones fit even less
        points.append(point)
    if not points:
        raise ConfigError(f"the free memory of {device} is too little to measure anything; end what uses it.")
    return points


def _measure_if_it_fits(device: str, hidden: int) -> dict[str, float] | None:
    try:
        return measure_point(device, hidden)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(as_ours(error), MemoryError):
            raise
        return None


def measure_point(device: str, hidden: int) -> dict[str, float]:
    """One width: seconds of a block, and of the rest of a hop."""
    kind = check_device(device).type
    timed = {blocks: Timed() for blocks in (FEW, MANY)}
    for _ in range(TURNS):
        for blocks, times in timed.items():
            times.measure(plan_probe(hidden, kind, blocks), device, TURN_REPEATS)
    few_forward, few_backward, few_tail = timed[FEW].medians()
    many_forward, many_backward, _ = timed[MANY].medians()
    run = plan_probe(hidden, kind, FEW)
    tokens = run.tokens_per_microbatch
    forward = max(1e-9, (many_forward - few_forward) / (MANY - FEW))
    backward = max(1e-9, (many_backward - few_backward) / (MANY - FEW))
    flops = block_flops(run.model, tokens)
    fixed_forward, fixed_backward = max(0.0, few_forward - forward), max(0.0, few_backward - backward)
    head = 2.0 * tokens * hidden * VOCABULARY * (forward + backward) / flops
    rest = few_tail - forward - backward - fixed_forward - fixed_backward - head
    return {
        "hidden": hidden,
        "tokens": tokens,
        "forward_flops": flops,
        "forward_s": forward,
        "backward_s": backward + measure_addition(device, block_parameters(run.model), REPEATS),
        "forward_fixed_s": fixed_forward,
        "backward_fixed_s": fixed_backward,
        "logit_s": max(0.0, rest / tokens / VOCABULARY),
    }


def block_parameters(model: ModelConfig) -> int:
    """Elements of a block's matrices and gains."""
    return 4 * model.hidden**2 + 3 * model.hidden * model.ffn + 2 * model.hidden


def block_flops(model: ModelConfig, tokens: int) -> float:
    """Operations of a block's forward: its matrices, and the half of attention's scores that a causal mask leaves."""
    return 2.0 * tokens * block_parameters(model) + 2.0 * tokens * model.sequence_length * model.hidden


def measure_round(device: str) -> dict[str, float]:
    """Seconds per element of what a round does, two members' contributions to a part."""
    run = plan_probe(CROWD_WIDTH, check_device(device).type, MANY)
    engine = StageEngine(run, 1, device)
    size = engine.gradient_size
    seconds: dict[str, list[float]] = {"contribution": [], "reduce": [], "assemble": [], "apply": []}
    for step in range(1, REPEATS + 2):
        engine.freeze(step)
        times = [now(device)]
        part = engine.contribution(step, 0, size, codec=run.codecs.averaging)
        times.append(now(device))
        averaged = engine.reduce([part, part], 1, codec=run.codecs.averaging)
        times.append(now(device))
        engine.assemble(step, [averaged])
        times.append(now(device))
        engine.apply(step, learning_rate=1e-4, clip_factor=1.0)
        times.append(now(device))
        for method, (early, late) in zip(seconds, itertools.pairwise(times), strict=True):
            seconds[method].append(late - early)
    per = {"contribution": size, "reduce": 2 * size, "assemble": size, "apply": size}
    return {method: statistics.median(each[1:]) / per[method] for method, each in seconds.items()}


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
    tail = StageEngine(run, TAIL)
    tokens = sample(run)
    activation = StageEngine(run, 0).forward(HopId(1, 0), tokens, None, codec=run.codecs.activations)

    def compute(number: int) -> float:
        begun = now("cpu")
        tail.tail(HopId(1, number), tokens, activation, codec=run.codecs.gradients)
        return now("cpu") - begun

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
