"""The holders of the hops that were passed on, and how long each is waited for.

A hop is kept alive by its holder: at a steady rhythm a holder sends each custodian one beat for all its hops.
`lateness` and `straggling` decide from a hop's and its holder's history; `Custody` keeps that history for the hops
passed on, and tells the journey when to give up on a holder. Nothing here guesses how long the rest of the pipeline
takes; only a holder that beats and doesn't answer, while others do, is measured by them (`unanswered`).
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from swarmd.swarm.membership.rhythm import (
    LATE_BEAT_SECONDS,
    SILENCE_CEILING_SECONDS,
    SILENCE_DEVIATIONS,
    SILENCE_FLOOR_SECONDS,
    Pulse,
    Rhythm,
)
from swarmd.swarm.membership.table import nan_to_zero
from swarmd.swarm.wire.messages.hop import Beat
from swarmd.values import ComputeProgress, HopId, PeerId

UNCLAIMED_SECONDS = 20.0  # without mention in the beats of a holder that does beat
UNDER_WAY_TIMES = 2.0  # on a thin line a hop, or its gradient, may be under way for so many times what others took
UNDER_WAY_CEILING_SECONDS = 120.0  # ... but no longer than this: membership drops who is silent for as long
UNDER_WAY_SMOOTHING = 0.1  # weight of a hop that arrived sooner than the others
HUNG_FACTOR = 10.0  # one compute task may take so many times the holder's own service time ...
HUNG_FLOOR_SECONDS = 30.0  # ... but no less than this: first tasks compile kernels and page memory in
SERVICE_CEILING_SECONDS = 600.0  # whatever it says of itself; the slowest machines take a minute
STUCK_TIMES = 10.0  # the same bound so many times over: no task takes that long, only a new process helps
RESCUE_FACTOR = 2.0  # a hop that waits for so many times what an idle replica would take, goes there
STRAGGLER_SHARE = 0.1  # of the time that a hop has waited, between two looks at whether another would be faster
RESCUE_FLOOR_SECONDS = 1.0  # a shorter wait isn't worth a second transfer
AWAY_SMOOTHING = 0.1  # weight of the newest hop in the time that hops are away

UNANSWERED_FLOOR_SECONDS = 60.0  # a hop away for less than this is never taken from a holder that beats ...
TRIAL_FLOOR_SECONDS = 10.0  # ... the same for one that has never worked: it may have to compile its kernels first
UNANSWERED_TIMES = 10.0  # ... nor for less than so many times what hops take (mean and deviation)
UNANSWERED_CEILING_SECONDS = 1800.0  # without a sign that it is the holder's fault; no round lasts that long
OVERTAKEN = 4  # hops that were sent later and are answered: that is such a sign
MUTE_TIMES = 2.0  # so many times that floor a holder which let a hop wait gets nothing; doubles each time it does so
MUTE_CEILING_SECONDS = 3600.0
MUTE_KEPT = 1024  # of such holders

SILENT = "nothing was heard of it for a while"

IsSilent = Callable[[PeerId], bool]
"""Whether no word at all, beats or others, came from a holder lately."""

IsStalled = Callable[[], bool]
"""Whether nobody can be expected to answer at present: a stage is empty or takes nothing, or the sums are frozen."""

Rivals = Callable[[PeerId], float | None]
"""Seconds per microbatch of the fastest idle replica besides a holder; None: there is none."""


@dataclass
class Holder(Pulse):
    """One holder, as its beats describe it."""

    busy_seconds: float = 0.0
    service_seconds: float = 0.0
    next_seconds: float = 0.0  # from its last beat to the next one: so it said
    under_way_seconds: float = 0.0  # how long hops are under way to it, for all that is known

    def patience(self, under_way_s: float | None = None) -> float:
        """A holder with many custodians beats to each less often, and says so. One that has nothing yet, or nothing
        any more, sends no beats: how long that may last depends on the line. `under_way_s`: as it was known when a hop
        was sent; None: as it is known now.
        """
        measured = self.rhythm.mean + SILENCE_DEVIATIONS * self.rhythm.deviation
        wanted = max(SILENCE_FLOOR_SECONDS, self.next_seconds + LATE_BEAT_SECONDS, measured)
        return self.arrival_patience(min(SILENCE_CEILING_SECONDS, wanted), under_way_s)

    def arrival_patience(self, least: float, under_way_s: float | None = None) -> float:
        """Seconds that a hop, or its gradient, may be under way."""
        under_way = self.under_way_seconds if under_way_s is None else under_way_s
        return max(least, min(UNDER_WAY_CEILING_SECONDS, UNDER_WAY_TIMES * under_way))

    def arrived(self, seconds: float) -> None:
        """A hop came there after so long. Longer counts at once, shorter by and by."""
        weight = 1.0 if seconds > self.under_way_seconds else UNDER_WAY_SMOOTHING
        self.under_way_seconds += weight * (seconds - self.under_way_seconds)


@dataclass
class Passed:
    """A hop we passed on and wait for."""

    holder: PeerId
    sent: float  # loop time
    lost: asyncio.Future[str]  # gets the reason when the holder is given up
    claimed: float | None = None  # loop time of the last beat that named it
    under_way_s: float | None = None  # `Holder.under_way_seconds` when it was sent: of a silent holder one hop that is
    # given up must not lengthen the wait for the others
    state: str = ""  # there, by that beat
    since: float = 0.0  # loop time at which it came into that state
    overtaken: int = 0  # hops that were sent after it and are answered
    floor_s: float = UNANSWERED_FLOOR_SECONDS  # for which it stays with a holder that beats


def lateness(now: float, hop: Passed, holder: Holder) -> str:
    """The reason why this hop should be taken away from its holder; "" if it shouldn't."""
    silence = now - max(hop.sent, holder.last_beat or 0.0)
    if silence > holder.patience(hop.under_way_s):
        return f"no beat for {silence:.1f} s"
    unclaimed = holder.arrival_patience(UNCLAIMED_SECONDS, hop.under_way_s)
    if holder.last_beat is not None and now - max(hop.sent, hop.claimed or 0.0) > unclaimed:
        return "its beats don't name the hop"
    if holder.busy_seconds > max(HUNG_FLOOR_SECONDS, HUNG_FACTOR * holder.service_seconds):
        return f"one task computes since {holder.busy_seconds:.0f} s"
    return ""


