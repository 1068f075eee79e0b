"""Orders that every peer works out alike."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.swarm.membership.order import conductor_order, leader_order, rendezvous
from tests.swarm.cards import card

NAMES = [f"p{number}" for number in range(12)]


@given(st.permutations(NAMES))
def test_rendezvous_is_the_same_for_everyone(names: list[str]) -> None:
    assert rendezvous("key", names) == rendezvous("key", NAMES)


def test_rendezvous_differs_from_key_to_key_and_keeps_its_order_without_the_lost() -> None:
    firsts = {rendezvous(f"leader/{step}", NAMES)[0] for step in range(100)}
    assert len(firsts) > 8
    order = rendezvous("key", NAMES)
    assert rendezvous("key", [name for name in NAMES if name != order[0]]) == order[1:]


def test_heads_conduct_before_others_and_members_before_newcomers() -> None:
    cards = [card("head", stage=0), card("tail", stage=2), card("new", stage=0), card("late", stage=0, arrival=5)]
    order = conductor_order(7, cards, ["tail", "head", "gone"])
    assert order == ["head", "tail", "new", "late"]


@pytest.mark.parametrize("clock", [0, 1, 1 << 61])
def test_at_version_0_the_first_head_that_came_conducts_whatever_clocks_say(clock: int) -> None:
    cards = [
        card("a", stage=0, incarnation=clock, arrival=2),
        card("b", stage=0, incarnation=9, arrival=1),
        card("c", stage=1, incarnation=3),
    ]
    assert conductor_order(1, cards, []) == ["b", "a", "c"]


@given(st.integers(1, 50), st.sets(st.sampled_from(NAMES), min_size=1), st.randoms(use_true_random=False))
def test_whoever_comes_during_a_step_does_not_change_who_leads_it(
    step: int, members: set[str], draw: random.Random
) -> None:
    cards = [card(name, stage=draw.randrange(3)) for name in sorted(members)]
    before = conductor_order(step, cards, sorted(members))
    newcomers = [card(f"new{number}", stage=0, arrival=number) for number in range(3)]
    assert conductor_order(step, [*newcomers, *cards], sorted(members))[: len(before)] == before


def test_who_is_not_at_work_does_not_conduct() -> None:
    cards = [card("a", state="finished"), card("b", state="joining"), card("c", state="draining"), card("d")]
    assert sorted(conductor_order(1, cards, ["a", "b", "c", "d"])) == ["c", "d"], "who drains ends what it leads"


def test_newcomers_that_came_at_once_are_in_the_order_of_their_names() -> None:
    """And members are not: else the same one would conduct every step."""
    cards = [card(name, arrival=3) for name in ("c", "a", "b")]
    assert conductor_order(1, cards, []) == ["a", "b", "c"]
    assert len({conductor_order(step, cards, "abc")[0] for step in range(30)}) == 3


def test_leaders_differ_from_step_to_step_and_from_stage_to_stage() -> None:
    assert leader_order(3, 1, NAMES, ()) == rendezvous("leader/3/1", NAMES)
    assert len({leader_order(step, 1, NAMES, ())[0] for step in range(50)}) > 8
    assert len({leader_order(3, stage, NAMES, ())[0] for stage in range(50)}) > 8


def test_the_orders_are_those_of_every_release() -> None:
    """Peers of two releases that order differently would have two leaders."""
    assert rendezvous("key", NAMES[:4]) == ["p1", "p3", "p0", "p2"]
    assert leader_order(3, 1, NAMES[:4], ()) == ["p0", "p1", "p3", "p2"]
    assert conductor_order(7, [card(name) for name in NAMES[:4]], NAMES) == ["p3", "p2", "p1", "p0"]


def test_members_of_the_stage_lead_before_newcomers() -> None:
    order = leader_order(3, 1, NAMES, NAMES[6:])
    assert set(order[:6]) == set(NAMES[6:])
    assert order[:6] == leader_order(3, 1, NAMES[6:], ())
