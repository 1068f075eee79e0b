"""A stage's state as others fetch it from a live replica."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from swarmd.chunks import CHUNKS_LIMIT
from swarmd.swarm.wire.bounds import AtMost, Between, Bytes
from swarmd.swarm.wire.messages.common import Request
from swarmd.swarm.wire.messages.fields import (
    CHUNK_LIMIT_BYTES,
    LARGE_BYTES,
    STATE_LIMIT_BYTES,
    WORDS_BYTES,
    ChunkNumber,
    Hash,
    RawRecord,
    Stage,
    Step,
)
from swarmd.values import Buffer


@dataclass(frozen=True)
class Snapshot:
    """A state as hashed chunks: a donor that pinned it gives them for `AskChunk`, a disk for `AskCheckpointChunk`."""

    header_bytes: ClassVar[int] = LARGE_BYTES
    version: Step
    record: RawRecord  # the commit record of that version
    nbytes: Annotated[int, Between(1, STATE_LIMIT_BYTES)]
    chunk_bytes: Annotated[int, Between(1, CHUNK_LIMIT_BYTES)]  # follows from `nbytes` (swarmd/chunks.py)
    hashes: Annotated[tuple[Hash, ...], AtMost(CHUNKS_LIMIT)]


@dataclass(frozen=True)
class AskSnapshot(Request[Snapshot]):
    """A newcomer wants the stage's state at a commit."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    stage: Stage
    version: Step = 0  # 0: the donor's own


@dataclass(frozen=True)
class Chunk:
    """Bytes of a stage's state."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    data: Annotated[Buffer, Bytes(CHUNK_LIMIT_BYTES)]


@dataclass(frozen=True)
class AskChunk(Request[Chunk]):
    """Asks for a chunk of the pinned state."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    version: Step
    number: ChunkNumber
