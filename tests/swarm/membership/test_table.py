"""Membership: whose word is newer, who is alive, how large a stage is."""

import math

import pytest

from swarmd.swarm.membership import table as membership
from swarmd.swarm.membership.table import (
    SILENCE_CEILING_SECONDS,
    SILENCE_FLOOR_SECONDS,
    Membership,
    heartbeat_interval,
    nan_to_zero,
    not_admitting,
)
from swarmd.swarm.wire.messages.presence import Summary
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card, crowd


def swarm(*peers: str) -> Membership:
    members = Membership(OwnCard(card("me")))
    for peer in peers:
        members.hear(card(peer), 0.0)
    return members


# ------------------------------------------------------------------------------------------------- hearing


@pytest.mark.parametrize(
    ("incarnation", "sequence", "taken"),
    [(1, 6, True), (1, 5, False), (1, 4, False), (2, 0, True), (0, 9, False), (2, 9, True)],
)
def test_newer_cards_replace_older_ones(incarnation: int, sequence: int, taken: bool) -> None:
    members = Membership(OwnCard(card("me")))
    assert members.hear(card("a", sequence=5, version=1), 0.0)
    assert members.hear(card("a", incarnation=incarnation, sequence=sequence, version=2), 1.0) is taken
    known = members.get("a")
    assert known is not None
    assert known.version == (2 if taken else 1)


@pytest.mark.parametrize(("version", "taken"), [(9, True), (10, True), (11, False), (1 << 40, False)])
def test_a_card_of_a_version_past_the_run_s_last_one_counts_for_nothing(version: int, taken: bool) -> None:
    it = Membership(OwnCard(card("me")))
    it.last_version = 10
    assert it.hear(card("x", version=version), 0.0) == taken
    assert it.newest().version == (version if taken else 0)
    assert it.hear(card("x", version=10, sequence=2), 0.0), "the next one is as good as any"


def test_nobody_tells_us_about_ourselves() -> None:
    members = Membership(OwnCard(card("me", version=3)))
    assert not members.hear(card("me", sequence=99, version=7), 0.0)
    assert members.get("me") == members.own
    assert members.own.version == 3


def test_a_suspect_is_not_used_until_it_is_heard() -> None:
    members = swarm("a", "b")
    members.suspect("a")
    assert not members.is_live("a")
    assert [it.peer for it in members.cards()] == ["b", "me"]
    assert [it.peer for it in members.stage(0)] == ["b", "me"]
    assert not members.hear(card("a"), 1.0), "an old card is no sign of life"
    assert not members.is_live("a")
    members.hear(card("a", sequence=2), 1.0)
    assert members.is_live("a")
    members.suspect("a")
    members.touch("a", 2.0)
    assert members.is_live("a")
    members.suspect("stranger")
    members.touch("stranger", 0.0)


def test_only_peers_at_work_are_of_a_stage() -> None:
    members = Membership(OwnCard(card("me", stage=1)))
    for state in ("joining", "waiting", "serving", "paused", "draining", "finished", "left"):
        members.hear(card(state, stage=0, state=state), 0.0)
    assert [it.peer for it in members.stage(0)] == ["draining", "paused", "serving", "waiting"]
    assert [it.peer for it in members.admitting(0)] == ["serving", "waiting"], "who takes hops"
    assert [it.peer for it in members.staying(0)] == ["paused", "serving", "waiting"], "on whom a stage can count"
    assert not_admitting(members, 4) == ""
    assert members.missing_stages(4) == [2, 3]
    assert members.is_live("waiting")
    assert not members.is_live("joining")
    assert not members.is_live("stranger")
    assert members.is_live("me")


def test_a_stage_whose_peers_all_pause_or_drain_is_named() -> None:
    members = Membership(OwnCard(card("me", stage=1)))
    members.hear(card("a", stage=0, state="paused"), 0.0)
    members.hear(card("b", stage=0, state="draining"), 0.0)
    assert "stage 0" in not_admitting(members, 2)
    assert members.missing_stages(2) == [], "it has its state, and takes part in rounds"


def test_the_silent_are_dropped_by_their_own_rhythm() -> None:
    members = Membership(OwnCard(card("me")))
    for second in range(41):
        members.hear(card("steady", sequence=second + 1), float(second))
        if second % 10 == 0:
            members.hear(card("slow", sequence=second + 1), float(second))
    assert members.sweep(40.0 + SILENCE_FLOOR_SECONDS) == []
    assert [it.peer for it in members.sweep(40.1 + SILENCE_FLOOR_SECONDS)] == ["steady"]
    assert members.get("steady") is None
    assert [it.peer for it in members.sweep(40.0 + SILENCE_CEILING_SECONDS + 0.1)] == ["slow"]


