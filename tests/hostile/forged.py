"""Records, gradients and states of an attacker's own making, such that they pass for honest ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from swarmd.chunks import CHUNK_BYTES, chunk_hash
from swarmd.config import RunConfig
from swarmd.schedule import learning_rate_at
from swarmd.stage import codec
from swarmd.stage.engine import StageEngine
from swarmd.swarm.history.record import Record, clip_factor, counts_after
from swarmd.values import Encoded, PeerId


def skipped_step(run: RunConfig, base: Record, author: PeerId) -> Record:
    """A record after another one that has the step skipped, so that nothing is needed for it."""
    step = base.step + 1
    skips, broke_at = counts_after(base, step, skipped=True)
    entries = [dataclasses.replace(it, squared_norm=0.0, digest="", members=(), holders=()) for it in base.stages]
    return dataclasses.replace(
        _following(run, base, author),
        stages=tuple(entries),
        skipped=True,
        loss=0.0,
        grad_norm=0.0,
        clip_factor=0.0,
        skips=skips,
        broke_at=broke_at,
    )


def step_of(run: RunConfig, base: Record, author: PeerId, gradients: Sequence["Gradient"], *, clipped: bool) -> Record:
    """A record after another one with gradients of its author's. Unless `clipped`, their norms are said to be 0."""
    entries = [
        dataclasses.replace(it, squared_norm=own.squared_norm if clipped else 0.0, digest=own.digest, holders=(author,))
        for it, own in zip(base.stages, gradients, strict=True)
    ]
    norm, factor = clip_factor([it.squared_norm for it in entries], run.optimizer.clip_norm)
    skips, broke_at = counts_after(base, base.step + 1, skipped=False)
    return dataclasses.replace(
        _following(run, base, author),
        stages=tuple(entries),
        skipped=False,
        loss=0.1,
        grad_norm=norm,
        clip_factor=factor,
        skips=skips,
        broke_at=broke_at,
    )


def _following(run: RunConfig, base: Record, author: PeerId) -> Record:
    step = base.step + 1
    return dataclasses.replace(
        base,
        step=step,
        parent=base.hash,
        learning_rate=learning_rate_at(run.optimizer, step, run.steps),
        moves=(),
        conductor=author,
        ballot=(1, author),
        forked=False,
        after="",
        after_version=0,
        lives=(),
        why="",
    )


def return_to(base: Record, members: Sequence[PeerId], lives: Sequence[int], author: PeerId) -> Record:
    """A record that has everyone return to the version that it is at, with a state that has yet to be fetched."""
    entries = [
        dataclasses.replace(it, members=(peer,), holders=()) for it, peer in zip(base.stages, members, strict=True)
    ]
    return dataclasses.replace(
        base,
        stages=tuple(entries),
        moves=(),
        loss=9.0,
        conductor=author,
        ballot=(1, author),
        after=base.hash,
        after_version=base.step,
        lives=tuple(lives),
    )


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A stage's gradient, made up."""

    data: Encoded
    digest: str
    squared_norm: float


def gradients(run: RunConfig, scale: float = 1e6) -> list[Gradient]:
    """One of noise for each stage."""
    return [_gradient(StageEngine(run, stage, "cpu"), scale) for stage in range(run.model.stages)]


def _gradient(engine: StageEngine, scale: float) -> Gradient:
    data = codec.encode(torch.randn(engine.gradient_size) * scale, "fp32")
    summary = engine.assemble(1, (data,))
    return Gradient(data, summary.digest, summary.squared_norm)


def gradient_size(run: RunConfig, stage: int) -> int:
    return StageEngine(run, stage, "cpu").gradient_size


def constant(size: int, value: float) -> Encoded:
    return codec.encode(torch.full((size,), value), "fp32")


def noise(*shape: int, scale: float = 1e3) -> Encoded:
    return codec.encode(torch.randn(*shape) * scale, "fp32")


def random_tokens(run: RunConfig) -> bytes:
    shape = (run.sequences_per_microbatch, run.model.sequence_length + 1)
    drawn: Any = torch.randint(0, run.model.vocabulary, shape, dtype=torch.int32).numpy()
    return bytes(drawn.tobytes())


def random_activation(run: RunConfig) -> Encoded:
    return noise(run.sequences_per_microbatch, run.model.sequence_length, run.model.hidden)


@dataclasses.dataclass(frozen=True)
class State:
    """A stage's state, all of whose parameters are zero, in chunks."""

    data: bytes

    def chunks(self) -> list[bytes]:
        return [self.data[start : start + CHUNK_BYTES] for start in range(0, len(self.data), CHUNK_BYTES)]

    def hashes(self) -> list[str]:
        return [chunk_hash(chunk) for chunk in self.chunks()]


def zero_state(run: RunConfig, stage: int) -> State:
    engine = StageEngine(run, stage, "cpu")
    for parameter in engine.parameters:
        parameter.data.zero_()
    return State(bytes(engine.export_state()))
