"""Versions that cards claim: nobody goes after one that a stranger makes up, and who is behind hears that it is."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.swarm.history.claims import believed_newest, believed_version
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.messages.fields import STEP_LIMIT
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card

HERE = 7  # this peer's version
BEYOND = STEP_LIMIT


def view(*others: tuple[str, int], **says: Any) -> tuple[Any, Any]:
    """What a peer knows that has worked with those whose names begin with m, of others and their versions."""
    members = Membership(OwnCard(card("me", version=HERE)))
    for name, version in others:
        members.hear(card(name, version=version, **says), 0.0)
    history = SimpleNamespace(version=HERE, chain=SimpleNamespace(took_part=lambda peer: peer.startswith("m")))
    return members, cast("Any", history)


@pytest.mark.parametrize(
    ("others", "version", "asked"),
    [
        ([], HERE, "me"),
        ([("m1", HERE), ("m2", 3)], HERE, "me"),
        ([("m1", 8), ("m2", HERE)], 8, "m1"),
        ([("m1", 99), ("m2", HERE), ("m3", HERE)], 99, "m1"),  # a pruned history: it has fallen far behind
        ([("x", BEYOND), ("m1", HERE), ("m2", HERE)], HERE, "x"),  # it may be asked: nothing comes of that
        ([("x", BEYOND), ("m1", 9), ("m2", HERE)], 9, "m1"),
        ([("x", BEYOND), ("m1", 9), ("m2", 9)], 9, "m2"),
        ([("x", 20), ("y", 21), ("z", 22)], 21, "y"),  # nobody that it knows is left
        ([("x", 20), ("y", 20), ("m1", HERE)], 20, "y"),
        ([("x", BEYOND), ("y", 20), ("z", 20)], 20, "z"),
        ([("x", 20)], 20, "x"),
        ([("x", BEYOND), ("m1", HERE)], HERE, "x"),  # of two, one isn't most
    ],
)
def test_a_version_is_believed_of_those_it_has_worked_with_or_of_most(
    others: list[tuple[str, int]], version: int, asked: str
) -> None:
    members, history = view(*others)
    assert believed_version(members, history) == version
    assert believed_newest(members, history).peer == asked


def test_who_is_not_at_work_is_not_among_most() -> None:
    members, history = view(("x", 20), ("y", 20), state="joining")
    assert believed_version(members, history) == HERE


def test_of_those_it_has_worked_with_one_that_joins_again_counts() -> None:
    members, history = view(("m1", 20), state="joining")
    assert believed_version(members, history) == 20


@pytest.mark.parametrize("others", [[("m1", BEYOND), ("m2", 9)], [("x", BEYOND), ("m2", 9)]])
def test_who_has_shown_no_record_of_its_version_is_believed_no_more(others: list[tuple[str, int]]) -> None:
    members, history = view(*others, ("y", BEYOND))
    members.standing.doubt(others[0][0], 0.0)
    members.standing.doubt("y", 0.0)
    assert believed_version(members, history) == 9
    assert believed_newest(members, history).peer == "m2"
    members.standing.forget_doubts(1e9)
    assert believed_version(members, history) == BEYOND
