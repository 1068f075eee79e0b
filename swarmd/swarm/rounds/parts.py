"""Cutting a stage's flattened gradient into parts, each with an owner. Pure functions of plain data."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from swarmd.swarm.wire.messages.fields import PARTS_LIMIT
from swarmd.swarm.wire.messages.round import AveragedPart, Part
from swarmd.values import PeerId

PART_ELEMENTS = 4 << 20  # 16 MB in fp32: small enough to fly beside activations, large enough to amortise a message
HELD_LIMIT = PARTS_LIMIT // 4  # parts that aren't averaged again: a plan has room for those between them, too


def choose_held(held: Mapping[PeerId, Iterable[AveragedPart]], size: int) -> tuple[Part, ...]:
    """The averaged parts of a gradient of so many elements that needn't be averaged again, each with a peer that says
    that it has it, in order and without overlap; what isn't within the gradient is passed over.

    Where attempts of several leaders left different ones, what more peers have goes first.
    """
    having: dict[AveragedPart, list[PeerId]] = defaultdict(list)
    for peer in sorted(held):
        for part in held[peer]:
            if 0 <= part.start < part.stop <= size:
                having[part].append(peer)
    chosen: list[Part] = []  # by their places
    for part in sorted(having, key=lambda part: (-len(having[part]), part.start, part.stop, part.digest)):
        place = bisect_left(chosen, part.start, key=lambda other: other.start)
        after = place == len(chosen) or part.stop <= chosen[place].start
        if after and (place == 0 or chosen[place - 1].stop <= part.start):
            chosen.insert(place, Part(part.start, part.stop, having[part][0], part.digest))
        if len(chosen) == HELD_LIMIT:
            break
    return tuple(chosen)


def complete_parts(size: int, held: Sequence[Part], owners: Mapping[PeerId, float], limit: int = 0) -> tuple[Part, ...]:
    """The held parts, and what is between them cut anew for the owners."""
    gaps: list[tuple[int, int]] = []
    start = 0
    for part in held:
        gaps.append((start, part.start))
        start = part.stop
    gaps.append((start, size))
    gaps = [(start, stop) for start, stop in gaps if start < stop]
    parts = list(held)
    cut = plan_parts(sum(stop - start for start, stop in gaps), owners, limit or PART_ELEMENTS)
    offset = 0
    for start, stop in gaps:  # `cut` is of the gaps put side by side
        for share in cut:
            first, last = max(offset, share.start), min(offset + stop - start, share.stop)
            if first < last:
                parts.append(Part(start + first - offset, start + last - offset, share.owner))
        offset += stop - start
    return tuple(sorted(parts, key=lambda part: part.start))


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
