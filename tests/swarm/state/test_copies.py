"""Copies of other stages' checkpoints: who keeps which, by chance."""

import random
from collections import Counter

import pytest

from swarmd.swarm.state.copies import COPIES, plan_copies


@pytest.mark.parametrize("seed", range(200))
def test_copies_are_outside_and_as_many_as_can_be(seed: int) -> None:
    rng = random.Random(seed)
    stages = rng.randint(2, 6)
    replicas = [rng.randint(1, 4) for _ in range(stages)]
    places = {f"p{stage}{number}": stage for stage, count in enumerate(replicas) for number in range(count)}
    chosen = plan_copies(stages, places)
    assert set(chosen) == set(places), "everyone keeps one"
    assert all(places[peer] != stage for peer, stage in chosen.items())
    counts = Counter(chosen.values())
    if min(replicas) >= COPIES:
        assert min(counts[stage] for stage in range(stages)) >= COPIES
    assert min(counts[stage] for stage in range(stages)) >= 1, "a stage lives on when it loses all its replicas"


def test_a_single_stage_has_nowhere_to_be_copied() -> None:
    assert plan_copies(1, {"a": 0, "b": 0}) == {}
