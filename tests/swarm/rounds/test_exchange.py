"""The order in which a round's parts travel."""

import random

from swarmd.swarm.rounds.exchange import PARTS_AT_ONCE, PARTS_AT_ONCE_LIMIT, plan_pace, plan_turns
from swarmd.swarm.rounds.parts import plan_parts
from swarmd.swarm.wire.messages.round import Part


def test_every_owner_gets_its_turn_before_any_gets_a_second() -> None:
    parts = plan_parts(1000, {"a": 1.0, "b": 1.0, "c": 2.0}, limit=100)
    turns = plan_turns(parts)
    assert sorted(turns) == list(range(len(parts)))
    assert [parts[number].owner for number in turns[:3]] == ["a", "b", "c"]
    rounds = [parts[number].owner for number in turns]
    for owner in "abc":  # nobody is more than one turn ahead of another who has parts left
        assert rounds[:6].count(owner) == 2


def test_turns_are_those_of_a_dumb_twin() -> None:
    rng = random.Random(0)
    for _ in range(200):
        parts = [Part(number, number + 1, rng.choice("abcde")) for number in range(rng.randrange(1, 30))]
        queues = {owner: [n for n, part in enumerate(parts) if part.owner == owner] for owner in "abcde"}
        expected: list[int] = []
        while any(queues.values()):
            expected += sorted(queue.pop(0) for queue in queues.values() if queue)
        assert list(plan_turns(parts)) == expected


def test_one_part_per_owner_is_under_way_within_bounds() -> None:
    assert plan_pace([Part(0, 1, "a")]) == PARTS_AT_ONCE
    assert plan_pace([Part(n, n + 1, f"{n}") for n in range(11)]) == 11
    assert plan_pace([Part(n, n + 1, f"{n}") for n in range(1000)]) == PARTS_AT_ONCE_LIMIT
