"""Who should move, in tables, by properties, and against a dumb twin that tries every placement."""

import dataclasses
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.config import ModelConfig
from swarmd.swarm.balance.rule import (
    MOVES_AT_MOST,
    Balance,
    Candidate,
    StageLoad,
    Terms,
    download_seconds,
    in_order,
    may_spare,
    pays,
    plan_balance,
    plan_place,
    plan_published,
    stage_works,
    with_move,
)
from swarmd.swarm.history.record import Move

FREE = Terms(0.0, 0.0)
Placement = list[list[float]]
"""Of each stage, the powers of its peers."""


def name(stage: int, number: int) -> str:
    return f"s{stage}p{number}"


def loads_of(placement: Placement, rested: bool = True) -> list[StageLoad]:
    return [
        StageLoad(
            sum(powers),
            len(powers),
            in_order(Candidate(power, name(stage, number)) for number, power in enumerate(powers)) if rested else (),
        )
        for stage, powers in enumerate(placement)
    ]


def plan(placement: Placement, works: list[float] | None = None, terms: Terms = FREE) -> Balance:
    return plan_balance(loads_of(placement), works or [1.0] * len(placement), terms)


def equal(*counts: int) -> Placement:
    return [[1.0] * count for count in counts]


def moved(placement: Placement, moves: tuple[Move, ...]) -> Placement:
    """The placement once the moves are done. Each must be of a peer that is there."""
    peers = {name(at, number): power for at, powers in enumerate(placement) for number, power in enumerate(powers)}
    where = {name(at, number): at for at, powers in enumerate(placement) for number in range(len(powers))}
    for move in moves:
        assert where[move.peer] == move.source
        where[move.peer] = move.target
    return [[peers[peer] for peer, at in where.items() if at == stage] for stage in range(len(placement))]


def least(placement: Placement, works: list[float] | None = None) -> float:
    return min(sum(powers) / work for powers, work in zip(placement, works or [1.0] * len(placement), strict=True))


# ------------------------------------------------------------------------------------------------- our rule


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((5, 1, 1), [2, 2, 3]),
        ((3, 2, 2), [2, 2, 3]),
        ((2, 2, 2), [2, 2, 2]),
        ((4, 2, 2, 2, 4, 4), [3, 3, 3, 3, 3, 3]),
        ((1, 1), [1, 1]),
        ((9, 1, 1, 1), [3, 3, 3, 3]),
        ((13, 12, 11), [12, 12, 12]),
        ((7,), [7]),
    ],
)
def test_equal_peers_are_spread_evenly_by_one_plan(before: tuple[int, ...], after: list[int]) -> None:
    placement = equal(*before)
    assert sorted(map(len, moved(placement, plan(placement).moves))) == after


def test_no_more_peers_move_than_it_takes() -> None:
    assert len(plan(equal(5, 1, 1)).moves) == 2
    assert len(plan(equal(4, 2, 2, 2, 4, 4)).moves) == 3
    assert plan(equal(4, 3, 3)).moves == ()


def test_a_stage_that_is_twice_the_work_gets_twice_the_peers() -> None:
    placement = equal(3, 3, 3)
    assert [len(it) for it in moved(placement, plan(placement, [1.0, 1.0, 2.0]).moves)] == [2, 3, 4]


def test_of_peers_of_different_speeds_the_one_that_fits_goes() -> None:
    assert plan([[4.0, 2.0, 1.0, 1.0], [4.0]]).moves == (Move("s0p1", 0, 1),)
    assert plan([[4.0, 4.0, 4.0], [4.0]]).moves == (Move("s0p0", 0, 1),)


def test_two_change_places_where_no_move_helps() -> None:
    placement = [[8.0, 8.0], [2.0, 2.0]]
    planned = plan(placement)
    assert sorted((move.source, move.target) for move in planned.moves) == [(0, 1), (1, 0)]
    assert least(moved(placement, planned.moves)) == planned.after == 10.0


def test_a_lone_replica_never_goes() -> None:
    assert plan([[8.0], [1.0, 1.0]]).moves == ()
    assert plan([[8.0], [1.0]]).moves == ()


def test_more_replicas_may_be_asked_for() -> None:
    placement = equal(4, 1)
    assert len(plan_balance(loads_of(placement), [1.0, 1.0], Terms(0.0, 0.0, minimum=4)).moves) == 0
    assert len(plan_balance(loads_of(placement), [1.0, 1.0], Terms(0.0, 0.0, minimum=3)).moves) == 1


def test_who_has_come_lately_stays() -> None:
    assert plan_balance(loads_of(equal(5, 1), rested=False), [1.0, 1.0], FREE).moves == ()


def test_only_who_has_the_data_becomes_a_head() -> None:
    blind = tuple(Candidate(1.0, f"blind{number}", has_data=False) for number in range(4))
    loads = [StageLoad(1.0, 1, (Candidate(1.0, "head"),)), StageLoad(4.0, 4, blind)]
    assert plan_balance(loads, [1.0, 1.0], FREE).moves == ()
    loads[1] = StageLoad(5.0, 5, (*blind, Candidate(1.0, "seer")))
    assert plan_balance(loads, [1.0, 1.0], FREE).moves == (Move("seer", 1, 0),)


