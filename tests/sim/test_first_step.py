"""The first step, whose one acceptor is the run's founder: who dies in it, and who alone has its record then."""

import dataclasses

import pytest

from swarmd.sim.campaign.play import play, report
from swarmd.sim.faults.logical import PointFault
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.points import GROUPS, all_points
from swarmd.values import PeerId

SCENARIO = Scenario(replicas=(3, 2), microbatches=4, steps=3)
FOUNDER, *OTHERS = SCENARIO.peers
DECIDING = [point for group in ("lease", "round", "commit") for point in GROUPS[group].points()]


def check(*faults: PointFault) -> None:
    scenario = dataclasses.replace(SCENARIO, faults=faults)
    outcome = play(scenario, trace=False)
    assert outcome.passed, "\n".join(report(scenario, outcome))


def dies(peer: PeerId, point: str, **more: float) -> PointFault:
    return PointFault(0.0, peer, 1, point, "crash", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("only", OTHERS)
@pytest.mark.parametrize("others", ["don't hear of it", "come back without it", "die or don't hear of it"])
def test_where_one_peer_alone_has_the_first_record_nobody_stands_still(only: PeerId, others: str) -> None:
    """The founder tells it and dies. Those that were in the round see that the record says what came out of it; those
    that weren't do the step again, and the one that has the record crosses over to them.
    """
    rest = [peer for peer in OTHERS if peer != only]
    unheard = [PointFault(0.0, peer, 1, "serve.Commit", "drop") for peer in rest]
    faults = {
        "don't hear of it": unheard,
        "come back without it": [dies(peer, "serve.Commit", back_s=1.0) for peer in rest],
        "die or don't hear of it": [dies(rest[0], "serve.Commit"), *unheard[1:]],
    }
    check(dies(FOUNDER, "asked.Commit"), *faults[others])


@pytest.mark.parametrize("point", DECIDING)
def test_wherever_the_founder_dies_in_the_first_step_the_others_go_on(point: str) -> None:
    check(dies(FOUNDER, point))


@pytest.mark.long
@pytest.mark.parametrize("peer", SCENARIO.peers)
@pytest.mark.timeout(900)
def test_wherever_a_peer_dies_in_the_first_step_the_others_go_on(peer: PeerId) -> None:
    for point in all_points():
        for more in ({}, {"back_s": 1.0}):
            check(dies(peer, point, **more))
