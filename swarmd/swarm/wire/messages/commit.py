"""The consensus on a step's record, and its spread."""

from dataclasses import dataclass
from typing import Any

from swarmd.swarm.wire.messages.common import Ballot


@dataclass(frozen=True)
class Prepare:
    """A conductor asks an acceptor to take nothing under a lower ballot any more. Answered with `Promise`."""

    step: int
    parent: str  # hash of the record before
    ballot: Ballot


@dataclass(frozen=True)
class Promise:
    """An acceptor's answer: whether it promised, and what it has accepted for the step so far."""

    granted: bool
    promised: Ballot  # the highest it promised
    accepted: Ballot  # under which it accepted `record`; none: nothing yet
    record: dict[str, Any]


@dataclass(frozen=True)
class Accept:
    """A conductor asks an acceptor to accept a record. Answered with `Accepted`."""

    step: int
    parent: str
    ballot: Ballot
    record: dict[str, Any]


@dataclass(frozen=True)
class Accepted:
    """Whether it did; else under which higher ballot someone else leads."""

    granted: bool
    promised: Ballot


@dataclass(frozen=True)
class Commit:
    """The decided record, as plain data. Answered with `Ack`; also the answer to `AskRecord`."""

    record: dict[str, Any]
    relay: bool = False  # tell the replicas of your stage, too


@dataclass(frozen=True)
class AskRecord:
    """Answered with the `Commit` of that step, or a refusal."""

    step: int
