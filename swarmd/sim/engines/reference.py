"""The reference for runs whose gradients are whole numbers: shares of hops, sums of steps, parameters of versions.

Plain arithmetic from the run's seed; knows no engine, no peer and no order of events. `symbolic.py` computes with the
same shares and rules, and `checks.py` compares.
"""

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from swarmd.config import OptimizerConfig, RunConfig
from swarmd.schedule import learning_rate_at
from swarmd.values import HopId

LOSS_LIMIT = 1 << 20  # a hop's loss is a whole number of nats below this
SHARES_KEPT = 1 << 15  # of the cache of shares: several steps of a large scenario
MASK = (1 << 64) - 1
MULTIPLIER = 0x5851F42D4C957F2D  # odd, so that multiplying by it modulo 2 ** 64 loses nothing (Knuth's MMIX)


@dataclass(frozen=True)
class Symbols:
    """Sizes, and shares of hops and rounds that come out not finite. The same on all peers of a world."""

    gradient_elements: int = 24
    activation_bytes: int = 256
    token_bytes: int = 128
    state_bytes: int = 4096  # besides the parameters
    spoiled: float = 0.0  # share of hops whose activation, loss or gradient is not finite
    spoiled_rounds: float = 0.0  # share of rounds whose average is not finite, though all that goes into it is


@lru_cache(SHARES_KEPT)
def share(seed: int, hop: HopId, stage: int, elements: int) -> tuple[int, ...]:
    """A hop's share in a stage's gradient: 32-bit whole numbers."""
    raw = hashlib.shake_128(f"share/{seed}/{hop.step}/{hop.index}/{stage}".encode()).digest(4 * elements)
    return struct.unpack(f"<{elements}i", raw)


def draw(seed: int, what: str, hop: HopId) -> int:
    """A pseudo-random 64-bit number that belongs to a hop."""
    raw = hashlib.blake2b(f"{what}/{seed}/{hop.step}/{hop.index}".encode(), digest_size=8).digest()
    return int.from_bytes(raw, "little")


def loss_of(seed: int, hop: HopId) -> int:
    """A hop's loss, in nats over all its tokens."""
    return 1 + draw(seed, "loss", hop) % LOSS_LIMIT


@lru_cache(SHARES_KEPT)
def spoiled_at(run_seed: int, hop: HopId, stages: int, spoiled: float) -> int | None:
    """The stage at which a hop's numbers are not finite; None for most."""
    if spoiled and draw(run_seed, "spoiled", hop) < spoiled * 2**64:
        return draw(run_seed, "spoiled at", hop) % stages
    return None


def spoiled_early(run_seed: int, hop: HopId) -> bool:
    """True if a hop that is spoiled at a stage is so from its forward on: its activation goes nowhere."""
    return draw(run_seed, "spoiled early", hop) % 2 == 0


def round_is_spoiled(run_seed: int, step: int, stage: int, spoiled: float) -> bool:
    """True if the average of a stage's sums is not finite."""
    return bool(spoiled) and draw(run_seed, "spoiled round", HopId(step, stage)) < spoiled * 2**64


def elements_of(symbols: Symbols, stage: int) -> int:
    """Elements of a stage's gradient: another number for each, so that stages can't be mixed up."""
    return symbols.gradient_elements + stage


@lru_cache(256)
def untrained(seed: int, stage: int, elements: int) -> tuple[int, ...]:
    """A stage's parameters at version 0."""
    raw = hashlib.shake_128(f"parameters/{seed}/{stage}".encode()).digest(8 * elements)
    return struct.unpack(f"<{elements}Q", raw)


def moved(
    parameters: Sequence[int], averaged: Sequence[float], version: int, learning_rate: float, clip_factor: float
) -> tuple[int, ...]:
    """The parameters of the next version. One to one in the parameters, so that what once differs stays different."""
    odd = 2 * version + 1
    pushes = struct.unpack(
        f"<{len(averaged)}Q", struct.pack(f"<{len(averaged)}d", *(learning_rate * clip_factor * it for it in averaged))
    )
    return tuple((old * MULTIPLIER + push * odd + version) & MASK for old, push in zip(parameters, pushes, strict=True))


@lru_cache(4096)
def digest_of(parameters: tuple[int, ...]) -> str:
    """16 hex digits of a stage's parameters."""
    return hashlib.blake2b(struct.pack(f"<{len(parameters)}Q", *parameters), digest_size=8).hexdigest()


def mark_of(digest: str) -> int:
    """A digest of parameters as it stands on a stamp."""
    return int(digest[:15], 16)


def clip(optimizer: OptimizerConfig, squared_norms: Sequence[float]) -> float:
    """The factor that brings the gradient down to the clipping norm, from the stages' squared norms in order."""
    norm = math.sqrt(math.fsum(squared_norms))
    return min(1.0, optimizer.clip_norm / (norm + 1e-6)) if optimizer.clip_norm > 0 else 1.0


class Reference:
    """The results of a perfect run, step by step, computed only as far as they are asked for."""

    def __init__(self, run: RunConfig, symbols: Symbols) -> None:
        self._run, self._symbols = run, symbols
        self._sizes = [elements_of(symbols, stage) for stage in range(run.model.stages)]
        self._versions = [[untrained(run.seed, stage, size) for stage, size in enumerate(self._sizes)]]
        self._gradients: dict[tuple[int, int], tuple[float, ...]] = {}

    def gradient(self, step: int, stage: int) -> tuple[float, ...]:
        """The averaged gradient of a stage: every index once, over all target tokens."""
        if (step, stage) not in self._gradients:
            run = self._run
            shares = [
                share(run.seed, HopId(step, index), stage, self._sizes[stage]) for index in range(run.microbatches)
            ]
            tokens = run.microbatches * run.tokens_per_microbatch
            self._gradients[step, stage] = tuple(sum(column) / tokens for column in zip(*shares, strict=True))
        return self._gradients[step, stage]

    def skipped(self, step: int) -> bool:
        """True if a hop or an average of the step is not finite, so that the step changes nothing."""
        seed, symbols, stages = self._run.seed, self._symbols, range(len(self._sizes))
        hops = (HopId(step, index) for index in range(self._run.microbatches))
        if any(spoiled_at(seed, hop, len(stages), symbols.spoiled) is not None for hop in hops):
            return True
        return any(round_is_spoiled(seed, step, stage, symbols.spoiled_rounds) for stage in stages)

    def loss(self, step: int) -> float:
        """Mean loss of a step that isn't skipped."""
        hops = [HopId(step, index) for index in range(self._run.microbatches)]
        return sum(loss_of(self._run.seed, hop) for hop in hops) / (len(hops) * self._run.tokens_per_microbatch)

    def parameters(self, version: int, stage: int) -> tuple[int, ...]:
        """A stage's parameters at a version."""
        while len(self._versions) <= version:
            self._versions.append(self._next(len(self._versions)))
        return self._versions[version][stage]

    def digest(self, version: int, stage: int) -> str:
        return digest_of(self.parameters(version, stage))

    def _next(self, step: int) -> list[tuple[int, ...]]:
        before = self._versions[-1]
        if self.skipped(step):
            return before
        gradients = [self.gradient(step, stage) for stage in range(len(before))]
        factor = clip(self._run.optimizer, [squared_norm(gradient) for gradient in gradients])
        rate = learning_rate_at(self._run.optimizer, step, self._run.steps)
        return [moved(old, gradient, step - 1, rate, factor) for old, gradient in zip(before, gradients, strict=True)]


def squared_norm(gradient: Sequence[float]) -> float:
    """Sum of squares, rounded once."""
    return math.fsum(it * it for it in gradient)
