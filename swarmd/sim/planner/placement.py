"""Places devices in stages, so that the slowest stage is as fast as can be.

Pure arithmetic on microbatches per second: what a peer does in a stage is bounded by its device and by its link; a
stage does what its peers do together; the swarm what its slowest stage does. The best such assignment is looked for
greedily and then by moves and exchanges, as exact search grows too fast and its gain would be within the model's error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ROUNDS = 200  # of improvement at most; each helps the slowest stage, and few are needed
SMALLEST_GAIN = 1e-6  # relative; smaller ones are rounding

Rates = Sequence[Sequence[float]]
"""Microbatches per second of a peer of each group in each stage; 0 where it can't hold the stage."""


@dataclass(frozen=True)
class Placement:
    """Peers of each group in each stage."""

    counts: tuple[tuple[int, ...], ...]  # [group][stage]

    def replicas(self, stage: int) -> int:
        return sum(row[stage] for row in self.counts)

    def capacity(self, rates: Rates, stage: int) -> float:
        """Microbatches per second of a stage."""
        return sum(row[stage] * rates[group][stage] for group, row in enumerate(self.counts))

    def throughput(self, rates: Rates) -> float:
        """Throughput of the slowest stage."""
        return min(self.capacity(rates, stage) for stage in range(len(self.counts[0])))


def plan_placement(sizes: Sequence[int], rates: Rates) -> Placement | None:
    """The best placement found of groups of so many peers; None if some stage can't be held by anyone, or there are
    too few peers.
    """
    stages = len(rates[0])
    counts = [[0] * stages for _ in sizes]
    capacity = [0.0] * stages
    fastest_first = sorted(range(len(sizes)), key=lambda group: (-max(rates[group]), group))
    for group in fastest_first:
        for _ in range(sizes[group]):
            able = [stage for stage in range(stages) if rates[group][stage] > 0]
            if not able:
                break
            stage = min(able, key=lambda stage: (capacity[stage], -rates[group][stage], stage))
            counts[group][stage] += 1
            capacity[stage] += rates[group][stage]
    best = _improved(counts, rates)
    return best if best.throughput(rates) > 0 else None


def _improved(counts: list[list[int]], rates: Rates) -> Placement:
    """Moves a peer, or exchanges two, as long as the sorted capacities get better, the slowest stage's first."""

    def value(counts: list[list[int]]) -> list[float]:
        placement = Placement(tuple(map(tuple, counts)))
        return sorted(placement.capacity(rates, stage) for stage in range(len(rates[0])))

    present = value(counts)
    for _ in range(ROUNDS):
        better = _first_better(counts, rates, present, value)
        if better is None:
            break
        counts, present = better, value(better)
    return Placement(tuple(map(tuple, counts)))


def _first_better(
    counts: list[list[int]], rates: Rates, present: list[float], value: Callable[[list[list[int]]], list[float]]
) -> list[list[int]] | None:
    groups, stages = range(len(counts)), range(len(rates[0]))
    for source in stages:
        for target in stages:
            for group in groups:
                if source == target or not counts[group][source] or not rates[group][target]:
                    continue
                moved = [row.copy() for row in counts]
                moved[group][source] -= 1
                moved[group][target] += 1
                options = [moved]
                for other in groups:
                    if other != group and moved[other][target] and rates[other][source]:
                        swapped = [row.copy() for row in moved]
                        swapped[other][target] -= 1
                        swapped[other][source] += 1
                        options.append(swapped)
                for option in options:
                    if _is_better(value(option), present):
                        return option
    return None


def _is_better(one: list[float], other: list[float]) -> bool:
    for ours, theirs in zip(one, other, strict=True):
        if abs(ours - theirs) > SMALLEST_GAIN * max(ours, theirs):
            return ours > theirs
    return False
