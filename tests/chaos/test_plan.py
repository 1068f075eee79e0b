"""Faults that may come, and the daemons that they may strike."""

import random

import pytest

from benchmarks.chaos.plan import FRESH_PROCESS, KINDS, NAMES, Bag, plan_fault

NINE = {0: [0, 3, 6], 1: [1, 4, 7], 2: [2, 5, 8]}


def test_every_kind_comes_once_before_any_comes_again() -> None:
    bag = Bag(random.Random(1), NAMES)
    for _ in range(5):
        assert sorted(bag.draw() for _ in NAMES) == sorted(NAMES)
    first = bag.draw()
    bag.put_back(first)
    assert sorted(bag.draw() for _ in NAMES) == sorted(NAMES)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_stage_loses_its_last_well_replica(kind: object) -> None:
    rng = random.Random(2)
    for _ in range(300):
        well = {stage: rng.sample(range(stage, 9, 3), rng.randint(0, 3)) for stage in range(3)}
        name = rng.choice(NAMES)
        spared = rng.sample(range(9), 2)
        fault = plan_fault(rng, name, well, spared)
        if fault is None:
            continue
        assert len({victim % 3 for victim in fault.victims}) == len(fault.victims) > 0
        if name in FRESH_PROCESS:
            assert not set(fault.victims) & set(spared)
        if name not in ("slow", "corrupt"):
            assert all(set(well[victim % 3]) - set(fault.victims) for victim in fault.victims)


def test_what_is_drawn_can_be_drawn_again() -> None:
    def draw() -> list[object]:
        rng = random.Random(3)
        return [plan_fault(rng, name, NINE) for name in NAMES]

    assert draw() == draw()
    faults = {name: plan_fault(random.Random(4), name, NINE) for name in NAMES}
    assert all(fault is not None for fault in faults.values())
    restart, kill = faults["restart"], faults["kill"]
    assert restart is not None and len(restart.victims) == 3, "a machine holds a peer of every stage"
    assert kill is not None and 1 <= kill.seconds <= 8


def test_a_stage_with_one_replica_is_left_alone() -> None:
    alone = {0: [0], 1: [1, 4], 2: [2, 5]}
    assert plan_fault(random.Random(5), "restart", alone) is None
    for _ in range(50):
        fault = plan_fault(random.Random(6), "kill", alone)
        assert fault is None or fault.victims != (0,)
    assert plan_fault(random.Random(7), "slow", {0: [0], 1: [], 2: []}) is not None, "a slow one goes on working"
