"""Flaws of the members' sums of a step: indices that none has, indices that count twice. Pure functions of plain data,
tested against dumb twins.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swarmd.values import PeerId

SUBTRACTED_PER_ADDED = 2  # so many subtractions are worth as much as one microbatch that must be brought and added


@dataclass(frozen=True)
class Coverage:
    """The work left until the members' sums together have every index of the step once."""

    missing: tuple[int, ...]  # in no sum
    surplus: Mapping[PeerId, tuple[int, ...]]  # to be taken out of a member's sum, as another one counts

    @property
    def exact(self) -> bool:
        return not self.missing and not self.surplus


def measure_coverage(holdings: Mapping[PeerId, Sequence[int]], microbatches: int) -> Coverage:
    """Adds up who has which index of a step, and names the one that counts where several have it.

    That is the member that has most to subtract already, of equals the lower id: a subtraction computes a microbatch
    anew, so members share them.
    """
    having: dict[int, list[PeerId]] = defaultdict(list)
    for peer in sorted(holdings):
        for index in holdings[peer]:
            having[index].append(peer)
    surplus: dict[PeerId, list[int]] = {peer: [] for peer in sorted(holdings)}
    for index in sorted(having):
        counts = min(having[index], key=lambda peer: (-len(surplus[peer]), peer))
        for peer in having[index]:
            if peer != counts:
                surplus[peer].append(index)
    missing = tuple(index for index in range(microbatches) if index not in having)
    return Coverage(missing, {peer: tuple(indices) for peer, indices in surplus.items() if indices})


def find_superfluous(holdings: Mapping[PeerId, Sequence[int]]) -> set[PeerId]:
    """Members without whose sums there is less to do: nearly all of their indices are in others' sums, too, and what
    isn't is sooner done again than the rest is subtracted.

    One that was cut off comes back like this when its work was done again meanwhile. The one with the most indices goes
    first, of equals the lower id.
    """
    count = Counter(index for indices in holdings.values() for index in indices)
    found: set[PeerId] = set()
    for peer in sorted(holdings, key=lambda peer: (-len(holdings[peer]), peer)):
        alone = sum(count[index] == 1 for index in holdings[peer])
        if holdings[peer] and alone * SUBTRACTED_PER_ADDED <= len(holdings[peer]) - alone:
            found.add(peer)
            count.subtract(holdings[peer])
    return found