def stuck(progress: ComputeProgress) -> str:
    """The reason why a compute thread will not come back, in a sentence; "" if it may."""
    if progress.lost:
        return progress.lost
    service = progress.forward_seconds + progress.backward_seconds
    if progress.busy_seconds <= STUCK_TIMES * max(HUNG_FLOOR_SECONDS, HUNG_FACTOR * service):
        return ""
    return f"the device has been at one task for {progress.busy_seconds:.0f} s: its driver hangs, or the machine does"


def may_straggle(now: float, hop: Passed) -> bool:
    """True if it is worth while to look for an idle replica. A hop that was passed on waits for others."""
    return hop.state in ("waiting", "backward") and now - hop.since >= RESCUE_FLOOR_SECONDS


def straggling(now: float, hop: Passed, holder: Holder, rival_seconds: float | None) -> str:
    """The reason why an idle replica should have this hop instead; "" if it shouldn't.

    One that its holder is about to finish stays.
    """
    if rival_seconds is None or not may_straggle(now, hop):
        return ""
    waited, left = now - hop.since, holder.service_seconds - (now - hop.since)
    if waited < RESCUE_FACTOR * rival_seconds or 0 < left < rival_seconds:
        return ""
    if holder.service_seconds < RESCUE_FACTOR * rival_seconds:
        return ""
    return f"it waits there for {waited:.1f} s, and others are idle"


