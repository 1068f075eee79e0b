"""How a run began: what a founder says of itself, and what others say counts for."""

import pytest

from swarmd.swarm.history.origin import Origin
from swarmd.swarm.wire.messages.presence import Place
from tests.swarm.cards import card


def place(founder: str = "other", *, resumes: bool = False, versions: tuple[int, ...] = ()) -> Place:
    cards = tuple(card(f"p{number}", version=version) for number, version in enumerate(versions))
    return Place(0, cards, founder, resumes, 1)


def test_who_founds_a_run_says_so() -> None:
    origin = Origin()
    origin.found("me", resumes=True)
    assert (origin.founder, origin.founded, origin.resumes) == ("me", True, True)
    origin.decided()
    assert (origin.founder, origin.founded, origin.resumes) == ("me", True, False)


@pytest.mark.parametrize(
    ("founder", "told", "after"),
    [
        ("other", False, ("other", False)),
        ("other", True, ("other", False)),  # another has founded it, too, and others know that one
        ("me", False, ("me", False)),  # an earlier incarnation
        ("me", True, ("me", True)),  # they have it from this one
        ("", False, ("me", True)),  # they don't know
    ],
)
def test_what_others_say_of_the_founder(founder: str, told: bool, after: tuple[str, bool]) -> None:
    origin = Origin()
    origin.found("me", resumes=False)
    origin.learn(place(founder), "me", told=told, ready=False)
    assert (origin.founder, origin.founded) == after


def test_a_run_is_resumed_until_this_peer_has_a_state() -> None:
    origin = Origin()
    origin.learn(place(resumes=True), "me", told=False, ready=False)
    assert origin.resumes
    origin.learn(place(resumes=True), "me", told=False, ready=True)
    assert not origin.resumes
    origin.learn(place(resumes=False), "me", told=False, ready=False)
    assert not origin.resumes


def test_the_highest_version_that_was_shown_is_remembered() -> None:
    origin = Origin()
    for versions in ((3, 5), (4,), ()):
        origin.learn(place(versions=versions), "me", told=False, ready=False)
    assert origin.heard == 5
