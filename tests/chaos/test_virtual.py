"""The trial in virtual time: every kind of fault can be done there, and the figures follow from what happened."""

import pytest

from benchmarks.chaos.plan import NAMES
from benchmarks.chaos.storm import Storm
from benchmarks.chaos.virtual import costs
from swarmd.sim.world.clock import run_virtual


@pytest.mark.long
@pytest.mark.parametrize("kind", NAMES)
def test_a_few_minutes_under_each_kind_of_fault(kind: str) -> None:
    trial = run_virtual(Storm(0, (kind,), (20.0, 30.0), 120.0).run())
    assert (trial.counts["lost"], trial.counts["duplicated"]) == (0, 0)
    assert any(kind in step.faults for step in trial.steps)
    assert (trial.alive < 1) == (kind not in ("slow", "corrupt"))
    assert 0.3 < trial.kept < 1.2
    assert any(kind in faults for faults, *_ in costs([trial]))


def test_nothing_is_lost_and_the_same_seed_gives_the_same_trial() -> None:
    one, two = (run_virtual(Storm(7, NAMES, (15.0, 30.0), 120.0).run()) for _ in range(2))
    assert one == two
    assert (one.counts["lost"], one.counts["duplicated"]) == (0, 0)
    assert 0.3 < one.kept < 1.2
