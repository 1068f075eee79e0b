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
    _Placement,
    capacities,
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
"""The powers of each stage's peers."""


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


@pytest.mark.parametrize(
    ("placement", "after"),
    [
        ([[8.0, 8.0], [2.0, 2.0]], 10.0),  # by two moves, each of which helps
        ([[5.0, 5.0], [3.0, 3.0]], 8.0),  # by an exchange
        ([[0.005, 0.005], [0.003, 0.003]], 0.008),
    ],
)
def test_two_change_places(placement: Placement, after: float) -> None:
    planned = plan(placement)
    assert sorted((move.source, move.target) for move in planned.moves) == [(0, 1), (1, 0)]
    assert least(moved(placement, planned.moves)) == planned.after == after


def test_nobody_changes_places_with_a_lone_replica_or_one_that_has_come_lately() -> None:
    fast = StageLoad(10.0, 2, (Candidate(8.0, "fast"),))
    assert plan_balance([fast, StageLoad(7.0, 1, (Candidate(6.0, "lone"),))], [1.0, 1.0], FREE).moves == ()
    assert plan_balance([fast, StageLoad(7.0, 2)], [1.0, 1.0], FREE).moves == ()
    planned = plan_balance([fast, StageLoad(7.0, 2, (Candidate(6.0, "slow"),))], [1.0, 1.0], FREE)
    assert planned.moves == (Move("fast", 0, 1), Move("slow", 1, 0))


def test_the_only_one_that_may_go_goes() -> None:
    loads = [StageLoad(6.0, 3, (Candidate(2.0, "a"),)), StageLoad(2.0, 1)]
    assert plan_balance(loads, [1.0, 1.0], FREE).moves == (Move("a", 0, 1),)


@pytest.mark.parametrize(
    ("it", "stage", "can"),
    [
        (Candidate(1.0), 0, True),
        (Candidate(1.0, has_data=False), 0, False),
        (Candidate(1.0, has_data=False), 1, True),
        (Candidate(1.0, memory_bytes=15.0), 0, True),
        (Candidate(1.0, memory_bytes=15.0), 1, False),
        (Candidate(1.0, memory_bytes=1.0), 1, False),
        (Candidate(1.0, memory_bytes=20.0, has_data=False), 1, True),
        (Candidate(1.0, memory_bytes=20.0, has_data=False), 0, False),
    ],
)
def test_who_can_serve_a_stage_has_its_memory_and_at_the_first_the_data(it: Candidate, stage: int, can: bool) -> None:
    assert Terms(needs=(15.0, 20.0)).can_serve(it, stage) == can


def best_step(loads: list[StageLoad], works: list[float], terms: Terms) -> tuple[float, float, bool] | None:
    """The dumb twin of a step of the search: the lesser capacity afterwards, what the source has left, and True if two
    change places.
    """
    have = capacities(loads, works)
    low = min(have)
    target = have.index(low)
    sources = [at for at in range(len(loads)) if at != target and loads[at].staying > terms.minimum]
    nobody = Candidate(0.0)

    def steps(back: tuple[Candidate, ...]) -> list[tuple[float, float, bool]]:
        found = []
        for source in sources:
            for goes, comes in itertools.product(loads[source].candidates, back):
                more = goes.power - comes.power
                left = have[source] - more / works[source]
                worst = min(left, low + more / works[target])
                if worst > low and terms.can_serve(goes, target) and terms.can_serve(comes, source):
                    found.append((worst, left, comes is not nobody))
        return found

    exchange = loads[target].candidates if loads[target].staying > terms.minimum else ()
    return max(steps((nobody,)) or steps(exchange), default=None)


def test_each_step_is_the_one_that_a_dumb_twin_finds() -> None:
    rng, kinds = random.Random(7), set()
    for _ in range(1500):
        works = [rng.choice([0.5, 1.0, 2.0, 4.0]) for _ in range(rng.randint(2, 4))]
        loads = []
        for stage in range(len(works)):
            peers = [
                Candidate(
                    float(rng.randint(1, 9)), name(stage, number), rng.random() < 0.7, rng.choice([0.0, 1.0, 2.0])
                )
                for number in range(rng.randint(1, 4))
            ]
            stay = sum(rng.randint(1, 9) for _ in range(rng.randint(0, 1)))
            power = sum(it.power for it in peers) + stay
            loads.append(StageLoad(power, len(peers) + (stay > 0), in_order(it for it in peers if rng.random() < 0.9)))
        needs = tuple(rng.choice([1.0, 2.0]) for _ in works) if rng.random() < 0.5 else ()
        terms = Terms(minimum=rng.randint(1, 2), needs=needs)
        step, twin = _Placement(loads, works, terms).improve(), best_step(loads, works, terms)
        found = (step.worst, step.spare, step.comes is not None) if step is not None else None
        assert found == twin, (loads, works, terms)
        kinds.add(twin and twin[2])
    assert kinds == {None, False, True}, "all three happened"


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
    assert [[it.peer for it in load.candidates] for load in loads] == [["s0p1", "s0p2"], ["s1p0"]]
    assert plan_balance(loads, [1.0, 1.0], FREE).moves == ()


