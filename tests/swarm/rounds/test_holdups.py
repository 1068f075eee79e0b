"""Whom an attempt waits for, and for how long that may last."""

import pytest

from swarmd.swarm.rounds.holdups import (
    HOLDUP_CEILING_SECONDS,
    HOLDUP_FLOOR_SECONDS,
    TAKING_UP_SECONDS,
    Holdups,
    is_sound,
)
from swarmd.swarm.wire.messages.common import to_ranges
from swarmd.swarm.wire.messages.round import OpenPart, Part, Plan, Standing

MEMBERS = ("a", "b", "c")
PAIR = ("a", "b")
STOPPED = 12.0


def plan(members: tuple[str, ...], elements: int = 10) -> Plan:
    """A part for each member."""
    parts = tuple(Part(elements * n, elements * (n + 1), owner) for n, owner in enumerate(members))
    return Plan(1, "first", members, parts, 1, "fp16", thaws=(0,) * len(members))


def standing(members: tuple[str, ...], peer: str, given: dict[int, str], has: str = "") -> Standing:
    """`given`: parts that are not averaged -> who contributed; `has`: the parts that it has."""
    own = [n for n, owner in enumerate(members) if owner == peer and n in given]
    opened = tuple(OpenPart(n, to_ranges(members.index(who) for who in given[n])) for n in own)
    return Standing("first", to_ranges(map(int, has)), opened)


def late_after(it: Plan, standings: dict[str, Standing], seconds: float, leader: str = "a") -> list[str]:
    """The peers that are late if nothing changes for so long."""
    holdups, now, late = Holdups(it, leader, 0.0, STOPPED), 0.0, {}
    while now < seconds:
        now += 2.0
        late = holdups.look(now, standings, sorted(standings))
    return [*late]


def stand(given: dict[int, str], has: dict[str, str], members: tuple[str, ...] = MEMBERS) -> dict[str, Standing]:
    return {peer: standing(members, peer, given, has.get(peer, "")) for peer in members}


def test_one_that_has_not_begun_is_late_soon() -> None:
    standings = {**stand({0: "ab", 1: "ab"}, {}), "c": Standing()}
    assert late_after(plan(MEMBERS), standings, TAKING_UP_SECONDS) == []
    assert late_after(plan(MEMBERS), standings, TAKING_UP_SECONDS + 6) == ["c"]


@pytest.mark.parametrize(
    ("given", "has", "late"),
    [
        ({0: "ab", 1: "ab", 2: "ab"}, {}, "c"),  # contributes nothing
        ({2: ""}, {"a": "01", "b": "01", "c": "01"}, "c"),  # takes nothing, not even its own
        ({2: "c"}, {"a": "01", "b": "01", "c": "01"}, "c"),  # nothing of others
        ({2: "abc"}, {"a": "01", "b": "01", "c": "01"}, "c"),  # has everything, and doesn't add it up
        ({}, {"a": "01", "b": "01", "c": "012"}, "c"),  # tells nobody
        ({}, {"a": "012", "b": "02", "c": "012"}, "b"),  # one alone doesn't get what another one does
        ({0: "bc", 1: "bc", 2: "bc"}, {}, "a"),  # the leader
        ({0: "abc"}, {}, "a"),
        ({0: "a", 1: "ab", 2: "ac"}, {}, "bc"),  # two at once
    ],
)
def test_the_first_part_that_somebody_lacks_tells(given: dict[int, str], has: dict[str, str], late: str) -> None:
    standings = stand(given, has)
    assert late_after(plan(MEMBERS), standings, HOLDUP_FLOOR_SECONDS) == []
    assert late_after(plan(MEMBERS), standings, HOLDUP_FLOOR_SECONDS + 6) == [*late]


@pytest.mark.parametrize("leader", PAIR)
def test_of_two_it_is_the_other_where_nothing_tells(leader: str) -> None:
    other = "b" if leader == "a" else "a"
    for given, has in (({0: "a", 1: "ab"}, {}), ({1: "b"}, {"a": "0", "b": "0"}), ({}, {"a": "0", "b": "01"})):
        found = late_after(plan(PAIR), stand(given, has, PAIR), HOLDUP_FLOOR_SECONDS + 6, leader)
        assert found == [other], (given, has)


