"""A stage's state as others fetch it from a live replica."""

from dataclasses import dataclass
from typing import Any

from swarmd.swarm.wire.messages.common import Request
from swarmd.values import Buffer


@dataclass(frozen=True)
class Snapshot:
    """A state as hashed chunks: a donor that pinned it gives them for `AskChunk`, a disk for `AskCheckpointChunk`."""

    version: int
    record: dict[str, Any]  # the commit record of that version
    nbytes: int
    chunk_bytes: int
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class AskSnapshot(Request[Snapshot]):
    """A newcomer wants the stage's state at a commit."""

    stage: int
    version: int = 0  # 0: the donor's own


@dataclass(frozen=True)
class Chunk:
    """Bytes of a stage's state."""

    data: Buffer


@dataclass(frozen=True)
class AskChunk(Request[Chunk]):
    """Asks for a chunk of the pinned state."""

    version: int
    number: int
