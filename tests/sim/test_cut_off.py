"""What a partition costs: the step in which it happens goes on without those cut off, and they redo nobody's work.

Nine peers, 48 microbatches, a step of 12 s. Every scenario is checked for all promises, too.
"""

import dataclasses
import re

import pytest

from swarmd.sim.faults import Partition
from swarmd.sim.network import Link
from swarmd.sim.play import play
from swarmd.sim.scenario import Scenario

CALM = Scenario(replicas=(3, 3, 3), microbatches=48, steps=3, speeds=(0.2,), link=Link(delay_s=0.0005))
STRUCK = 2  # the step


def seconds_of_step(at_s: float, seconds: float, *cut_off: str) -> tuple[float, str]:
    """What the struck step took, and what happened in it."""
    rest = tuple(peer for peer in CALM.peers if peer not in cut_off)
    outcome = play(dataclasses.replace(CALM, faults=(Partition(at_s, (cut_off, rest), seconds),)), trace=True)
    assert outcome.passed, outcome.violations
    commits: dict[int, float] = {}
    for time_s, step in re.findall(r"^([\d.]+) s .* Commit \((\d+)\)$", outcome.transcript, re.MULTILINE):
        commits.setdefault(int(step), float(time_s))
    return commits[STRUCK] - commits[STRUCK - 1], outcome.transcript


def test_whoever_is_cut_off_with_a_whole_pipeline_does_not_do_anew_what_others_have_done() -> None:
    """It used to: 14 microbatches on one device, which were then subtracted one by one; the step took 38 s."""
    seconds, transcript = seconds_of_step(20.0, 14.0, "head3", "middle3", "tail3")
    done = re.findall(rf"middle3 +forward \({STRUCK}, \d+\)", transcript)
    assert seconds < 30
    assert len(done) < 30, "a third of the step, and what came back to it"


def test_nobody_waits_for_the_sum_of_one_who_is_silent() -> None:
    """The round used to ask it until it was dropped, and to subtract all that it had when it came back: 28 s."""
    seconds, _ = seconds_of_step(16.0, 20.0, "middle1")
    assert seconds < 24


@pytest.mark.parametrize("cut_off", [("head2", "middle2", "tail2"), ("head1", "middle1")], ids=" ".join)
def test_a_short_cut_costs_little(cut_off: tuple[str, ...]) -> None:
    """Those who were passed over too soon would take their places back, at the price of half a step."""
    seconds, _ = seconds_of_step(16.0, 8.0, *cut_off)
    assert seconds < 22
