"""How a stage's flattened gradient is cut into parts, and what a set of members' indices adds up to.

Pure functions of plain data, tested against dumb twins.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swarmd.swarm.messages import Part
from swarmd.values import PeerId

PART_ELEMENTS = 4 << 20  # 16 MB in fp32: small enough to fly beside activations, large enough to amortise a message


@dataclass(frozen=True)
class Coverage:
    """What the members' sums hold together, against the step's indices."""

    covered: int  # distinct indices
    lost: int  # indices in no sum
    duplicated: int  # surplus occurrences
    counted: int  # occurrences: what the sum must be divided by, in microbatches


def measure_coverage(holdings: Mapping[PeerId, Sequence[int]], microbatches: int) -> Coverage:
    """Adds up who has which index of a step."""
    counts = Counter(index for indices in holdings.values() for index in indices)
    counted = sum(counts.values())
    return Coverage(len(counts), microbatches - len(counts), counted - len(counts), counted)


def plan_parts(size: int, owners: Mapping[PeerId, float], limit: int = PART_ELEMENTS) -> tuple[Part, ...]:
    """Cuts [0, size) into consecutive parts of at most `limit` elements, each owner's share in proportion to its
    weight.

    Every element is in exactly one part; the shares' borders come from the cumulated weights, so they never drift.
    """
    assert owners and size >= 0, "a round has at least one owner"
    total = sum(owners.values())
    parts: list[Part] = []
    start, weight = 0, 0.0
    names = sorted(owners)
    for owner in names:
        weight += owners[owner]
        stop = size if owner == names[-1] else min(size, round(size * weight / total))
        while start < stop:
            end = min(stop, start + limit)
            parts.append(Part(start, end, owner))
            start = end
    return tuple(parts)
