"""Checkpoints on peers' disks, as others look for them and fetch them."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from swarmd.swarm.wire.bounds import AtMost
from swarmd.swarm.wire.messages.common import Request
from swarmd.swarm.wire.messages.fields import (
    CHECKPOINTS_LIMIT,
    LARGE_BYTES,
    WORDS_BYTES,
    ChunkNumber,
    Hash,
    Stage,
    Step,
)
from swarmd.swarm.wire.messages.state import Chunk, Snapshot


@dataclass(frozen=True)
class CheckpointName:
    """A checkpoint on a peer's disk, whole."""

    version: Step
    stage: Stage
    state_hash: Hash  # names what led to it: `Record.state` of its record
    root: Hash = ""  # names its bytes (swarmd/chunks.py); "": whichever, or a release that doesn't say


@dataclass(frozen=True)
class CheckpointList:
    """Every whole checkpoint on a disk, of any stage."""

    header_bytes: ClassVar[int] = LARGE_BYTES
    checkpoints: Annotated[tuple[CheckpointName, ...], AtMost(CHECKPOINTS_LIMIT)]
    has_data: bool  # its peer could be a head
    # Version and stage of checkpoints that are there and not whole.
    damaged: Annotated[tuple[tuple[Step, Stage], ...], AtMost(CHECKPOINTS_LIMIT)] = ()


@dataclass(frozen=True)
class AskCheckpointList(Request[CheckpointList]):
    """Asks for all checkpoints of the run on a disk. The answer takes the time to read them once."""

    header_bytes: ClassVar[int] = WORDS_BYTES


@dataclass(frozen=True)
class AskCheckpoint(Request[Snapshot]):
    """Someone wants a checkpoint."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    checkpoint: CheckpointName


@dataclass(frozen=True)
class AskCheckpointChunk(Request[Chunk]):
    """Asks for a chunk of a checkpoint."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    checkpoint: CheckpointName
    number: ChunkNumber
