"""Who counts: peers that were met, at a pace by network, and peers that have worked."""

from swarmd.swarm.membership import standing as module
from swarmd.swarm.membership.standing import (
    DOUBT_SECONDS,
    FIRST_AT_ONCE,
    GRACE_SECONDS,
    NEW_AT_ONCE,
    NEW_SECONDS,
    PEERS_KEPT,
    WAITING_LIMIT,
    Standing,
)
from swarmd.swarm.membership.table import SMALL_SWARM, Membership
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card


def test_who_was_met_counts_until_there_is_a_record() -> None:
    it = Standing()
    assert not it.admits("a")
    assert it.meet("a", "net", 0.0)
    assert (it.admits("a"), it.is_counted("a"), it.has_worked("a")) == (True, True, False)
    it.note_record({"b": 3})
    assert (it.admits("a"), it.is_counted("a"), it.is_counted("b"), it.admits("b")) == (True, False, True, True)
    assert [it.stage_by_record(peer) for peer in "ab"] == [-1, 3]
    it.note_work("a")
    assert it.is_counted("a")


def test_one_that_has_worked_counts_though_the_last_record_lacks_it() -> None:
    it = Standing()
    it.note_record({"a": 0})
    it.note_record({"b": 0})
    assert (it.is_counted("a"), it.stage_by_record("a")) == (True, -1)


def test_who_has_lost_its_record_counts_newcomers_as_a_new_run_does() -> None:
    it = Standing()
    it.note_record({"a": 0})
    it.note_no_record()
    assert (it.stage_by_record("a"), it.is_counted("b")) == (-1, True)


def test_a_newcomer_counts_in_the_balance_for_a_while() -> None:
    it = Standing()
    it.note_record({"b": 0})
    it.meet("a", "", 0.0)
    it.admit_waiting(GRACE_SECONDS - 1)
    assert it.is_expected("a")
    it.admit_waiting(GRACE_SECONDS)
    assert (it.is_expected("a"), it.is_expected("b")) == (False, True)


def test_of_one_network_so_many_come_at_once_and_then_one_at_a_time() -> None:
    it = Standing()
    it.note_record({})
    entered = [it.meet(f"p{number}", "net", 0.0) for number in range(NEW_AT_ONCE + 3)]
    assert entered == [True] * NEW_AT_ONCE + [False] * 3
    assert it.meet("elsewhere", "other", 0.0)
    assert it.admit_waiting(NEW_SECONDS / 2) == []
    assert it.admit_waiting(NEW_SECONDS) == [f"p{NEW_AT_ONCE + 2}"], "the latest to come"
    it.gone(f"p{NEW_AT_ONCE + 1}")
    assert it.admit_waiting(9 * NEW_SECONDS) == [f"p{NEW_AT_ONCE}"]


def test_before_the_first_record_as_many_come_as_one_network_has_and_no_more() -> None:
    it = Standing()
    assert all(it.meet(f"p{number}", "net", 0.0) for number in range(FIRST_AT_ONCE))
    assert not it.meet("late", "net", 0.0)
    it = Standing()
    assert it.meet("a", "net", 0.0)
    it.note_record({"a": 0})
    entered = [it.meet(f"p{number}", "net", 0.0) for number in range(NEW_AT_ONCE + 1)]
    assert entered == [True] * NEW_AT_ONCE + [False], "the room that was left for founders is gone"


def test_a_member_behind_the_address_of_a_crowd_waits_for_nothing() -> None:
    it = Standing()
    it.note_record({"member": 0})
    for number in range(1500):
        it.meet(f"s{number}", "net", 0.0)
    assert it.meet("member", "net", 0.0)
    assert not it.meet("honest", "net", 0.0)
    assert it.admit_waiting(10.0)[0] == "honest"


def test_memory_is_bounded() -> None:
    it = Standing()
    for number in range(PEERS_KEPT + 9):
        it.meet(f"p{number}", f"net{number}", 0.0)
        it.note_work(f"w{number}")
        it.meet(f"q{number}", "crowded", 0.0)
    assert (len(it._met), len(it._worked)) == (PEERS_KEPT, PEERS_KEPT)
    assert len(it._doors) == module.NETWORKS_KEPT
    assert len(it._doors["crowded"].waiting) == WAITING_LIMIT


def test_who_shows_no_record_of_its_version_is_passed_over_for_a_while() -> None:
    members = Membership(OwnCard(card("me")))
    members.hear(card("liar", version=1 << 40), 0.0)
    members.hear(card("a", version=7), 0.0)
    assert members.newest().peer == "liar"
    members.standing.doubt("liar", 0.0)
    assert members.newest().peer == "a"
    members.standing.forget_doubts(DOUBT_SECONDS - 0.1)
    assert members.newest().peer == "a"
    members.standing.forget_doubts(DOUBT_SECONDS)
    assert members.newest().peer == "liar"


def test_a_crowd_that_has_not_worked_makes_no_swarm_large() -> None:
    members = Membership(OwnCard(card("me")))
    members.standing.note_record({"me": 0, "a": 0})
    for number in range(SMALL_SWARM + 1):
        members.hear(card(f"s{number}"), 0.0)
    members.hear(card("a"), 0.0)
    assert members.population() == 2
