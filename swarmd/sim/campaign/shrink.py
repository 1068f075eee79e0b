"""Shrinks a scenario that breaks a promise: fewer faults and plainer settings, as long as the same promise breaks."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from swarmd.sim.campaign.play import play
from swarmd.sim.faults.course import Fault
from swarmd.sim.faults.outsider import Outsider
from swarmd.sim.faults.scenario import Scenario

T = TypeVar("T")

SHRINK_RUNS = 40  # reruns at most

PLAIN: dict[str, Any] = {
    name: getattr(Scenario(), name)
    for name in ("uplinks", "limits", "validate_every", "checkpoint_every", "symbols", "link", "speeds")
}
"""Settings that `shrink` tries to do without, in this order."""


class Shrinking:
    """Reruns of a scenario that breaks a promise, as many as are left."""

    def __init__(self, promise: int, runs: int) -> None:
        self._promise, self.left = promise, runs

    def breaks(self, scenario: Scenario) -> bool:
        """True if the same promise breaks here, too; False when no runs are left to tell."""
        self.left -= 1
        return self.left >= 0 and any(it.promise == self._promise for it in play(scenario).violations)

    def fewer_faults(self, scenario: Scenario) -> Scenario:
        """Leaves faults out."""

        def fewer(faults: tuple[Fault, ...]) -> Scenario:
            return dataclasses.replace(scenario, faults=faults)

        return fewer(self._fewest(scenario.faults, fewer))

    def fewer_words(self, scenario: Scenario) -> Scenario:
        """Leaves out kinds of messages that outsiders draw."""
        for place, fault in enumerate(scenario.faults):
            if isinstance(fault, Outsider):
                scenario = self._fewer_of(scenario, place, fault)
        return scenario

    def _fewer_of(self, scenario: Scenario, place: int, outsider: Outsider) -> Scenario:
        faults = scenario.faults

        def fewer(words: tuple[str, ...]) -> Scenario:
            other = dataclasses.replace(outsider, words=words)
            return dataclasses.replace(scenario, faults=(*faults[:place], other, *faults[place + 1 :]))

        return fewer(self._fewest(outsider.words, fewer))

    def _fewest(self, items: tuple[T, ...], scenario_of: Callable[[tuple[T, ...]], Scenario]) -> tuple[T, ...]:
        """Leaves out halves, then quarters and so on (ddmin, Zeller and Hildebrandt 2002, complements only)."""
        pieces = 2
        while items and self.left > 0:
            size = max(1, len(items) // pieces)
            trials = (items[:start] + items[start + size :] for start in range(0, len(items), size))
            fewer = next((it for it in trials if self.breaks(scenario_of(it))), None)
            if fewer is not None:
                items, pieces = fewer, max(2, pieces - 1)
            elif size == 1:
                break
            else:
                pieces *= 2
        return items

    def plainer(self, scenario: Scenario) -> Scenario:
        """Gives settings their defaults, one after the other."""
        for name, value in PLAIN.items():
            plain = dataclasses.replace(scenario, **{name: value})
            if plain != scenario and self.breaks(plain):
                scenario = plain
        return scenario


def shrink(scenario: Scenario, promise: int, runs: int = SHRINK_RUNS) -> Scenario:
    """The scenario with as few faults and as plain settings as still break the same promise, as far as `runs` reruns
    tell.
    """
    shrinking = Shrinking(promise, runs)
    few = shrinking.fewer_words(shrinking.fewer_faults(scenario))
    return shrinking.fewer_faults(shrinking.plainer(few))
