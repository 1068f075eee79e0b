"""The commit record: what it holds, how it is built from the stages' reports, how it is named.

Pure: plain data in, plain data out. A record's hash covers what decides the next version and nothing that two
conductors could see differently (who led, how long it took), so that two of them who saw the same rounds decide the
same record. `record_format.py` has the bytes.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from swarmd.config import RunConfig, lineage
from swarmd.errors import PeerFault
from swarmd.schedule import learning_rate_at
from swarmd.swarm.history.record_format import LATER, UNHASHED, canonical, digest, hash_of, with_beside, write_record
from swarmd.swarm.wire.messages.hop import SOMEONE
from swarmd.swarm.wire.messages.round import StageReport
from swarmd.values import PeerId

RETURN = ("after", "after_version", "lives", "moves", "continues", "broke_at", "ends")
"""Fields that say how a version was come to, and not what it is."""

WHY_LIMIT = 400  # characters of `Record.why`: a sentence or two

COUNTS = ("stage", "tokens", "microbatches", "resent", "subtracted", "lost", "duplicated")
"""Fields of a stage's entry that are counts."""


@dataclass(frozen=True, slots=True)
class StageEntry:
    """One stage's part of a record."""

    stage: int
    digest: str  # of the averaged gradient: only the gradient named here is applied
    squared_norm: float  # 0 when not finite
    tokens: int
    microbatches: int  # distinct indices in the sum
    resent: int
    subtracted: int
    lost: int
    duplicated: int
    members: tuple[PeerId, ...]
    holders: tuple[PeerId, ...]


@dataclass(frozen=True)
class Move:
    """A peer goes from one stage to another once the record that grants it has been applied."""

    peer: PeerId
    source: int
    target: int


@dataclass(frozen=True)
class Record:
    """The content of a commit: version step-1 becomes version step."""

    step: int
    parent: str  # hash of the record before
    stages: tuple[StageEntry, ...]
    loss: float  # nats per target token; 0 when not finite
    tokens: int
    grad_norm: float  # of the whole model's averaged gradient, before clipping
    clip_factor: float
    learning_rate: float
    skipped: bool  # a norm or loss wasn't finite: data consumed, parameters unchanged
    total_tokens: int = 0  # of the whole history up to here
    moves: tuple[Move, ...] = ()
    conductor: PeerId = ""
    seconds: float = 0.0  # from the first lease to the decision, on the conductor's clock
    validation_loss: float | None = None  # of version step-1
    ballot: tuple[int, PeerId] = (0, "")  # under which it was decided
    forked: bool = False  # decided without a majority of the acceptors
    after: str = ""  # of a return to this version: hash of the record that was the newest until then; else ""
    after_version: int = 0  # and the version that it led to
    lives: tuple[int, ...] = ()  # and the incarnations of its members: only these may speak for the next step
    total_steps: int = 0  # of the run when it was decided, whose schedule it follows; 0: as the run was founded
    continues: str = ""  # of the return with which a prolonged run begins: hash of the record it was prolonged from

    skips: int = 0  # steps in a row that were skipped, up to this one
    broke_at: int = 0  # the last step, not done again yet, whose parameters came out not finite; 0: none
    ends: bool = False  # the run ends with this return: there is no use in going on
    why: str = ""  # it was skipped, or is a return, in words

    @functools.cached_property
    def raw(self) -> bytes:
        """The record as it travels and is kept (`record_format.py`): as it came, if it wasn't built here."""
        return write_record(record_to_plain(self))

    @functools.cached_property
    def hash(self) -> str:
        return hash_of(self.raw)

    @functools.cached_property
    def state(self) -> str:
        """Names the parameters that it led to: the same for a record and for a return to its version."""
        content = record_to_plain(self)
        for name in (*UNHASHED, *RETURN, *(name for name, default in LATER if content[name] == default)):
            content.pop(name, None)
        for entry in content["stages"]:
            del entry["members"], entry["holders"]
        return digest(canonical(content))

    def came_as(self, raw: bytes) -> Self:
        """The same record with the bytes that it was read in."""
        vars(self)["raw"] = raw
        return self

    def under(self, ballot: tuple[int, PeerId], *, forked: bool) -> "Record":
        """The same record, hashed bytes and all, as it is proposed or decided under a ballot."""
        other = dataclasses.replace(self, ballot=ballot, forked=forked)
        plain = record_to_plain(other)
        return other.came_as(with_beside(self.raw, {name: plain[name] for name in UNHASHED}))

    def names(self, peer: PeerId, incarnation: int) -> bool:
        """True for a return that has this incarnation of a peer as a member."""
        return bool(self.after) and (peer, incarnation) in zip(self.members(), self.lives, strict=True)

    def place_of(self, peer: PeerId) -> int | None:
        """The stage at which a peer is a member."""
        return next((entry.stage for entry in self.stages if peer in entry.members), None)

    @property
    def place(self) -> tuple[int, str]:
        """The step that it was proposed for, and the hash of the record that it comes next after."""
        return (self.after_version + 1, self.after) if self.after else (self.step, self.parent)

    def follows(self, step: int, parent: str) -> bool:
        """True if it may be decided as what comes next after a record of version step - 1, whose hash is `parent`."""
        return self.place == (step, parent)

    def replicas(self, stage: int | None = None) -> frozenset[PeerId]:
        """Everyone who had the gradient of a stage, or of any: its holders, and the members whose sums are in it."""
        entries = self.stages if stage is None else (self.stages[stage],)
        return frozenset(peer for entry in entries for peer in (*entry.members, *entry.holders))

    def members(self) -> tuple[PeerId, ...]:
        """Everyone who took part, stage by stage."""
        return tuple(peer for entry in self.stages for peer in entry.members)


