"""Stages that are timed for a profile, one at a time, with as little memory as a hop takes.

Measured is the production engine, so that codecs and checks are in it, but without an optimizer and a sum: what adding
to a sum takes is timed on a buffer of its own. Knows nothing of profiles or plans.
"""

import statistics
import time
from dataclasses import dataclass, field

import numpy
import torch

from swarmd.config import CodecConfig, ModelConfig, RunConfig
from swarmd.stage.codec import encode
from swarmd.stage.device import check_device
from swarmd.stage.engine import StageEngine
from swarmd.values import Encoded, HopId

TOKENS = {"cpu": (4, 128), "cuda": (4, 512)}  # sequences, and tokens of each
VOCABULARY = 256
STAGES = 3  # so that stage 1 is neither head nor tail
TAIL = STAGES - 1
WARM_UP = 2  # microbatches of a new engine that don't count: they page memory in and choose kernels
ADDED_LIMIT = 1 << 24  # elements of the buffers between which addition is timed: 64 MiB each


@dataclass
class Timed:
    """Seconds of a stage's work on microbatches, each time that it was measured."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    tail: list[float] = field(default_factory=list)

    def measure(self, run: RunConfig, device: str, repeats: int) -> None:
        """Measures a middle stage, then the last one; each is gone when the next is built."""
        middle = Probe(run, 1, device)
        passed = [middle.step() for _ in range(WARM_UP + repeats)][WARM_UP:]
        self.forward += [forward for forward, _ in passed]
        self.backward += [backward for _, backward in passed]
        del middle
        tail = Probe(run, TAIL, device)
        self.tail += [tail.end() for _ in range(WARM_UP + repeats)][WARM_UP:]

    def medians(self) -> tuple[float, float, float]:
        """Of forward, backward and tail."""
        return statistics.median(self.forward), statistics.median(self.backward), statistics.median(self.tail)


class Probe:
    """One stage, and what would come to it from others."""

    def __init__(self, run: RunConfig, stage: int, device: str) -> None:
        self._device, self._codecs = device, run.codecs
        self._engine = StageEngine(run, stage, device, trains=False)
        self._tokens = sample(run)
        self._activation = _noise(run, run.codecs.activations, seed=0)
        self._gradient = _noise(run, run.codecs.gradients, seed=1)
        self._count = 0

    def step(self) -> tuple[float, float]:
        """Seconds of a microbatch's forward and backward in a middle stage."""
        hop = self._next()
        begun = now(self._device)
        self._engine.forward(hop, self._tokens, self._activation, codec=self._codecs.activations)
        forward = now(self._device)
        self._engine.backward(hop, self._gradient, codec=self._codecs.gradients)
        return forward - begun, now(self._device) - forward

    def end(self) -> float:
        """Seconds of a microbatch in the last stage: forward, loss and backward."""
        hop = self._next()
        begun = now(self._device)
        self._engine.tail(hop, self._tokens, self._activation, codec=self._codecs.gradients)
        return now(self._device) - begun

    def _next(self) -> HopId:
        self._count += 1
        return HopId(1, self._count)


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
    )
    return RunConfig(
        name="profile",
        model=model,
        sequences_per_step=sequences,
        sequences_per_microbatch=sequences,
        codecs=CodecConfig(),
        recompute=False,
    )


def measure_addition(device: str, elements: int, repeats: int) -> float:
    """Seconds in which a gradient of so many elements is added to a sum."""
    count = min(elements, ADDED_LIMIT)
    total, gradient = (torch.zeros(count, device=check_device(device)) for _ in range(2))
    seconds = []
    for _ in range(WARM_UP + repeats):
        begun = now(device)
        torch._foreach_add_([total], [gradient])
        seconds.append(now(device) - begun)
    return statistics.median(seconds[WARM_UP:]) * elements / count


def sample(run: RunConfig) -> bytes:
    """Tokens of a microbatch."""
    shape = (run.sequences_per_microbatch, run.model.sequence_length + 1)
    return numpy.zeros(shape, dtype="<i4").tobytes()


def _noise(run: RunConfig, codec: str, *, seed: int) -> Encoded:
    """A tensor [B, T, D] of normal numbers, as a neighbour sends it."""
    shape = (run.sequences_per_microbatch, run.model.sequence_length, run.model.hidden)
    return encode(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), codec)


def now(device: str) -> float:
    """Seconds. One CPU thread is timed by what it used, so that other work on the machine doesn't lengthen it."""
    if device != "cpu":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.thread_time()
    return time.perf_counter()
