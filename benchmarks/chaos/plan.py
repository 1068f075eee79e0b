"""The next fault and the daemon that it strikes: pure functions of a random generator and of the daemons that are well.

Knows no processes and no clock. Every kind comes once before any comes again, and no stage loses its last replica that
is well, because that is another promise than the one measured here.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ALIVE = ("slow", "corrupt")
"""Kinds whose victims go on working: they count as alive."""

FRESH_PROCESS = ("kill", "drain", "restart")
"""Kinds that start the victim's process anew."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault, and how long it lasts. Seconds are drawn between the two."""

    name: str
    shortest_s: float
    longest_s: float
    meaning: str


KINDS = (
    Kind("kill", 1, 8, "kill -9, started again after a while"),
    Kind("stop", 2, 15, "SIGSTOP, continued after a while"),
    Kind("partition", 4, 20, "one to three peers of different stages are cut off from all others"),
    Kind("slow", 10, 20, "all connections of a peer have 50 ms one way and 1 MB/s"),
    Kind("corrupt", 1, 1, "a bit is flipped in three chunks of a peer's connections"),
    Kind("drain", 0, 4, "SIGTERM, started again after it has ended"),
    Kind("restart", 1, 8, "a machine with a peer of every stage goes down with kill -9 and comes back with its disk"),
)
NAMES = tuple(kind.name for kind in KINDS)


@dataclass(frozen=True)
class Fault:
    """One fault."""

    kind: str
    victims: tuple[int, ...]  # numbers of daemons
    seconds: float  # between its beginning and its end


class Bag:
    """Kinds in random order; every one comes once before any comes again."""

    def __init__(self, rng: random.Random, kinds: Sequence[str]) -> None:
        self._rng, self._kinds = rng, tuple(kinds)
        self._left: list[str] = []

    def draw(self) -> str:
        if not self._left:
            self._left = list(self._kinds)
            self._rng.shuffle(self._left)
        return self._left.pop()

    def put_back(self, kind: str) -> None:
        """It could not be done now; it comes again later in this round."""
        self._left.insert(0, kind)


def plan_fault(
    rng: random.Random, kind: str, well: Mapping[int, Sequence[int]], spared: Iterable[int] = ()
) -> Fault | None:
    """A fault of this kind. None if it would leave a stage without a replica that is well.

    `well`: by stage, the daemons that serve and are under no fault. `spared`: those whose process must go on.
    """
    settings = next(each for each in KINDS if each.name == kind)
    never = frozenset(spared) if kind in FRESH_PROCESS else frozenset()
    choices = {
        stage: [daemon for daemon in daemons if daemon not in never]
        for stage, daemons in sorted(well.items())
        if len(daemons) > 1 or kind in ALIVE
    }
    stages = [stage for stage, daemons in choices.items() if daemons]
    wanted = _stages_struck(rng, kind, len(well))
    if len(stages) < wanted:
        return None
    victims = tuple(sorted(rng.choice(choices[stage]) for stage in rng.sample(stages, wanted)))
    return Fault(kind, victims, rng.uniform(settings.shortest_s, settings.longest_s))


def _stages_struck(rng: random.Random, kind: str, stages: int) -> int:
    if kind == "restart":
        return stages
    return rng.randint(1, stages) if kind == "partition" else 1
