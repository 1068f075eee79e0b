"""The work of the open steps that this peer has given to others, and from whom it has its own.

No record names a newcomer yet, so it counts only for what it was given: whoever gave it says so when it is asked
(`judge.py`). A *stage* is always that of the peer that got the work. Plain data.
"""

from collections.abc import Iterable
from typing import TypeVar

from swarmd.values import PeerId

V = TypeVar("V")
Place = tuple[int, int]
"""A stage, and the index of a microbatch there."""


class Handouts:
    """One peer's memory of who gave which microbatch to whom."""

    def __init__(self) -> None:
        self._given: dict[int, dict[Place, set[PeerId]]] = {}  # by step
        self._sources: dict[int, dict[Place, PeerId]] = {}
        self._conductors: dict[int, PeerId] = {}

    def give(self, step: int, stage: int, indices: Iterable[int], peer: PeerId) -> None:
        """This peer gives microbatches to another one. That counts even if others get them later, too."""
        given = self._given.setdefault(step, {})
        for index in indices:
            given.setdefault((stage, index), set()).add(peer)

    def given(self, step: int, stage: int, indices: Iterable[int], peer: PeerId) -> list[int]:
        """Those of the microbatches that this peer has given to another one."""
        given = self._given.get(step, {})
        return [index for index in indices if peer in given.get((stage, index), ())]

    def inherit(self, peer: PeerId, heir: PeerId) -> None:
        """An heir has another peer's sum: it counts as if it had been given all that is in there."""
        for given in self._given.values():
            for peers in given.values():
                if peer in peers:
                    peers.add(heir)

    def take(self, step: int, stage: int, indices: Iterable[int], source: PeerId) -> None:
        """This peer has microbatches from another one now: the last one to give them counts."""
        sources = self._sources.setdefault(step, {})
        for index in indices:
            sources[stage, index] = source

    def source(self, step: int, stage: int, index: int) -> PeerId:
        """The peer that gave this one a microbatch; "" if nobody did."""
        return self._sources.get(step, {}).get((stage, index), "")

    def lead(self, step: int, conductor: PeerId) -> None:
        """A conductor asks this peer to lead the round of its stage: what that lacks, this peer may have sent again."""
        self._conductors[step] = conductor

    def warrant(self, step: int, stage: int, index: int) -> PeerId:
        """The peer in whose name this one gives a microbatch to a stage: the one that it has it from, else the
        conductor that asked it to lead; "" if it may not.
        """
        return self.source(step, stage - 1, index) or self._conductors.get(step, "")

    def end_step(self, step: int) -> None:
        """A step has committed, and so have those before it."""
        self._given = _after(self._given, step)
        self._sources = _after(self._sources, step)
        self._conductors = _after(self._conductors, step)

    def forget(self) -> None:
        """Another state than before is this peer's: steps are done anew."""
        self._given, self._sources, self._conductors = {}, {}, {}


def _after(steps: dict[int, V], step: int) -> dict[int, V]:
    return {known: it for known, it in steps.items() if known > step}
