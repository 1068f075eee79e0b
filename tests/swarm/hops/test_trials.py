"""Which newcomers of a stage may have a hop: of many a few at a time, and nobody for long because of others."""

import pytest

from swarmd.swarm.hops.trials import (
    FRESH_SHARE,
    KEPT_SHARE,
    PAUSE_CEILING_SECONDS,
    PAUSE_SECONDS,
    TRIAL_SECONDS,
    Trials,
)

NEW = [f"n{number}" for number in range(100)]


def tried(held: dict[str, float], away: int, now: float = 0.0) -> int:
    """The number of newcomers that may have a hop, beside others that have worked."""
    return len(Trials().plan(NEW, held, away, now, alone=False))


def test_a_newcomer_that_has_a_hop_gets_no_other() -> None:
    assert Trials().plan("ab", {"a": 0.0}, 100, 0.0, alone=False) == {"b"}


@pytest.mark.parametrize("away", [0, 1, 4, 40])
def test_of_the_hops_that_are_away_newcomers_get_a_share(away: int) -> None:
    most = max(1, away // FRESH_SHARE)
    assert tried(dict.fromkeys(NEW[: most - 1], 0.0), away) == len(NEW) - most + 1
    assert not tried(dict.fromkeys(NEW[:most], 0.0), away, TRIAL_SECONDS - 0.1)


@pytest.mark.parametrize("away", [0, 1, 8, 40])
def test_hops_that_newcomers_keep_hold_up_others_once_they_are_many(away: int) -> None:
    most = max(2, away // KEPT_SHARE)
    assert tried(dict.fromkeys(NEW[: most - 1], 0.0), away, TRIAL_SECONDS) == len(NEW) - most + 1
    assert not tried(dict.fromkeys(NEW[:most], 0.0), away, TRIAL_SECONDS)


def test_hops_of_those_who_have_worked_hold_up_nobody() -> None:
    assert tried(dict.fromkeys(["old", "older"], 0.0), 2) == len(NEW)


def test_where_nobody_has_worked_every_newcomer_gets_one() -> None:
    it = Trials()
    it.failed(0.0)
    assert it.plan(NEW, dict.fromkeys(NEW[:50], 0.0), 50, 0.0, alone=True) == set(NEW[50:])


def test_after_one_that_failed_there_is_a_pause_which_grows_until_one_succeeds() -> None:
    it, now = Trials(), 0.0
    for pause in (PAUSE_SECONDS, 2 * PAUSE_SECONDS, 4 * PAUSE_SECONDS):
        it.failed(now)
        assert not it.plan(NEW, {}, 0, now + pause - 0.1, alone=False)
        now += pause
        assert it.plan(NEW, {}, 0, now, alone=False) == set(NEW)
    for _ in range(2000):
        it.failed(now)
    assert it.plan(NEW, {}, 0, now + PAUSE_CEILING_SECONDS, alone=False) == set(NEW)
    it.passed()
    assert it.plan(NEW, {}, 0, now, alone=False) == set(NEW)