@pytest.mark.parametrize("leader", PAIR)
@pytest.mark.parametrize("idle", PAIR)
def test_of_two_it_is_the_one_that_gives_nothing_to_itself_either(leader: str, idle: str) -> None:
    busy = "b" if idle == "a" else "a"
    found = late_after(plan(PAIR), stand({0: busy, 1: busy}, {}, PAIR), HOLDUP_FLOOR_SECONDS + 6, leader)
    assert found == [idle]


def test_whoever_has_everything_and_does_not_say_so_is_late_once_others_have() -> None:
    everything = stand({}, dict.fromkeys(MEMBERS, "012"))
    assert late_after(plan(MEMBERS), everything, 1000) == [], "nobody has said it"
    assert late_after(plan(MEMBERS), {"b": everything["b"]}, HOLDUP_FLOOR_SECONDS + 6) == ["b"]


def test_where_all_are_late_nobody_is() -> None:
    assert late_after(plan(MEMBERS), dict.fromkeys(MEMBERS, Standing()), 1000) == []
    assert late_after(plan(("a",)), stand({0: ""}, {}, ("a",)), 1000) == []


def test_large_parts_have_the_time_of_a_thin_line() -> None:
    standings = stand({0: "ab", 1: "ab", 2: "ab"}, {})
    large = plan(MEMBERS, 4 << 20)
    assert late_after(large, standings, 300) == []
    assert late_after(large, standings, 360) == ["c"]
    assert late_after(plan(MEMBERS, 64 << 20), standings, HOLDUP_CEILING_SECONDS + 6) == ["c"]


def test_each_part_that_comes_begins_a_new_wait_and_the_fastest_is_the_measure() -> None:
    it, now = plan(MEMBERS), 0.0
    holdups = Holdups(it, "a", 0.0, STOPPED)
    before, after = stand({0: "", 1: "b", 2: ""}, {}), stand({0: "ab", 1: "ab", 2: "ab"}, {})
    while now < 8:  # `a` takes as long
        now += 2
        assert not holdups.look(now, before if now < 8 else after, [*MEMBERS])
    came = stand({0: "abc", 1: "ab", 2: "ab"}, {"a": "0", "b": "0", "c": "0"})
    late: dict[str, float] = {}
    while now < 60:
        now += 2
        late = holdups.look(now, after, [*MEMBERS])
    assert not late, "less than ten times what it took the others"
    while now < 200 and not late:
        now += 2
        late = holdups.look(now, came, [*MEMBERS])
    assert [*late] == ["c"]
    assert now > 60 + 80, "since its last part"


def test_a_leader_that_was_stopped_blames_nobody_for_that_time() -> None:
    standings = stand({0: "ab", 1: "ab", 2: "ab"}, {})
    holdups = Holdups(plan(MEMBERS), "a", 0.0, STOPPED)
    assert not holdups.look(2.0, standings, [*MEMBERS])
    assert not holdups.look(300.0, standings, [*MEMBERS])
    assert not holdups.look(302.0, standings, [*MEMBERS])


def test_what_can_not_be_true_is_not_taken() -> None:
    """Others say what comes of it."""
    for wrong in (Standing("first", ((0, 9),)), Standing("first", (), (OpenPart(7, ()),))):
        assert not is_sound(plan(MEMBERS), wrong)
        standings = {**stand({0: "ab", 1: "ab", 2: "ab"}, {}), "c": wrong}
        assert late_after(plan(MEMBERS), standings, HOLDUP_FLOOR_SECONDS + 6) == ["c"]
    assert is_sound(plan(MEMBERS), standing(MEMBERS, "c", {2: "abc"}, "01"))


def test_one_that_knows_no_standing_is_seen_by_what_it_contributes() -> None:
    standings = {**stand({0: "abc", 1: "abc"}, {}), "c": Standing()}
    assert "c" not in late_after(plan(MEMBERS), standings, TAKING_UP_SECONDS + 6)
