"""The rhythm of signs of life, and the silence that is longer than it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.swarm.membership.rhythm import SILENCE_CEILING_SECONDS, SILENCE_FLOOR_SECONDS, Pulse, Rhythm


def test_patience_lies_between_floor_and_ceiling() -> None:
    rhythm = Rhythm()
    assert rhythm.limit(8, 6, 30) == 6
    for _ in range(50):
        rhythm.observe(5.0)
    assert 10 <= rhythm.limit(8, 6, 30) < 11
    rhythm.observe(500.0)
    assert rhythm.limit(8, 6, 30) == 30


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=50))
def test_patience_is_never_less_than_twice_the_mean(intervals: list[float]) -> None:
    rhythm = Rhythm()
    for seconds in intervals:
        rhythm.observe(seconds)
    assert min(intervals) - 1e-9 <= rhythm.mean <= max(intervals) + 1e-9
    assert rhythm.limit(8, 0, math.inf) >= 2 * rhythm.mean


def test_the_first_interval_is_the_mean_and_each_later_one_counts_a_fifth() -> None:
    rhythm = Rhythm()
    rhythm.observe(10.0)
    assert (rhythm.mean, rhythm.deviation) == (10.0, 5.0)
    rhythm.observe(20.0)
    assert (rhythm.mean, rhythm.deviation) == pytest.approx((12.0, 6.0))
    rhythm.observe(2.0)
    assert (rhythm.mean, rhythm.deviation) == pytest.approx((10.0, 6.8)), "it is off by as much as it is early"


def beaten(*times: float) -> Pulse:
    pulse = Pulse()
    for now in times:
        pulse.beat(now)
    return pulse


@pytest.mark.parametrize(
    ("beats", "patience"),
    [
        ((), SILENCE_FLOOR_SECONDS),
        ((50.0,), SILENCE_FLOOR_SECONDS),  # one beat is no interval
        ((0.0, 1.0), SILENCE_FLOOR_SECONDS),
        ((0.0, 2.0), 2 * 2.0 + 8 * 1.0),
        ((0.0, 2.0, 4.0), 2 * 2.0 + 8 * 0.8),
        ((0.0, 100.0), SILENCE_CEILING_SECONDS),
    ],
)
def test_a_pulse_is_silent_once_it_is_beyond_its_own_rhythm(beats: tuple[float, ...], patience: float) -> None:
    pulse = beaten(*beats)
    assert pulse.patience() == pytest.approx(patience)
    if beats:
        assert not pulse.silent(beats[-1] + patience - 0.01)
        assert pulse.silent(beats[-1] + patience + 0.01)


def test_one_that_never_beat_or_comes_in_time_to_the_second_is_not_silent() -> None:
    assert not Pulse().silent(1e9)
    pulse = beaten(0.0, 2.0)
    assert not pulse.silent(2.0 + pulse.patience())
