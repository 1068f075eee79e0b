"""The version that a swarm returns to, and its members: by table and by chance."""

import random

import pytest

from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.recovery.return_plan import NoReturn, ReturnPlan, plan_return
from swarmd.swarm.wire.messages.disks import CheckpointList, CheckpointName


def listed(*names: tuple[int, int], state: str = "s", has_data: bool = True) -> CheckpointList:
    """Versions and stages on a disk."""
    return CheckpointList(
        tuple(CheckpointName(version, stage, f"{state}{version}") for version, stage in names), has_data
    )


TWO = {"a": 0, "b": 1}


def test_the_newest_version_that_is_whole_is_returned_to() -> None:
    lists = {"a": listed((4, 0), (2, 0)), "b": listed((2, 1), (6, 1))}
    assert plan_return(lists, TWO, 2, upto=9) == ReturnPlan(2, "s2", (("a",), ("b",)))


def test_a_copy_counts_like_a_replicas_own() -> None:
    lists = {"a": listed((4, 0), (2, 0), (4, 1)), "b": listed((2, 1))}
    assert plan_return(lists, TWO, 2, upto=9) == ReturnPlan(4, "s4", (("a",), ("b",)))
    assert plan_return(lists, TWO, 2, upto=4) == ReturnPlan(4, "s4", (("a",), ("b",)))
    assert plan_return(lists, TWO, 2, upto=3) == ReturnPlan(2, "s2", (("a",), ("b",)))


def test_newer_versions_are_passed_over_in_words() -> None:
    lists = {
        "a": listed((2, 0), (4, 0), (6, 0), (8, 1)),
        "b": CheckpointList(listed((2, 1), (8, 2)).checkpoints, True, damaged=((6, 1), (4, 0))),
        "c": listed((2, 2), (4, 1), (6, 2)),
    }
    way = plan_return(lists, {"a": 0, "b": 1, "c": 2}, 3, upto=9)
    assert isinstance(way, ReturnPlan)
    assert way.version == 2
    assert [str(it) for it in way.passed] == [
        "version 8 is passed over: no checkpoint of stage 0 (2 of 3 stages are here)",
        "version 6 is passed over: no checkpoint of stage 1 (2 of 3 stages are here; damaged: that of stage 1 at b)",
        "version 4 is passed over: no checkpoint of stage 2 (2 of 3 stages are here)",
    ]


def test_what_must_come_is_of_the_version_that_lacks_least() -> None:
    lists = {"a": CheckpointList(listed((4, 0), (6, 0), (6, 1), (8, 2)).checkpoints, True, damaged=((6, 2),))}
    said = plan_return(lists, {"a": 0}, 3, upto=9)
    assert said == NoReturn(
        "a checkpoint of stage 2, on a disk of anyone who comes "
        "(of version 6 2 of 3 stages are here; damaged: that of stage 2 at a)",
        whole=False,
    )
    both = {peer: CheckpointList(listed((6, 0)).checkpoints, True, damaged=((6, 1),)) for peer in "ab"}
    assert plan_return(both, TWO, 2, upto=9) == NoReturn(
        "a checkpoint of stage 1, on a disk of anyone who comes "
        "(of version 6 1 of 2 stages are here; damaged: that of stage 1 at a, that of stage 1 at b)",
        whole=False,
    )
    assert plan_return({}, {}, 3, upto=9) == NoReturn(
        "a checkpoint of stages 0, 1 and 2, on a disk of anyone who comes", whole=False
    )


def test_states_of_two_histories_are_not_mixed() -> None:
    lists = {"a": listed((4, 0), (2, 0)), "b": listed((4, 1), state="other")}
    lacks = "a checkpoint of stage 1, on a disk of anyone who comes (of version 4 1 of 2 stages are here)"
    assert plan_return(lists, TWO, 2, upto=9) == NoReturn(lacks, whole=False)
    both = {
        "a": CheckpointList((*listed((4, 0)).checkpoints, *listed((4, 0), (4, 1), state="other").checkpoints), True),
        "b": listed((4, 1)),
    }
    way = plan_return(both, TWO, 2, upto=9, known=lambda version: "other4")
    assert isinstance(way, ReturnPlan)
    assert way.state == "other4"


def test_a_history_is_followed_as_far_as_it_remembers() -> None:
    both = {
        "a": CheckpointList(
            (*listed((2, 0), (4, 0)).checkpoints, *listed((2, 0), (4, 0), state="other").checkpoints), True
        )
    }
    remembered = {2: "other2", 3: "s4"}
    assert plan_return(both, {"a": 0}, 1, upto=2, known=lambda version: remembered.get(version, "")) == ReturnPlan(
        2, "other2", (("a",),)
    )


@pytest.mark.parametrize("states", [("s", "t"), ("t", "s")])
def test_of_two_states_of_a_version_the_one_with_more_checkpoints_counts(states: tuple[str, str]) -> None:
    often, seldom = states
    lists = {
        "a": CheckpointList(
            (*listed((4, 0), state=often).checkpoints, *listed((4, 0), state=seldom).checkpoints), True
        ),
        "b": CheckpointList(
            (*listed((4, 1), state=often).checkpoints, *listed((4, 1), state=seldom).checkpoints), True
        ),
        "c": listed((4, 1), state=often),
    }
    way = plan_return(lists, TWO, 2, upto=9)
    assert isinstance(way, ReturnPlan)
    assert way.state == f"{often}4"