def test_nobody_goes_where_its_device_is_too_small() -> None:
    """Also not in exchange for another. What nobody knows limits nothing."""
    small = tuple(Candidate(1.0, f"small{number}", memory_bytes=16e9) for number in range(4))
    terms = dataclasses.replace(FREE, needs=(15e9, 20e9))
    loads = [StageLoad(4.0, 4, small), StageLoad(1.0, 1, ())]
    assert plan_balance(loads, [1.0, 1.0], terms).moves == ()
    loads[0] = StageLoad(5.0, 5, (*small, Candidate(1.0, "unknown")))
    assert plan_balance(loads, [1.0, 1.0], terms).moves == (Move("unknown", 0, 1),)
    fast = tuple(Candidate(5.0, f"fast{number}", memory_bytes=16e9) for number in range(2))
    slow = tuple(Candidate(1.0, f"slow{number}", memory_bytes=80e9) for number in range(2))
    loads = [StageLoad(10.0, 2, fast), StageLoad(2.0, 2, slow)]
    assert len(plan_balance(loads, [1.0, 1.0], FREE).moves) > 0
    assert plan_balance(loads, [1.0, 1.0], terms).moves == ()


def test_who_is_on_the_way_counts_where_it_goes() -> None:
    loads = with_move(loads_of(equal(3, 1)), Move("s0p0", 0, 1), 1.0)
    assert [(load.power, load.staying) for load in loads] == [(2.0, 2), (2.0, 1)]
    assert plan_balance(loads, [1.0, 1.0], FREE).moves == ()


def test_an_empty_stage_waits_for_whoever_has_its_state() -> None:
    assert plan(equal(3, 0, 3)).moves == ()


def test_a_move_must_pay_for_its_download() -> None:
    placement = [[1.0] * 20, [1.0] * 18]
    assert plan(placement).gain == pytest.approx(1 / 18)
    assert len(plan(placement, terms=Terms(600.0)).moves) == 1
    assert plan(placement, terms=Terms(3000.0)).moves == (), "0.05 of 10 minutes is less than a fifth of 50"


def test_small_differences_of_speed_move_nobody() -> None:
    rng = random.Random(5)
    for _ in range(300):
        noisy = [
            [rng.uniform(0.87, 1.15) for _ in range(count)] for count in rng.choice([(3, 2, 2), (4, 4), (6, 6, 6)])
        ]
        assert plan(noisy).moves == ()


def test_it_says_why() -> None:
    planned = plan(equal(5, 1, 1))
    assert planned.reason(planned.moves[0]) == (
        "stage 1 needs it more than stage 0: 100% more throughput, with 1 other move"
    )


def test_whoever_grants_a_move_asks_whether_it_still_helps() -> None:
    loads, move = loads_of(equal(5, 1, 1)), Move("s0p0", 0, 1)
    assert pays(move, 1.0, loads, [1.0] * 3)
    once = with_move(loads, Move("s0p1", 0, 1), 1.0)
    twice = with_move(once, Move("s0p2", 0, 1), 1.0)
    assert pays(move, 1.0, once, [1.0] * 3)
    assert not pays(move, 1.0, twice, [1.0] * 3), "two peers are as well where they are as three"


powers = st.sampled_from([1.0, 1.0, 1.0, 2.0, 4.0]) | st.floats(0.2, 5.0)
placements = st.lists(st.lists(powers, min_size=1, max_size=6), min_size=1, max_size=6)
terms_of = st.builds(Terms, st.floats(0.0, 500.0), st.floats(0.0, 60.0), st.integers(1, 3))


@given(placements, terms_of, st.lists(st.floats(0.5, 4.0), min_size=6, max_size=6))
@settings(deadline=None, max_examples=200)
def test_every_plan_gains_and_leaves_enough_everywhere(placement: Placement, terms: Terms, works: list[float]) -> None:
    works = works[: len(placement)]
    planned = plan(placement, works, terms)
    after = moved(placement, planned.moves)
    assert least(after, works) == pytest.approx(planned.after)
    assert planned.before == pytest.approx(least(placement, works))
    assert len({move.peer for move in planned.moves}) == len(planned.moves) <= 2 * MOVES_AT_MOST
    if planned.moves:
        assert planned.gain >= 0.02 - 1e-9
        for stage, peers in enumerate(placement):
            leaving = sum(move.source == stage for move in planned.moves)
            assert not leaving or len(peers) - leaving >= terms.minimum
        named = {move.source for move in planned.moves}
        swapped = any(move.target == other.source for move in planned.moves for other in planned.moves)
        assert swapped or all(may_spare(stage, loads_of(placement), works) for stage in named)


