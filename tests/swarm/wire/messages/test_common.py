"""Sets of indices travel as ranges; strangers' ranges are checked before they are counted."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import OutOfRange
from swarmd.swarm.wire.messages.common import from_ranges, to_ranges


@given(st.sets(st.integers(0, 60)))
def test_sets_of_indices_go_through_ranges(indices: set[int]) -> None:
    ranges = to_ranges(indices)
    assert from_ranges(ranges, 61) == sorted(indices)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(ranges)), "as few ranges as possible"


@given(st.lists(st.integers(0, 20), max_size=30))
def test_repeated_indices_count_once(indices: list[int]) -> None:
    assert to_ranges(indices) == to_ranges(set(indices))


@given(st.lists(st.tuples(st.integers(-3, 12), st.integers(-3, 12)), max_size=4))
def test_ranges_of_strangers_against_a_dumb_twin(ranges: list[tuple[int, int]]) -> None:
    """Valid means: the flat list of their indices grows, all lie in 0 .. 9, and no range is empty."""
    flat = [index for start, stop in ranges for index in range(start, stop)]
    valid = all(start < stop for start, stop in ranges) and flat == sorted(set(flat)) and all(0 <= i < 10 for i in flat)
    if valid:
        assert from_ranges(tuple(ranges), 10) == flat
    else:
        with pytest.raises(OutOfRange):
            from_ranges(tuple(ranges), 10)


def test_a_range_of_a_trillion_indices_is_refused_before_it_is_counted() -> None:
    with pytest.raises(OutOfRange):
        from_ranges(((0, 10**12),), 100)
