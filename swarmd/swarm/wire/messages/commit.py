"""The consensus on a step's record, its spread, and how others get the gradient that it names."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from swarmd.swarm.wire.bounds import AtMost, Between
from swarmd.swarm.wire.messages.common import Ack, Ballot, Request
from swarmd.swarm.wire.messages.fields import (
    PARTS_LIMIT,
    WORDS_BYTES,
    Hash,
    PartNumber,
    Peer,
    RawRecord,
    Step,
    Tensor,
)

VOTERS_LIMIT = 32  # acceptors of a step; there are nine at most


@dataclass(frozen=True)
class Promise:
    """An acceptor's answer: whether it promised, and what it has accepted for the step so far."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    granted: bool
    promised: Ballot  # the highest it promised
    accepted: Ballot  # under which it accepted `record`; none: nothing yet
    record: RawRecord


@dataclass(frozen=True)
class Prepare(Request[Promise]):
    """A conductor asks an acceptor to take nothing under a lower ballot any more."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    parent_hash: Hash  # hash of the record before
    ballot: Ballot


@dataclass(frozen=True)
class Accepted:
    """The acceptor's answer: whether it did; else the higher ballot under which another one leads."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    granted: bool
    promised: Ballot


@dataclass(frozen=True)
class Accept(Request[Accepted]):
    """A conductor asks an acceptor to accept a record."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    parent_hash: Hash
    ballot: Ballot
    record: RawRecord


@dataclass(frozen=True)
class Commit(Request[Ack]):
    """The decided record; a message of its own, and the answer to `AskRecord`."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    record: RawRecord
    relay: bool = False  # tell the replicas of your stage, too
    voters: Annotated[tuple[Peer, ...], AtMost(VOTERS_LIMIT)] = ()  # acceptors that accepted it: they are asked first


@dataclass(frozen=True)
class Vote:
    """A peer's word about a record: neither is true of one that may yet be accepted, or of a step that it knows
    another record of.
    """

    header_bytes: ClassVar[int] = WORDS_BYTES
    accepted: bool  # as an acceptor of the step, under the very ballot
    decided: bool  # it knows that the record is decided


@dataclass(frozen=True)
class AskVote(Request[Vote]):
    """Asks for a peer's word about a record. Refused by one that can't speak for the step."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step  # that the record was proposed for
    parent_hash: Hash  # of the record that it was proposed to come after
    record_hash: Hash
    ballot: Ballot


@dataclass(frozen=True)
class AskRecord(Request[Commit]):
    """Asks for the record of a step."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step


@dataclass(frozen=True)
class GradientPart:
    """One averaged part, as its owner encoded it."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    parts: Annotated[int, Between(1, PARTS_LIMIT)]  # of the gradient
    data: Tensor


@dataclass(frozen=True)
class AskGradient(Request[GradientPart]):
    """Asks for part number `part` of a committed averaged gradient."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    digest: Hash
    part: PartNumber
