"""Parts and coverage against dumb twins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.swarm.parts import Coverage, measure_coverage, plan_parts

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


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 7), unique=True), max_size=4))
def test_coverage_against_a_dumb_twin(holdings: dict[str, list[int]]) -> None:
    times = [sum(indices.count(index) for indices in holdings.values()) for index in range(8)]
    covered = sum(1 for count in times if count)
    assert measure_coverage(holdings, 8) == Coverage(
        covered=covered,
        lost=sum(1 for count in times if not count),
        duplicated=sum(count - 1 for count in times if count),
        counted=sum(times),
    )


def test_what_covers_a_step_exactly_once() -> None:
    assert measure_coverage({"a": [0, 2], "b": [1]}, 3) == Coverage(3, 0, 0, 3)
    assert measure_coverage({"a": [0, 2], "b": [0]}, 3) == Coverage(2, 1, 1, 3)
    assert measure_coverage({}, 3) == Coverage(0, 3, 0, 0)
