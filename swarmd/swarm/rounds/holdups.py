"""The peers that hold up an attempt at averaging, though they live and answer everything else.

Members say how the attempt stands at them whenever the leader looks (`Standing`). `find_holdups` names those without
whom nothing goes on; `Holdups` measures them by the others, and says when that has lasted too long. What comes through
an honest thin line comes part by part: each part is progress, and begins a new wait.
"""

from collections.abc import Mapping

from swarmd.errors import OutOfRange
from swarmd.swarm.rounds.exchange import EXCHANGE_SECONDS, plan_pace, plan_turns
from swarmd.swarm.wire.messages.common import from_ranges
from swarmd.swarm.wire.messages.round import Plan, Standing
from swarmd.values import PeerId

TAKING_UP_SECONDS = 15.0  # to begin with a plan, a small message that goes ahead of parts; owners refuse what comes for
# one that they don't know after `PLAN_WAIT_SECONDS`, and then nobody knows whose fault it was
HOLDUP_FLOOR_SECONDS = 30.0  # without progress, at least: a loaded machine stalls for seconds ...
HOLDUP_TIMES = 10.0  # ... nor less than so many times what the fastest took for its share ...
SLOW_BYTES_PER_SECOND = 100e3  # ... nor less than what is under way at once takes on a line as thin as this
HOLDUP_CEILING_SECONDS = 0.8 * EXCHANGE_SECONDS  # a part that takes longer breaks the attempt, and nobody knows whose
ELEMENT_BYTES = 2  # mostly; of a thin line's codecs it may be 1


class View:
    """The standing of an attempt at every peer that it needs, as far as that is known."""

    def __init__(self, plan: Plan, own: PeerId, standings: Mapping[PeerId, Standing], ended: frozenset[PeerId]) -> None:
        self.plan, self.own = plan, own  # the latter leads
        self.waiting = tuple(sorted(standings))  # those that have not carried out the plan yet
        self.ended = ended  # those that have
        self.known = {peer: it for peer, it in standings.items() if it.attempt == plan.attempt}
        self.has = {peer: frozenset(from_ranges(it.has, len(plan.parts))) for peer, it in self.known.items()}
        self.given: dict[int, set[PeerId]] = {}  # parts that are not averaged -> whose contributions the owner has
        for it in self.known.values():
            for part in it.open:
                places = from_ranges(part.given, len(plan.members))
                self.given[part.number] = {plan.members[place] for place in places}

    def share(self, peer: PeerId) -> frozenset[int]:
        """The parts to which a peer's contributions have come, of those that are not averaged yet."""
        return frozenset(number for number, members in self.given.items() if peer in members)

    def is_idle(self, peer: PeerId) -> bool:
        """True if a peer doesn't even give its own part what it has: that needs no network."""
        own = [number for number in plan_turns(self.plan.parts) if self.plan.parts[number].owner == peer]
        first = next((number for number in own if number in self.given), None)
        return first is not None and peer not in self.given[first]

    def progress(self, peer: PeerId) -> object:
        """Changes whenever something comes from a peer, or gets there."""
        own = {number for number, part in enumerate(self.plan.parts) if part.owner == peer}
        brought = [sorted(self.has[other] & own) for other in sorted(self.has)]
        return self.share(peer), self.known.get(peer), brought


def is_sound(plan: Plan, standing: Standing) -> bool:
    """True if a peer's word on an attempt can be true."""
    try:
        from_ranges(standing.has, len(plan.parts))
        for part in standing.open:
            from_ranges(part.given, len(plan.members))
    except OutOfRange:
        return False
    return all(0 <= part.number < len(plan.parts) for part in standing.open)


def find_holdups(view: View) -> tuple[PeerId, ...]:
    """Those without whom nothing goes on. Everyone goes through the parts in one order: the first that somebody lacks
    tells.
    """
    if absent := find_absent(view):
        return absent
    for number in plan_turns(view.plan.parts):
        lacking = tuple(peer for peer in sorted(view.known) if number not in view.has[peer])
        if lacking:
            return _blame(view, number, lacking)
    return view.waiting if view.ended else ()  # they have everything, and say nothing


