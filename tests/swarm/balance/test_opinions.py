"""Several peers' word on one newcomer's place: one liar among them decides nothing."""

import dataclasses
import itertools

from swarmd.swarm.balance.opinions import agree_on_place
from swarmd.swarm.wire.messages.fields import ARRIVALS_LIMIT, STEP_LIMIT
from swarmd.swarm.wire.messages.presence import Place
from tests.swarm.cards import card

HEAD, TAIL = card("head", stage=0, version=7, incarnation=5), card("tail", stage=1, version=7, incarnation=6)
HONEST = Place(1, (HEAD, TAIL), "head", False, 3)
LATER = Place(1, (HEAD, dataclasses.replace(TAIL, sequence=TAIL.sequence + 1)), "head", False, 4)
FALSE = tuple(dataclasses.replace(it, incarnation=1 << 61, version=STEP_LIMIT) for it in (HEAD, TAIL))
LIE = Place(0, (*FALSE, card("invented", stage=1)), "liar", True, ARRIVALS_LIMIT)


def test_of_three_a_liar_decides_nothing_whichever_is_asked_first() -> None:
    for order in itertools.permutations({"a": HONEST, "b": LATER, "liar": LIE}.items()):
        guide, place = agree_on_place(dict(order))
        assert guide in ("a", "b")
        assert (place.stage, place.founder, place.resumes) == (1, "head", False)
        assert place.arrival in (3, 4)
        assert {it.peer for it in place.cards} == {"head", "tail"}
        assert all(it.incarnation < 1 << 61 and it.version == 7 for it in place.cards)


def test_of_two_the_one_that_is_not_ahead_counts() -> None:
    for order in itertools.permutations({"a": HONEST, "liar": LIE}.items()):
        guide, place = agree_on_place(dict(order))
        assert (guide, place.arrival, place.resumes) == ("a", 3, False)
        assert all(it.version == 7 for it in place.cards if it.peer != "invented")


def test_one_alone_is_believed() -> None:
    assert agree_on_place({"a": HONEST}) == ("a", HONEST)


def test_where_all_wait_for_a_return_the_newcomer_does() -> None:
    resumes = dataclasses.replace(HONEST, resumes=True)
    assert agree_on_place({"a": resumes, "b": resumes})[1].resumes
    assert not agree_on_place({"a": resumes, "b": HONEST})[1].resumes


def test_a_card_twice_in_one_place_is_shown_once() -> None:
    twice = Place(1, (HEAD, TAIL, FALSE[0], FALSE[0], FALSE[0]), "head", False, 3)
    cards = agree_on_place({"a": HONEST, "b": LATER, "liar": twice})[1].cards
    assert sorted((it.peer, it.incarnation) for it in cards) == [("head", 5), ("tail", 6)]
