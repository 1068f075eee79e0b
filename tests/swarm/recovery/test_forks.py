"""Histories of a run: which one wins, where two part, and whose cards are of another one."""

import asyncio
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.recovery.forks import (
    FOREIGN_SECONDS,
    Standing,
    wins,
)
from tests.swarm.cards import card
from tests.swarm.recovery.two_histories import (
    COMMON,
    OURS,
    THEIRS,
    Meeting,
    following,
    now,
)

PLAIN = Standing(version=20, forked=True, tokens=1000, record_hash="b")


STEPS = 100


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"version": 100}, {"version": 99, "forked": False, "tokens": 9999, "record_hash": "a"}),
        ({"forked": False}, {"version": 90, "tokens": 9999, "record_hash": "a"}),
        ({"version": 22}, {"version": 20, "tokens": 9999, "record_hash": "a"}),
        ({"tokens": 1001}, {"version": 21, "record_hash": "a"}),
        ({"record_hash": "a"}, {"version": 21}),
        ({"record_hash": "a"}, {}),
    ],
    ids=["at the end of the run", "decided by majorities", "more steps", "more tokens", "a lead of one", "lower hash"],
)
def test_which_history_wins(better: dict[str, object], worse: dict[str, object]) -> None:
    one, other = dataclasses.replace(PLAIN, **better), dataclasses.replace(PLAIN, **worse)  # type: ignore[arg-type]
    assert wins(one, other, STEPS)
    assert not wins(other, one, STEPS)
    assert not wins(one, one, STEPS), "nobody need change sides"


standings = st.builds(Standing, st.integers(90, 100), st.booleans(), st.integers(0, 2), st.sampled_from("abc"))


@given(standings, standings)
def test_exactly_one_of_two_histories_wins(one: Standing, other: Standing) -> None:
    if one == other or (one.record_hash == other.record_hash and abs(one.version - other.version) < 2):
        return  # one and the same
    assert wins(one, other, STEPS) != wins(other, one, STEPS)


def test_a_card_that_is_not_in_our_chain_is_foreign() -> None:
    async def main() -> None:
        it = Meeting(theirs=THEIRS[:3]).peers["a"]
        assert it.foreign() == ["x", "y"]
        assert it.forks.fits(card("z", version=1, record_hash=COMMON[0].hash))
        assert it.forks.fits(card("z", version=1, record_hash=""))
        assert not it.forks.fits(card("z", version=4, record_hash="another"))
        it.history.chain._records.pop(1)
        assert it.forks.fits(card("z", version=1, record_hash="another")), "that isn't remembered here"

    run_virtual(main())


def test_one_that_was_ahead_is_foreign_once_this_peer_has_another_record_of_its_version() -> None:
    async def main() -> None:
        it = Meeting().peers["a"]
        assert it.foreign() == []
        for made in following(OURS, 2)[-2:]:
            it.history.chain.append(made)
            it.forks.on_record(made)
        assert it.foreign() == ["x", "y"]

    run_virtual(main())


def test_one_that_is_ahead_counts_as_ours_until_it_shows_another_record_and_again_after_a_while() -> None:
    async def main() -> None:
        it = Meeting().peers["a"]
        assert it.foreign() == []
        changed = asyncio.ensure_future(it.history.changed.wait())
        await asyncio.sleep(0)
        it.forks.on_foreign("x")
        assert it.foreign() == ["x"]
        await asyncio.sleep(FOREIGN_SECONDS)
        assert changed.done()
        x = card("x", version=6, record_hash=THEIRS[-1].hash)
        it.forks.sweep(now())
        assert (it.foreign(), it.forks.fits(x)) == (["x"], False), "until then it is"
        await asyncio.sleep(1)
        assert it.forks.fits(x), "believed no longer"
        it.forks.sweep(now())
        assert it.foreign() == []
        it.forks.on_foreign("x")
        await asyncio.sleep(FOREIGN_SECONDS + 1)
        it.forks.on_foreign("y")
        it.forks.sweep(now())
        assert (it.foreign(), list(it.forks._foreign_until)) == (["y"], ["y"]), "what is over is forgotten"
        it.forks.on_replaced()
        assert it.foreign() == []
        it.forks.on_foreign("x")
        it.history.replace(THEIRS[2], "digest")
        assert it.foreign() == [], "this peer is of that history now"

    run_virtual(main())
