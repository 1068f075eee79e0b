"""Every message that peers exchange.

A message is a frozen dataclass of plain fields: numbers, text, tuples, other such classes, encoded tensors and buffers.
`framing.py` puts it on the wire. Which answer belongs to which question is said in the docstrings; what peers do with
them, in docs/protocol.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from swarmd.errors import PeerFault, Refused
from swarmd.values import Buffer, Encoded, HopId, PeerId

Message = Any
"""One of the classes below."""

PROTOCOL = 2
"""Raised when two versions can't talk to each other."""

INCARNATION_LIMIT = 1 << 62
"""No honest peer goes beyond: nanoseconds since 1970 get there in 2116."""

INCARNATION_STEP = 1 << 32
"""From a life to the next at least: a life's gossip is numbered on from its incarnation, a few words a second."""

SEQUENCE_LIMIT = 1 << 53
"""The same of a card's number in its incarnation: one each microsecond gets there in 285 years."""

Ranges = tuple[tuple[int, int], ...]
"""A set of indices as sorted half-open ranges."""


@dataclass(frozen=True, order=True)
class Ballot:
    """Who may speak for a step: the higher one wins. Every conductor of a step has one of its own, and the leaders it
    asks act under it, so that a conductor or leader that slept is refused when it wakes.
    """

    number: int = 0  # 0: none
    peer: PeerId = ""


NO_BALLOT = Ballot()

BEAT_SECONDS = 1.0  # between a holder's beats to a custodian, unless it has many

ANY_STAGE = -1
"""In a question that concerns every stage alike."""


def check_stage(asked: int, own: int) -> None:
    """A question about one stage may reach a peer that has moved on to another. Raises Refused."""
    if asked not in (ANY_STAGE, own):
        raise Refused(f"this peer is of stage {own}, not {asked}")


# ------------------------------------------------------------------------------------------------- who is there


@dataclass(frozen=True)
class Card:
    """What a peer says of itself: the heartbeat, gossiped on its stage's topic and exchanged in `Hello`."""

    peer: PeerId
    incarnation: int  # grows with every start of the same identity
    sequence: int  # grows with every heartbeat of an incarnation
    addresses: tuple[str, ...]
    stage: int  # -1: none yet
    state: str  # joining | waiting | serving | paused | draining | finished | left
    version: int
    record: str  # hash of the newest commit record it applied
    tokens: int  # target tokens trained in the history that led there: of two histories as long, the greater wins
    data: str  # digest of its copy of the run's data; "" when it has none
    device: str
    codecs: tuple[str, ...]
    forward: int  # queue lengths, in hops
    backward: int
    in_flight: int
    room: int  # hops it would still admit
    service_seconds: float  # its own time per microbatch, forward and backward; 0 until measured
    microbatches_per_second: float
    moving: int = -1  # the stage that it will leave this one for; while it does so, it drains
    rested: bool = True  # it hasn't moved lately, and may again
    has_data: bool = True  # it could be a head, as far as it knows
    memory_bytes: float = 0.0  # of its device; 0: unknown
    measured: bool = False  # service_seconds is of enough microbatches to place peers by it
    ending: bool = False  # it works on, but its machine will be gone soon: nobody counts on it
    heir: PeerId = ""  # who has the sum of the present step of a peer that has just left its stage, or the swarm
    machine: str = ""  # HOST/NETWORK, hashed: equal HOSTs are one machine, equal NETWORKs share the loopback
    arrival: int = 0  # higher than those of all who were there when it was given its place; 0: it founded the run
    final: tuple[int, ...] = ()  # stages whose state at the end of the run is on its disk
    spare: bool = True  # its disk takes copies of other stages' states at the end
    broken: int = (
        0  # the version of which its stage's parameters were not finite: it knows the record, and has no state
    )


