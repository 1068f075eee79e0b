"""The parts that all messages share: protocol number, requests, ballots, sets of indices, the plainest answer.

A message is a frozen dataclass of plain fields: numbers, text, tuples, other such classes, encoded tensors and buffers.
`framing.py` puts it on the wire. A message that is answered is a `Request` of its answers; what peers do with them is
said in docs/protocol.md. The other files here have the messages, by what they are about.
"""

import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, ForwardRef, Generic, Protocol, TypeVar

from swarmd.errors import OutOfRange, Refused
from swarmd.swarm.wire.bounds import Between
from swarmd.swarm.wire.messages.fields import BALLOT_LIMIT, WORDS_BYTES, Peer, Ranges

Message = Any
"""An instance of one of `framing.KINDS`."""

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)

PROTOCOL = 3
"""Raised when two versions can't talk to each other."""

INCARNATION_STEP = 1 << 32
"""From a life to the next at least: a life's gossip is numbered on from its incarnation, a few words a second."""


class Request(Generic[A_co]):
    """A message that is answered with an `A`, one kind of message or a union of kinds, or refused."""

    @classmethod
    def answers(cls) -> list[type[A_co]]:
        """The kinds of messages that it may be answered with."""
        (base,) = vars(cls)["__orig_bases__"]
        (answer,) = typing.get_args(base)
        if isinstance(answer, ForwardRef):  # a class that is its own answer has no name yet where it says so
            answer = cls
        return list(typing.get_args(answer) or (answer,))

    def accepts(self, answer: Message) -> bool:
        """Tells if the answer is of a kind that this very question may have."""
        return isinstance(answer, tuple(self.answers()))


class RequestKind(Protocol[R_co, A]):
    """A class of requests to a type checker: it makes an `R`, and an `R` is answered with an `A`, exactly."""

    def __call__(self, *fields: Any, **named: Any) -> R_co: ...

    def answers(self) -> list[type[A]]: ...


@dataclass(frozen=True, order=True)
class Ballot:
    """The right to speak for a step: the higher one wins. Every conductor of a step has one of its own, and the leaders
    that it asks act under it, so that a conductor or leader that slept is refused when it wakes.
    """

    number: Annotated[int, Between(0, BALLOT_LIMIT)] = 0  # 0: none
    peer: Peer = ""


NO_BALLOT = Ballot()


ANY_STAGE = -1
"""In a question that concerns every stage alike."""


def check_stage(asked: int, own: int) -> None:
    """A question about one stage may reach a peer that has moved on to another. Raises Refused."""
    if asked not in (ANY_STAGE, own):
        raise Refused(f"this peer is of stage {own}, not {asked}")


@dataclass(frozen=True)
class Ack:
    """Heard."""

    header_bytes: ClassVar[int] = WORDS_BYTES


def to_ranges(indices: Iterable[int]) -> Ranges:
    """A set of indices as sorted half-open ranges."""
    ranges: list[tuple[int, int]] = []
    for index in sorted(indices):
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        elif not ranges or index > ranges[-1][1]:
            ranges.append((index, index + 1))
    return tuple(ranges)


def from_ranges(ranges: Ranges, limit: int) -> list[int]:
    """The indices of sorted half-open ranges within 0 .. limit-1. Raises OutOfRange for anything else."""
    indices: list[int] = []
    floor = 0
    for start, stop in ranges:
        if not floor <= start < stop <= limit:
            raise OutOfRange(f"indices {start}..{stop} are out of order or outside 0..{limit}")
        indices.extend(range(start, stop))
        floor = stop
    return indices