def test_only_newer_versions_are_passed_over() -> None:
    lists = {
        "a": CheckpointList((*listed((1, 0), (2, 0)).checkpoints, *listed((1, 0), state="other").checkpoints), True),
        "b": listed((1, 1)),
    }
    way = plan_return(lists, TWO, 2, upto=9)
    assert isinstance(way, ReturnPlan)
    assert (way.version, way.state) == (1, "s1")
    assert [it.version for it in way.passed] == [2], "of version 1 another state is whole"


def test_who_lacks_data_is_not_sent_to_the_first_stage() -> None:
    places = {"b": 1, "c": 1}
    lists = {"b": listed((4, 0), (4, 1), has_data=False), "c": listed((4, 1))}
    way = plan_return(lists, places, 2, upto=9)
    assert way == ReturnPlan(4, "s4", (("c",), ("b",)))
    poor = {peer: CheckpointList(it.checkpoints, has_data=False) for peer, it in lists.items()}
    assert plan_return(poor, places, 2, upto=9) == NoReturn("a peer for stage 0", whole=True)
    assert plan_return(lists, places, 2, upto=9, spares=False) == NoReturn("a peer for stage 0", whole=True)


def test_whoever_has_the_checkpoint_is_sent() -> None:
    places = {"a": 0, "b": 0, "c": 0}
    lists = {"a": listed((4, 0)), "b": listed((4, 0), (4, 1)), "c": listed((4, 0))}
    assert plan_return(lists, places, 2, upto=9) == ReturnPlan(4, "s4", (("a", "c"), ("b",)))


def test_the_spare_comes_from_the_stage_with_most_peers() -> None:
    checkpoint = listed((4, 0), (4, 1), (4, 2))
    for few, many in ((0, 1), (1, 0)):
        places = {"a": few, "b": few, "c": many, "d": many, "e": many}
        way = plan_return(dict.fromkeys(places, checkpoint), places, 3, upto=9)
        assert isinstance(way, ReturnPlan)
        assert way.members[few] == ("a", "b")
        assert set(way.members[many]) | set(way.members[2]) == {"c", "d", "e"}


def test_who_lacks_data_may_be_sent_to_any_other_stage() -> None:
    lists = dict.fromkeys("ab", listed((4, 0), (4, 1), has_data=False))
    way = plan_return(lists, {"a": 0, "b": 0}, 2, upto=9)
    assert isinstance(way, ReturnPlan)
    assert sorted(way.members) == [("a",), ("b",)]


@pytest.mark.parametrize("version", range(1, 9))
def test_of_equal_peers_state_and_stage_choose_the_spare(version: int) -> None:
    places = dict.fromkeys("abcd", 0)
    way = plan_return(dict.fromkeys(places, listed((version, 0), (version, 1))), places, 2, upto=9)
    assert isinstance(way, ReturnPlan)
    assert way.members[1] == (rendezvous(f"spare/s{version}/1", places)[0],)


@pytest.mark.parametrize("seed", range(200))
def test_a_way_is_whole_and_keeps_everyone(seed: int) -> None:
    """Against a dumb search: every stage is on some disk at that version, and at none newer; nobody is lost."""
    rng = random.Random(seed)
    stages, peers = rng.randint(1, 4), [f"p{number}" for number in range(rng.randint(1, 8))]
    lists = {
        peer: listed(*{(rng.choice((2, 4, 6)), rng.randrange(stages)) for _ in range(rng.randint(0, 4))})
        for peer in peers
    }
    places = {peer: rng.randrange(stages) for peer in peers}
    way = plan_return(lists, places, stages, upto=9)
    held = {(checkpoint.version, checkpoint.stage) for it in lists.values() for checkpoint in it.checkpoints}
    whole = [version for version in (2, 4, 6) if all((version, stage) in held for stage in range(stages))]
    if not whole or len(peers) < stages:
        assert isinstance(way, NoReturn)
        assert way.whole == bool(whole)
        return
    assert isinstance(way, ReturnPlan)
    assert way.version == max(whole)
    assert sorted(peer for members in way.members for peer in members) == peers
    assert all(way.members)


def test_checkpoints_of_one_name_count_together_whatever_their_bytes() -> None:
    """Which of them is taken is settled when it is brought."""
    lists = {
        "a": CheckpointList((CheckpointName(4, 0, "s4", "root"),), True),
        "b": CheckpointList((CheckpointName(4, 1, "s4", "other"),), True),
        "c": CheckpointList((CheckpointName(4, 1, "s4", "another"),), True),
    }
    way = plan_return(lists, {"a": 0, "b": 1, "c": 1}, 2, upto=9)
    assert way == ReturnPlan(4, "s4", (("a",), ("b", "c")))
    spare = plan_return(lists, {"a": 0, "b": 0, "c": 0}, 2, upto=9)
    assert isinstance(spare, ReturnPlan)
    assert spare.members[1][0] in "bc", "rather one that has it"
