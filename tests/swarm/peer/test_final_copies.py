"""Copies of the final state, by whom they are brought and what is waited for: pure rules, by table and by chance."""

import random
from collections import Counter
from typing import Any

import pytest

from swarmd.swarm.peer.final_copies import MACHINES, Keeper, awaited, keeper_of, machines_of, plan_final_copies, untold
from tests.swarm.cards import card


def keeper(peer: str, stage: int, machine: str = "", *, has: tuple[int, ...] = (), saves: bool = True) -> Keeper:
    """A peer that finishes soon, on a machine of its own unless that is named."""
    return Keeper(peer, machine or f"machine of {peer}", stage, frozenset(has), saves=saves, takes=True)


def test_replicas_on_two_machines_need_no_copy() -> None:
    keepers = [keeper("a", 0), keeper("b", 0), keeper("c", 1), keeper("d", 1)]
    assert plan_final_copies([0, 1], keepers) == {0: (), 1: ()}
    assert awaited([0, 1], keepers) == [0, 1], "they have to write it yet"


def test_a_stage_with_one_peer_is_copied_to_another_machine() -> None:
    keepers = [keeper("a", 0), keeper("b", 1)]
    assert plan_final_copies([0, 1], keepers) == {0: ("b",), 1: ("a",)}


def test_two_peers_of_one_machine_are_one() -> None:
    keepers = [keeper("a", 0, "x"), keeper("b", 0, "x"), keeper("c", 1, "x"), keeper("d", 1, "y")]
    assert plan_final_copies([0, 1], keepers) == {0: ("d",), 1: ()}


def test_on_one_machine_nobody_copies_and_nobody_waits() -> None:
    keepers = [keeper("a", 0, "x", has=(0,), saves=False), keeper("b", 1, "x", has=(1,), saves=False)]
    assert plan_final_copies([0, 1], keepers) == {0: (), 1: ()}
    assert awaited([0, 1], keepers) == []


def test_who_writes_its_own_on_the_only_machine_is_not_waited_for() -> None:
    keepers = [keeper("a", 0, "x", has=(0,), saves=False), keeper("b", 0, "x")]
    assert awaited([0], keepers) == []


def test_copies_are_spread() -> None:
    keepers = [keeper(f"p{stage}", stage) for stage in range(4)] + [keeper("spare", 0)]
    plan = plan_final_copies(range(4), keepers)
    assert plan[0] == ()
    assert max(Counter(peer for chosen in plan.values() for peer in chosen).values()) == 1


def test_whoever_has_a_copy_already_is_the_one() -> None:
    keepers = [keeper("a", 0), keeper("b", 1), keeper("c", 1), keeper("d", 1, has=(0,))]
    assert plan_final_copies([0], keepers) == {0: ("d",)}


def test_a_disk_that_takes_nothing_is_passed_over() -> None:
    full = Keeper("a", "x", 0, takes=False, saves=True)
    keepers = [full, keeper("b", 1, "y"), keeper("c", 1, "z")]
    assert plan_final_copies([0, 1], keepers)[1] == ()
    assert plan_final_copies([0, 1], [full, keeper("b", 1, "y")]) == {0: ("b",), 1: ()}
    assert awaited([1], [full, keeper("b", 1, "y", has=(1,), saves=False)]) == []


def test_a_replica_whose_disk_is_full_gives_to_two_others() -> None:
    """It has the state in memory."""
    full = Keeper("a", "x", 0, takes=False, saves=False)
    keepers = [full, keeper("b", 1), keeper("c", 1)]
    assert sorted(plan_final_copies([0], keepers)[0]) == ["b", "c"]


def test_what_nobody_has_is_not_waited_for() -> None:
    keepers = [keeper("b", 1, has=(1,), saves=False), keeper("c", 1, has=(1,), saves=False)]
    assert plan_final_copies([0, 1], keepers) == {0: (), 1: ()}
    assert awaited([0, 1], keepers) == []


