"""Which of several states is taken: by table, and what is said about the others."""

import pytest

from swarmd.swarm.state.choice import Offer, choose, kind_of
from tests.swarm.cards import card

EVERYONE = frozenset("abcdefgh")


def offers(**states: str) -> list[Offer]:
    """By peer: a state, with the kind of its device after a colon."""
    split = {peer: said.partition(":") for peer, said in states.items()}
    return [Offer(peer, state, kind or "cpu") for peer, (state, _, kind) in split.items()]


@pytest.mark.parametrize(
    ("offered", "members", "taken"),
    [
        ({"a": "x", "b": "x"}, EVERYONE, "x"),
        ({"a": "x", "b": "x", "c": "y"}, EVERYONE, "x"),
        ({"a": "x", "b": "y"}, EVERYONE, ""),
        ({"a": "x", "b": "x", "c": "y", "d": "y"}, EVERYONE, ""),
        ({"a": "x"}, EVERYONE, "x"),
        ({"a": "x", "b": "y", "c": "y", "d": "y"}, "a", "x"),
        ({"a": "x", "b": "y", "c": "y"}, "ab", ""),
        ({"a": "x", "b": "y", "c": "y"}, "", "y"),
        ({"a": "x", "b": "y", "c": "y"}, "z", "y"),
    ],
    ids=[
        "all the same",
        "most",
        "one against one",
        "two against two",
        "a single one",
        "strangers don't count",
        "nor do they break a tie",
        "nobody is known",
        "no member offers anything",
    ],
)
def test_what_most_members_offer_is_taken(offered: dict[str, str], members: str, taken: str) -> None:
    assert choose(offers(**offered), members, "cpu").state == taken


@pytest.mark.parametrize(
    ("offered", "own", "taken"),
    [
        ({"a": "x:cpu", "b": "y:cuda"}, "cuda", "y"),
        ({"a": "x:cpu", "b": "y:cuda"}, "cpu", "x"),
        ({"a": "x:cpu", "b": "y:cuda"}, "mps", "x"),
        ({"a": "x:cpu", "b": "x:cuda", "c": "y:cuda", "d": "y:mps"}, "cuda", ""),
        ({"a": "x:cpu", "b": "y:cuda", "c": "y:cuda"}, "cpu", "y"),
    ],
    ids=["its own kind", "its own kind, the other one", "neither", "two of a kind differ", "most, though of another"],
)
def test_devices_of_different_kinds_may_differ(offered: dict[str, str], own: str, taken: str) -> None:
    assert choose(offers(**offered), EVERYONE, own).state == taken


def test_it_says_who_differs_from_whom() -> None:
    assert choose(offers(a="x", b="x"), EVERYONE).differs("stage 1") == ""
    assert (
        choose(offers(a="x", b="x", c="y"), EVERYONE).differs("stage 1 at version 7")
        == "of stage 1 at version 7 c and a, b offer different states: it is taken from a, b"
    )
    assert choose(offers(a="x", b="y"), EVERYONE).differs("stage 1").endswith("none is taken until more peers agree")
    many = offers(**dict.fromkeys("abcdef", "x"), h="y", g="z")
    said = choose(many, EVERYONE).differs("stage 1")
    assert said.startswith("of stage 1 g, h and a, b, c, d and 2 more offer different states"), "all that offer another"
    four = offers(**dict.fromkeys("abcd", "x"), g="y")
    assert choose(four, EVERYONE).differs("stage 1").endswith("it is taken from a, b, c, d")


def test_a_kind_of_device_is_what_its_card_says() -> None:
    assert kind_of(card("a", device="cuda")) == kind_of(card("b", device="cuda"))
    assert kind_of(card("a", device="cuda", device_name="H200")) != kind_of(card("a", device="cuda"))
    assert kind_of(card("a", torch="2.9")) != kind_of(card("a", torch="2.10"))
    assert kind_of(None) == ""
