"""The account of a step's leases: the head that may train each index. Plain data; `LeaseDesk` gives it the time.

An index is free, leased, or completed by a head. When a head is lost its indices, completed ones too (their sums are
lost with it), are free again, and the next head that gets them is told that they were out before. Once nothing is free,
an index that a head's own device has kept for longer than the asking head usually takes is leased a second time: the
first to complete it has it.
"""

import math
from collections import deque
from collections.abc import Iterable

from swarmd.values import PeerId

LATE_FLOOR_SECONDS = 2.0  # waiting less for a late index costs less than computing it twice
LATE_FACTOR = 1.5  # a lease out for so many times what the asking head needs is given a second time
LEASES_PER_INDEX = 2  # a third would cost more than it could save
HORIZON_FACTOR = 2.0  # near the end of a step only heads that take at most so many times what the best one takes
ARRIVAL_SECONDS = 10.0  # by then a lease has come to its head, or is lost with the connection that carried it
AWAY_FLOOR_SECONDS = 180.0  # that a head may say that it waits for others, if hops usually take no time ...
AWAY_FACTOR = 20.0  # ... or so many times what they take; its own custody gives up on a holder before
PACE_SMOOTHING = 0.3  # weight of the newest microbatch in what a head usually takes


class Leases:
    """The indices 0 .. microbatches-1 of one step. `again`: another conductor gave some of them before."""

    def __init__(self, microbatches: int, *, again: bool = False) -> None:
        self.microbatches = microbatches
        self._fresh = deque(() if again else range(microbatches))
        self._again = deque(range(microbatches) if again else ())
        self._leased: dict[int, dict[PeerId, float]] = {}  # index -> who has it, since when
        self._away: dict[PeerId, frozenset[int]] = {}  # what a head waits for others with
        self._completed: dict[int, PeerId] = {}
        self._pace: dict[PeerId, float] = {}  # seconds from lease to completion, moving average

    @property
    def done(self) -> bool:
        return len(self._completed) == self.microbatches

    @property
    def completed(self) -> int:
        return len(self._completed)

    @property
    def free(self) -> int:
        return len(self._fresh) + len(self._again)

    def give(
        self, head: PeerId, want: int, heads: int, now: float, horizon_s: float = math.inf
    ) -> tuple[list[int], bool]:
        """Up to `want` indices for a head, and whether they were out before; fewer near the end, so that nobody
        hoards; late ones when no others are left. A head so slow that all would wait for it after the last index is
        given, in `horizon_s`, gets nothing.
        """
        if self._pace.get(head, 0.0) > horizon_s + HORIZON_FACTOR * min(self._pace.values(), default=0.0):
            return [], False
        pool, again = (self._again, True) if self._again else (self._fresh, False)
        share = -(-len(pool) // (2 * max(1, heads)))
        indices = [pool.popleft() for _ in range(min(want, share, len(pool)))]
        if not indices and (late := self._late(head, now)[:1]):
            indices, again = late, True
        for index in indices:
            self._leased.setdefault(index, {})[head] = now
        return indices, again

    def _late(self, head: PeerId, now: float) -> list[int]:
        """Indices that this head would probably bring sooner than those who have them, the longest out first."""
        usual = self._pace.get(head) or max(self._pace.values(), default=0.0)
        if not usual:
            return []
        away_s = max(AWAY_FLOOR_SECONDS, AWAY_FACTOR * usual)
        out = {
            index: min(since.values())
            for index, since in self._leased.items()
            if head not in since and len(since) < LEASES_PER_INDEX
            if now - min(since.values()) > away_s or not any(index in self._away.get(other, ()) for other in since)
        }
        patience = max(LATE_FLOOR_SECONDS, LATE_FACTOR * usual)
        return sorted((index for index in out if now - out[index] > patience), key=lambda index: (out[index], index))

    def heard(
        self, head: PeerId, completed: Iterable[int], held: Iterable[int], now: float, away: Iterable[int] = ()
    ) -> dict[PeerId, list[int]]:
        """A head says what it has finished and what it is working on. The first to complete an index has it; returns
        who else works on what is completed, in vain.
        """
        held = list(held)
        self._away[head] = frozenset(away)
        self._lost_on_the_way(head, {*held, *(completed := list(completed))}, now)
        taken: set[int] = set()
        vain: dict[PeerId, list[int]] = {}
        for index in completed:
            if index not in self._completed:
                self._completed[index] = head
                out = self._leased.pop(index, {})
                self._observe(head, out.pop(head, None), now)
                taken.add(index)
                for other in out:
                    vain.setdefault(other, []).append(index)
        for index in held:
            if index not in self._completed:
                self._leased.setdefault(index, {}).setdefault(head, now)
                taken.add(index)
            elif self._completed[index] != head:
                vain.setdefault(head, []).append(index)
        if taken:
            self._fresh = deque(index for index in self._fresh if index not in taken)
            self._again = deque(index for index in self._again if index not in taken)
        return vain

    def _lost_on_the_way(self, head: PeerId, known: set[int], now: float) -> None:
        """Leases that a head has never heard of are free again: it tells of everything that it has."""
        lost = [i for i, out in self._leased.items() if i not in known and now - out.get(head, now) > ARRIVAL_SECONDS]
        for index in lost:
            del self._leased[index][head]
        self._free_again(self._without_holder(lost))

    def _without_holder(self, indices: list[int]) -> list[int]:
        """Returns the indices that nobody has any more, and ends their leases."""
        gone = [index for index in indices if not self._leased[index]]
        for index in gone:
            del self._leased[index]
        return gone

    def _observe(self, head: PeerId, since: float | None, now: float) -> None:
        if since is not None:
            pace = self._pace.get(head, now - since)
            self._pace[head] = pace + PACE_SMOOTHING * (now - since - pace)

    def lose(self, head: PeerId, heir: PeerId = "") -> list[int]:
        """A head is lost: its indices are free again, unless someone else has them, too; if an heir has its sum, only
        those that it hadn't completed. Returns them.
        """
        lost = [index for index, owner in self._completed.items() if owner == head]
        if heir:
            self._completed.update(dict.fromkeys(lost, heir))
            lost = []
        for index in lost:
            del self._completed[index]
        return sorted([*self._free_again(lost), *self.withdraw(head)])

    def withdraw(self, head: PeerId) -> list[int]:
        """A head is silent: what it hasn't completed is free again. Returns it."""
        self._away.pop(head, None)
        self._pace.pop(head, None)  # nobody is too slow beside one that isn't there
        held = [index for index, since in self._leased.items() if head in since]
        for index in held:
            del self._leased[index][head]
        return self._free_again(self._without_holder(held))

    def _free_again(self, indices: list[int]) -> list[int]:
        self._again.extend(sorted(indices))
        return sorted(indices)

    def held_by(self, head: PeerId) -> set[int]:
        """The indices leased to a head."""
        return {index for index, since in self._leased.items() if head in since}

    def holders(self) -> set[PeerId]:
        """Heads that have a lease."""
        return {head for since in self._leased.values() for head in since}