def test_the_disk_of_one_that_has_left_counts_but_gives_nothing() -> None:
    left = Keeper("a", "x", 0, frozenset({0}), here=False)
    keepers = [left, keeper("b", 1, has=(0,))]
    assert len(machines_of(0, keepers)) == MACHINES
    assert awaited([0], keepers) == []
    assert awaited([0], [left, keeper("b", 1)]) == [], "nobody is there to give a copy"


def test_a_goodbye_may_overtake_the_word_of_the_copy_that_allowed_it() -> None:
    left, own = Keeper("a", "x", 0, frozenset({0}), here=False), keeper("me", 1, saves=False)
    may_have, never = keeper("b", 1, saves=False), Keeper("b", "y", 1)
    assert untold([0], [left, own, may_have], "me") == [0]
    assert untold([0], [left, own, never], "me") == []
    assert untold([0], [left, own], "me") == [], "it knows what it has itself"
    assert untold([0], [left, own, keeper("b", 1, "x", saves=False)], "me") == [], "on the same machine"
    assert untold([0], [left, own, keeper("b", 1, has=(0,), saves=False)], "me") == []
    assert untold([0], [left, own, may_have, keeper("c", 0)], "me") == [], "the plan says who brings one"
    assert untold([0], [own, may_have], "me") == [], "nobody has said that it was there"


def test_a_machine_that_is_about_to_go_does_not_count() -> None:
    going = Keeper("a", "x", 0, frozenset({0}), lasts=False)
    keepers = [going, keeper("b", 1), keeper("c", 1)]
    assert machines_of(0, keepers) == {}
    assert sorted(plan_final_copies([0], keepers)[0]) == ["b", "c"]


@pytest.mark.parametrize("seed", range(200))
def test_the_plan_puts_each_stage_on_as_many_machines_as_can_be(seed: int) -> None:
    """Against a dumb count; and once everyone has done its part nothing is waited for."""
    rng = random.Random(seed)
    stages, hosts = rng.randint(1, 4), [f"h{number}" for number in range(rng.randint(1, 4))]
    keepers = [
        Keeper(f"p{number}", rng.choice(hosts), rng.randrange(stages), saves=True, takes=rng.random() < 0.7)
        for number in range(rng.randint(1, 8))
    ]
    plan = plan_final_copies(range(stages), keepers)
    shuffled = rng.sample(keepers, len(keepers))
    assert {stage: set(chosen) for stage, chosen in plan_final_copies(range(stages), shuffled).items()} == {
        stage: set(chosen) for stage, chosen in plan.items()
    }, "everyone works it out alike"
    done = []
    for it in keepers:
        has = {it.stage, *(stage for stage, chosen in plan.items() if it.peer in chosen)}
        done.append(Keeper(it.peer, it.machine, it.stage, frozenset(has), takes=it.takes))
    for stage in range(stages):
        own = {it.machine for it in keepers if it.stage == stage}
        able = {it.machine for it in keepers if it.takes}
        expected = min(MACHINES, len(own | able)) if own else 0
        assert len(machines_of(stage, done)) >= expected, stage
    assert awaited(range(stages), done) == []


@pytest.mark.parametrize(
    ("state", "changes", "expected"),
    [
        ("serving", {"spare": True}, {"saves": True, "takes": True, "here": True}),
        ("serving", {"spare": False}, {"saves": True, "takes": False, "here": True}),
        ("draining", {"spare": True}, {"saves": False, "takes": False, "here": True}),
        ("finished", {"spare": True, "final": (1,)}, {"saves": False, "takes": True, "here": True}),
        ("left", {"spare": True, "final": (1,)}, {"saves": False, "takes": False, "here": False}),
        ("serving", {"ending": True}, {"saves": True, "lasts": False}),
    ],
)
def test_what_a_card_says_of_its_peer_as_a_keeper(
    state: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    it = keeper_of(card("p", state=state, stage=1, machine="m/1", **changes))
    assert (it.peer, it.machine, it.stage, it.has) == ("p", "m", 1, frozenset(changes.get("final", ())))
    assert {name: getattr(it, name) for name in expected} == expected
