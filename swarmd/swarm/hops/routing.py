"""Choosing the neighbour that gets the next microbatch: SWARM's stochastic wiring.

Interleaved weighted round robin (arXiv 2301.11913, section 3.2 and appendix): every peer has a virtual time that grows
by its measured seconds per microbatch each time it is chosen; the smallest is next. `weighted` draws at random in
inverse proportion to the same seconds; `p2c` draws two and takes the one with the shorter wait. docs/simulator.md
compares them. Knows nothing of messages; time and chance are given to it.
"""

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from swarmd.config import RoutingPolicy
from swarmd.values import PeerId

SMOOTHING = 0.1  # weight of the newest measurement, as in the published code
NEWCOMER_SECONDS = 1e-3  # estimate before the first measurement: small, so that newcomers are tried at once
SECONDS_FLOOR = 1e-6  # per microbatch, whatever a peer says
SECONDS_LIMIT = 3600.0  # ... for sums of it to stay exact enough; nan and infinity count as this
BAN_FIRST_SECONDS = 2.0
BAN_LIMIT_SECONDS = 60.0  # a ban doubles up to this: every healthy peer is tried again
HORIZON_FACTOR = 2.0  # near the end of a step only peers that take at most so many times what the best one takes
DEBT_MICROBATCHES = 4.0  # who was away, or is behind a line that keeps it from its share, is owed no more than so many
TIE = 1e-9  # virtual times closer than this are drawn for


@dataclass
class Neighbour:
    """One peer of the next stage, as far as it is known."""

    seconds: float = NEWCOMER_SECONDS  # per microbatch, moving average
    measured: bool = False
    hinted: bool = False  # not measured, but it says itself how long it takes
    virtual_time: float = 0.0
    outstanding: int = 0  # hops sent and not answered
    waiting: int = 0  # hops for its device, of all senders; as old as its last card
    banned_until: float = 0.0
    ban_seconds: float = BAN_FIRST_SECONDS


