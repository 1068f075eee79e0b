"""What a peer sees of the stages, from cards and summaries."""

import dataclasses
import math

import pytest

from swarmd.config import ModelConfig, RunConfig
from swarmd.swarm.balance.outlook import Outlook, measured_powers, stage_loads, sum_up
from swarmd.swarm.balance.rule import plan_place
from swarmd.swarm.history.record import Move
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.messages.presence import Card, Summary
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card

EVEN = (1.0, 1.0, 1.0)
RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, 3, 3, 8))


def loads(*cards: Card, summaries: dict[int, Summary] | None = None) -> list[tuple[float, int, int]]:
    """Of each stage: power, who stays, who may go."""
    return [(it.power, it.staying, len(it.candidates)) for it in stage_loads(cards, EVEN, summaries)]


def swarm(*cards: Card) -> Membership:
    members = Membership(OwnCard(card("me", stage=0)))
    for it in cards:
        members.hear(it, 0.0)
    return members


def test_everyone_counts_where_it_is_or_will_be() -> None:
    cards = (
        card("a", stage=0),
        card("b", stage=0, moving=2),
        card("c", stage=1, state="joining"),
        card("d", stage=1, state="left"),
        card("e", stage=2, rested=False),
        card("f", stage=-1, state="joining"),
        card("g", stage=0, state="draining"),
        card("h", stage=0, state="draining", moving=1),
        card("i", stage=1, state="joining", moving=2),
        card("j", stage=0, state="left", moving=2),
    )
    assert loads(*cards) == [(1.0, 1, 1), (3.0, 0, 0), (2.0, 1, 0)]


def test_a_machine_that_will_be_gone_soon_is_not_counted_here_nor_there() -> None:
    cards = (card("a", stage=0), card("b", stage=0, ending=True), card("c", stage=0, moving=1, ending=True))
    assert loads(*cards) == [(1.0, 1, 1), (0.0, 0, 0), (0.0, 0, 0)]


def test_a_place_that_nobody_has_heard_of_is_not_counted() -> None:
    assert loads(card("a", stage=7), card("b", stage=1, moving=9)) == [(0.0, 0, 0), (1.0, 1, 1), (0.0, 0, 0)]


@pytest.mark.parametrize(
    ("seconds", "powers"),
    [
        ((0.0, 0.0, 0.0), [1.0, 1.0, 1.0]),
        ((0.5, 0.5, 0.0), [2.0, 2.0, 2.0]),
        ((0.5, 0.4, 0.7), [2.0, 2.0, 2.0]),
        ((0.5, 0.5, 0.125), [2.0, 2.0, 8.0]),
        ((0.5, 0.5, 1e-9), [2.0, 2.0, 32.0]),
        ((0.5, 0.5, 5e-324), [2.0, 2.0, 32.0]),
        ((5e-324, 5e-324, 5e-324), [1e9, 1e9, 1e9]),
        ((0.5, 0.5, math.nan), [2.0, 2.0, 2.0]),
        ((0.5, 0.5, 1e9), [2.0, 2.0, 0.125]),
    ],
)
def test_speeds_are_as_measured_but_alike_if_nearly_so(seconds: tuple[float, ...], powers: list[float]) -> None:
    cards = [card(name, service_seconds=it, measured=True) for name, it in zip("abc", seconds, strict=True)]
    assert list(measured_powers(cards, EVEN).values()) == pytest.approx(powers)


def test_the_first_few_microbatches_say_nothing_of_a_speed() -> None:
    cards = [card("a", service_seconds=1.0, measured=True), card("b", service_seconds=9.0)]
    assert measured_powers(cards, EVEN) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("stage", [-1, len(EVEN)])
def test_the_speed_at_a_stage_that_the_run_lacks_is_not_compared(stage: int) -> None:
    cards = [card("a", service_seconds=1.0, measured=True), card("b", stage=stage, service_seconds=9.0, measured=True)]
    assert measured_powers(cards, EVEN) == {"a": 1.0, "b": 1.0}


def test_who_takes_twice_as_long_for_twice_the_work_is_as_fast() -> None:
    cards = [
        card("a", stage=0, service_seconds=1.0, measured=True),
        card("b", stage=1, service_seconds=2.0, measured=True),
    ]
    assert measured_powers(cards, (1.0, 2.0, 1.0)) == {"a": 1.0, "b": 1.0}


def test_a_far_stage_is_known_by_its_summary() -> None:
    far = Summary(2, (), 20, power=17.0, candidates=12, moving=((0, 1.0), (1, 2.0)))
    cards = (card("a", stage=0), card("z", stage=2))
    assert loads(*cards, summaries={2: far}) == [(2.0, 1, 1), (2.0, 0, 0), (17.0, 18, 12)]
    assert loads(*cards, summaries={2: Summary(2, (), 1, 5.0)})[2] == (1.0, 1, 1), "all of it are known"