def test_who_was_stopped_itself_is_no_more_patient_with_others_afterwards() -> None:
    """A peer that woke up waited two minutes for those who had died meanwhile: their last words were waiting for it."""
    members = Membership(OwnCard(card("me")))
    for second in range(0, 20, 2):
        members.hear(card("a", sequence=second), float(second))
    members.hear(card("a", sequence=20), 65.0)
    assert members.sweep(65.0 + SILENCE_FLOOR_SECONDS) == []
    assert [it.peer for it in members.sweep(65.1 + SILENCE_FLOOR_SECONDS)] == ["a"]


def test_one_long_silence_before_the_first_word_of_a_far_stage_is_no_rhythm() -> None:
    """Far peers were heard again with their stage's first summary; who died then was believed in for 100 s more."""
    members = Membership(OwnCard(card("me")))
    members.expect_every(2.0, 10.0)
    members.hear(card("far", stage=3), 0.2)
    members.touch("far", 5.0)
    members.hear(card("far", stage=3, sequence=5), 22.0)
    assert members.sweep(22.0 + 30.0) == [], "three of the intervals at which its stage is spoken of"
    assert [it.peer for it in members.sweep(22.0 + 40.0)] == ["far"]


def test_who_was_not_heard_lately_is_silent_long_before_it_is_dropped() -> None:
    members = swarm("a", "b", "c")
    soon = SILENCE_FLOOR_SECONDS / 2
    members.touch("a", soon)
    assert not any(members.is_silent(peer, soon - 0.1) for peer in "abc")
    assert [peer for peer in ("a", "b", "c", "me", "stranger") if members.is_silent(peer, soon)] == ["b", "c"]
    assert not members.sweep(soon)


def test_the_silent_are_dropped_when_they_are_due_however_seldom_one_looks() -> None:
    members = Membership(OwnCard(card("me")))
    members.expect_every(100.0, 100.0)
    members.hear(card("a"), 0.0)
    members.hear(card("b"), 50.0)
    members.touch("a", 10.0)
    assert members.sweep(309.9) == []
    assert [it.peer for it in members.sweep(310.1)] == ["a"]
    members.expect_every(2.0, 2.0)  # most have left, and so the others speak more often
    assert [it.peer for it in members.sweep(310.2)] == ["b"]


def test_who_said_goodbye_is_dropped_at_once() -> None:
    members = swarm("a")
    members.hear(card("a", sequence=2, state="left"), 0.1)
    assert [it.peer for it in members.sweep(0.1)] == ["a"]


def test_a_dropped_peer_may_come_back() -> None:
    members = swarm("a")
    members.sweep(1000.0)
    assert members.hear(card("a", incarnation=2), 1000.0)


def test_cards_remembered_are_bounded_and_the_longest_unheard_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MEMBERS_LIMIT", 3)
    members = Membership(OwnCard(card("me")))
    for second, peer in enumerate(("a", "b", "c")):
        members.hear(card(peer), float(second))
    members.touch("a", 5.0)
    members.hear(card("d"), 6.0)
    assert sorted(members.members()) == ["a", "c", "d"]


def test_newcomers_are_forgotten_before_those_that_have_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MEMBERS_LIMIT", 3)
    members = Membership(OwnCard(card("me")))
    members.standing.note_record({"a": 0, "b": 1})
    for second, peer in enumerate(("a", "b", "c", "d", "e")):
        members.hear(card(peer), float(second))
    assert sorted(members.members()) == ["a", "b", "e"]


def test_of_a_summary_a_bounded_number_of_movers_is_kept() -> None:
    members = swarm("a")
    members.report(Summary(1, (), 4000, moving=tuple((2, 1.0) for _ in range(4000))))
    assert len(members.summaries()[1].moving) == membership.MOVERS_KEPT


@pytest.mark.parametrize(("peers", "seconds"), [(0, 2.0), (4, 2.0), (6, 3.0), (48, 24.0), (100, 128.0), (1000, 1928.0)])
def test_heartbeats_slow_down_as_the_swarm_grows(peers: int, seconds: float) -> None:
    assert heartbeat_interval(peers) == pytest.approx(seconds)


@pytest.mark.parametrize(("said", "used"), [(1.5, 1.5), (math.nan, 0.0), (math.inf, 0.0), (-1.0, 0.0), (0.0, 0.0)])
def test_rates_that_are_no_numbers_are_not_used(said: float, used: float) -> None:
    assert nan_to_zero(said) == used


def test_a_stage_is_as_large_as_its_summary_says() -> None:
    members = crowd(stages=4, replicas=20)
    assert members.population() == 81
    members.report(Summary(3, (), 500))
    assert (members.unseen(3), members.population()) == (480, 561)
    members.report(Summary(7, (), 500))
    assert members.unseen(7) == 0, "nobody is known there: the word may be of another time"
    members.report(Summary(-1, (), 5))
    members.report(Summary(2, (), -5))
    assert members.population() == 561
