"""Moves from stage to stage."""

from dataclasses import dataclass
from typing import ClassVar

from swarmd.swarm.wire.messages.common import Ack, Request
from swarmd.swarm.wire.messages.fields import WORDS_BYTES, Hash, Sentence, Stage, Step


@dataclass(frozen=True)
class MoveOutlook:
    """The conductor's outlook for a move: likely to be granted, or why not. Only the record grants it."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    likely: bool
    why: Sentence = ""


@dataclass(frozen=True)
class AskMove(Request[MoveOutlook]):
    """A peer asks the conductor of a step to grant it, in the step's record, that it goes to another stage."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    record_hash: Hash
    source: Stage
    target: Stage
    balance: bool = False  # it goes because the swarm gains by it: no more than it needs shall


@dataclass(frozen=True)
class AskStay(Request[Ack]):
    """A mover to a replica of its stage: promise not to go to another stage before the record of this step is applied,
    as I leave before."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    record_hash: Hash
    stage: Stage
