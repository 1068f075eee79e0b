"""A peer's reach: whom it knows, and needn't know, in a swarm of each size."""

from swarmd.swarm.membership.reach import count_near, count_unseen, is_spare, knows_all_of, reaches_half, unmet
from swarmd.swarm.membership.table import FEW, SILENCE_FLOOR_SECONDS, SMALL_SWARM, Membership
from swarmd.swarm.wire.messages.presence import Summary
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card, crowd

STAGES = 4


def swarm(peers: int) -> Membership:
    """A peer of stage 0, and so many others spread over four stages."""
    members = Membership(OwnCard(card("me", stage=0)))
    for number in range(peers):
        members.hear(card(f"p{number:02d}", stage=number % STAGES), 0.0)
    return members


def test_who_has_no_place_yet_is_near_nobody_and_needs_not_be_looked_for_in_a_large_swarm() -> None:
    members, newcomer = swarm(SMALL_SWARM), card("new", stage=-1, state="joining")
    before = count_near(members, 0)
    members.hear(newcomer, 0.0)
    assert count_near(members, 0) == before == 1 + SMALL_SWARM // 2
    assert is_spare(members, newcomer)
    assert not is_spare(Membership(OwnCard(card("me"))), newcomer)


def test_far_peers_are_spare_only_in_a_large_swarm_where_enough_others_of_their_stage_are_known() -> None:
    small, large = swarm(SMALL_SWARM - 1), swarm(SMALL_SWARM)
    assert [is_spare(small, card("x", stage=stage)) for stage in range(STAGES)] == [False] * STAGES
    assert [is_spare(large, card("x", stage=stage)) for stage in range(STAGES)] == [False, False, True, True]
    for number in range(FEW):
        assert not is_spare(large, card("x", stage=STAGES)), "it is one of few"
        large.hear(card(f"q{number}", stage=STAGES), 0.0)
    assert is_spare(large, card("x", stage=STAGES))


def test_of_those_that_are_rumours_the_near_ones_are_to_be_met_and_in_a_small_swarm_all() -> None:
    small, large = swarm(SMALL_SWARM - 1 - STAGES), swarm(SMALL_SWARM - STAGES)
    for stage in range(STAGES):
        for members in (small, large):
            members.rumours.hear(card(f"r{stage}", stage=stage), 0.0)
    assert [it.peer for it in unmet(small)] == [f"r{stage}" for stage in range(STAGES)]
    assert [it.peer for it in unmet(large)] == ["r0", "r1"]


def test_every_replica_is_known_of_near_stages_and_in_a_small_swarm_of_all() -> None:
    assert [knows_all_of(swarm(SMALL_SWARM - 1), stage) for stage in range(STAGES)] == [True] * STAGES
    assert [knows_all_of(swarm(SMALL_SWARM), stage) for stage in range(STAGES)] == [True, True, False, False]


def test_half_of_some_peers_are_reached_if_they_are_live_and_not_silent() -> None:
    members, soon = Membership(OwnCard(card("me"))), SILENCE_FLOOR_SECONDS / 2
    for peer in "abc":
        members.hear(card(peer), 0.0)
    members.touch("a", soon)
    assert reaches_half(members, ["a", "b", "c", "me"], soon), "half of four"
    assert not reaches_half(members, ["a", "b", "c"], soon)
    assert not reaches_half(members, ["me", "stranger", "b"], soon), "a stranger is no live member"


def test_far_peers_of_a_large_swarm_are_spare_and_near_ones_are_not() -> None:
    members = crowd(stages=4, replicas=20)
    spare = [is_spare(members, card(f"q{stage}", stage=stage)) for stage in range(5)]
    assert spare == [False, False, True, True, False]
    assert not is_spare(crowd(stages=4, replicas=4), card("q3", stage=3))


def test_peers_that_are_known_by_number_only_are_counted_by_the_summaries_of_far_stages() -> None:
    members = swarm(SMALL_SWARM)
    far = len(members.stage(3))
    members.report(Summary(3, (), far + 100))
    members.report(Summary(1, (), 500))
    assert count_unseen(members, STAGES) == {3: 100}, "a near stage is known whole: a summary of it may be old"
    members.report(Summary(3, (), far - 1))
    assert count_unseen(members, STAGES) == {}
    members.report(Summary(3, (), 0, finished=far + 7))
    assert count_unseen(members, STAGES) == {3: 7}, "they have ended the run, and are there"
    for number in range(far):
        members.hear(card(members.stage(3)[0].peer, stage=3, state="left", sequence=number + 2), 1.0)
    assert count_unseen(members, STAGES) == {}, "the last that was known has gone, and so have those of the summary"
    small = swarm(8)
    small.report(Summary(3, (), 4))
    assert count_unseen(small, STAGES) == {}, "one that has gone is still in it"
