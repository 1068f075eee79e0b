"""Parts against dumb twins."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.swarm.rounds.parts import (
    choose_held,
    complete_parts,
    plan_parts,
)
from swarmd.swarm.wire.messages.fields import PARTS_LIMIT
from swarmd.swarm.wire.messages.round import AveragedPart, Part

OWNERS = st.dictionaries(st.text("abcd", min_size=1, max_size=3), st.floats(0.01, 100.0), min_size=1, max_size=7)


@given(st.integers(0, 5000), OWNERS, st.integers(1, 1000))
def test_parts_cover_every_element_once_within_the_limit(size: int, owners: dict[str, float], limit: int) -> None:
    parts = plan_parts(size, owners, limit)
    assert [element for part in parts for element in range(part.start, part.stop)] == list(range(size))
    assert all(0 < part.stop - part.start <= limit for part in parts)


@given(st.integers(0, 5000), OWNERS)
def test_shares_are_in_proportion_to_weight(size: int, owners: dict[str, float]) -> None:
    shares = dict.fromkeys(owners, 0)
    for part in plan_parts(size, owners):
        shares[part.owner] += part.stop - part.start
    whole = sum(owners.values())
    for owner, weight in owners.items():
        assert abs(shares[owner] - size * weight / whole) <= 1


def test_equal_owners_get_equal_parts_in_order() -> None:
    parts = plan_parts(10, {"b": 1.0, "a": 1.0}, limit=3)
    assert [(part.start, part.stop, part.owner) for part in parts] == [
        (0, 3, "a"),
        (3, 5, "a"),
        (5, 8, "b"),
        (8, 10, "b"),
    ]


def test_the_last_share_ends_with_the_gradient_though_sums_of_weights_are_rounded() -> None:
    weights = {"c": 0.1, "b": 0.2, "a": 0.3}
    assert sum(weights.values()) > 0.3 + 0.2 + 0.1, "in another order it is another number"
    size = 1 << 60
    assert plan_parts(size, weights, limit=size)[-1].stop == size


def test_a_round_without_owners_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        plan_parts(10, {})


@st.composite
def held_parts(draw: st.DrawFn) -> tuple[int, dict[str, list[AveragedPart]]]:
    """A gradient's size, and what some peers have of it from attempts with different borders."""
    size = draw(st.integers(0, 200))
    held: dict[str, list[AveragedPart]] = {}
    for peer in draw(st.lists(st.sampled_from("abc"), unique=True)):
        borders = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=6))})
        pieces = [AveragedPart(start, stop, draw(st.sampled_from("xy"))) for start, stop in itertools.pairwise(borders)]
        held[peer] = [piece for piece in pieces if draw(st.booleans())]
    return size, held


@given(held_parts(), OWNERS, st.integers(1, 50))
def test_held_parts_stay_and_the_rest_is_cut_anew(
    given: tuple[int, dict[str, list[AveragedPart]]], owners: dict[str, float], limit: int
) -> None:
    size, held = given
    chosen = choose_held(held, size)
    for part in chosen:
        assert AveragedPart(part.start, part.stop, part.digest) in held[part.owner]
    parts = complete_parts(size, chosen, owners, limit)
    assert [element for part in parts for element in range(part.start, part.stop)] == list(range(size))
    assert set(chosen) <= set(parts)
    for part in set(parts) - set(chosen):
        assert part.digest == ""
        assert part.owner in owners
        assert 0 < part.stop - part.start <= limit


def test_owners_shares_are_of_all_gaps_together() -> None:
    held = (Part(2, 4, "x", "d"), Part(6, 7, "x", "d"))
    assert complete_parts(10, held, {"a": 3.0, "b": 4.0}) == (
        Part(0, 2, "a"),
        held[0],
        Part(4, 5, "a"),
        Part(5, 6, "b"),
        held[1],
        Part(7, 10, "b"),
    )


@pytest.mark.parametrize(("start", "stop"), [(8, 20), (20, 30), (5, 5), (6, 4), (1 << 60, 1 << 61)])
def test_a_part_that_is_not_within_the_gradient_is_passed_over(start: int, stop: int) -> None:
    held = {"liar": [AveragedPart(start, stop, "x"), AveragedPart(0, 4, "x")]}
    chosen = choose_held(held, 10)
    assert chosen == (Part(0, 4, "liar", "x"),)
    assert complete_parts(10, chosen, {"a": 1.0}) == (*chosen, Part(4, 10, "a"))


def test_however_many_parts_a_peer_claims_a_plan_has_room_for_all() -> None:
    size = 3 * PARTS_LIMIT
    held = {"liar": [AveragedPart(start, start + 1, "x") for start in range(0, size, 3)]}
    parts = complete_parts(size, choose_held(held, size), {"a": 1.0, "b": 1.0})
    assert len(parts) <= PARTS_LIMIT
    assert sum(part.stop - part.start for part in parts) == size


def test_parts_that_touch_are_all_held_and_parts_that_overlap_are_not() -> None:
    low, middle, high = AveragedPart(0, 5, "x"), AveragedPart(5, 10, "x"), AveragedPart(10, 15, "x")
    common = {"a": [middle], "b": [middle, low, high], "c": [AveragedPart(4, 6, "y"), AveragedPart(9, 11, "y")]}
    assert choose_held(common, 15) == (Part(0, 5, "b", "x"), Part(5, 10, "a", "x"), Part(10, 15, "b", "x"))


def test_what_more_peers_have_goes_first() -> None:
    common, rare = AveragedPart(0, 10, "x"), AveragedPart(5, 15, "y")
    assert choose_held({"a": [rare], "b": [common], "c": [common]}, 15) == (Part(0, 10, "b", "x"),)
    assert choose_held({"b": [AveragedPart(0, 10, "z")], "a": [common]}, 10) == (Part(0, 10, "a", "x"),)
