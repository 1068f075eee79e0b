"""A stage's engine that computes nothing: sizes and durations only, for swarms too large to compute.

It obeys the rules of the real one (an index counts once, forgotten work is refused, frozen sums take nothing), so that
the swarm around it behaves as it would; its tensors are views of one block of zeros as large as real ones would be.
"""

import math
from collections.abc import Sequence

from swarmd.config import RunConfig
from swarmd.errors import HopForgotten
from swarmd.values import BackwardResult, Buffer, Encoded, GradientSummary, HopId, TailResult

BYTES_PER_ELEMENT = {"fp32": 4.0, "fp16": 2.0078125, "bf16": 2.0, "int8": 1.0078125, "int8-bnb": 1.0009765625}
"""On the wire, block scales included: `stage/codec.py` keeps one of four bytes per 512 elements, bitsandbytes one per
4096.
"""


class Zeros:
    """One block of zeros for everybody, as long as the longest tensor."""

    def __init__(self) -> None:
        self._block = memoryview(b"")

    def view(self, nbytes: int) -> memoryview:
        if nbytes > self._block.nbytes:
            self._block = memoryview(bytes(nbytes))
        return self._block[:nbytes]


ZEROS = Zeros()


def encoded(codec: str, shape: tuple[int, ...], bytes_per_element: float | None = None) -> Encoded:
    """Zeros in place of a tensor, as large as it would be on the wire."""
    each = BYTES_PER_ELEMENT[codec] if bytes_per_element is None else bytes_per_element
    return Encoded(codec, shape, (ZEROS.view(round(each * math.prod(shape))),))


class PhantomEngine:
    """The interface of `StageEngine` around nothing."""

    codecs = ("fp32", "fp16", "bf16", "int8")

    def __init__(self, run: RunConfig, stage: int, parameters: int) -> None:
        self.run, self.stage, self.gradient_size = run, stage, parameters
        self.version = 0
        self.frozen = False
        self._counted: set[HopId] = set()
        self._forgets: dict[HopId, int] = {}

    def attempt(self, hop: HopId) -> int:
        return self._forgets.get(hop, 0)

    def forget(self, hop: HopId) -> None:
        if hop.step > self.version:
            self._forgets[hop] = self._forgets.get(hop, 0) + 1

    def _check(self, hop: HopId, attempt: int | None) -> None:
        if hop.step <= self.version:
            raise HopForgotten(f"step {hop.step} has ended")
        if hop.step != self.version + 1:
            raise KeyError(f"hop {tuple(hop)} is for a later step than {self.version + 1}")
        if attempt is not None and self.attempt(hop) != attempt:
            raise HopForgotten(f"hop {tuple(hop)} was forgotten")

    def _activation(self, codec: str) -> Encoded:
        model = self.run.model
        shape = (self.run.sequences_per_microbatch, model.sequence_length, model.hidden)
        return encoded(codec, shape)

    def forward(
        self,
        hop: HopId,
        tokens: Buffer,
        activation: Encoded | None,
        *,
        codec: str,
        evaluate: bool = False,
        attempt: int | None = None,
    ) -> Encoded:
        if not evaluate:
            self._check(hop, attempt)
        return self._activation(codec)

    def backward(
        self, hop: HopId, gradient: Encoded, *, codec: str, attempt: int | None = None, subtract: bool = False
    ) -> BackwardResult:
        self._check(hop, attempt)
        return BackwardResult(None if self.stage == 0 else self._activation(codec), self._count(hop, subtract=subtract))

    def tail(
        self,
        hop: HopId,
        tokens: Buffer,
        activation: Encoded | None,
        *,
        codec: str,
        evaluate: bool = False,
        attempt: int | None = None,
        subtract: bool = False,
    ) -> TailResult:
        count = self.run.tokens_per_microbatch
        if evaluate:
            return TailResult(float(count), count, None, accumulated=False)
        self._check(hop, attempt)
        return TailResult(float(count), count, self._activation(codec), self._count(hop, subtract=subtract))

    def _count(self, hop: HopId, *, subtract: bool) -> bool:
        if subtract:
            self._counted.discard(hop)
            return False
        if not self.frozen:
            self._counted.add(hop)
        return hop in self._counted

    def freeze(self, step: int) -> None:
        self._require(step)
        self.frozen = True

    def thaw(self, step: int) -> None:
        self._require(step)
        self.frozen = False

    def _require(self, step: int) -> None:
        if step != self.version + 1:
            raise KeyError(f"step {step} is not being summed: this stage is at version {self.version}")

    def absorb(self, step: int, indices: Sequence[int], slices: Sequence[Encoded]) -> bool:
        self._require(step)
        hops = {HopId(step, index) for index in indices}
        if self.frozen or hops & self._counted:
            return False
        self._counted |= hops
        return True

    def contribution(self, step: int, start: int, stop: int, *, codec: str) -> Encoded:
        self._require(step)
        return encoded(codec, (stop - start,))

    def reduce(self, contributions: Sequence[Encoded], tokens: int, *, codec: str) -> Encoded:
        return contributions[0]

    def assemble(self, step: int, parts: Sequence[Encoded]) -> GradientSummary:
        self._require(step)
        return GradientSummary(f"gradient {step}", 1.0)

    def apply(self, step: int, *, learning_rate: float, clip_factor: float) -> str:
        self._require(step)
        return self._end(step)

    def skip(self, step: int) -> str:
        self._require(step)
        return self._end(step)

    def _end(self, version: int) -> str:
        self.version, self.frozen = version, False
        self._counted.clear()
        self._forgets.clear()
        return f"version {version}"

    def export_state(self) -> Buffer:
        return ZEROS.view(12 * self.gradient_size)  # parameters and two moments, fp32

    def import_state(self, state: Buffer) -> str:
        raise ValueError("a phantom has no state to give or take")


class NoText:
    """The Data port where nobody looks at the tokens."""

    digest = "none"

    def __init__(self, run: RunConfig) -> None:
        self._nbytes = 4 * run.sequences_per_microbatch * (run.model.sequence_length + 1)

    async def microbatch(self, step: int, index: int) -> bytes:
        return bytes(self._nbytes)

    async def held_out(self, index: int) -> bytes:
        return bytes(self._nbytes)
