"""Who leads a step, as peers near the heads and far from them see it."""

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.swarm.conductor import Conductor
from swarmd.swarm.membership import SMALL_SWARM, Membership
from swarmd.swarm.signals import Signal
from tests.swarm.cards import card

STAGES = 8


def conductor(own_stage: int, heads: list[str], members: list[str], others: int) -> Conductor:
    """Of a peer that knows some heads; the last record's heads are `members`."""
    membership = Membership(card("me", stage=own_stage))
    for peer in heads:
        membership.hear(card(peer, stage=0), 0.0)
    for number in range(others):
        membership.hear(card(f"p{number:03d}", stage=1 + number % (STAGES - 1)), 0.0)
    history: Any = SimpleNamespace(
        record_hash="r", members=lambda stage=None: tuple(members), on_relay=lambda callback: None
    )
    links: Any = SimpleNamespace(answers=lambda kind, answerer: None)
    unused = cast("Any", None)
    return Conductor(
        unused, links, membership, history, unused, Signal(), unused, unused, random.Random(0), unused, unused
    )


@pytest.mark.parametrize("own_stage", [0, 1, 5])
def test_a_head_of_the_last_record_leads_in_everybodys_eyes(own_stage: int) -> None:
    it = conductor(own_stage, ["h1", "h2"], ["h2"], 2 * SMALL_SWARM)
    assert it.leader(2) == "h2"
    assert not it.is_first(2)


def test_who_is_far_from_the_heads_of_a_large_swarm_does_not_lead_because_it_knows_none_of_the_record() -> None:
    it = conductor(5, ["h1"], ["h2"], 2 * SMALL_SWARM)
    assert it.leader(2) == ""
    assert not it.is_first(2)


@pytest.mark.parametrize(("own_stage", "others"), [(1, 2 * SMALL_SWARM), (5, STAGES)])
def test_who_knows_all_heads_sees_when_those_of_the_record_are_gone(own_stage: int, others: int) -> None:
    assert conductor(own_stage, ["h1"], ["h2"], others).leader(2) == "h1"