@dataclass(frozen=True)
class Summary:
    """A stage's peers, gossiped to the whole swarm by one of them."""

    stage: int
    cards: tuple[Card, ...]  # of some of them
    peers: int  # how many they are
    power: float = 0.0  # of all who are here or on their way here (`rule.py`), without those who leave
    candidates: int = 0  # how many of them may go to another stage
    away: tuple[tuple[int, float], ...] = ()  # of those who leave: where to, and their power


@dataclass(frozen=True)
class Hello:
    """First request on a connection; the answer is the other side's `Hello`, or a refusal. A peer without a run sends
    an empty fingerprint and may then only ask for the settings.
    """

    protocol: int
    fingerprint: str
    card: Card
    known: int = 0  # incarnation in which the sender knows whoever hears this; 0: not at all


@dataclass(frozen=True)
class SayHello:
    """The answer to a question from a peer that hasn't proved the run's fingerprint on this connection."""


@dataclass(frozen=True)
class AskSettings:
    """Answered with `Settings`."""


@dataclass(frozen=True)
class Settings:
    """The run's settings as plain data; its fingerprint proves them."""

    run: dict[str, Any]
    fingerprint: str
    protocol: int = 0  # that the peer speaks; 0: a release that doesn't say, and can't read what this one says


@dataclass(frozen=True)
class AskPlace:
    """A newcomer asks which stage needs it most. Answered with `Place`."""

    stage: int  # the stage it insists on, or -1
    has_data: bool  # it could be a head
    memory_bytes: float = 0.0  # of its device; 0: unknown


@dataclass(frozen=True)
class Place:
    """The stage to serve, and whom the answerer knows: everyone near that stage, of others enough to go on with."""

    stage: int
    cards: tuple[Card, ...]
    founder: PeerId = ""  # who began the run: the one acceptor of its first record
    resumes: bool = False  # the run goes on from what is on disks, once it is decided from where: wait for that
    arrival: int = 0  # for the newcomer's card


@dataclass(frozen=True)
class Announce:
    """My card changed in a way that you should know at once. Answered with `Ack`."""

    card: Card


@dataclass(frozen=True)
class Ack:
    """Heard."""


# ------------------------------------------------------------------------------------------------- a microbatch


@dataclass(frozen=True)
class Hop:
    """A microbatch for the next stage. Answered with `Gradient`, `Loss` (evaluate) or `Busy`."""

    step: int
    index: int
    record: str  # newest record the sender applied: different histories refuse each other
    again: bool  # sent before to another replica: whoever passes it on asks first who has it
    evaluate: bool
    codec: str  # the gradient is wanted in
    tokens: Buffer
    activation: Encoded
    horizon_s: float = 0.0  # as in the lease: who takes longer than that shouldn't get it
    stage: int = ANY_STAGE  # that it is for


@dataclass(frozen=True)
class Gradient:
    """The gradient of a hop's activation, and what this holder itself took for it."""

    gradient: Encoded
    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True)
class Loss:
    """The answer to an `evaluate` hop, handed back unchanged from the tail."""

    loss_sum: float
    tokens: int


@dataclass(frozen=True)
class Blame:
    """Where a number came from that isn't finite. All of it is a peer's word: `words` shows what may be shown."""

    what: str = ""  # activation | loss | gradient | sum | average | parameters; "" where nothing is wrong
    stage: int = ANY_STAGE
    peer: PeerId = ""
    index: int = -1  # of the microbatch, where it is of one

    def __bool__(self) -> bool:
        return bool(self.what)

    def words(self) -> str:
        """As part of a sentence."""
        what = self.what if self.what in NUMBERS else "number"
        of = f" of microbatch {self.index}" if self.index >= 0 else ""
        name = self.peer[-8:]
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
    """The answer to a hop whose numbers aren't finite: it counts as done, and spoils the step for everyone."""

    blame: Blame = NOBODY


@dataclass(frozen=True)
class Busy:
    """No room. A `Room` follows when there is."""

    in_flight: int


