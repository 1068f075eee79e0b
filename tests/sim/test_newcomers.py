"""Newcomers work in the step in which they come, and whoever gave them their work dies at each point of the giving in
turn: nobody answers for it any more, and the step ends all the same, without a long wait.
"""

import dataclasses

import pytest

from swarmd.config import LimitsConfig
from swarmd.sim.campaign.play import Outcome, play, report
from swarmd.sim.engines.reference import Symbols
from swarmd.sim.faults.commands import Join
from swarmd.sim.faults.logical import PointFault
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.world.points import ANYONE

SECONDS = 60.0  # of the run: undisturbed it takes 7, and nobody is silent for longer than a few

JOINED = Scenario(
    seed=1,
    replicas=(2, 1, 1),
    speeds=(0.03, 0.05, 0.04),
    link=LinkSpec(delay_s=0.01),
    open_seconds=0.05,
    faults=tuple(Join(1.0 + 0.02 * stage, f"newcomer{stage}", stage=stage) for stage in range(3)),
)
"""Newcomers come to all stages in step 1, and work in step 2, which `head1` conducts: no record names them before."""

SIDES = ("serve.AskGiven", "served.AskGiven", "ask.Hop", "asked.Hop")
GIVERS: dict[str, dict[str, tuple[int, ...]]] = {
    "head1": {
        **dict.fromkeys((*SIDES, "serve.AskLease", "served.AskLease"), (0, 3)),
        **dict.fromkeys(("ask.Close", "asked.Close"), (0,)),
    },
    "head2": dict.fromkeys(SIDES, (0,)),
    "newcomer0": dict.fromkeys(SIDES, (0,)),
    "newcomer1": dict.fromkeys(("serve.Hop", "served.Hop", "ask.Hop", "asked.Hop"), (0, 2)),
}
"""The points of giving at each giver, and how often it has passed each when it dies."""

VARIANTS = [(peer, point, skip) for peer, points in GIVERS.items() for point, skips in points.items() for skip in skips]


def crash(scenario: Scenario, *places: tuple[str, str, int]) -> Outcome:
    """Plays a scenario in which peers die in step 2, each at a point that it has passed so many times before."""
    faults = [PointFault(0.0, peer, 2, point, "crash", skip=skip) for peer, point, skip in places]
    played = dataclasses.replace(scenario, faults=(*scenario.faults, *faults))
    outcome = play(played)
    assert outcome.passed, "\n".join(report(played, outcome))
    return outcome


@pytest.mark.parametrize(("peer", "point", "skip"), VARIANTS)
def test_a_newcomer_is_believed_again_soon_after_its_giver_has_died(peer: str, point: str, skip: int) -> None:
    outcome = crash(JOINED, (peer, point, skip))
    assert outcome.struck.get("crash at a point") == 1
    assert outcome.virtual_s < SECONDS


EVICTING = dataclasses.replace(JOINED, replicas=(1, 2, 2), limits=LimitsConfig(retained_bytes=0))
"""Nothing of what was sent is kept: what a lost member had, its round's leader has brought again."""


@pytest.mark.parametrize("first", ["middle1", "tail1"])
@pytest.mark.parametrize("point", ["ask.Resend", "asked.Resend", "serve.Resend", "served.Resend"])
def test_what_a_round_lacks_comes_though_its_leader_or_who_brings_it_dies(first: str, point: str) -> None:
    outcome = crash(EVICTING, (first, "serve.Close", 0), (ANYONE, point, 0))
    assert outcome.struck.get("crash at a point") == 2
    assert outcome.virtual_s < SECONDS


@pytest.mark.parametrize("seed", range(4))
def test_numbers_that_are_not_finite_at_newcomers_skip_their_steps_without_a_wait(seed: int) -> None:
    """Others find the same, so nobody is left out and nothing is computed without end."""
    scenario = dataclasses.replace(JOINED, seed=seed, symbols=Symbols(spoiled=0.1))
    outcome = crash(scenario)
    assert outcome.virtual_s < SECONDS
