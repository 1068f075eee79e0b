"""Which of two histories is kept, and where they part."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.swarm.recovery.forks import Standing, find_fork, wins

PLAIN = Standing(version=20, forked=True, tokens=1000, record_hash="b")
STEPS = 100


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"version": 22}, {"version": 20, "forked": False, "tokens": 9999, "record_hash": "a"}),
        ({"version": 100}, {"version": 99, "forked": False, "tokens": 9999, "record_hash": "a"}),
        ({"forked": False}, {"version": 21, "tokens": 9999, "record_hash": "a"}),
        ({"tokens": 1001}, {"version": 21, "record_hash": "a"}),
        ({"record_hash": "a"}, {"version": 21}),
        ({"record_hash": "a"}, {}),
    ],
    ids=["more steps", "at the end of the run", "decided by a majority", "more tokens", "a lead of one", "lower hash"],
)
def test_which_history_wins(better: dict[str, object], worse: dict[str, object]) -> None:
    one, other = dataclasses.replace(PLAIN, **better), dataclasses.replace(PLAIN, **worse)  # type: ignore[arg-type]
    assert wins(one, other, STEPS)
    assert not wins(other, one, STEPS)


standings = st.builds(Standing, st.integers(90, 100), st.booleans(), st.integers(0, 2), st.sampled_from("abc"))


@given(standings, standings)
def test_exactly_one_of_two_histories_wins(one: Standing, other: Standing) -> None:
    if one == other or (one.record_hash == other.record_hash and abs(one.version - other.version) < 2):
        return  # one and the same
    assert wins(one, other, STEPS) != wins(other, one, STEPS)


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 300))
async def test_the_fork_is_found_wherever_it_is(common: int, more: int, forgotten: int) -> None:
    newest, asked = common + more, []

    async def theirs(version: int) -> str:
        asked.append(version)
        return f"c{version}" if version <= common else f"t{version}"

    def ours(version: int) -> str:
        return "" if version < forgotten else f"c{version}" if version <= common else f"o{version}"

    found = await find_fork(ours, theirs, newest)
    if forgotten > newest:
        assert found is None
    else:
        first = max(common + 1, forgotten)
        assert found == (first - 1, first)
    assert len(asked) <= 11
    assert await find_fork(ours, theirs, common) is None