def test_a_summary_counts_for_its_stage_alone_and_only_beside_peers_that_stay_there() -> None:
    far = {2: Summary(2, (), 3, power=5.0)}
    elsewhere = [card(name, stage=0) for name in "abcd"]
    assert loads(*elsewhere, card("z", stage=2), summaries=far)[2] == (5.0, 3, 0), "one of three is known"
    assert loads(*elsewhere, summaries=far)[2] == (0.0, 0, 0), "nobody is known"
    assert loads(*elsewhere, card("z", stage=2, state="draining"), summaries=far)[2] == (0.0, 0, 0)


def test_a_summary_that_lies_breaks_nothing() -> None:
    far = Summary(2, (), 20, power=math.inf, candidates=10**9, moving=((99, 1.0), (0, math.nan)))
    power, staying, candidates = loads(card("a", stage=0), card("z", stage=2), summaries={2: far})[2]
    assert (power, staying, candidates) == (0.0, 19, 19)


def test_a_summary_says_what_a_stage_has() -> None:
    cards = [
        card("a", stage=2, service_seconds=1.0, measured=True),
        card("b", stage=2, moving=0),
        card("c", stage=2, rested=False),
        card("d", stage=2, state="joining"),
        card("e", stage=1, moving=2),
        card("f", stage=2, state="left", moving=0),
    ]
    assert sum_up(2, cards, EVEN, (), 3) == Summary(2, (), 3, power=3.0, candidates=1, moving=((0, 1.0),))


# ------------------------------------------------------------------------------------------------- newcomers


@pytest.mark.parametrize(
    ("stages", "wanted"), [([0], 1), ([0, 1, 2], 0), ([0, 0, 1, 2], 1), ([0, 1, 1], 2), ([1, 2, -1], 0)]
)
def test_of_equals_a_newcomer_goes_where_they_are_fewest(stages: list[int], wanted: int) -> None:
    cards = [card(f"p{number}", stage=stage) for number, stage in enumerate(stages)]
    assert plan_place(stage_loads(cards, EVEN), EVEN, range(3)) == wanted


def test_a_newcomer_goes_where_they_are_slowest() -> None:
    speeds = [(0, 1.0), (0, 1.0), (1, 1.0), (1, 1.0), (2, 4.0), (2, 4.0)]
    cards = [card(f"p{number}", stage=at, service_seconds=it, measured=True) for number, (at, it) in enumerate(speeds)]
    assert plan_place(stage_loads(cards, EVEN), EVEN, range(3)) == 2


# ------------------------------------------------------------------------------------------------- the guard


def test_of_several_that_go_to_one_place_the_first_to_ask_get_there() -> None:
    """All say that they are on their way; that alone must not keep each of them from it."""
    going = [card(name, stage=0, moving=1) for name in "abcd"]
    outlook = Outlook(RUN, swarm(*going, card("x", stage=1), card("y", stage=2)))
    granted: list[Move] = []
    for name in "abcd":
        if not (why := outlook.objection(Move(name, 0, 1), granted)):
            granted.append(Move(name, 0, 1))
    assert [move.peer for move in granted] == ["a", "b"]
    assert why == "stage 1 doesn't need it more than stage 0 any more"


@pytest.mark.parametrize("state", ["draining", "joining"])
def test_one_that_was_granted_and_leaves_at_once_counts_once(state: str) -> None:
    """While it ends its work at the old stage, and when it has left that."""
    going = card("a", stage=0, moving=1, state=state) if state == "draining" else card("a", stage=1, state=state)
    others = (card("b", stage=0), card("c", stage=0), card("x", stage=1), card("y", stage=2), card("z", stage=2))
    outlook = Outlook(RUN, swarm(going, *others))
    assert outlook.objection(Move("b", 0, 1), [Move("a", 0, 1)]) == "stage 1 doesn't need it more than stage 0 any more"
    outlook = Outlook(RUN, swarm(going, *others, card("d", stage=0)))
    assert outlook.objection(Move("b", 0, 1), [Move("a", 0, 1)]) == "", "of four that are left one more may go"


def test_one_that_drains_is_not_counted_on_where_it_is() -> None:
    others = (card("b", stage=0), card("x", stage=1), card("y", stage=2), card("z", stage=2))
    for state, why in (("paused", ""), ("draining", "stage 1 doesn't need it more than stage 0 any more")):
        outlook = Outlook(RUN, swarm(card("a", stage=0, state=state), *others))
        assert outlook.objection(Move("b", 0, 1), []) == why


def test_a_move_to_nowhere_is_objected_to() -> None:
    outlook = Outlook(RUN, swarm())
    assert outlook.objection(Move("me", 0, 9), []) == "this run has no stage 9"
    assert outlook.objection(Move("me", -1, 0), []) == "this run has no stage 0"


def test_those_to_whom_a_place_was_promised_are_as_good_as_there() -> None:
    outlook = Outlook(RUN, swarm(card("a", stage=1), card("b", stage=2)))
    coming = [dataclasses.replace(card("new"), stage=2, state="joining")]
    assert [round(it.power, 3) for it in outlook.loads(coming)] == [1.0, 1.0, 2.0]
