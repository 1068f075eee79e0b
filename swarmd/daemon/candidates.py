"""Candidates that a daemon asks for its run: several at once, each again after a pause that doubles.

Pure: time and chance are given to it. `run_search.py` asks them, and reports the outcome here.
"""

import random
from dataclasses import dataclass
from typing import Literal

from swarmd.values import PeerId

ASKED_AT_ONCE = 16
CANDIDATES_LIMIT = 256  # bootstrap addresses, remembered peers, and what is heard of on the local network
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between two tries
REFUSED_PAUSE_S = 300.0  # after a refusal that only a person can change
JITTER = 0.25  # of a pause, so that those who were parted together don't all call at once

Outcome = Literal["untried", "unreachable", "no run", "another run", "refused"]


@dataclass
class Candidate:
    """A peer that may have the run."""

    peer: PeerId
    address: str = ""  # dialled as it stands; "": the peer is dialled wherever it is known to be
    only: str = ""  # fingerprint of the one run that is wanted of it; "": any
    given: bool = False  # by a person, for this start
    heard: bool = False  # of on the local network, from anybody
    outcome: Outcome = "untried"
    trouble: str = ""  # why it gave no run
    pause_s: float = 0.0
    due: float = 0.0  # loop time of the next try
    asking: bool = False

    @property
    def name(self) -> str:
        """The name that people are shown."""
        return self.address or f"peer {self.peer}"


class Candidates:
    """All peers that may have the run."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._all: dict[tuple[PeerId, str], Candidate] = {}

    def add(self, candidate: Candidate) -> None:
        """One more, unless it is known or they are too many."""
        if len(self._all) < CANDIDATES_LIMIT:
            self._all.setdefault((candidate.peer, candidate.address), candidate)

    def remove(self, candidate: Candidate) -> None:
        """Asks it no more."""
        self._all.pop((candidate.peer, candidate.address), None)

    def all(self) -> list[Candidate]:
        return list(self._all.values())

    def of(self, peer: PeerId) -> list[Candidate]:
        """The candidates that are this peer."""
        return [candidate for candidate in self._all.values() if candidate.peer == peer]

    def next(self, now: float, at_once: int = ASKED_AT_ONCE) -> list[Candidate]:
        """Chooses those to be asked now, and marks them so: first those that a person named, then the longest due."""
        room = at_once - self._asked()
        due = [candidate for candidate in self._all.values() if not candidate.asking and candidate.due <= now]
        chosen = sorted(due, key=lambda it: (not it.given, it.due, self._rng.random()))[: max(0, room)]
        for candidate in chosen:
            candidate.asking = True
        return chosen

    def _asked(self) -> int:
        return sum(candidate.asking for candidate in self._all.values())

    def failed(self, candidate: Candidate, outcome: Outcome, trouble: str, now: float) -> None:
        """Notes the outcome of asking it, and when it is asked again."""
        candidate.outcome, candidate.trouble, candidate.asking = outcome, trouble, False
        doubled = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * candidate.pause_s))
        candidate.pause_s = REFUSED_PAUSE_S if outcome == "refused" else doubled
        candidate.due = now + candidate.pause_s * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def hurry(self, peer: PeerId, now: float) -> None:
        """Has a peer asked at once."""
        for candidate in self.of(peer):
            candidate.due, candidate.pause_s = now, 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until somebody is to be asked, unless one of those who are asked answers before."""
        if self._asked() >= ASKED_AT_ONCE:
            return LONGEST_PAUSE_S
        dues = [candidate.due for candidate in self._all.values() if not candidate.asking]
        return max(0.0, min(dues, default=now + LONGEST_PAUSE_S) - now)

    def refusals(self) -> list[str]:
        """Why nothing can come of looking: all whom a person named refuse for good, and nobody else gave a run; if
        nobody was named, all who are known. Empty while there is hope.
        """
        candidates = self.all()
        if any(candidate.outcome == "untried" for candidate in candidates):
            return []
        known = [candidate for candidate in candidates if not candidate.heard]
        named = [candidate for candidate in known if candidate.given] or known
        if any(candidate.outcome != "refused" for candidate in named):
            return []
        return [f"{candidate.name}: {candidate.trouble}" for candidate in named]

    def troubles(self) -> list[str]:
        """Why each of those that were asked gave no run; those that a person named first."""
        tried = sorted((it for it in self._all.values() if it.trouble), key=lambda it: not it.given)
        return [f"{candidate.name}: {candidate.trouble}" for candidate in tried]
