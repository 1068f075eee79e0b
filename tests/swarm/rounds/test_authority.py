"""Whose word counts in a round: the higher ballot's, of equals the later leader's, of silent ones anyone's."""

import pytest

from swarmd.errors import Outvoted, Overruled
from swarmd.swarm.membership.order import leader_order
from swarmd.swarm.rounds.authority import LEADER_SECONDS, RoundAuthority
from swarmd.swarm.wire.messages.common import NO_BALLOT, Ballot

STEP, STAGE = 4, 1
FIRST, SECOND = leader_order(STEP, STAGE, ["a", "b"], ())
LOW, HIGH = Ballot(1, "z"), Ballot(2, "a")


def test_a_lower_ballot_is_refused_and_a_higher_one_takes_over() -> None:
    authority = RoundAuthority(STAGE)
    authority.take(STEP, LOW, SECOND, 0.0)
    authority.take(STEP, HIGH, FIRST, 0.0)
    for refused in (LOW, NO_BALLOT):
        with pytest.raises(Outvoted) as outvoted:
            authority.take(STEP, refused, SECOND, 0.0)
        assert (outvoted.value.asked, outvoted.value.heard) == (refused.number, HIGH.number)
        with pytest.raises(Outvoted):
            authority.admit(STEP, refused)
    authority.take(STEP, HIGH, FIRST, 0.0)


def test_a_higher_ballot_heard_from_anyone_ends_the_word_of_the_leader_before() -> None:
    authority = RoundAuthority(STAGE)
    authority.take(STEP, LOW, SECOND, 0.0)
    authority.give_way(STEP, HIGH, "the new conductor", 0.0)
    with pytest.raises(Overruled):
        authority.take(STEP, LOW, SECOND, 0.0)
    authority.take(STEP, HIGH, FIRST, 0.0)


def test_of_two_leaders_under_one_ballot_the_later_one_wins_and_keeps_it() -> None:
    authority = RoundAuthority(STAGE)
    authority.take(STEP, LOW, FIRST, 0.0)
    authority.take(STEP, LOW, SECOND, 0.1)
    for question in (authority.take, authority.give_way):
        with pytest.raises(Overruled):
            question(STEP, LOW, FIRST, 0.2)
    authority.take(STEP, LOW, SECOND, 0.3)


def test_a_newcomer_that_is_asked_after_a_member_of_the_last_record_takes_over_from_it() -> None:
    authority = RoundAuthority(STAGE, members=lambda: (SECOND,))
    authority.take(STEP, LOW, SECOND, 0.0)
    authority.take(STEP, LOW, FIRST, 0.1)
    with pytest.raises(Overruled):
        authority.take(STEP, LOW, SECOND, 0.2)


def test_a_silent_leader_gives_way_to_anyone() -> None:
    authority = RoundAuthority(STAGE)
    authority.take(STEP, LOW, SECOND, 0.0)
    authority.take(STEP, LOW, FIRST, LEADER_SECONDS)
    assert authority.leader == FIRST


def test_a_leader_that_is_gone_gives_way_at_once() -> None:
    living = {FIRST, SECOND}
    authority = RoundAuthority(STAGE, living.__contains__)
    authority.take(STEP, LOW, SECOND, 0.0)
    living.discard(SECOND)
    authority.give_way(STEP, LOW, FIRST, 0.1)
    authority.take(STEP, LOW, FIRST, 0.1)
    assert authority.leader == FIRST


def test_every_step_begins_without_claims() -> None:
    authority = RoundAuthority(STAGE)
    authority.take(STEP, HIGH, SECOND, 0.0)
    authority.take(STEP + 1, LOW, FIRST, 0.0)
    assert (authority.ballot, authority.leader) == (LOW, FIRST)
