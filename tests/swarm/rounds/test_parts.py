"""Parts and coverage against dumb twins."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.swarm.rounds.parts import (
    Coverage,
    choose_held,
    complete_parts,
    find_superfluous,
    measure_coverage,
    plan_parts,
)
from swarmd.swarm.wire.messages.round import HeldPart, Part

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
        (0, 3, "a"), (3, 5, "a"), (5, 8, "b"), (8, 10, "b"),
    ]  # fmt: skip


def test_a_round_without_owners_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        plan_parts(10, {})


HOLDINGS = st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 7), unique=True), max_size=4)


@given(HOLDINGS)
def test_what_coverage_demands_makes_every_index_count_once(holdings: dict[str, list[int]]) -> None:
    coverage = measure_coverage(holdings, 8)
    left = {peer: set(indices) for peer, indices in holdings.items()}
    for peer, indices in coverage.surplus.items():
        assert set(indices) <= left[peer], "nobody subtracts what it hasn't"
        left[peer] -= set(indices)
    assert [sum(index in it for it in left.values()) for index in range(8)] == [
        0 if index in coverage.missing else 1 for index in range(8)
    ]
    assert coverage == measure_coverage(dict(sorted(holdings.items(), reverse=True)), 8), "whatever the order"
    assert coverage.exact == (not coverage.missing and not coverage.surplus)


@pytest.mark.parametrize(
    ("holdings", "missing", "surplus"),
    [
        ({"a": [0, 2], "b": [1]}, (), {}),
        ({"a": [0, 2], "b": [0]}, (1,), {"b": (0,)}),  # equals: the lower id counts
        ({"a": [0, 1], "b": [0], "c": [1, 2]}, (), {"b": (0,), "c": (1,)}),
        ({"a": [0, 1, 2], "b": [0, 1], "c": [2]}, (), {"b": (0,), "a": (1,), "c": (2,)}),  # they share the work
        ({"a": [0], "b": [0], "c": [0, 1, 2]}, (), {"b": (0,), "c": (0,)}),
        ({}, (0, 1, 2), {}),
    ],
)
def test_whose_share_counts(
    holdings: dict[str, list[int]], missing: tuple[int, ...], surplus: dict[str, tuple[int, ...]]
) -> None:
    assert measure_coverage(holdings, 3) == Coverage(missing, surplus)


@given(HOLDINGS)
def test_without_the_superfluous_there_is_no_more_to_do_and_nobody_else_is_superfluous(
    holdings: dict[str, list[int]],
) -> None:
    def to_do(holdings: dict[str, list[int]]) -> int:
        coverage = measure_coverage(holdings, 12)
        return len(coverage.missing) + sum(map(len, coverage.surplus.values()))

    left = {peer: it for peer, it in holdings.items() if peer not in find_superfluous(holdings)}
    assert to_do(left) <= to_do(holdings)
    assert not find_superfluous(left)


def test_of_two_of_whom_one_is_superfluous_the_one_with_more_to_subtract_goes() -> None:
    assert find_superfluous({"a": [0], "b": [0, 1], "c": [1, 2]}) == {"b"}
    assert find_superfluous({"a": [0], "b": [0]}) == {"a"}
    assert find_superfluous({"a": [0], "b": []}) == set()


def test_one_whose_indices_nearly_all_others_have_is_superfluous_though_some_must_be_done_again() -> None:
    back = list(range(10))
    assert find_superfluous(
        {"back": back, "b": [*range(4), 20, 21, 22, 23, 24], "c": [4, 5, 6, 7, 30, 31, 32, 33, 34]}
    ) == {"back"}
    assert find_superfluous({"back": back, "b": [*range(4), 20, 21, 22, 23, 24]}) == set(), "six are as dear as four"


@st.composite
def held_parts(draw: st.DrawFn) -> tuple[int, dict[str, list[HeldPart]]]:
    """A gradient's size, and what some peers have of it from attempts with different borders."""
    size = draw(st.integers(0, 200))
    held: dict[str, list[HeldPart]] = {}
    for peer in draw(st.lists(st.sampled_from("abc"), unique=True)):
        borders = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=6))})
        pieces = [HeldPart(start, stop, draw(st.sampled_from("xy"))) for start, stop in itertools.pairwise(borders)]
        held[peer] = [piece for piece in pieces if draw(st.booleans())]
    return size, held


@given(held_parts(), OWNERS, st.integers(1, 50))
def test_held_parts_stay_and_the_rest_is_cut_anew(
    given: tuple[int, dict[str, list[HeldPart]]], owners: dict[str, float], limit: int
) -> None:
    size, held = given
    chosen = choose_held(held)
    for part in chosen:
        assert HeldPart(part.start, part.stop, part.digest) in held[part.owner]
    parts = complete_parts(size, chosen, owners, limit)
    assert [element for part in parts for element in range(part.start, part.stop)] == list(range(size))
    assert set(chosen) <= set(parts)
    for part in set(parts) - set(chosen):
        assert part.digest == ""
        assert part.owner in owners
        assert part.stop - part.start <= limit


def test_what_more_peers_have_goes_first() -> None:
    common, rare = HeldPart(0, 10, "x"), HeldPart(5, 15, "y")
    assert choose_held({"a": [rare], "b": [common], "c": [common]}) == (Part(0, 10, "b", "x"),)
    assert choose_held({"b": [HeldPart(0, 10, "z")], "a": [common]}) == (Part(0, 10, "a", "x"),)
