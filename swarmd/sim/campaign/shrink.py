"""Shrinks a scenario that breaks a promise: fewer faults and plainer settings, as long as the same promise breaks."""

import dataclasses
from typing import Any

from swarmd.sim.campaign.play import play
from swarmd.sim.faults.scenario import Scenario

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
        """Leaves out halves, then quarters and so on (ddmin, Zeller and Hildebrandt 2002, complements only)."""
        faults, pieces = scenario.faults, 2
        while faults and self.left > 0:
            size = max(1, len(faults) // pieces)
            trials = (faults[:start] + faults[start + size :] for start in range(0, len(faults), size))
            fewer = next((it for it in trials if self.breaks(dataclasses.replace(scenario, faults=it))), None)
            if fewer is not None:
                faults, pieces = fewer, max(2, pieces - 1)
            elif size == 1:
                break
            else:
                pieces *= 2
        return dataclasses.replace(scenario, faults=faults)

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
    return shrinking.fewer_faults(shrinking.plainer(shrinking.fewer_faults(scenario)))
