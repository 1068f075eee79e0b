"""Checkpoints on peers' disks, as others look for them and fetch them."""

from dataclasses import dataclass

from swarmd.swarm.wire.messages.common import Request
from swarmd.swarm.wire.messages.state import Chunk, Snapshot


@dataclass(frozen=True)
class Kept:
    """A checkpoint on a peer's disk, whole."""

    version: int
    stage: int
    state: str  # names it: `Record.state` of its record


@dataclass(frozen=True)
class Stock:
    """Every whole checkpoint on a disk, of any stage."""

    kept: tuple[Kept, ...]
    has_data: bool  # its peer could be a head
    damaged: tuple[tuple[int, int], ...] = ()  # version and stage of checkpoints that are there and not whole


@dataclass(frozen=True)
class AskStock(Request[Stock]):
    """Asks for all checkpoints of the run on a disk. The answer takes the time to read them once."""


@dataclass(frozen=True)
class AskCopy(Request[Snapshot]):
    """Someone wants a checkpoint."""

    kept: Kept


@dataclass(frozen=True)
class AskPiece(Request[Chunk]):
    """Asks for a chunk of a checkpoint."""

    kept: Kept
    number: int
