"""When words about a record make it a decided one."""

import dataclasses

import pytest

from swarmd.swarm.history.votes import DECIDED_KEPT, VOTES_KEPT, OwnVotes, Tally, is_confirmed
from swarmd.swarm.wire.messages.common import Ballot

FORK_SECONDS = 30.0
NOTHING = Tally(
    acceptors=5,
    ayes=0,
    speaking=5,
    others=4,
    others_ayes=0,
    witnessed=False,
    forked=False,
    torn=False,
    alone_s=0.0,
    bound_s=0.0,
    doubt_s=0.0,
)
KNOWN = dataclasses.replace(NOTHING, ayes=1, others_ayes=1, witnessed=True)
FORKED = dataclasses.replace(KNOWN, forked=True)


@pytest.mark.parametrize(
    ("tally", "changes", "believed"),
    [
        (NOTHING, {}, False),
        (NOTHING, {"ayes": 3}, True),
        (NOTHING, {"ayes": 2, "others_ayes": 2}, False),
        (NOTHING, {"acceptors": 4, "ayes": 2}, False),
        (NOTHING, {"alone_s": 99.0, "doubt_s": 99.0}, False),
        (KNOWN, {}, False),
        (KNOWN, {"doubt_s": FORK_SECONDS}, True),
        (KNOWN, {"alone_s": FORK_SECONDS}, True),
        (KNOWN, {"speaking": 2, "others": 1}, True),
        (KNOWN, {"speaking": 2, "others": 2}, False),
        (KNOWN, {"speaking": 3, "others": 1}, False),
        (KNOWN, {"speaking": 0, "others": 0, "others_ayes": 0, "ayes": 0}, True),
        (FORKED, {}, False),
        (FORKED, {"speaking": 2, "others": 1}, False),
        (FORKED, {"alone_s": FORK_SECONDS}, True),
        (FORKED, {"doubt_s": FORK_SECONDS}, False),
        (FORKED, {"doubt_s": FORK_SECONDS, "torn": True}, True),
        (FORKED, {"torn": True}, False),
        (FORKED, {"doubt_s": FORK_SECONDS, "bound_s": FORK_SECONDS}, True),
        (FORKED, {"bound_s": FORK_SECONDS}, False),
        (KNOWN, {"bound_s": FORK_SECONDS}, False),
        (FORKED, {"alone_s": FORK_SECONDS, "witnessed": False}, False),
    ],
)
def test_which_words_are_enough(tally: Tally, changes: dict[str, object], believed: bool) -> None:
    assert is_confirmed(dataclasses.replace(tally, **changes), FORK_SECONDS) == believed  # type: ignore[arg-type]


def test_a_vote_is_for_one_ballot() -> None:
    own = OwnVotes()
    own.accept("a", Ballot(1, "x"))
    assert own.accepted("a", Ballot(1, "x"))
    assert not own.accepted("a", Ballot(2, "x"))
    assert not own.accepted("b", Ballot(1, "x"))
    assert not own.decided("a"), "accepted is not decided"


def test_votes_are_remembered_for_a_while() -> None:
    own = OwnVotes()
    for number in range(1, 200):
        own.accept("a", Ballot(number, "x"))
        own.learn(str(number))
    assert [own.accepted("a", Ballot(200 - age, "x")) for age in (1, VOTES_KEPT, VOTES_KEPT + 1)] == [True, True, False]
    assert [own.decided(str(200 - age)) for age in (1, DECIDED_KEPT, DECIDED_KEPT + 1)] == [True, True, False]
