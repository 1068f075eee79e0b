"""Which newcomers of a stage may have a hop: of many a few at a time, and nobody for long because of others."""

import pytest

from swarmd.swarm.hops.trials import FRESH_SHARE, KEPT_SHARE, TRIAL_SECONDS, plan_trials

NEW = [f"n{number}" for number in range(100)]


def tried(held: dict[str, float], away: int) -> int:
    """The number of newcomers that may have a hop, beside others that have worked."""
    return len(plan_trials(NEW, held, away, alone=False))


def test_a_newcomer_that_has_a_hop_gets_no_other() -> None:
    assert plan_trials("ab", {"a": 0.0}, 100, alone=False) == {"b"}


@pytest.mark.parametrize("away", [0, 1, 4, 40])
def test_of_the_hops_that_are_away_newcomers_get_a_share(away: int) -> None:
    most = max(1, away // FRESH_SHARE)
    assert tried(dict.fromkeys(NEW[: most - 1], 0.0), away) == len(NEW) - most + 1
    assert not tried(dict.fromkeys(NEW[:most], TRIAL_SECONDS - 0.1), away)


@pytest.mark.parametrize("away", [0, 1, 8, 40])
def test_hops_that_newcomers_keep_hold_up_others_once_they_are_many(away: int) -> None:
    most = max(2, away // KEPT_SHARE)
    assert tried(dict.fromkeys(NEW[: most - 1], TRIAL_SECONDS), away) == len(NEW) - most + 1
    assert not tried(dict.fromkeys(NEW[:most], TRIAL_SECONDS), away)


def test_hops_of_those_who_have_worked_hold_up_nobody() -> None:
    assert tried(dict.fromkeys(["old", "older"], 0.0), 2) == len(NEW)


def test_where_nobody_has_worked_every_newcomer_gets_one() -> None:
    assert plan_trials(NEW, dict.fromkeys(NEW[:50], 0.0), 50, alone=True) == set(NEW[50:])
