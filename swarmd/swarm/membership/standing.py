"""The standing of other peers: which of them this peer has met, which have worked, whose claims weren't borne out.

Anybody can name a thousand peers, and few of them need exist. So a peer counts here once it has greeted this one on a
connection of its own, or a record names it; where heads are counted, only peers that have worked do, from the first
record on. Those that come from one network are let in at a pace. Plain data; the caller passes the time.
"""

import math
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from swarmd.values import PeerId

PEERS_KEPT = 4096  # peers met, and peers that worked, that are remembered: the latest
NEW_AT_ONCE = 32  # peers of one network that may come at once: somebody rents more machines
FIRST_AT_ONCE = 256  # the same before the first record, when nobody has worked: a laboratory starts its machines
NEW_SECONDS = 2.0  # between two of those that come after them
WAITING_LIMIT = 256  # peers of one network that wait to be let in; the first of them are forgotten
NETWORKS_KEPT = 1024  # networks that someone came from lately
GRACE_SECONDS = 600.0  # for which a newcomer counts in the balance of stages without having worked: it may download
DOUBT_SECONDS = 10.0  # for which a peer isn't asked again that says it is ahead and shows no record


@dataclass
class Door:
    """The way in from one network."""

    room: float = math.inf  # so many may come in now
    looked: float = 0.0
    waiting: OrderedDict[PeerId, None] = field(default_factory=OrderedDict)

    def refill(self, now: float, at_once: int) -> None:
        """Makes the room that has grown since it was looked at last, for so many at most."""
        self.room = min(float(at_once), self.room + (now - self.looked) / NEW_SECONDS)
        self.looked = now


class Standing:
    """The peers that were met here, and those that have worked."""

    def __init__(self) -> None:
        self._met: OrderedDict[PeerId, float] = OrderedDict()  # that were let in -> since when
        self._worked: OrderedDict[PeerId, None] = OrderedDict()
        self._stages: dict[PeerId, int] = {}  # of the members of the last record
        self._doors: OrderedDict[str, Door] = OrderedDict()
        self._doubted: dict[PeerId, float] = {}  # that show no record of their version -> until when
        self._now = 0.0  # when this was looked at last
        self.begun = False  # there was a record: it is known who works

    # ---------------------------------------------------------------------------------------------- coming

    def meet(self, peer: PeerId, network: str, now: float) -> bool:
        """A peer has greeted this one, from a network ("": not known). True if it is let in, or was before."""
        if self.admits(peer):
            return True
        door = self._doors.setdefault(network, Door(looked=now))
        self._doors.move_to_end(network)
        while len(self._doors) > NETWORKS_KEPT:
            self._doors.popitem(last=False)
        door.refill(now, self._at_once)
        if door.room >= 1:
            self._enter(peer, door, now)
            return True
        door.waiting[peer] = None
        door.waiting.move_to_end(peer)
        while len(door.waiting) > WAITING_LIMIT:
            door.waiting.popitem(last=False)
        return False

    def admit_waiting(self, now: float) -> list[PeerId]:
        """Those that are let in now, the latest to come first: whoever comes behind the same address as a crowd needn't
        wait for all of it.
        """
        self._now, entered = now, list[PeerId]()
        for door in [it for it in self._doors.values() if it.waiting]:
            door.refill(now, self._at_once)
            while door.waiting and door.room >= 1:
                peer, _ = door.waiting.popitem()
                self._enter(peer, door, now)
                entered.append(peer)
        return entered

    @property
    def _at_once(self) -> int:
        return NEW_AT_ONCE if self.begun else FIRST_AT_ONCE

    def _enter(self, peer: PeerId, door: Door, now: float) -> None:
        door.room -= 1
        door.waiting.pop(peer, None)
        self._met[peer] = now
        while len(self._met) > PEERS_KEPT:
            self._met.popitem(last=False)

    def gone(self, peer: PeerId) -> None:
        """Its connection broke before it was let in: it need not wait any more."""
        for door in self._doors.values():
            door.waiting.pop(peer, None)

    def admits(self, peer: PeerId) -> bool:
        """True for a peer that was met and let in, or has worked: its card counts."""
        return peer in self._met or peer in self._worked

    # ---------------------------------------------------------------------------------------------- working

    def note_record(self, stages: dict[PeerId, int]) -> None:
        """A record names its members, and their stages."""
        self.begun, self._stages = True, stages
        for peer in stages:
            self.note_work(peer)

    def note_no_record(self) -> None:
        """This peer has no record any more: it begins as a run does, before anybody has worked."""
        self.begun, self._stages = False, {}

    def note_work(self, peer: PeerId) -> None:
        """A peer has worked: it is in a record, or has answered a hop of this one."""
        self._worked[peer] = None
        self._worked.move_to_end(peer)
        while len(self._worked) > PEERS_KEPT:
            self._worked.popitem(last=False)

    def has_worked(self, peer: PeerId) -> bool:
        return peer in self._worked

    def is_counted(self, peer: PeerId) -> bool:
        """True for a peer that counts among those at work. Before the first record nobody can have worked."""
        return not self.begun or peer in self._worked

    def is_expected(self, peer: PeerId) -> bool:
        """True for a peer that counts where stages are balanced: newcomers, too, for a while."""
        return self.is_counted(peer) or self._now - self._met.get(peer, self._now) < GRACE_SECONDS

    def stage_by_record(self, peer: PeerId) -> int:
        """The stage at which the last record names a peer; -1 if it doesn't."""
        return self._stages.get(peer, -1)

    # ---------------------------------------------------------------------------------------------- doubts

    def doubt(self, peer: PeerId, now: float) -> None:
        """It says that it is ahead, and shows no record of that."""
        self._doubted[peer] = now + DOUBT_SECONDS

    @property
    def doubted(self) -> Collection[PeerId]:
        """Those that are doubted now; empty if nobody is."""
        return self._doubted

    def forget_doubts(self, now: float) -> None:
        """Ends the doubts that are old."""
        for peer in [peer for peer, until in self._doubted.items() if until <= now]:
            del self._doubted[peer]