class Router:
    """Chooses among the peers of the next stage."""

    def __init__(self, rng: random.Random, policy: RoutingPolicy = "iwrr") -> None:
        self._rng = rng
        self._policy = policy
        self._neighbours: dict[PeerId, Neighbour] = {}
        self._virtual_time = 0.0  # the highest at which anyone was chosen

    def choose(self, candidates: Iterable[PeerId], now: float, horizon_s: float = math.inf) -> PeerId | None:
        """The peer for the next microbatch, or None if there is none that isn't banned.

        The queue in front of a peer counts as so many microbatches of its own speed. Who would not be done before
        the step's last microbatch sets out, in `horizon_s`, isn't given this one unless all are as slow: the whole
        swarm would wait for it.
        """
        peers = sorted(candidates)
        self._welcome(peers)
        fit = {peer: self._neighbours[peer] for peer in peers if self._neighbours[peer].banned_until <= now}
        if not fit:
            return None
        seconds = self._estimates(fit)
        done = {peer: (1 + it.outstanding) * seconds[peer] for peer, it in fit.items()}
        limit = max(HORIZON_FACTOR * min(done.values()), horizon_s)  # in this order, a horizon of nan is none
        fit = {peer: it for peer, it in fit.items() if done[peer] <= limit}
        policies = {"iwrr": self._smallest, "weighted": self._draw, "p2c": self._better_of_two}
        choice = policies[self._policy](fit, seconds)
        self._virtual_time = max(self._virtual_time, fit[choice].virtual_time)
        fit[choice].virtual_time += seconds[choice]
        return choice

    def _welcome(self, peers: Iterable[PeerId]) -> None:
        """A newcomer starts level with the least used peer: it neither floods nor starves."""
        start = min((self._neighbours[peer].virtual_time for peer in peers if peer in self._neighbours), default=0.0)
        for peer in peers:
            self._neighbours.setdefault(peer, Neighbour(virtual_time=start))

    def _estimates(self, fit: Mapping[PeerId, Neighbour]) -> dict[PeerId, float]:
        """Seconds per microbatch; a peer of which nothing is known is taken to be as fast as the fastest."""
        fastest = min((it.seconds for it in fit.values() if it.measured), default=NEWCOMER_SECONDS)
        return {peer: it.seconds if it.measured or it.hinted else fastest for peer, it in fit.items()}

    def _smallest(self, fit: Mapping[PeerId, Neighbour], seconds: Mapping[PeerId, float]) -> PeerId:
        for peer, it in fit.items():
            it.virtual_time = max(it.virtual_time, self._virtual_time - DEBT_MICROBATCHES * seconds[peer])
        keys = {peer: it.virtual_time + it.outstanding * seconds[peer] for peer, it in fit.items()}
        least = min(keys.values())
        return self._rng.choice([peer for peer in fit if keys[peer] <= least + TIE])

    def _draw(self, fit: Mapping[PeerId, Neighbour], seconds: Mapping[PeerId, float]) -> PeerId:
        weights = [1.0 / (seconds[peer] * (1 + it.outstanding)) for peer, it in fit.items()]
        return self._rng.choices(list(fit), weights)[0]

    def _better_of_two(self, fit: Mapping[PeerId, Neighbour], seconds: Mapping[PeerId, float]) -> PeerId:
        """Two drawn in proportion to their speeds: drawn alike, slow ones would get more than they can do (arXiv
        2004.00538). Of what waits there our own share is counted twice until it is answered: nobody says whose it is.
        """
        weights = {peer: 1.0 / seconds[peer] for peer in fit}
        one = self._rng.choices(list(weights), list(weights.values()))[0]
        if len(fit) == 1:
            return one
        del weights[one]
        other = self._rng.choices(list(weights), list(weights.values()))[0]
        return min(one, other, key=lambda peer: (1 + fit[peer].outstanding + fit[peer].waiting) * seconds[peer])

    def sent(self, peer: PeerId) -> None:
        self._neighbours.setdefault(peer, Neighbour()).outstanding += 1

    def returned(self, peer: PeerId) -> None:
        """The hop is no longer with the peer, for better or worse."""
        if (it := self._neighbours.get(peer)) is not None:
            it.outstanding = max(0, it.outstanding - 1)

    def measured(self, peer: PeerId, seconds: float) -> None:
        """An answer came that took the peer so many seconds of its own; lifts its bans."""
        it, seconds = self._neighbours.setdefault(peer, Neighbour()), credible(seconds)
        it.seconds = seconds if not it.measured else it.seconds + SMOOTHING * (seconds - it.seconds)
        it.measured, it.ban_seconds, it.banned_until = True, BAN_FIRST_SECONDS, 0.0

    def hint(self, peer: PeerId, seconds: float, waiting: int = 0) -> None:
        """Takes a peer's word on itself: its seconds count until it is measured, its queue until it says another."""
        it = self._neighbours.get(peer)
        if it is None:
            return
        it.waiting = max(0, waiting)
        if not it.measured and seconds > 0:
            it.seconds, it.hinted = credible(seconds), True

    def failed(self, peer: PeerId, now: float) -> None:
        """It broke off, refused or fell silent: not for a while."""
        it = self._neighbours.setdefault(peer, Neighbour())
        it.banned_until = now + it.ban_seconds
        it.ban_seconds = min(BAN_LIMIT_SECONDS, 2 * it.ban_seconds)

    def drop(self, peer: PeerId) -> None:
        """The peer left the stage."""
        self._neighbours.pop(peer, None)

    def lift(self, peer: PeerId) -> None:
        """A fresh heartbeat: the ban ends, but its length stays until a hop succeeds."""
        if (it := self._neighbours.get(peer)) is not None:
            it.banned_until = 0.0

    def next_unban(self, candidates: Iterable[PeerId]) -> float:
        """Loop time at which the first banned candidate may be tried again."""
        return min((self._neighbours[p].banned_until for p in candidates if p in self._neighbours), default=0.0)

    def outstanding(self, peer: PeerId) -> int:
        """Hops sent to a peer and not answered."""
        return it.outstanding if (it := self._neighbours.get(peer)) else 0

    def knows(self, peer: PeerId) -> bool:
        """True if a peer was measured, or says itself how fast it is."""
        it = self._neighbours.get(peer)
        return it is not None and (it.measured or it.hinted)

    def seconds(self, peer: PeerId) -> float:
        """Estimated seconds per microbatch of a peer."""
        it = self._neighbours.get(peer)
        return it.seconds if it else NEWCOMER_SECONDS


def credible(seconds: float) -> float:
    """Another peer's word on its speed, as a number to reckon with."""
    return min(SECONDS_LIMIT, max(SECONDS_FLOOR, seconds)) if math.isfinite(seconds) else SECONDS_LIMIT
