"""Presence: cards, greetings, a run's settings, places for newcomers."""

from dataclasses import dataclass
from typing import Any

from swarmd.swarm.wire.messages.common import Ack, Request
from swarmd.values import PeerId


@dataclass(frozen=True)
class Card:
    """A peer's description of itself: the heartbeat, gossiped on its stage's topic and exchanged in `Hello`."""

    peer: PeerId
    incarnation: int  # grows with every start of the same identity
    sequence: int  # grows with every heartbeat of an incarnation
    addresses: tuple[str, ...]
    stage: int  # -1: none yet
    state: str  # joining | waiting | serving | paused | draining | finished | left
    version: int
    record_hash: str  # hash of the newest commit record it applied
    tokens: int  # target tokens trained in the history that led there: of two histories as long, the greater wins
    data_digest: str  # digest of its copy of the run's data; "" when it has none
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
    moving: tuple[tuple[int, float], ...] = ()  # of those who leave: where to, and their power


@dataclass(frozen=True)
class Hello(Request["Hello"]):
    """First request on a connection, answered with the other side's. A peer without a run sends an empty fingerprint
    and may then only ask for the settings.
    """

    protocol: int
    fingerprint: str
    card: Card
    known_incarnation: int = 0  # incarnation in which the sender knows its hearer; 0: not at all


@dataclass(frozen=True)
class SayHello:
    """The answer to a question from a peer that hasn't proved the run's fingerprint on this connection."""


@dataclass(frozen=True)
class Settings:
    """The run's settings as plain data; its fingerprint proves them."""

    run: dict[str, Any]
    fingerprint: str
    protocol: int = 0  # that the peer speaks; 0: a release that doesn't say, and can't read what this one says


@dataclass(frozen=True)
class AskSettings(Request[Settings]):
    """Asks for the run's settings."""


@dataclass(frozen=True)
class Place:
    """The stage to serve, and whom the answerer knows: everyone near that stage, of others enough to go on with."""

    stage: int
    cards: tuple[Card, ...]
    founder: PeerId = ""  # who began the run: the one acceptor of its first record
    resumes: bool = False  # the run goes on from what is on disks, once it is decided from where: wait for that
    arrival: int = 0  # for the newcomer's card


@dataclass(frozen=True)
class AskPlace(Request[Place]):
    """A newcomer asks which stage needs it most."""

    stage: int  # the stage it insists on, or -1
    has_data: bool  # it could be a head
    memory_bytes: float = 0.0  # of its device; 0: unknown


@dataclass(frozen=True)
class Announce(Request[Ack]):
    """My card changed in a way that you should know at once."""

    card: Card
