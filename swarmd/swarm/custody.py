"""Who holds which hop, and whether to go on waiting for it.

A hop is kept alive by its holder: at a steady rhythm a holder sends each custodian one beat for all its hops.
`lateness` decides from a hop's and its holder's history; `Custody` keeps that history for the hops passed on, and tells
the journey when to give up on a holder. Nothing here guesses how long the rest of the pipeline takes.
"""

import asyncio
from dataclasses import dataclass, field

from swarmd.swarm.membership import Rhythm
from swarmd.swarm.messages import Beat
from swarmd.values import HopId, PeerId

BEAT_SECONDS = 1.0  # between a holder's beats: a few hundred bytes per neighbour
SILENCE_DEVIATIONS = 8.0
SILENCE_FLOOR_SECONDS = 6.0  # a loaded machine may stall a beat for seconds
SILENCE_CEILING_SECONDS = 30.0
UNCLAIMED_SECONDS = 20.0  # from sending a hop to its first mention in a beat: covers the transfer on a slow link
HUNG_FACTOR = 10.0  # one compute task may take so many times the holder's own service time ...
HUNG_FLOOR_SECONDS = 30.0  # ... but no less than this: first tasks compile kernels and page memory in


@dataclass
class Holder:
    """The signs of life of one peer that holds hops for us."""

    rhythm: Rhythm = field(default_factory=Rhythm)
    last_beat: float | None = None  # loop time
    busy_seconds: float = 0.0
    service_seconds: float = 0.0


@dataclass
class Passed:
    """A hop we passed on and wait for."""

    holder: PeerId
    sent: float  # loop time
    lost: asyncio.Future[str]  # gets the reason when the holder is given up
    claimed: float | None = None  # loop time of the last beat that named it


def lateness(now: float, hop: Passed, holder: Holder) -> str:
    """Why this hop should be taken away from its holder; "" if it shouldn't."""
    silence = now - max(hop.sent, holder.last_beat or 0.0)
    patience = holder.rhythm.limit(SILENCE_DEVIATIONS, SILENCE_FLOOR_SECONDS, SILENCE_CEILING_SECONDS)
    if silence > patience:
        return f"no beat for {silence:.1f} s"
    if holder.last_beat is not None and now - max(hop.sent, hop.claimed or 0.0) > UNCLAIMED_SECONDS:
        return "its beats don't name the hop"
    if holder.busy_seconds > max(HUNG_FLOOR_SECONDS, HUNG_FACTOR * holder.service_seconds):
        return f"one task computes since {holder.busy_seconds:.0f} s"
    return ""


class Custody:
    """The hops this peer passed on and waits for."""

    def __init__(self) -> None:
        self._passed: dict[HopId, Passed] = {}
        self._holders: dict[PeerId, Holder] = {}

    def track(self, key: HopId, holder: PeerId) -> asyncio.Future[str]:
        """From now on the hop is with the holder. The future gets a reason when the holder is given up."""
        loop = asyncio.get_running_loop()
        passed = Passed(holder, loop.time(), loop.create_future())
        self._passed[key] = passed
        self._holders.setdefault(holder, Holder())
        return passed.lost

    def done(self, key: HopId) -> None:
        """Answered, or given up."""
        passed = self._passed.pop(key, None)
        if passed is not None and all(other.holder != passed.holder for other in self._passed.values()):
            holder = self._holders[passed.holder]
            holder.last_beat, holder.busy_seconds = None, 0.0  # a peer that holds nothing sends no beats

    def hear(self, peer: PeerId, beat: Beat, now: float) -> None:
        holder = self._holders.get(peer)
        if holder is None:
            return
        if holder.last_beat is not None:
            holder.rhythm.observe(now - holder.last_beat)
        holder.last_beat = now
        holder.service_seconds, holder.busy_seconds = beat.service_seconds, beat.busy_seconds
        for row in beat.hops:
            passed = self._passed.get(HopId(row.step, row.index))
            if passed is not None and passed.holder == peer:
                passed.claimed = now

    def disconnected(self, peer: PeerId) -> None:
        """Its connection broke: requests fail by themselves, but it must not be waited for either."""
        for passed in list(self._passed.values()):
            if passed.holder == peer and not passed.lost.done():
                passed.lost.set_result("disconnected")
        if all(passed.holder != peer for passed in self._passed.values()):
            self._holders.pop(peer, None)

    def sweep(self, now: float) -> None:
        """Gives up on holders that are late."""
        for passed in list(self._passed.values()):
            reason = lateness(now, passed, self._holders[passed.holder])
            if reason and not passed.lost.done():
                passed.lost.set_result(reason)

    def waiting(self) -> dict[HopId, Passed]:
        return dict(self._passed)