def genesis_hash(run: RunConfig) -> str:
    """The parent of the first record; it stays the same however often the run is prolonged."""
    return digest(canonical({"run": lineage(run)[0]}))


def total_of(run: RunConfig) -> int:
    """The `total_steps` of a record that is decided now."""
    return run.steps if run.earlier else 0


def is_of_now(run: RunConfig, record: Record) -> bool:
    """True for a record that may be decided now: it follows the present schedule, or is a return to a version of an
    earlier one.
    """
    return bool(record.after) or record.total_steps == total_of(run)


def is_checkpointed(run: RunConfig, record: Record) -> bool:
    """True if checkpoints are written of a record's version. Not if it was skipped: it is the version before, and many
    of them would push out the last good one.
    """
    every = run.checkpoint_every
    return every > 0 and record.step % every == 0 and not record.skipped


def clip_factor(squared_norms: Sequence[float], clip_norm: float) -> tuple[float, float]:
    """Norm of the whole gradient (squares added in stage order), and what brings it down to `clip_norm`."""
    norm = math.sqrt(math.fsum(squared_norms))
    return norm, min(1.0, clip_norm / (norm + 1e-6)) if clip_norm > 0 else 1.0


def build_record(
    run: RunConfig,
    parent: str,
    step: int,
    reports: Sequence[StageReport],
    *,
    conductor: PeerId,
    seconds: float,
    validation_loss: float | None,
    total_tokens: int = 0,
    moves: tuple[Move, ...] = (),
    before: Record | None = None,
) -> Record:
    """The record of a step from its stages' reports, in stage order. `total_tokens` are those of the history so far;
    `before`: the record before.
    """
    assert [report.stage for report in reports] == list(range(run.model.stages)), "one report a stage, in order"
    tail = reports[-1]
    loss = tail.loss_sum / max(1, tail.tokens)
    finite = all(report.finite and math.isfinite(report.squared_norm) for report in reports) and math.isfinite(loss)
    norm, factor = (
        clip_factor([report.squared_norm for report in reports], run.optimizer.clip_norm) if finite else (0.0, 0.0)
    )
    skips, broke_at = counts_after(before, step, skipped=not finite)
    blame = next((report.blame for report in reports if report.blame), SOMEONE)
    return Record(
        step=step,
        parent=parent,
        stages=tuple(_entry(report, finite) for report in reports),
        loss=loss if finite else 0.0,
        tokens=tail.tokens,
        grad_norm=norm,
        clip_factor=factor,
        learning_rate=learning_rate_at(run.optimizer, step, run.steps),
        total_steps=total_of(run),
        skipped=not finite,
        total_tokens=total_tokens + tail.tokens,
        moves=moves,
        conductor=conductor,
        seconds=seconds,
        validation_loss=validation_loss,
        skips=skips,
        broke_at=broke_at,
        why="" if finite else blame.words(),
    )