@dataclass(frozen=True)
class Room:
    """To those who were told `Busy`: try again. Answered with `Ack`."""

    hops: int


@dataclass(frozen=True)
class HopBeat:
    """Where one hop is: waiting | computing | passed."""

    step: int
    index: int
    state: str
    seconds: float  # in that state


@dataclass(frozen=True)
class Beat:
    """A holder's regular word to a custodian about every hop it holds for it. Answered with `Ack`."""

    hops: tuple[HopBeat, ...]
    counter: int  # of the compute thread
    busy_seconds: float  # of its present task
    service_seconds: float
    next_seconds: float = BEAT_SECONDS  # until the next beat to this custodian, while it holds hops for it


@dataclass(frozen=True)
class Cancel:
    """The custodian rerouted these hops: don't accumulate them. Answered with `Ack`."""

    hops: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Locate:
    """Who has this hop? Answered with `Located`."""

    step: int
    index: int
    stage: int = ANY_STAGE  # whose replica is asked


@dataclass(frozen=True)
class Located:
    """Whether it is here, done or under way."""

    here: bool


@dataclass(frozen=True)
class AskHop:
    """A holder wants once more the hop it got from a custodian. Answered with the `Hop`, or a refusal."""

    step: int
    index: int


# ------------------------------------------------------------------------------------------------- a step


@dataclass(frozen=True)
class AskLease:
    """A head reports finished indices and asks for more. Answered with `Lease`, possibly after a while."""

    step: int
    record: str
    want: int
    completed: Ranges  # everything it has finished in this step
    held: Ranges  # everything it is working on
    away: Ranges = ()  # of these, what is with the next stage: another head could not hasten it
    blame: Blame = NOBODY  # for one of the completed ones, whose numbers are not finite: the step is to be skipped


@dataclass(frozen=True)
class Lease:
    """Indices to train. Empty: nothing to give at present."""

    step: int
    indices: Ranges
    again: bool  # they were given to another head before
    horizon_s: float = 0.0  # about so long until the step's last index is given; 0: unknown


@dataclass(frozen=True)
class Lead:
    """A conductor that took over to everyone: from now on this step is led under this ballot. Answered with `Ack`."""

    step: int
    record: str  # before it
    ballot: Ballot
    incarnation: int  # of the conductor: when it has been started anew it leads no longer


@dataclass(frozen=True)
class Revoke:
    """Conductor to a head: another has completed these indices first; stop working on them. Answered with `Ack`."""

    step: int
    indices: Ranges


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
class AskMove:
    """A peer asks the conductor of a step to grant it, in the step's record, that it goes to another stage. Answered
    with `Wished`.
    """

    step: int
    record: str
    source: int
    target: int
    balance: bool = False  # it goes because the swarm gains by it: no more than it needs shall


@dataclass(frozen=True)
class Wished:
    """Whether the move will be granted as far as the conductor can see; if not, why. Only the record grants it."""

    likely: bool
    why: str = ""


@dataclass(frozen=True)
class AskStay:
    """A mover to a replica of its stage: promise not to go to another stage before the record of this step is applied,
    as I leave before. Answered with `Ack`, or a refusal.
    """

    step: int
    record: str
    stage: int


# ------------------------------------------------------------------------------------------------- what is on disks


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


# ------------------------------------------------------------------------------------------------- sets of indices


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
    """The indices of sorted half-open ranges within 0 .. limit-1. Raises PeerFault for anything else."""
    indices: list[int] = []
    floor = 0
    for start, stop in ranges:
        if not floor <= start < stop <= limit:
            raise PeerFault(f"indices {start}..{stop} are out of order or outside 0..{limit}")
        indices.extend(range(start, stop))
        floor = stop
    return indices


def hop_id(message: Hop | HopBeat | Locate) -> HopId:
    """The identity of the hop a message is about."""
    return HopId(message.step, message.index)
