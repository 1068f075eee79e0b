"""A microbatch on its way: hops, their answers, beats, and how a lost one is found."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from swarmd.swarm.wire.bounds import AtMost, Between
from swarmd.swarm.wire.messages.common import ANY_STAGE, Ack, Message, Request
from swarmd.swarm.wire.messages.fields import (
    HOPS_LIMIT,
    INDEX_LIMIT,
    SETS_BYTES,
    WORDS_BYTES,
    Amount,
    Count,
    Hash,
    Index,
    Payload,
    Peer,
    Ranges,
    Seconds,
    Stage,
    Step,
    Tensor,
    Word,
)
from swarmd.values import HopId, short

BEAT_SECONDS = 1.0  # between a holder's beats to a custodian, unless it has many


@dataclass(frozen=True)
class Gradient:
    """The gradient of a hop's activation, and what this holder itself took for it."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    gradient: Tensor
    queue_seconds: Seconds
    compute_seconds: Seconds


@dataclass(frozen=True)
class Loss:
    """The loss of an `evaluate` hop, handed back unchanged from the tail."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    loss_sum: Amount
    tokens: Count


@dataclass(frozen=True)
class Blame:
    """The origin of a number that isn't finite. All of it is a peer's word: `words` shows what may be shown."""

    what: Word = ""  # activation | loss | gradient | sum | average | parameters; "" where nothing is wrong
    stage: Stage = ANY_STAGE
    peer: Peer = ""
    index: Annotated[int, Between(-1, INDEX_LIMIT)] = -1  # of the microbatch, where it is of one

    def __bool__(self) -> bool:
        return bool(self.what)

    def words(self) -> str:
        """The blame as part of a sentence."""
        what = self.what if self.what in NUMBERS else "number"
        of = f" of microbatch {self.index}" if self.index >= 0 else ""
        name = short(self.peer)
        who = f", peer {name}," if name.isalnum() and name.isascii() else ""
        where = f" at stage {self.stage}" if self.stage >= 0 else ""
        return f"the {what}{of}{where}{who} is not finite"


NUMBERS = ("activation", "loss", "gradient", "sum", "average", "parameters")
"""Kinds of numbers that may come out not finite."""
NOBODY = Blame()
SOMEONE = Blame("number")
"""Where nobody remembers who."""


@dataclass(frozen=True)
class NotFinite:
    """The hop's numbers aren't finite: it counts as done, and spoils the step for everyone."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    blame: Blame = NOBODY


@dataclass(frozen=True)
class Busy:
    """No room. A `Room` follows when there is."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    in_flight: Count


@dataclass(frozen=True)
class Hop(Request[Gradient | Loss | NotFinite | Busy]):
    """A microbatch for the next stage."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    index: Index
    record_hash: Hash  # newest record the sender applied: different histories refuse each other
    again: bool  # sent before to another replica: the next to pass it on asks first who has it
    evaluate: bool
    codec: Word  # the gradient is wanted in
    tokens: Payload
    activation: Tensor
    horizon_s: Seconds = 0.0  # as in the lease: who takes longer than that shouldn't get it
    stage: Stage = ANY_STAGE  # that it is for
    source: Peer = ""  # who gave it to the sender: the custodian before, at a head the conductor

    def accepts(self, answer: Message) -> bool:
        """A loss is the answer if `evaluate`, and only then."""
        return super().accepts(answer) and isinstance(answer, Loss) == self.evaluate


@dataclass(frozen=True)
class Room(Request[Ack]):
    """To those who were told `Busy`: try again."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    hops: Count


@dataclass(frozen=True)
class HopBeat:
    """The state of one hop: waiting | computing | passed."""

    step: Step
    index: Index
    state: Word
    seconds: Seconds  # in that state


@dataclass(frozen=True)
class Beat(Request[Ack]):
    """A holder's regular word to a custodian about every hop it holds for it."""

    header_bytes: ClassVar[int] = SETS_BYTES
    hops: Annotated[tuple[HopBeat, ...], AtMost(HOPS_LIMIT)]
    counter: Count  # of the compute thread
    busy_seconds: Seconds  # of its present task
    service_seconds: Seconds
    next_seconds: Seconds = BEAT_SECONDS  # until the next beat to this custodian, while it holds hops for it


@dataclass(frozen=True)
class Cancel(Request[Ack]):
    """The custodian rerouted these hops: don't accumulate them."""

    header_bytes: ClassVar[int] = SETS_BYTES
    hops: Annotated[tuple[tuple[Step, Index], ...], AtMost(HOPS_LIMIT)]


@dataclass(frozen=True)
class Located:
    """The answer: the hop is here, done or under way, or it isn't."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    here: bool


@dataclass(frozen=True)
class Locate(Request[Located]):
    """Asks a replica if it has this hop."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    index: Index
    stage: Stage = ANY_STAGE  # whose replica is asked


@dataclass(frozen=True)
class AskHop(Request[Hop]):
    """A holder wants once more the hop it got from a custodian."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    index: Index


@dataclass(frozen=True)
class Given:
    """The answer: those of the microbatches that were given, and from whom the giver has the first of them."""

    header_bytes: ClassVar[int] = SETS_BYTES
    indices: Ranges
    source: Peer = ""


@dataclass(frozen=True)
class AskGiven(Request[Given]):
    """Asks which microbatches of a step a giver has given to a peer of a stage: as a hop, a lease, or to repair a sum.
    A peer that isn't the giver passes the question on to it.
    """

    header_bytes: ClassVar[int] = SETS_BYTES
    step: Step
    stage: Stage
    indices: Ranges
    peer: Peer
    giver: Peer


def hop_id(message: Hop | HopBeat | Locate) -> HopId:
    """The identity of the hop a message is about."""
    return HopId(message.step, message.index)