@given(placements, terms_of)
@settings(deadline=None, max_examples=200)
def test_it_settles_even_if_nobody_rests(placement: Placement, terms: Terms) -> None:
    """Each plan raises the least capacity, so none can come again."""
    for _ in range(40):
        planned = plan(placement, terms=terms)
        if not planned.moves:
            return
        placement = moved(placement, planned.moves)
    pytest.fail("it never settles")


def optimum(placement: Placement) -> float:
    """The dumb twin: every placement there is."""
    powers = [power for stage in placement for power in stage]
    stages = range(len(placement))
    best = 0.0
    for where in itertools.product(stages, repeat=len(powers)):
        have = [0.0] * len(placement)
        for at, power in zip(where, powers, strict=True):
            have[at] += power
        best = max(best, min(have))
    return best


def test_equal_peers_end_as_a_dumb_twin_would_have_them() -> None:
    rng = random.Random(2)
    for _ in range(150):
        placement = equal(*(rng.randint(1, 4) for _ in range(rng.randint(2, 3))))
        if sum(map(len, placement)) <= 8:
            assert plan(placement).after == optimum(placement), placement


def settle(placement: Placement) -> Placement:
    while moves := plan(placement).moves:
        placement = moved(placement, moves)
    return placement


def test_unequal_peers_end_near_what_a_dumb_twin_finds() -> None:
    rng, shares = random.Random(3), list[float]()
    for _ in range(150):
        placement = [[rng.choice([1.0, 2.0, 4.0]) for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(2, 3))]
        if sum(map(len, placement)) <= 8:
            shares.append(least(settle(placement)) / optimum(placement))
    assert sum(shares) / len(shares) > 0.9
    assert min(shares) >= 0.5


# ------------------------------------------------------------------------------------------------- newcomers


@pytest.mark.parametrize(
    ("counts", "works", "stages", "wanted"),
    [
        ((2, 1, 2), (1, 1, 1), (0, 1, 2), 1),
        ((2, 2, 2), (1, 1, 1), (0, 1, 2), 0),
        ((2, 2, 2), (1, 1, 1.5), (0, 1, 2), 2),
        ((0, 2, 1), (1, 1, 1), (1, 2), 2),
        ((1, 2), (1, 1), (), None),
    ],
)
def test_a_newcomer_goes_where_capacity_is_least(
    counts: tuple[int, ...], works: tuple[float, ...], stages: tuple[int, ...], wanted: int | None
) -> None:
    assert plan_place(loads_of(equal(*counts)), works, stages) == wanted


def test_newcomers_placed_by_it_leave_nothing_to_move() -> None:
    placement: Placement = [[], [], [], []]
    for _ in range(30):
        stage = plan_place(loads_of(placement), [1.0] * 4, range(4))
        assert stage is not None
        placement[stage].append(1.0)
        assert plan(placement).moves == ()


# ------------------------------------------------------------------------------------------------- the published rule


@pytest.mark.parametrize(
    ("queues", "move"),
    [
        ([{"a": 1, "b": 2}, {"c": 5}], Move("a", 0, 1)),
        ([{"a": 9}, {"b": 1, "c": 1}, {"d": 3}], Move("b", 1, 0)),
        ([{"a": 2}, {"b": 2}], None),
        ([{"a": 5}, {"b": 0}, {"c": 0}, {"d": 5}], Move("b", 1, 0)),
        ([{"a": 5}, {}], None),
        ([{"a": 3}], None),
    ],
)
def test_the_published_rule_moves_one_peer_from_the_least_to_the_most_loaded(
    queues: list[dict[str, float]], move: Move | None
) -> None:
    assert plan_published(queues) == move


def test_the_published_rule_never_settles_where_loads_differ_a_little() -> None:
    """Three peers in two stages go to and fro for ever; ours leaves them."""
    stages = [{"a", "b"}, {"c"}]
    seen = set()
    for _ in range(4):
        load = plan_published([{peer: 1 / len(peers) ** 2 for peer in sorted(peers)} for peers in stages])
        assert load is not None
        stages[load.source].discard(load.peer)
        stages[load.target].add(load.peer)
        seen.add(tuple(map(len, stages)))
    assert seen == {(1, 2), (2, 1)}
    assert plan(equal(2, 1)).moves == ()


# ------------------------------------------------------------------------------------------------- works and costs


def test_the_last_stage_has_the_vocabulary_besides() -> None:
    model = ModelConfig(vocabulary=1000, hidden=10, ffn=20, heads=1, layers=6, stages=3, sequence_length=8)
    assert stage_works(model)[:2] == (1.0, 1.0)
    assert stage_works(model)[2] == pytest.approx(1 + 10_000 / (2 * 1000))
    assert stage_works(ModelConfig(10, 4, 4, 1, 1, 1, 8))[0] > 1


def test_a_download_is_the_state_over_the_line() -> None:
    model = ModelConfig(vocabulary=1000, hidden=1000, ffn=2000, heads=1, layers=6, stages=3, sequence_length=8)
    assert math.isclose(download_seconds(model), 12 * 2 * 10e6 / 25e6)