def test_an_empty_stage_waits_for_whoever_has_its_state() -> None:
    assert plan(equal(3, 0, 3)).moves == ()
    assert plan(equal(3, 0, 3)).gain == 0.0


def test_a_move_must_pay_for_its_download() -> None:
    placement = [[1.0] * 20, [1.0] * 18]
    assert plan(placement).gain == pytest.approx(1 / 18)
    assert len(plan(placement, terms=Terms(600.0)).moves) == 1
    assert plan(placement, terms=Terms(3000.0)).moves == (), "0.05 of 10 minutes is less than a fifth of 50"


def test_moves_that_help_together_pay_together() -> None:
    """Two moves of a peer of one microbatch per second gain one per second: 600 until the next."""
    assert len(plan(equal(5, 1, 1), terms=Terms(0.0, 290.0)).moves) == 2
    assert plan(equal(5, 1, 1), terms=Terms(0.0, 310.0)).moves == ()
    assert len(plan(equal(3, 1), terms=Terms(0.0, 590.0)).moves) == 1
    assert plan(equal(3, 1), terms=Terms(0.0, 600.0)).moves == (), "it would be as broad as it is long"


def test_a_move_costs_what_the_mover_would_have_done_where_it_was() -> None:
    assert len(plan(equal(3, 1), [2.0, 2.0], Terms(0.0, 500.0)).moves) == 1, "250 of 300"


def test_what_costs_nothing_pays_for_slow_peers_too() -> None:
    assert len(plan([[0.001] * 3, [0.001]]).moves) == 1
    assert len(plan([[0.001] * 9, [0.001]]).moves) == 4


def test_a_plan_ends_after_so_many_steps() -> None:
    assert len(plan(equal(201, 1)).moves) == MOVES_AT_MOST
    stages = MOVES_AT_MOST + 1
    assert plan(equal(2 * stages, *[1] * stages)).moves == (), "they would help only all together"


def test_small_differences_of_speed_move_nobody() -> None:
    rng = random.Random(5)
    for _ in range(300):
        noisy = [
            [rng.uniform(0.87, 1.15) for _ in range(count)] for count in rng.choice([(3, 2, 2), (4, 4), (6, 6, 6)])
        ]
        assert plan(noisy).moves == ()


@pytest.mark.parametrize(
    ("counts", "beside"), [((3, 1), ""), ((5, 1, 1), ", with 1 other move"), ((7, 1, 1, 1), ", with 2 other moves")]
)
def test_it_says_why(counts: tuple[int, ...], beside: str) -> None:
    planned = plan(equal(*counts))
    assert planned.reason(planned.moves[0]) == f"stage 1 needs it more than stage 0: 100% more throughput{beside}"


def test_whoever_grants_a_move_asks_whether_it_still_helps() -> None:
    loads, move = loads_of(equal(5, 1, 1)), Move("s0p0", 0, 1)
    assert pays(move, 1.0, loads, [1.0] * 3)
    once = with_move(loads, Move("s0p1", 0, 1), 1.0)
    twice = with_move(once, Move("s0p2", 0, 1), 1.0)
    assert pays(move, 1.0, once, [1.0] * 3)
    assert not pays(move, 1.0, twice, [1.0] * 3), "two peers are as well where they are as three"


@pytest.mark.parametrize(
    ("counts", "works", "power", "helps"),
    [
        ((2, 1), [1.0, 1.0], 1.0, False),
        ((3, 1), [4.0, 2.0], 1.0, False),  # two at a stage of work 4 are as good as one at a stage of work 2
        ((4, 1), [4.0, 2.0], 1.0, True),
        ((4, 1), [1.0, 1.0], 0.0, False),
    ],
)
def test_a_move_helps_if_both_stages_are_better_off_than_the_target_is(
    counts: tuple[int, ...], works: list[float], power: float, helps: bool
) -> None:
    assert pays(Move("s0p0", 0, 1), power, loads_of(equal(*counts)), works) == helps


@pytest.mark.parametrize(
    ("power", "candidates", "other", "may"),
    [
        (105.0, (2.0, 50.0), 100.0, True),
        (104.0, (2.0,), 100.0, False),  # exactly the share that a plan must gain
        (102.0, (2.0,), 100.0, False),
        (100.0, (2.0,), 100.0, False),
        (200.0, (2.0,), 300.0, False),
        (500.0, (), 100.0, False),
    ],
)
def test_a_stage_may_spare_its_weakest_if_it_is_not_the_slowest_then(
    power: float, candidates: tuple[float, ...], other: float, may: bool
) -> None:
    load = StageLoad(power, 4, tuple(map(Candidate, candidates)))
    assert may_spare(0, [load, StageLoad(other, 4)], [1.0, 1.0]) == may
    assert may_spare(1, [StageLoad(other * 2, 4), load], [2.0, 1.0]) == may


def test_each_stage_has_a_work() -> None:
    with pytest.raises(ValueError, match="shorter"):
        capacities(loads_of(equal(1, 1)), [1.0])


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
        ([{"a": 2, "b": 1}, {"c": 5}], Move("b", 0, 1)),
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
    shared = dataclasses.replace(model, shared=True)
    assert math.isclose(download_seconds(shared), 12 * 10e6 / 25e6), "one block, however often it is applied"
