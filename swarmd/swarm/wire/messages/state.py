"""A stage's state as others fetch it, from a live replica or from a disk."""

from dataclasses import dataclass
from typing import Any

from swarmd.values import Buffer


@dataclass(frozen=True)
class AskSnapshot:
    """A newcomer wants the stage's state at a commit. Answered with `Snapshot`, or a refusal."""

    stage: int
    version: int = 0  # 0: the donor's own


@dataclass(frozen=True)
class Snapshot:
    """What a donor pinned: hashed chunks, to be fetched with `AskChunk`."""

    version: int
    record: dict[str, Any]  # the commit record of that version
    nbytes: int
    chunk_bytes: int
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class AskChunk:
    """Answered with `Chunk`."""

    version: int
    number: int


@dataclass(frozen=True)
class Chunk:
    """Bytes of the pinned state."""

    data: Buffer


@dataclass(frozen=True)
class Kept:
    """A checkpoint on a peer's disk, whole."""

    version: int
    stage: int
    state: str  # names it: `Record.state` of its record


@dataclass(frozen=True)
class AskStock:
    """What of the run is on your disk? Answered with `Stock`, which takes the time to read it all once."""


@dataclass(frozen=True)
class Stock:
    """Every whole checkpoint on a disk, of any stage."""

    kept: tuple[Kept, ...]
    has_data: bool  # its peer could be a head
    damaged: tuple[tuple[int, int], ...] = ()  # version and stage of checkpoints that are there and not whole


@dataclass(frozen=True)
class AskCopy:
    """Someone wants a checkpoint. Answered with a `Snapshot`, or a refusal."""

    kept: Kept


@dataclass(frozen=True)
class AskPiece:
    """Answered with the `Chunk` of a checkpoint, or a refusal."""

    kept: Kept
    number: int
