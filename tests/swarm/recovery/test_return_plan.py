"""The version that a swarm returns to, and its members: by table and by chance."""

import random

import pytest

from swarmd.swarm.recovery.return_plan import NoReturn, ReturnPlan, plan_return
from swarmd.swarm.wire.messages.disks import Kept, Stock


def stock(*kept: tuple[int, int], state: str = "s", has_data: bool = True) -> Stock:
    """Versions and stages on a disk."""
    return Stock(tuple(Kept(version, stage, f"{state}{version}") for version, stage in kept), has_data)


TWO = {"a": 0, "b": 1}


def test_the_newest_version_that_is_whole_is_returned_to() -> None:
    stocks = {"a": stock((4, 0), (2, 0)), "b": stock((2, 1), (6, 1))}
    assert plan_return(stocks, TWO, 2, upto=9) == ReturnPlan(2, "s2", (("a",), ("b",)))


def test_a_copy_counts_like_a_replicas_own() -> None:
    stocks = {"a": stock((4, 0), (2, 0), (4, 1)), "b": stock((2, 1))}
    assert plan_return(stocks, TWO, 2, upto=9) == ReturnPlan(4, "s4", (("a",), ("b",)))
    assert plan_return(stocks, TWO, 2, upto=3) == ReturnPlan(2, "s2", (("a",), ("b",)))


def test_newer_versions_are_passed_over_in_words() -> None:
    stocks = {
        "a": stock((2, 0), (4, 0), (6, 0), (8, 1)),
        "b": Stock(stock((2, 1), (8, 2)).kept, True, damaged=((6, 1), (4, 0))),
        "c": stock((2, 2), (4, 1), (6, 2)),
    }
    way = plan_return(stocks, {"a": 0, "b": 1, "c": 2}, 3, upto=9)
    assert isinstance(way, ReturnPlan)
    assert way.version == 2
    assert [str(it) for it in way.passed] == [
        "version 8 is passed over: no checkpoint of stage 0 (2 of 3 stages are here)",
        "version 6 is passed over: no checkpoint of stage 1 (2 of 3 stages are here; damaged: that of stage 1 at b)",
        "version 4 is passed over: no checkpoint of stage 2 (2 of 3 stages are here)",
    ]


def test_what_must_come_is_of_the_version_that_lacks_least() -> None:
    stocks = {"a": Stock(stock((4, 0), (6, 0), (6, 1), (8, 2)).kept, True, damaged=((6, 2),))}
    said = plan_return(stocks, {"a": 0}, 3, upto=9)
    assert said == NoReturn(
        "a checkpoint of stage 2, on a disk of anyone who comes "
        "(of version 6 2 of 3 stages are here; damaged: that of stage 2 at a)",
        whole=False,
    )
    assert plan_return({}, {}, 3, upto=9) == NoReturn(
        "a checkpoint of stages 0, 1 and 2, on a disk of anyone who comes", whole=False
    )


def test_states_of_two_histories_are_not_mixed() -> None:
    stocks = {"a": stock((4, 0), (2, 0)), "b": stock((4, 1), state="other")}
    lacks = "a checkpoint of stage 1, on a disk of anyone who comes (of version 4 1 of 2 stages are here)"
    assert plan_return(stocks, TWO, 2, upto=9) == NoReturn(lacks, whole=False)
    both = {"a": Stock((*stock((4, 0)).kept, *stock((4, 0), (4, 1), state="other").kept), True), "b": stock((4, 1))}
    way = plan_return(both, TWO, 2, upto=9, known=lambda version: "other4")
    assert isinstance(way, ReturnPlan)
    assert way.state == "other4"


def test_who_lacks_data_is_not_sent_to_the_first_stage() -> None:
    places = {"b": 1, "c": 1}
    stocks = {"b": stock((4, 0), (4, 1), has_data=False), "c": stock((4, 1))}
    way = plan_return(stocks, places, 2, upto=9)
    assert way == ReturnPlan(4, "s4", (("c",), ("b",)))
    poor = {peer: Stock(it.kept, has_data=False) for peer, it in stocks.items()}
    assert plan_return(poor, places, 2, upto=9) == NoReturn("a peer for stage 0", whole=True)
    assert plan_return(stocks, places, 2, upto=9, spares=False) == NoReturn("a peer for stage 0", whole=True)


def test_whoever_has_the_checkpoint_is_sent() -> None:
    places = {"a": 0, "b": 0, "c": 0}
    stocks = {"a": stock((4, 0)), "b": stock((4, 0), (4, 1)), "c": stock((4, 0))}
    assert plan_return(stocks, places, 2, upto=9) == ReturnPlan(4, "s4", (("a", "c"), ("b",)))


@pytest.mark.parametrize("seed", range(200))
def test_a_way_is_whole_and_keeps_everyone(seed: int) -> None:
    """Against a dumb search: every stage is on some disk at that version, and at none newer; nobody is lost."""
    rng = random.Random(seed)
    stages, peers = rng.randint(1, 4), [f"p{number}" for number in range(rng.randint(1, 8))]
    stocks = {
        peer: stock(*{(rng.choice((2, 4, 6)), rng.randrange(stages)) for _ in range(rng.randint(0, 4))})
        for peer in peers
    }
    places = {peer: rng.randrange(stages) for peer in peers}
    way = plan_return(stocks, places, stages, upto=9)
    held = {(kept.version, kept.stage) for it in stocks.values() for kept in it.kept}
    whole = [version for version in (2, 4, 6) if all((version, stage) in held for stage in range(stages))]
    if not whole or len(peers) < stages:
        assert isinstance(way, NoReturn)
        assert way.whole == bool(whole)
        return
    assert isinstance(way, ReturnPlan)
    assert way.version == max(whole)
    assert sorted(peer for members in way.members for peer in members) == peers
    assert all(way.members)
