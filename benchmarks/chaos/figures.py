"""Figures of a trial's recording: pure functions of samples, commits and faults.

Definitions, so that nobody has to guess:
- throughput: microbatches of committed steps over seconds, between two commits.
- capacity alive: the fraction of live replicas of the stage that has fewest, averaged over time. A replica is alive
  when its process runs, has its stage on its device, is not stopped and not cut off. One that pulls its state, lags or
  is slow counts as alive; one that still loads Python and torch does not.
- next commit: seconds from a fault's beginning to the first commit after it.
- at work: seconds from a fault's end (the process is started again, continued, connected) until the victim serves at
  the swarm's version and has finished another microbatch. Both are seen every half second.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.chaos.recorder import Event, Sample

SHOWN_WARM_UP_S, SHOWN_LIFE_S = 120.0, 240.0  # of processes whose memory is shown: still filling caches and buffers
JUDGED_WARM_UP_S, JUDGED_LIFE_S = 600.0, 1_200.0  # of processes whose memory is judged, in a soak
SLOPE_LIMIT_BYTES = 1 << 20  # per ten minutes


def rate_between(commits: Mapping[int, float], begin_s: float, end_s: float, microbatches: int) -> float:
    """Microbatches per second between the last commits up to two moments."""
    before, after = last_commit(commits, begin_s), last_commit(commits, end_s)
    if before is None or after is None or commits[after] <= commits[before]:
        return 0.0
    return (after - before) * microbatches / (commits[after] - commits[before])


def last_commit(commits: Mapping[int, float], time_s: float) -> int | None:
    """The newest version committed by then."""
    return max((version for version, seen in commits.items() if seen <= time_s), default=None)


def capacity(
    samples: Iterable[Sample], stages: int, replicas: int, begin_s: float, end_s: float
) -> tuple[float, float]:
    """The mean fraction of replicas of the weakest stage that are alive, and that are at work."""
    alive: dict[float, list[int]] = {}
    working: dict[float, list[int]] = {}
    for sample in samples:
        if begin_s <= sample.time_s <= end_s:
            stage = sample.number % stages
            alive.setdefault(sample.time_s, [0] * stages)[stage] += sample.alive
            working.setdefault(sample.time_s, [0] * stages)[stage] += sample.at_work
    return _weakest(alive, replicas), _weakest(working, replicas)


def _weakest(counts: Mapping[float, Sequence[int]], replicas: int) -> float:
    times = sorted(counts)
    if len(times) < 2:
        return 0.0
    total = sum(min(counts[before]) / replicas * (after - before) for before, after in itertools.pairwise(times))
    return total / (times[-1] - times[0])


def percentile(values: Sequence[float], fraction: float) -> float | None:
    """By nearest rank; None of nothing."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(fraction * len(ranked)) - 1)] if ranked else None


@dataclass(frozen=True)
class Recovery:
    """Recovery from one kind of fault. Seconds."""

    kind: str
    faults: int
    commit_p50: float | None
    commit_p95: float | None
    at_work_p50: float | None
    at_work_p95: float | None
    not_over: int


def recoveries(events: Sequence[Event]) -> list[Recovery]:
    """One for each kind that happened, and one for all."""
    kinds = sorted({event.fault.kind for event in events})
    rows = [_recovery(kind, [event for event in events if event.fault.kind == kind]) for kind in kinds]
    return [*rows, _recovery("all", events)]


def _recovery(kind: str, events: Sequence[Event]) -> Recovery:
    commits = [event.commit_s - event.began_s for event in events if event.commit_s is not None]
    back = [back_s - event.ended_s for event in events for back_s in event.back_s.values() if event.ended_s is not None]
    return Recovery(
        kind,
        len(events),
        percentile(commits, 0.5),
        percentile(commits, 0.95),
        percentile(back, 0.5),
        percentile(back, 0.95),
        sum(not event.over for event in events),
    )


@dataclass(frozen=True)
class Life:
    """One process of a daemon: what it held at the beginning, after the warm-up, and at the end."""

    number: int
    seconds: float
    memory_start_bytes: int
    memory_end_bytes: int
    slope_bytes: float  # per ten minutes, by least squares
    open_files_most: int
    tasks_most: int

    @property
    def flat(self) -> bool:
        return self.slope_bytes < SLOPE_LIMIT_BYTES


def lives(
    samples: Iterable[Sample], warm_up_s: float = SHOWN_WARM_UP_S, shortest_s: float = SHOWN_LIFE_S
) -> list[Life]:
    """Those that were long enough, the longest first."""
    found: dict[tuple[int, float], list[Sample]] = {}
    for sample in samples:
        if sample.memory_bytes:
            found.setdefault((sample.number, sample.started_s), []).append(sample)
    long = [_life(seen, warm_up_s) for seen in found.values() if seen[-1].time_s - seen[0].started_s >= shortest_s]
    return sorted(long, key=lambda life: -life.seconds)


def _life(seen: Sequence[Sample], warm_up_s: float) -> Life:
    warm = [sample for sample in seen if sample.time_s - sample.started_s >= warm_up_s] or list(seen)
    times = [sample.time_s for sample in warm]
    memory = [float(sample.memory_bytes) for sample in warm]
    return Life(
        number=seen[0].number,
        seconds=seen[-1].time_s - seen[0].started_s,
        memory_start_bytes=warm[0].memory_bytes,
        memory_end_bytes=warm[-1].memory_bytes,
        slope_bytes=600 * slope(times, memory),
        open_files_most=max(sample.open_files for sample in warm),
        tasks_most=max(sample.tasks for sample in warm),
    )


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Slope of the line of least squares."""
    x_mean, y_mean = fmean(xs), fmean(ys)
    spread = sum((x - x_mean) ** 2 for x in xs)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0
