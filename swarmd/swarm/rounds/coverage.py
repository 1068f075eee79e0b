"""Flaws of the members' sums of a step: indices that none has, indices that count twice. Pure functions of plain data,
tested against dumb twins.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
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


def measure_coverage(
    holdings: Mapping[PeerId, Sequence[int]], microbatches: int, is_named: Callable[[PeerId], bool]
) -> Coverage:
    """Adds up who has which index of a step, and names the one that counts where several have it.

    That is one that a record names, if there is such a one (`is_named`): nobody subtracts for what a newcomer says. Of
    several it is the member that has most to subtract already, of equals the lower id: a subtraction computes a
    microbatch anew, so members share them.
    """
    having: dict[int, list[PeerId]] = defaultdict(list)
    for peer in sorted(holdings):
        for index in holdings[peer]:
            having[index].append(peer)
    surplus: dict[PeerId, list[int]] = {peer: [] for peer in sorted(holdings)}
    for index in sorted(having):
        counts = min(having[index], key=lambda peer: (not is_named(peer), -len(surplus[peer]), peer))
        for peer in having[index]:
            if peer != counts:
                surplus[peer].append(index)
    missing = tuple(index for index in range(microbatches) if index not in having)
    return Coverage(missing, {peer: tuple(indices) for peer, indices in surplus.items() if indices})


def find_superfluous(holdings: Mapping[PeerId, Sequence[int]], is_named: Callable[[PeerId], bool]) -> set[PeerId]:
    """Members without whose sums there is less to do: nearly all of their indices are in others' sums, too, and what
    isn't is sooner done again than the rest is subtracted.

    One that was cut off comes back like this when its work was done again meanwhile. Newcomers go first, and by what
    they say nobody else does (`is_named`: tells whom a record names); then the one with the most indices, of equals the
    lower id.
    """
    found: set[PeerId] = set()
    for named in (False, True):
        peers = [peer for peer in holdings if is_named(peer) == named]
        others = holdings if not named else {peer: holdings[peer] for peer in peers}
        count = Counter(index for indices in others.values() for index in indices)
        for peer in sorted(peers, key=lambda peer: (-len(holdings[peer]), peer)):
            alone = sum(count[index] == 1 for index in holdings[peer])
            if holdings[peer] and alone * SUBTRACTED_PER_ADDED <= len(holdings[peer]) - alone:
                found.add(peer)
                count.subtract(holdings[peer])
    return found
