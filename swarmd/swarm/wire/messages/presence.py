"""Presence: cards, greetings, a run's settings, places for newcomers."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from swarmd.swarm.wire.bounds import AtMost, Between, Text, Together, Tree
from swarmd.swarm.wire.messages.common import Ack, Request
from swarmd.swarm.wire.messages.fields import (
    ADDRESSES_CHARACTERS,
    ADDRESSES_LIMIT,
    CARD_BYTES,
    CODECS_LIMIT,
    DEVICE_NAME_CHARACTERS,
    FINAL_LIMIT,
    LARGE_BYTES,
    PEERS_LIMIT,
    SEQUENCE_LIMIT,
    SETS_BYTES,
    STAGE_LIMIT,
    SUMMARY_BYTES,
    SUMMARY_CARDS_LIMIT,
    WORDS_BYTES,
    Address,
    Amount,
    Arrival,
    Count,
    Hash,
    Incarnation,
    Machine,
    Peer,
    Seconds,
    Stage,
    Step,
    Word,
)


@dataclass(frozen=True)
class Card:
    """A peer's description of itself: the heartbeat, gossiped on its stage's topic and exchanged in `Hello`."""

    header_bytes: ClassVar[int] = CARD_BYTES
    peer: Peer
    incarnation: Incarnation  # grows with every start of the same identity
    sequence: Annotated[int, Between(0, SEQUENCE_LIMIT)]  # grows with every heartbeat of an incarnation
    addresses: Annotated[tuple[Address, ...], AtMost(ADDRESSES_LIMIT), Together(ADDRESSES_CHARACTERS)]
    stage: Stage  # -1: none yet
    state: Word  # joining | waiting | serving | paused | draining | finished | left
    version: Step
    record_hash: Hash  # hash of the newest commit record it applied
    tokens: Count  # target tokens trained in the history that led there: of two histories as long, the greater wins
    data_digest: Hash  # digest of its copy of the run's data; "" when it has none
    device: Word
    codecs: Annotated[tuple[Word, ...], AtMost(CODECS_LIMIT)]
    forward: Count  # queue lengths, in hops
    backward: Count
    in_flight: Count
    room: Count  # hops it would still admit
    service_seconds: Seconds  # its own time per microbatch, forward and backward; 0 until measured
    microbatches_per_second: Amount
    moving: Stage = -1  # the stage that it will leave this one for; while it does so, it drains
    rested: bool = True  # it hasn't moved lately, and may again
    has_data: bool = True  # it could be a head, as far as it knows
    memory_bytes: Amount = 0.0  # of its device; 0: unknown
    measured: bool = False  # service_seconds is of enough microbatches to place peers by it
    ending: bool = False  # it works on, but its machine will be gone soon: nobody counts on it
    heir: Peer = ""  # who has the sum of the present step of a peer that has just left its stage, or the swarm
    machine: Machine = ""
    arrival: Arrival = 0  # above those of all who were there when it was given its place; 0: it founded the run
    final: Annotated[tuple[Stage, ...], AtMost(FINAL_LIMIT)] = ()  # whose state at the end of the run is on its disk
    spare: bool = True  # its disk takes copies of other stages' states at the end
    # The version of which its stage's parameters were not finite: it knows the record, and has no state.
    broken: Step = 0
    software: Word = ""  # version of swarmd; "": a release that doesn't say
    torch: Word = ""  # version
    device_name: Annotated[str, Text(DEVICE_NAME_CHARACTERS)] = ""  # of its maker's; "": unknown


@dataclass(frozen=True)
class Summary:
    """A stage's peers, gossiped to the whole swarm by one of them."""

    header_bytes: ClassVar[int] = SUMMARY_BYTES
    stage: Annotated[int, Between(0, STAGE_LIMIT)]
    cards: Annotated[tuple[Card, ...], AtMost(SUMMARY_CARDS_LIMIT)]  # of some of them
    peers: Annotated[int, Between(0, PEERS_LIMIT)]  # how many they are that are at work
    power: Amount = 0.0  # of all who are here or on their way here (`rule.py`), without those who leave
    candidates: Annotated[int, Between(0, PEERS_LIMIT)] = 0  # how many of them may go to another stage
    # Where those go that leave, and their power.
    moving: Annotated[tuple[tuple[Stage, Amount], ...], AtMost(PEERS_LIMIT)] = ()
    finished: Annotated[int, Between(0, PEERS_LIMIT)] = 0  # how many are there that have ended the run


@dataclass(frozen=True)
class Hello(Request["Hello"]):
    """First request on a connection, answered with the other side's. A peer without a run sends an empty fingerprint
    and may then only ask for the settings.
    """

    header_bytes: ClassVar[int] = CARD_BYTES
    protocol: Count
    fingerprint: Hash
    card: Card
    known_incarnation: Incarnation = 0  # in which the sender knows its hearer; 0: not at all


@dataclass(frozen=True)
class SayHello:
    """The answer to a question from a peer that hasn't proved the run's fingerprint on this connection."""

    header_bytes: ClassVar[int] = WORDS_BYTES


@dataclass(frozen=True)
class Settings:
    """The run's settings as plain data; its fingerprint proves them."""

    header_bytes: ClassVar[int] = SETS_BYTES
    run: Annotated[dict[str, Any], Tree(depth=4, values=4096, characters=1 << 17)]
    fingerprint: Hash
    protocol: Count = 0  # that the peer speaks; 0: a release that doesn't say, and can't read what this one says


@dataclass(frozen=True)
class AskSettings(Request[Settings]):
    """Asks for the run's settings."""

    header_bytes: ClassVar[int] = WORDS_BYTES


@dataclass(frozen=True)
class Place:
    """The stage to serve, and whom the answerer knows: everyone near that stage, of others enough to go on with."""

    header_bytes: ClassVar[int] = LARGE_BYTES
    stage: Stage
    cards: Annotated[tuple[Card, ...], AtMost(PEERS_LIMIT)]
    founder: Peer = ""  # who began the run: the one acceptor of its first record
    resumes: bool = False  # the run goes on from what is on disks, once it is decided from where: wait for that
    arrival: Arrival = 0  # for the newcomer's card


@dataclass(frozen=True)
class AskPlace(Request[Place]):
    """A newcomer asks which stage needs it most."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    stage: Stage  # the stage it insists on, or -1
    has_data: bool  # it could be a head
    memory_bytes: Amount = 0.0  # of its device; 0: unknown


@dataclass(frozen=True)
class Announce(Request[Ack]):
    """My card changed in a way that you should know at once."""

    header_bytes: ClassVar[int] = CARD_BYTES
    card: Card
