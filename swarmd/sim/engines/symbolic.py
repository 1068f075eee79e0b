"""A stage's engine without torch: gradients are vectors of whole numbers, so that sums of them are exact in fp64.

It keeps the rules of `stage/engine.py` (attempts, forgetting, freezing, what counts once) and shares nothing with it.
The share of a hop in a stage's gradient is a fixed pseudo-random vector named by (run, step, index, stage); what
travels between stages are small stamps that say which hop, stage, version and parameters they come from, and every
stage checks them. A step moves the parameters by a rule in which any missing, double or foreign share leaves its mark
for good. So a violation of exactly-once can't hide in rounding, `reference.py` says by plain arithmetic what a perfect
run gives, and a run costs a small part of what torch takes.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from swarmd.config import RunConfig
from swarmd.errors import HopForgotten, NonFinite, PeerFault
from swarmd.sim.engines.reference import (
    Reference,
    Symbols,
    digest_of,
    elements_of,
    loss_of,
    mark_of,
    moved,
    round_is_spoiled,
    share,
    spoiled_at,
    spoiled_early,
    squared_norm,
    untrained,
)
from swarmd.sim.engines.stamps import filling, finite, pack, read_stamp, stamped, unpack
from swarmd.values import BackwardResult, Buffer, Encoded, GradientSummary, HopId, TailResult

CODECS = ("fp32", "fp16")  # by these names the swarm asks for bytes; what it gets is exact under either
EXACT_LIMIT = 1 << 53  # whole numbers below this are exact in fp64
HEADER = struct.Struct("<8s4q")
MAGIC = b"symbols1"


class Foreign(AssertionError):
    """An activation, gradient or batch of tokens came, well-formed, that belongs to another hop: our bug."""


@dataclass(frozen=True)
class Applied:
    """A step that an engine ended: what the checkers compare with the reference."""

    step: int
    grad_digest: str  # "" when it was skipped
    averaged: tuple[float, ...]
    digest: str  # of the parameters after it
    counted: frozenset[int]  # indices in this engine's own sum


class SymbolicEngine:
    """Computes stage `stage` of `run`. `reference`: of its world, shared by all engines."""

    def __init__(self, run: RunConfig, stage: int, symbols: Symbols, reference: Reference) -> None:
        self.run, self.stage, self.symbols, self._reference = run, stage, symbols, reference
        self.is_head, self.is_tail = stage == 0, stage == run.model.stages - 1
        self.gradient_size = elements_of(symbols, stage)
        self.codecs = CODECS
        self.version = 0
        self.parameters = untrained(run.seed, stage, self.gradient_size)
        self.sum = [0] * self.gradient_size
        self.counted: set[HopId] = set()
        self.frozen = False
        self.averaged: tuple[float, ...] | None = None
        self._grad_digest = ""
        self.kept: set[HopId] = set()  # hops whose forward ran and whose gradient hasn't come
        self._forgets: dict[HopId, int] = {}
        self.applied: list[Applied] = []
        self.bugs: list[str] = []  # what was raised as Foreign: an assertion may be lost on its way

    # --------------------------------------------------------------------------------------------- hops

    def attempt(self, hop: HopId) -> int:
        return self._forgets.get(hop, 0)

    def forget(self, hop: HopId) -> None:
        if hop.step > self.version:
            self._forgets[hop] = self._forgets.get(hop, 0) + 1
        self.kept.discard(hop)

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
        assert not self.is_tail, "the last stage has `tail`"
        attempt = self._begin(hop, attempt, evaluate)
        self._check_inputs(hop, tokens, activation, evaluate)
        self._check_finite(hop, "activation")
        out = self._stamp(b"ACTV", hop, codec)
        if not evaluate:
            self._check_attempt(hop, attempt)
            self.kept.add(hop)
        return out

    def backward(
        self, hop: HopId, gradient: Encoded, *, codec: str, attempt: int | None = None, subtract: bool = False
    ) -> BackwardResult:
        attempt = self._begin(hop, attempt, evaluate=False)
        fields = self._read(b"GRAD", gradient)
        if hop not in self.kept:
            if hop in self._forgets:
                raise HopForgotten(f"hop {tuple(hop)} was forgotten before its gradient came")
            raise KeyError(f"no forward of hop {tuple(hop)} ran here")
        self._expect("gradient", fields, self._fields(hop, self.stage + 1))
        self._check_finite(hop, "gradient")
        self._check_attempt(hop, attempt)
        self.kept.discard(hop)
        return self._finish(hop, codec, subtract)

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
        assert self.is_tail, "only the last stage computes the loss"
        attempt = self._begin(hop, attempt, evaluate)
        self._check_inputs(hop, tokens, activation, evaluate)
        loss, count = float(loss_of(self.run.seed, hop)), self.run.tokens_per_microbatch
        if evaluate:
            return TailResult(loss, count, None, accumulated=False)
        self._check_finite(hop, "loss")
        self._check_attempt(hop, attempt)
        result = self._finish(hop, codec, subtract)
        return TailResult(loss, count, result.gradient, result.accumulated)

    def _finish(self, hop: HopId, codec: str, subtract: bool) -> BackwardResult:
        """Counts the hop, or takes it out, and makes the gradient of its input."""
        outgoing = None if self.is_head else self._stamp(b"GRAD", hop, codec)
        if not self.frozen and (hop in self.counted) == subtract:
            self.counted ^= {hop}
            self._add(hop, -1 if subtract else 1)
        return BackwardResult(outgoing, hop in self.counted)

    def indices(self, step: int) -> frozenset[int]:
        """The indices in this engine's sum of a step, also of one that has ended."""
        if step == self.version + 1:
            return frozenset(hop.index for hop in self.counted)
        return next((it.counted for it in reversed(self.applied) if it.step == step), frozenset())

    def _add(self, hop: HopId, sign: int) -> None:
        for place, value in enumerate(share(self.run.seed, hop, self.stage, self.gradient_size)):
            self.sum[place] += sign * value

    def _begin(self, hop: HopId, attempt: int | None, evaluate: bool) -> int:
        """Refuses hops of other steps than the one being summed; the attempt to hold the work to."""
        if evaluate:
            return 0
        if hop.step <= self.version:
            raise HopForgotten(f"step {hop.step} has ended; this stage is at version {self.version}")
        if hop.step != self.version + 1:
            raise KeyError(f"hop {tuple(hop)} is for a later step than {self.version + 1}")
        if attempt is None:
            return self.attempt(hop)
        self._check_attempt(hop, attempt)
        return attempt

    def _check_attempt(self, hop: HopId, attempt: int) -> None:
        if self.attempt(hop) != attempt:
            raise HopForgotten(f"hop {tuple(hop)} was forgotten while it was worked on")

    def _check_finite(self, hop: HopId, what: str) -> None:
        """Raises NonFinite at the one place at which a spoiled hop is so."""
        early = spoiled_early(self.run.seed, hop) and not self.is_tail
        place = spoiled_at(self.run.seed, hop, self.run.model.stages, self.symbols.spoiled)
        if place == self.stage and (what == "activation") == early:
            raise NonFinite(f"the {what} of hop {tuple(hop)} is not finite", what)

    def _check_inputs(self, hop: HopId, tokens: Buffer, activation: Encoded | None, evaluate: bool) -> None:
        """Raises PeerFault for what is malformed, Foreign for what belongs to another hop."""
        named = read_stamp(b"TOKS", self.symbols.token_bytes, tokens)[:3]
        expected = HopId(0, hop.index - self.run.microbatches) if evaluate else hop
        self._expect("tokens", named, (self.run.seed, *expected))
        if self.is_head:
            return
        if activation is None:
            raise PeerFault("no activation came")
        fields = self._read(b"ACTV", activation)
        if evaluate:  # the stages may be at two versions while a step commits
            self._expect("activation", fields[:3], (*hop, self.stage - 1))
        else:
            self._expect("activation", fields, self._fields(hop, self.stage - 1))

    def _fields(self, hop: HopId, stage: int) -> tuple[int, ...]:
        """The stamp's fields for a hop that comes from a stage at this engine's version, with the right parameters."""
        return (*hop, stage, self.version, mark_of(self._reference.digest(self.version, stage)))

    def _stamp(self, kind: bytes, hop: HopId, codec: str) -> Encoded:
        fields = (*hop, self.stage, self.version, mark_of(digest_of(self.parameters)))
        size = self.symbols.activation_bytes
        return Encoded(codec, (size,), (stamped(kind, size, *fields),))

    def _read(self, kind: bytes, encoded: Encoded) -> tuple[int, ...]:
        size = self.symbols.activation_bytes
        if encoded.shape != (size,) or len(encoded.data) != 1:
            raise PeerFault(f"a {kind.decode()} of shape {encoded.shape} came")
        return read_stamp(kind, size, encoded.data[0])[:5]

    def _expect(self, what: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            self.bugs.append(f"stage {self.stage} got {what} of {found} for {expected}")
            raise Foreign(self.bugs[-1])

    # --------------------------------------------------------------------------------------------- rounds

    def freeze(self, step: int) -> None:
        self._require(step)
        self.frozen = True

    def thaw(self, step: int) -> None:
        self._require(step)
        self.frozen = False

    def absorb(self, step: int, indices: Sequence[int], slices: Sequence[Encoded]) -> bool:
        self._require(step)
        values = [value for piece in slices for value in unpack(piece)]
        if len(values) != self.gradient_size or not finite(values) or any(value != int(value) for value in values):
            raise PeerFault(f"{len(values)} elements came for a sum of {self.gradient_size}, or no whole numbers")
        hops = {HopId(step, index) for index in indices}
        if self.frozen or hops & self.counted:
            return False
        self.counted |= hops
        self.sum = [own + int(theirs) for own, theirs in zip(self.sum, values, strict=True)]
        return True

    def contribution(self, step: int, start: int, stop: int, *, codec: str) -> Encoded:
        self._require(step)
        assert 0 <= start <= stop <= self.gradient_size, f"part {start} to {stop} of {self.gradient_size}"
        assert max(map(abs, self.sum)) < EXACT_LIMIT, "a sum that fp64 can't hold"
        return pack(self.sum[start:stop], codec)

    def reduce(self, contributions: Sequence[Encoded], tokens: int, *, codec: str) -> Encoded:
        assert contributions and tokens > 0, "a part needs contributions and tokens"
        columns = [unpack(contribution) for contribution in contributions]
        if any(len(column) != len(columns[0]) for column in columns):
            raise PeerFault("contributions of several lengths came for one part")
        for place, column in enumerate(columns):
            if not finite(column):
                raise NonFinite("a contribution is not finite", "sum", place)
        if round_is_spoiled(self.run.seed, self.version + 1, self.stage, self.symbols.spoiled_rounds):
            raise NonFinite("the average is not finite", "average")
        return pack([sum(row) / tokens for row in zip(*columns, strict=True)], codec)

    def assemble(self, step: int, parts: Sequence[Encoded]) -> GradientSummary:
        self._require(step)
        averaged = tuple(value for part in parts for value in unpack(part))
        if len(averaged) != self.gradient_size:
            raise PeerFault(f"parts of {len(averaged)} elements came for a gradient of {self.gradient_size}")
        for place, part in enumerate(parts):
            if not finite(unpack(part)):
                raise NonFinite("an averaged part is not finite", "average", place)
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(f"{part.codec}{part.shape}".encode())
            digest.update(part.data[0])
        self.averaged, self._grad_digest = averaged, digest.hexdigest()
        return GradientSummary(self._grad_digest, squared_norm(averaged))

    def apply(self, step: int, *, learning_rate: float, clip_factor: float) -> str:
        self._require(step)
        assert self.averaged is not None, f"step {step} is applied before its gradient was assembled"
        self.parameters = moved(self.parameters, self.averaged, self.version, learning_rate, clip_factor)
        return self._ended(step, self._grad_digest, self.averaged)

    def skip(self, step: int) -> str:
        self._require(step)
        return self._ended(step, "", ())

    def digest(self) -> str:
        return digest_of(self.parameters)

    def _require(self, step: int) -> None:
        if step != self.version + 1:
            raise KeyError(f"step {step} is not being summed: this stage is at version {self.version}")

    def _ended(self, step: int, grad_digest: str, averaged: tuple[float, ...]) -> str:
        counted = frozenset(hop.index for hop in self.counted)
        self.applied.append(Applied(step, grad_digest, averaged, self.digest(), counted))
        self._end(step)
        return self.digest()

    def _end(self, version: int) -> None:
        self.version = version
        self.kept = {hop for hop in self.kept if hop.step > version}
        self._forgets = {hop: count for hop, count in self._forgets.items() if hop.step > version}
        self.sum = [0] * self.gradient_size
        self.averaged, self.frozen = None, False
        self.counted.clear()

    # --------------------------------------------------------------------------------------------- state

    def export_state(self) -> Buffer:
        header = HEADER.pack(MAGIC, self.run.seed, self.stage, self.version, self.symbols.state_bytes)
        numbers = struct.pack(f"<{self.gradient_size}Q", *self.parameters)
        return header + numbers + self._filling(self.version)

    def _filling(self, version: int) -> bytes:
        """Bytes in place of moments: others at every place and version, so that mixed-up chunks show."""
        return filling(f"state/{self.run.seed}/{self.stage}/{version}", self.symbols.state_bytes)

    def import_state(self, state: Buffer) -> str:
        """Goes on from an exported state; leaves everything as it was if that doesn't fit (ValueError)."""
        raw = bytes(state)
        start = HEADER.size + 8 * self.gradient_size
        if len(raw) != start + self.symbols.state_bytes:
            raise ValueError(f"a state of {len(raw)} bytes doesn't fit")
        magic, seed, stage, version, _ = HEADER.unpack(raw[: HEADER.size])
        if (magic, seed, stage) != (MAGIC, self.run.seed, self.stage) or version < 0:
            raise ValueError(f"the state is of run {seed}, stage {stage}, version {version}")
        if raw[start:] != self._filling(version):
            raise ValueError("the state is mixed from several versions")
        self.parameters = struct.unpack(f"<{self.gradient_size}Q", raw[HEADER.size : start])
        self._end(version)
        return self.digest()


class Factory:
    """Makes engines that share one reference, and remembers them all, those of dead peers, too."""

    def __init__(self, run: RunConfig, symbols: Symbols) -> None:
        self.symbols, self.reference = symbols, Reference(run, symbols)
        self.engines: list[SymbolicEngine] = []

    def __call__(self, run: RunConfig, stage: int) -> SymbolicEngine:
        self.engines.append(SymbolicEngine(run, stage, self.symbols, self.reference))
        return self.engines[-1]
