"""What must be done before every index of a step counts once, and whose sum is not worth it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.swarm.rounds.coverage import Coverage, find_superfluous, measure_coverage

HOLDINGS = st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 7), unique=True), max_size=4)


def named(peer: str) -> bool:
    """A record names everyone."""
    return True


@given(HOLDINGS)
def test_what_coverage_demands_makes_every_index_count_once(holdings: dict[str, list[int]]) -> None:
    coverage = measure_coverage(holdings, 8, named)
    left = {peer: set(indices) for peer, indices in holdings.items()}
    for peer, indices in coverage.surplus.items():
        assert set(indices) <= left[peer], "nobody subtracts what it hasn't"
        left[peer] -= set(indices)
    assert [sum(index in it for it in left.values()) for index in range(8)] == [
        0 if index in coverage.missing else 1 for index in range(8)
    ]
    assert coverage == measure_coverage(dict(sorted(holdings.items(), reverse=True)), 8, named), "whatever the order"
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
    assert measure_coverage(holdings, 3, named) == Coverage(missing, surplus)


@given(HOLDINGS)
def test_without_the_superfluous_there_is_no_more_to_do_and_nobody_else_is_superfluous(
    holdings: dict[str, list[int]],
) -> None:
    def to_do(holdings: dict[str, list[int]]) -> int:
        coverage = measure_coverage(holdings, 12, named)
        return len(coverage.missing) + sum(map(len, coverage.surplus.values()))

    left = {peer: it for peer, it in holdings.items() if peer not in find_superfluous(holdings, named)}
    assert to_do(left) <= to_do(holdings)
    assert not find_superfluous(left, named)


def test_of_two_of_whom_one_is_superfluous_the_one_with_more_to_subtract_goes() -> None:
    assert find_superfluous({"a": [0], "b": [0, 1], "c": [1, 2]}, named) == {"b"}
    assert find_superfluous({"a": [0], "b": [0]}, named) == {"a"}
    assert find_superfluous({"a": [0], "b": []}, named) == set()


def test_one_whose_indices_nearly_all_others_have_is_superfluous_though_some_must_be_done_again() -> None:
    back = list(range(10))
    assert find_superfluous(
        {"back": back, "b": [*range(4), 20, 21, 22, 23, 24], "c": [4, 5, 6, 7, 30, 31, 32, 33, 34]}, named
    ) == {"back"}
    assert find_superfluous({"back": back, "b": [*range(4), 20, 21, 22, 23, 24]}, named) == set(), (
        "six are as dear as four"
    )


# ------------------------------------------------------------------------------------------------- newcomers


@given(HOLDINGS, st.sets(st.sampled_from("abcd")))
def test_what_newcomers_say_makes_nobody_else_subtract_or_superfluous(
    holdings: dict[str, list[int]], newcomers: set[str]
) -> None:
    def named(peer: str) -> bool:
        return peer not in newcomers

    old = {peer: indices for peer, indices in holdings.items() if named(peer)}
    alone, together = (measure_coverage(it, 8, named) for it in (old, holdings))
    assert {peer: it for peer, it in together.surplus.items() if named(peer)} == alone.surplus
    assert find_superfluous(holdings, named) - newcomers == find_superfluous(old, named)
    left = {peer: set(indices) - set(together.surplus.get(peer, ())) for peer, indices in holdings.items()}
    assert [sum(index in it for it in left.values()) for index in range(8)] == [
        0 if index in together.missing else 1 for index in range(8)
    ]


def test_a_newcomer_whose_indices_others_have_is_left_out_and_not_those() -> None:
    holdings = {"x": [0, 1, 2, 3], "a": [0, 1], "b": [2, 3]}
    assert find_superfluous(holdings, lambda peer: peer != "x") == {"x"}
    assert measure_coverage({"x": [0, 1], "y": [0], "z": [1]}, 2, lambda peer: peer != "x").surplus == {"x": (0, 1)}
