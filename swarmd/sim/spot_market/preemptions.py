"""Instances that come and go on spot markets: traces of preemptions, recorded and generated.

`recorded` plays a public log: the live instances of a group of sixteen AWS p2.xlarge spot instances (one K80 each) over
88 hours in November 2020, measured for Bamboo (Thorpe et al., NSDI 2023, arXiv 2204.12013) and published in
github.com/uclasystem/bamboo, doc/data (MIT License, copyright 2022 UCLASystem). Of it we have only the numbers below.
Each instance is lost 0.13 times an hour, many at once, and replaced within minutes. A larger fleet is as many such
groups as it takes, each from an hour of its own: groups of different zones and times are preempted independently.

`generated` draws a fleet of 400 single-GPU instances over 32 hours, as in SWARM's simulation (arXiv 2301.11913), whose
log is not public. Its rates are chosen so that without rebalancing, with newcomers placed at random, a swarm in
`flow.py` keeps about what that paper reports of none: 82.7 % of the optimum, and 45.4 % in the last hour.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

HOUR = 3600.0
GROUP = 16  # instances of the recorded group
RECORDED = """
0.319:16 0.342:15 0.449:16 0.507:15 0.617:16 0.651:15 0.677:14 0.76:13 0.794:10 0.926:12 0.929:16 0.93:15
0.983:16 1.041:15 1.082:16 1.198:15 1.255:14 1.375:16 1.432:15 1.496:16 2.565:15 2.679:14 2.865:16 3.041:15
3.099:16 3.154:15 3.204:16 3.374:15 3.412:14 3.434:13 3.549:16 3.639:15 3.666:16 6.63:15 6.677:14 6.841:12
6.961:10 7.069:9 7.432:12 7.459:9 7.498:13 7.52:10 7.997:14 8.027:12 8.115:10 8.348:16 8.391:10 8.615:16
8.674:14 8.814:16 8.868:14 8.964:16 9.066:15 9.154:14 9.188:13 9.218:12 9.298:16 9.35:15 9.431:12 9.466:11
9.695:13 9.716:11 9.799:14 9.911:13 9.993:16 10.192:14 10.23:16 10.332:15 10.415:16 10.474:13 10.701:16
10.757:15 10.796:16 10.901:15 11.148:16 18.801:15 18.802:16 18.821:15 18.8215:16 19.032:15 19.066:14 19.309:16
20.099:15 20.135:16 20.383:15 20.449:16 20.505:15 20.664:16 22.098:15 22.133:13 22.188:12 22.465:15 22.647:16
22.775:12 23.032:16 23.178:15 23.26:12 23.299:16 23.45:12 23.534:16 23.566:12 23.829:14 23.914:16 24.325:15
24.363:14 24.482:16 24.811:13 25.031:16 25.081:15 25.116:16 25.143:14 25.223:16 31.874:15 32.007:16 33.763:15
33.7635:16 34.07:15 34.071:16 39.675:15 39.704:14 39.817:13 39.922:16 46.511:15 46.547:13 46.874:16 47.328:15
47.498:14 47.681:16 55.386:15 55.387:16 55.476:15 55.4765:16 55.586:15 55.5865:16 61.912:15 61.946:16 62.279:15
62.43:16 62.631:15 62.999:16 63.359:15 63.381:14 63.462:13 63.659:15 63.781:16 63.969:15 64.022:16 64.171:14
64.312:16 64.399:15 64.424:14 64.457:13 67.042:16 67.294:14 67.331:16 67.378:15 67.673:16 69.036:13 69.091:16
69.128:14 69.263:16 70.398:15 70.502:14 70.64:16 71.713:14 71.943:16 72.052:15 72.086:16 74.078:15 74.124:16
75.12:14 75.566:16 76.021:13 76.065:16 76.304:14 76.523:16 83.506:15 83.5065:16 84.186:15 84.1865:16 84.977:15
84.981:16 86.628:15 87.074:16 87.595:14 87.734:16 87.936:15 88.239:16 88.388:14 88.605:16 88.695:14
"""
"""Hours and live instances. The log goes on from the beginning once it has ended."""


@dataclass(frozen=True)
class Change:
    """An instance comes or goes."""

    at_s: float
    instance: int
    comes: bool


@dataclass(frozen=True)
class Rates:
    """The losses of a generated fleet from some hour on."""

    hour: float
    single: float  # instances lost one by one, per instance and hour
    bulk: float  # preemptions of many at once, per hour
    share: float  # of the fleet, that goes in each of these
    fleet: int  # instances that there are once everything lost is replaced


CALM_AND_END = (
    Rates(0.0, single=0.004, bulk=0.03, share=0.03, fleet=400),
    Rates(29.0, single=0.05, bulk=1.0, share=0.12, fleet=200),
)
"""A tenth of the instances is lost in a day: Google gave 5 to 15 % as the average of its preemptible machines. In the
last hours the market turns, and nothing is replaced until half of the fleet is left.
"""

REPLACED_SECONDS = 600.0  # mean time until a lost instance is replaced
STARTED_SECONDS = 20.0  # mean time between two new instances of a group that is being started


def recorded(seed: int, hours: float = 32.0, groups: int = 25) -> list[Change]:
    """A fleet of groups of the recorded log, each from an hour of its own."""
    rng = random.Random(f"recorded/{seed}")
    points = [(float(hour) * HOUR, int(count)) for hour, _, count in (it.partition(":") for it in RECORDED.split())]
    fleet = _Fleet(rng)
    for _ in range(groups):
        group = list[int]()
        for at_s, count in _window(points, rng.uniform(points[0][0], points[-1][0]), hours * HOUR):
            fleet.resize(at_s, group, count)
    return fleet.changes()


def _window(points: Sequence[tuple[float, int]], start_s: float, length_s: float) -> Iterator[tuple[float, int]]:
    """The log from a moment on."""
    first, last = points[0][0], points[-1][0]
    yield 0.0, next(count for at_s, count in reversed(points) if at_s <= start_s)
    base = -start_s
    while base < length_s:
        for at_s, count in points:
            if 0.0 < base + at_s < length_s:
                yield base + at_s, count
        base += last - first


def generated(seed: int, hours: float = 32.0, rates: Sequence[Rates] = CALM_AND_END) -> list[Change]:
    """A fleet of its own, drawn minute by minute."""
    rng = random.Random(f"generated/{seed}")
    fleet, alive = _Fleet(rng), list[int]()
    fleet.resize(0.0, alive, rates[0].fleet)
    minute, minutes = 60.0, int(hours * 60)
    for number in range(1, minutes):
        now = [it for it in rates if it.hour * 60 <= number][-1]
        lost = sum(rng.random() < now.single / 60 for _ in alive)
        if rng.random() < now.bulk / 60:
            lost += round(now.share * len(alive) * rng.uniform(0.5, 1.5))
        back = sum(rng.random() < minute / REPLACED_SECONDS for _ in range(max(0, now.fleet - len(alive))))
        at_s = number * minute + rng.random() * minute
        fleet.resize(at_s, alive, max(0, len(alive) - lost))
        fleet.resize(at_s + 1.0, alive, len(alive) + back)
    return fleet.changes()


class _Fleet:
    """Draws which instance goes, and gives each a number."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._count, self._changes = rng, 0, list[Change]()

    def resize(self, at_s: float, alive: list[int], count: int) -> None:
        """Some of a group go, or new ones come: all at the beginning, one after the other later."""
        while len(alive) > count:
            gone = alive.pop(self._rng.randrange(len(alive)))
            self._changes.append(Change(at_s, gone, comes=False))
        came_s = at_s
        while len(alive) < count:
            alive.append(self._count)
            self._changes.append(Change(came_s, self._count, comes=True))
            self._count += 1
            came_s += self._rng.expovariate(1 / STARTED_SECONDS) if at_s else 0.0

    def changes(self) -> list[Change]:
        """Everything, in order of time; of one instance, that it comes before that it goes."""
        came = {it.instance: it.at_s for it in self._changes if it.comes}
        late = (replace(it, at_s=max(it.at_s, came[it.instance])) for it in self._changes)
        return sorted(late, key=lambda it: (it.at_s, it.instance, not it.comes))