def find_absent(view: View) -> tuple[PeerId, ...]:
    """Those that have not even begun with the plan. One that knows no `Standing` is seen by what it contributes."""
    return tuple(peer for peer in view.waiting if peer not in view.known and not view.share(peer))


def _blame(view: View, number: int, lacking: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    """The peers that keep the others from having a part: its owner, if it takes nothing, or answers nobody."""
    owner, members = view.plan.parts[number].owner, view.plan.members
    if owner not in view.ended and owner not in view.known:
        return ()
    given = view.given.get(number)
    if given is None:  # it is averaged, but not everywhere
        late, others = lacking, {*view.waiting, *view.ended} - {owner}
    else:
        late, others = tuple(peer for peer in members if peer not in given), {*members} - {owner}
        if idle := tuple(peer for peer in late if view.is_idle(peer)):
            return idle
    if not late or owner in late or others == {view.own}:
        return (owner,)
    if owner != view.own and len(late) > 1 and others <= set(late):
        return (owner,)
    return tuple(peer for peer in late if peer != view.own) or late


class Holdups:
    """The peers that an attempt waits for, and since when."""

    def __init__(self, plan: Plan, own: PeerId, now: float, stopped_s: float) -> None:
        self._plan, self._own, self._began, self._looked = plan, own, now, now
        self._stopped_s = stopped_s  # between two looks: the leader was stopped, and hasn't heard what the others did
        self._given: dict[PeerId, tuple[frozenset[int], float]] = {}  # -> the shares that are in, and since when
        self._progress: dict[PeerId, object] = {}
        self._since: dict[PeerId, float] = {}  # holdups -> loop time since which nothing has come of it
        self._standings: dict[PeerId, Standing] = {}

    def look(self, now: float, standings: Mapping[PeerId, Standing], waiting: list[PeerId]) -> dict[PeerId, float]:
        """The peers that have held the attempt up for too long, and for how long. `standings`: their answers of just
        now; `waiting`: those needed that have not carried out the plan yet.
        """
        if now - self._looked > self._stopped_s:
            self._since.clear()
        self._looked = now
        self._standings.update({peer: it for peer, it in standings.items() if is_sound(self._plan, it)})
        needed = {self._own, *self._plan.members, *(part.owner for part in self._plan.parts)}
        known = {peer: self._standings[peer] for peer in waiting if peer in self._standings}
        view = View(self._plan, self._own, known, frozenset(needed - set(waiting)))
        for peer in view.waiting:
            if self._given.get(peer, (None, 0.0))[0] != (share := view.share(peer)):
                self._given[peer] = share, now
        found = find_holdups(view)
        if needed <= set(found):  # there is nobody to measure them by
            found = ()
        self._note(view, found, now)
        absent = find_absent(view)
        return {peer: now - it for peer, it in self._since.items() if now - it > self._limit(peer, found, absent)}

    def _note(self, view: View, found: tuple[PeerId, ...], now: float) -> None:
        since = {}
        for peer in found:
            progress = view.progress(peer)
            since[peer] = now if self._progress.get(peer) != progress else self._since.get(peer, now)
            self._progress[peer] = progress
        self._since = since

    def _limit(self, peer: PeerId, found: tuple[PeerId, ...], absent: tuple[PeerId, ...]) -> float:
        """Seconds without progress that a peer may take."""
        if peer in absent:
            return TAKING_UP_SECONDS
        shares = [at - self._began for other, (_, at) in self._given.items() if other not in found]
        largest = max(part.stop - part.start for part in self._plan.parts)
        seconds = plan_pace(self._plan.parts) * largest * ELEMENT_BYTES / SLOW_BYTES_PER_SECOND
        wanted = max(HOLDUP_FLOOR_SECONDS, HOLDUP_TIMES * min(shares, default=0.0), seconds)
        return min(HOLDUP_CEILING_SECONDS, wanted)