def unanswered(
    waited_s: float, usual: Rhythm, tries: int, *, shown: bool, floor_s: float = UNANSWERED_FLOOR_SECONDS
) -> str:
    """The reason to take a hop from a holder that beats, and names it, and doesn't answer, whatever it says of itself;
    "" if it shouldn't. `usual`: how long hops are away; `tries`: how often that was done with this hop before; `shown`:
    others answer, or could; `floor_s`: it isn't done sooner than this.
    """
    limit = UNANSWERED_CEILING_SECONDS
    if shown and usual.mean:
        limit = max(floor_s, UNANSWERED_TIMES * (usual.mean + usual.deviation))
    if waited_s <= limit * 2.0 ** min(tries, 10):
        return ""
    return f"it beats, and hasn't answered for {waited_s:.0f} s"


@dataclass
class Mute:
    """A holder that beat and didn't answer, or whose word that numbers aren't finite was wrong."""

    times: int = 0  # since it last answered
    until: float = 0.0  # loop time until which it gets nothing


class Custody:
    """The hops this peer passed on and waits for."""

    def __init__(self) -> None:
        self.usual = Rhythm()  # how long hops are away that are answered
        self._tries: dict[HopId, int] = {}  # how often a hop was taken from one that doesn't answer
        self._mute: dict[PeerId, Mute] = {}
        self._stalled = 0.0  # loop time at which nobody could be expected to answer, last
        self.away_seconds = 0.0  # from passing a hop on to its gradient, moving average; 0 until measured
        self._passed: dict[HopId, Passed] = {}
        self._holders: dict[PeerId, Holder] = {}

    def track(self, key: HopId, holder: PeerId, *, trial: bool = False) -> asyncio.Future[str]:
        """From now on the hop is with the holder. The future gets a reason when the holder is given up. `trial`: that
        peer has never worked.
        """
        loop = asyncio.get_running_loop()
        self.give_up(key, "it is sent anew")
        self.done(key)
        known = self._holders.setdefault(holder, Holder())
        under_way_s = known.under_way_seconds
        floor_s = TRIAL_FLOOR_SECONDS if trial else UNANSWERED_FLOOR_SECONDS
        passed = Passed(holder, loop.time(), loop.create_future(), under_way_s=under_way_s, floor_s=floor_s)
        self._passed[key] = passed
        return passed.lost

    def done(self, key: HopId, lost: asyncio.Future[str] | None = None) -> None:
        """Answered, or given up. `lost`: only if that is still the future of the hop."""
        passed = self._passed.get(key)
        if passed is None or (lost is not None and passed.lost is not lost):
            return
        del self._passed[key]
        if not passed.lost.done():
            away = asyncio.get_running_loop().time() - passed.sent
            self.away_seconds += (AWAY_SMOOTHING if self.away_seconds else 1.0) * (away - self.away_seconds)
        if all(other.holder != passed.holder for other in self._passed.values()):
            holder = self._holders[passed.holder]
            holder.last_beat, holder.busy_seconds = None, 0.0  # a peer that holds nothing sends no beats

    def give_up(self, key: HopId, reason: str) -> None:
        """Ends the wait for this hop's answer."""
        passed = self._passed.get(key)
        if passed is not None and not passed.lost.done():
            passed.lost.set_result(reason)

    def answered(self, key: HopId, holder: PeerId, sent: float, now: float) -> None:
        """A holder gave the gradient of a hop that was sent to it then."""
        self.usual.observe(now - sent)
        self._tries.pop(key, None)
        self._mute.pop(holder, None)
        for passed in self._passed.values():
            passed.overtaken += passed.sent < sent

    def is_mute(self, peer: PeerId, now: float) -> bool:
        """True if a holder has let a hop wait for ever, or called finite numbers something else, lately, and has
        answered nothing since.
        """
        mute = self._mute.get(peer)
        return mute is not None and now < mute.until

    def _unanswered(self, now: float, key: HopId, passed: Passed, rivals: Rivals) -> str:
        """The reason to take a hop from its holder, though that beats; it gets nothing for a while, then."""
        waited, tries = now - max(passed.sent, self._stalled), self._tries.get(key, 0)
        if waited <= passed.floor_s:
            return ""
        shown = passed.overtaken >= OVERTAKEN or rivals(passed.holder) is not None
        if reason := unanswered(waited, self.usual, tries, shown=shown, floor_s=passed.floor_s):
            self._tries[key] = tries + 1
            self.mute(passed.holder, now, passed.floor_s)
        return reason

    def mute(self, peer: PeerId, now: float, floor_s: float = UNANSWERED_FLOOR_SECONDS) -> None:
        """A holder gets nothing for a while, and for twice as long each time until it answers. `floor_s`: for so long a
        hop stays with it in any case.
        """
        mute = self._mute.pop(peer, None) or Mute()
        mute.until = now + min(MUTE_CEILING_SECONDS, MUTE_TIMES * floor_s * 2.0**mute.times)
        mute.times += 1
        self._mute[peer] = mute
        while len(self._mute) > MUTE_KEPT:
            del self._mute[next(iter(self._mute))]

    def end_step(self, step: int) -> None:
        """Hops up to this step are no more."""
        self._tries = {key: tries for key, tries in self._tries.items() if key.step > step}

    def _look_for_a_stall(self, now: float, is_stalled: IsStalled) -> None:
        long = any(now - passed.sent > passed.floor_s / 2 for passed in self._passed.values())
        if long and is_stalled():
            self._stalled = now

    def on_beat(self, peer: PeerId, beat: Beat, now: float) -> None:
        holder = self._holders.get(peer)
        if holder is None:
            return
        holder.beat(now)
        holder.service_seconds = min(nan_to_zero(beat.service_seconds), self._longest_service())
        holder.busy_seconds = beat.busy_seconds
        holder.next_seconds = nan_to_zero(beat.next_seconds)
        for row in beat.hops:
            passed = self._passed.get(HopId(row.step, row.index))
            if passed is not None and passed.holder == peer:
                if passed.claimed is None:
                    holder.arrived(max(0.0, now - max(0.0, row.seconds) - passed.sent))
                passed.claimed, passed.state, passed.since = now, row.state, now - row.seconds

    def _longest_service(self) -> float:
        """The longest time that a holder may say it takes for a hop: one share of a hop's way takes no longer than many
        whole ways of others.
        """
        usual = self.usual.mean + self.usual.deviation
        return min(SERVICE_CEILING_SECONDS, UNANSWERED_TIMES * usual) if usual else SERVICE_CEILING_SECONDS

    def disconnected(self, peer: PeerId) -> None:
        """Its connection broke: requests fail by themselves, but it must not be waited for either."""
        for passed in list(self._passed.values()):
            if passed.holder == peer and not passed.lost.done():
                passed.lost.set_result("disconnected")
        if all(passed.holder != peer for passed in self._passed.values()):
            self._holders.pop(peer, None)

    def look_for_late(
        self,
        now: float,
        rivals: Rivals = lambda holder: None,
        is_silent: IsSilent = lambda holder: False,
        is_stalled: IsStalled = lambda: False,
    ) -> float:
        """Gives up on holders that are late, and on slow ones while others are idle. Returns the loop time at which
        more may be.
        """
        self._look_for_a_stall(now, is_stalled)
        due = math.inf
        for key, passed in list(self._passed.items()):
            holder = self._holders[passed.holder]
            reason = SILENT if is_silent(passed.holder) else lateness(now, passed, holder)
            if reason not in ("", SILENT) and not passed.lost.done():  # it may be under way: the next one has more time
                waited = now - max(passed.sent, passed.claimed or 0.0)
                holder.under_way_seconds = max(holder.under_way_seconds, waited)
            if not reason and may_straggle(now, passed):
                reason = straggling(now, passed, holder, rivals(passed.holder))
            if not reason and not passed.lost.done():
                reason = self._unanswered(now, key, passed, rivals)
            if reason and not passed.lost.done():
                passed.lost.set_result(reason)
            due = min(due, max(passed.sent, holder.last_beat or 0.0) + holder.patience(passed.under_way_s))
            if passed.state in ("waiting", "backward"):
                due = min(due, now + STRAGGLER_SHARE * (now - passed.since))
        return due

    def waiting(self) -> dict[HopId, Passed]:
        return dict(self._passed)