def counts_after(before: Record | None, step: int, *, skipped: bool) -> tuple[int, int]:
    """The `skips` and `broke_at` of a step's record, as they follow from the record before."""
    skips = (before.skips if before is not None else 0) + 1 if skipped else 0
    return skips, before.broke_at if before is not None and before.broke_at >= step else 0


def check_report(report: StageReport, stage: int, microbatches: int) -> None:
    """Raises PeerFault for a report of which no record could be made that others take."""
    if report.stage != stage:
        raise PeerFault("a report of another stage")
    if report.tokens < 1 or report.microbatches > microbatches or (report.finite and not report.digest):
        raise PeerFault("a report without tokens or a gradient, or of more microbatches than there are")


def _entry(report: StageReport, finite: bool) -> StageEntry:
    return StageEntry(
        stage=report.stage,
        digest=report.digest,
        squared_norm=report.squared_norm if finite else 0.0,
        tokens=report.tokens,
        microbatches=report.microbatches,
        resent=report.resent,
        subtracted=report.subtracted,
        lost=report.lost,
        duplicated=report.duplicated,
        members=report.members,
        holders=report.holders,
    )


def build_return(
    record: Record,
    members: Sequence[tuple[PeerId, ...]],
    lives: Mapping[PeerId, int],
    *,
    after: str,
    after_version: int,
    conductor: PeerId,
    continues: str = "",
    broke_at: int = 0,
    why: str = "",
) -> Record:
    """Decides the version of a record anew: everyone returns to it. `members`: who holds each stage from there on;
    `lives`: their incarnations; `continues`: the record's hash if a prolonged run begins with the return;
    `broke_at`, `why`: the step whose parameters came out not finite, and that in words.
    """
    stages = tuple(
        dataclasses.replace(entry, members=peers, holders=())
        for entry, peers in zip(record.stages, members, strict=True)
    )
    return dataclasses.replace(
        record,
        stages=stages,
        moves=(),
        conductor=conductor,
        forked=False,
        after=after,
        after_version=after_version,
        lives=tuple(lives[peer] for peers in members for peer in peers),
        continues=continues,
        broke_at=broke_at,
        ends=False,
        why=why,
    )


def build_end(record: Record, lives: Mapping[PeerId, int], *, conductor: PeerId, why: str) -> Record:
    """Decides that the run ends with the version of a record, and why."""
    members = [entry.members for entry in record.stages]
    everyone = {peer: lives.get(peer, 0) for peers in members for peer in peers}
    made = build_return(
        record, members, everyone, after=record.hash, after_version=record.step, conductor=conductor, why=why
    )
    return dataclasses.replace(made, broke_at=record.broke_at, ends=True)


def recut(record: Record, stages: int) -> Record:
    """A version's record as one of a run with so many stages: its loss, norm and tokens stay what they were. The
    gradients' digests are gone, and nobody took part.
    """
    counts = dataclasses.replace(record.stages[-1], digest="", members=(), holders=())
    norms = [math.fsum(entry.squared_norm for entry in record.stages), *([0.0] * (stages - 1))]
    cut = tuple(dataclasses.replace(counts, stage=stage, squared_norm=norm) for stage, norm in enumerate(norms))
    no_return: dict[str, Any] = {"after": "", "after_version": 0, "lives": (), "continues": "", "ends": False}
    return dataclasses.replace(record, stages=cut, moves=(), **no_return)


def founding(peer: PeerId, incarnation: int, record: Record) -> str:
    """The `after` of a return where nothing is left but disks; another founder, or incarnation of it, has another."""
    return digest(canonical({"founder": peer, "incarnation": incarnation, "record": record.hash}))


def record_to_plain(record: Record) -> dict[str, Any]:
    """JSON-ready; tuples as lists."""
    plain = _fields(record)  # `dataclasses.asdict` takes twenty times as long, and records are many
    plain["stages"] = [
        {**_fields(entry), "members": list(entry.members), "holders": list(entry.holders)} for entry in record.stages
    ]
    plain["moves"] = [_fields(move) for move in record.moves]
    plain["ballot"], plain["lives"] = list(record.ballot), list(record.lives)
    return plain


def _fields(record: "Record | StageEntry | Move") -> dict[str, Any]:
    """By name, as they are."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}
