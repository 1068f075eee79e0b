"""Which head may train which indices of a step. Plain data; the conductor asks and tells it.

An index is free, leased to a head, or completed by a head. When a head is lost its indices, completed ones too (their
sums are lost with it), are free again, and whoever gets them is told that they were out before.
"""

from collections import deque
from collections.abc import Iterable

from swarmd.values import PeerId


class Leases:
    """The indices 0 .. microbatches-1 of one step. `again`: another conductor gave some of them before."""

    def __init__(self, microbatches: int, *, again: bool = False) -> None:
        self.microbatches = microbatches
        self._fresh = deque(() if again else range(microbatches))
        self._again = deque(range(microbatches) if again else ())
        self._leased: dict[int, PeerId] = {}
        self._completed: dict[int, PeerId] = {}

    @property
    def done(self) -> bool:
        return len(self._completed) == self.microbatches

    @property
    def completed(self) -> int:
        return len(self._completed)

    @property
    def free(self) -> int:
        return len(self._fresh) + len(self._again)

    def give(self, head: PeerId, want: int, heads: int) -> tuple[list[int], bool]:
        """Up to `want` indices for a head, and whether they were out before; fewer near the end, so that nobody
        hoards.
        """
        pool, again = (self._again, True) if self._again else (self._fresh, False)
        share = -(-len(pool) // (2 * max(1, heads)))
        indices = [pool.popleft() for _ in range(min(want, share, len(pool)))]
        self._leased.update(dict.fromkeys(indices, head))
        return indices, again

    def heard(self, head: PeerId, completed: Iterable[int], held: Iterable[int]) -> None:
        """A head says what it has finished and what it is working on. The first to complete an index has it."""
        taken: set[int] = set()
        for index in completed:
            if index not in self._completed:
                self._completed[index] = head
                self._leased.pop(index, None)
                taken.add(index)
        for index in held:
            if index not in self._completed and index not in self._leased:
                self._leased[index] = head
                taken.add(index)
        if taken:
            self._fresh = deque(index for index in self._fresh if index not in taken)
            self._again = deque(index for index in self._again if index not in taken)

    def lose(self, head: PeerId) -> list[int]:
        """A head is lost: its indices are free again. Returns them."""
        lost = [index for index, owner in {**self._leased, **self._completed}.items() if owner == head]
        for index in lost:
            self._leased.pop(index, None)
            self._completed.pop(index, None)
        self._again.extend(sorted(lost))
        return sorted(lost)

    def heads(self) -> set[PeerId]:
        """Heads that have or completed something."""
        return {*self._leased.values(), *self._completed.values()}
