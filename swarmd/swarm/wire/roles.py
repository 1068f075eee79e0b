"""The table of roles: which kind of request counts from whom.

`Links` looks into it before any handler hears of a request. Here roles are names: `history/judge.py` knows who has
them, by the last record and the present membership. docs/protocol.md shows the same table to people.
"""

import enum
import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

from swarmd.swarm.wire.messages.commit import Accept, AskGradient, AskRecord, AskVote, Commit, Prepare
from swarmd.swarm.wire.messages.common import Message
from swarmd.swarm.wire.messages.disks import AskCheckpoint, AskCheckpointChunk, AskCheckpointList
from swarmd.swarm.wire.messages.drain import HandOver
from swarmd.swarm.wire.messages.hop import AskGiven, AskHop, Beat, Cancel, Hop, Locate, Room
from swarmd.swarm.wire.messages.move import AskMove, AskStay
from swarmd.swarm.wire.messages.presence import Announce, AskPlace, AskSettings, Hello
from swarmd.swarm.wire.messages.round import (
    AskAppointment,
    AskHoldings,
    Close,
    Contribution,
    Freeze,
    Plan,
    Resend,
    Subtract,
)
from swarmd.swarm.wire.messages.state import AskChunk, AskSnapshot
from swarmd.swarm.wire.messages.step import AskLease, Revoke, TookOver
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

LOG_SECONDS = 60.0  # between two words in the log on what was refused
RECENT_SECONDS = 600.0  # for so long it is worth a warning


class Role(enum.Enum):
    """A role, by its words in a sentence."""

    ANYONE = "anyone, before a greeting, too"
    KNOWN = "a greeted peer whose card is held"
    MEMBER = "a peer that took part in a step of this history"
    REPLICA = "a replica of the stage, by the last record, or by its card if it joined since"
    PROVEN = "a replica of the stage that took part in a step of this history"
    GIVEN = "a replica of the stage that took part in a step of this history, or one that was given the same work"
    LEADER = "a replica of the stage in the last record, or another one that the conductor has asked to lead the round"
    CONDUCTOR = "a member of the last record, at first the founder; another peer at work only where none of these is"


class Whose(enum.Enum):
    """The stage that a role is meant at."""

    NAMED = "named"
    SOURCE = "the mover's"
    FIRST = "the first"
    OWN = "the hearer's"
    BEFORE = "the one before the hearer's"
    AFTER = "the one after the hearer's"
    NEAR = "the hearer's, or the one before"


@dataclass(frozen=True)
class Needs:
    """The role that a request needs, and what its fields say about it."""

    role: Role
    whose: Whose = Whose.NAMED
    parent: str = "record_hash"  # its field for the hash of the record before the step; it may have none


ROLES: dict[type[Any], Needs] = {
    Hello: Needs(Role.ANYONE),
    AskSettings: Needs(Role.ANYONE),
    # Presence, and what every newcomer asks for
    Announce: Needs(Role.KNOWN),
    AskPlace: Needs(Role.KNOWN),
    AskRecord: Needs(Role.KNOWN),
    AskVote: Needs(Role.KNOWN),
    AskGradient: Needs(Role.KNOWN),
    AskSnapshot: Needs(Role.KNOWN),
    AskChunk: Needs(Role.KNOWN),
    AskCheckpointList: Needs(Role.KNOWN),
    AskCheckpoint: Needs(Role.KNOWN),
    AskCheckpointChunk: Needs(Role.KNOWN),
    AskAppointment: Needs(Role.KNOWN),
    AskGiven: Needs(Role.KNOWN),
    # Hops
    Hop: Needs(Role.GIVEN, Whose.BEFORE),
    Cancel: Needs(Role.REPLICA, Whose.BEFORE),
    Beat: Needs(Role.REPLICA, Whose.AFTER),
    Room: Needs(Role.REPLICA, Whose.AFTER),
    AskHop: Needs(Role.REPLICA, Whose.AFTER),
    Locate: Needs(Role.REPLICA, Whose.NEAR),
    # A step
    AskLease: Needs(Role.REPLICA, Whose.FIRST),
    AskMove: Needs(Role.REPLICA, Whose.SOURCE),
    Revoke: Needs(Role.CONDUCTOR),
    TookOver: Needs(Role.CONDUCTOR),
    Prepare: Needs(Role.CONDUCTOR, parent="parent_hash"),
    Accept: Needs(Role.CONDUCTOR, parent="parent_hash"),
    Commit: Needs(Role.MEMBER),
    # A round
    Close: Needs(Role.CONDUCTOR),
    AskHoldings: Needs(Role.LEADER),
    Freeze: Needs(Role.LEADER),
    Subtract: Needs(Role.LEADER),
    Resend: Needs(Role.LEADER),
    Plan: Needs(Role.LEADER),
    Contribution: Needs(Role.REPLICA, Whose.OWN),
    HandOver: Needs(Role.GIVEN),
    AskStay: Needs(Role.PROVEN),
}
"""What each kind of request needs."""


class Judge(Protocol):
    """The one who knows which peer has which role."""

    async def allows(self, peer: PeerId, message: Message, needs: Needs) -> bool:
        """Tells if a request counts from this peer. It may wait for this peer to know enough."""


class RoleRefusals:
    """An account of the requests that were refused for want of a role."""

    def __init__(self) -> None:
        self.counts = Counter[str]()  # by kind, since the start
        self._untold = Counter[str]()  # of these, what the log doesn't know yet
        self._told = self._last = -math.inf  # loop time of the last word in the log, and of the last refusal

    def note(self, peer: PeerId, kind: str, now: float) -> None:
        """Counts one, and says so in the log once a minute."""
        self.counts[kind] += 1
        self._untold[kind] += 1
        self._last = now
        if now - self._told >= LOG_SECONDS:
            log.warning("refused for want of a role: %s; the last one of %s", _listed(self._untold), short(peer))
            self._told = now
            self._untold.clear()

    def warning(self, now: float) -> str:
        """A sentence, if one was refused lately; else ""."""
        if now - self._last > RECENT_SECONDS:
            return ""
        return f"messages of peers that have no right to send them are refused; so far {_listed(self.counts)}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
