"""Leases: every index goes out, is completed once, and comes back when its head is lost."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from swarmd.swarm.steps.leases import AWAY_FLOOR_SECONDS, Leases


def test_every_index_is_given_once() -> None:
    leases = Leases(16)
    given_out: list[int] = []
    while leases.free:
        indices, again = leases.give("a", 4, 2, 0.0)
        assert not again
        given_out += indices
    assert given_out == list(range(16))
    assert leases.give("a", 4, 2, 0.0) == ([], False)


def test_shares_shrink_near_the_end_so_that_nobody_hoards() -> None:
    leases = Leases(16)
    sizes = []
    while leases.free:
        sizes.append(len(leases.give("a", 100, 2, 0.0)[0]))
    assert sizes == [4, 3, 3, 2, 1, 1, 1, 1]


def test_a_step_is_done_when_all_are_completed() -> None:
    leases = Leases(4)
    leases.give("a", 4, 1, 0.0)
    leases.give("b", 4, 1, 0.0)
    leases.heard("a", [0, 1], [], 0.0)
    assert (leases.completed, leases.done) == (2, False)
    leases.heard("b", [2, 3], [], 0.0)
    assert (leases.completed, leases.done) == (4, True)


def test_what_a_lost_head_completed_is_given_again_and_said_so() -> None:
    leases = Leases(6)
    leases.give("a", 2, 1, 0.0)
    leases.give("b", 1, 1, 0.0)
    leases.heard("a", [0], [1], 0.0)
    assert leases.lose("a") == [0, 1]
    assert leases.give("b", 1, 1, 0.0) == ([0], True)
    assert leases.give("b", 1, 1, 0.0) == ([1], True)
    assert leases.give("b", 1, 1, 0.0) == ([3], False), "after those, fresh ones"
    assert leases.lose("stranger") == []


def test_the_first_to_complete_an_index_has_it() -> None:
    leases = Leases(2)
    leases.heard("a", [0], [], 0.0)
    leases.heard("b", [0, 1], [], 0.0)
    assert leases.lose("b") == [1]
    assert leases.completed == 1


def test_a_new_conductor_hears_what_is_out_before_it_gives_the_rest() -> None:
    leases = Leases(4, again=True)
    leases.heard("a", [0], [1], 0.0)
    leases.heard("b", [], [1], 0.0)
    assert leases.give("b", 4, 1, 0.0) == ([2], True)
    assert leases.give("b", 4, 1, 0.0) == ([3], True)
    assert leases.holders() == {"a", "b"}


def test_a_late_lease_is_given_a_second_time_when_nothing_else_is_left() -> None:
    leases = Leases(3)
    assert leases.give("fast", 1, 1, 0.0) == ([0], False)
    assert leases.give("slow", 1, 1, 0.0) == ([1], False)
    leases.heard("fast", [0], [], 2.0)  # it takes two seconds
    assert leases.give("fast", 1, 1, 2.0) == ([2], False), "fresh ones first"
    leases.heard("fast", [2], [], 4.0)
    assert leases.give("fast", 1, 1, 2.9) == ([], False), "not late yet"
    assert leases.give("fast", 1, 1, 4.0) == ([1], True)
    assert leases.give("other", 1, 1, 9.0) == ([], False), "two are enough"
    assert leases.heard("fast", [1], [], 6.0) == {"slow": [1]}
    assert leases.done
    assert leases.heard("slow", [], [1], 6.0) == {"slow": [1]}, "told again, should it not have heard"


def test_a_head_may_wait_for_others_for_a_while_and_not_for_ever() -> None:
    leases = Leases(2)
    assert leases.give("waiting", 1, 1, 0.0) == ([0], False)
    assert leases.give("fast", 1, 1, 0.0) == ([1], False)
    leases.heard("fast", [1], [], 2.0)
    for now in range(1, int(AWAY_FLOOR_SECONDS) + 1):
        leases.heard("waiting", [], [0], float(now), [0])
        assert leases.give("fast", 1, 1, float(now)) == ([], False)
    assert leases.give("fast", 1, 1, AWAY_FLOOR_SECONDS + 1) == ([0], True)


def test_a_slow_head_gets_nothing_near_the_end_of_a_step() -> None:
    leases = Leases(9)
    for head, seconds in (("fast", 2.0), ("slow", 20.0)):
        indices, _ = leases.give(head, 1, 1, 0.0)
        leases.heard(head, indices, [], seconds)
    assert leases.give("slow", 1, 1, 20.0, horizon_s=30.0) == ([2], False)
    assert leases.give("slow", 1, 1, 20.0, horizon_s=10.0) == ([], False)
    assert leases.give("fast", 1, 1, 20.0, horizon_s=10.0) == ([3], False)
    leases.lose("fast")
    assert leases.give("slow", 1, 1, 20.0, horizon_s=10.0)[0], "who is left is not too slow beside one that is gone"


def test_a_silent_head_keeps_only_what_it_has_completed() -> None:
    leases = Leases(4)
    leases.give("a", 2, 1, 0.0)
    leases.heard("a", [0], [1], 1.0)
    assert leases.withdraw("a") == [1]
    assert leases.completed == 1
    assert leases.give("b", 1, 1, 1.0) == ([1], True)
    assert leases.heard("a", [0, 1], [], 2.0) == {"b": [1]}, "it woke up and was first after all"


def test_a_lease_that_never_came_to_its_head_is_given_again() -> None:
    leases = Leases(4)
    leases.give("a", 2, 1, 0.0)
    leases.heard("a", [], [0], 5.0)  # its answer may still be on its way
    assert leases.held_by("a") == {0, 1}
    leases.heard("a", [], [0], 11.0)
    assert leases.held_by("a") == {0}
    assert leases.give("b", 1, 1, 11.0) == ([1], True)


@dataclass
class Dumb:
    """The same bookkeeping, an index at a time."""

    size: int
    out: dict[int, set[str]] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)

    def free(self) -> set[int]:
        return {index for index in range(self.size) if not self.out.get(index) and index not in self.finished}


HEADS = st.sampled_from(["a", "b", "c"])
INDICES = st.sets(st.integers(0, 9))
EVENTS = st.one_of(
    st.tuples(st.just("give"), HEADS, st.integers(0, 5)),
    st.tuples(st.just("heard"), HEADS, st.tuples(INDICES, INDICES)),
    st.tuples(st.just("lose"), HEADS, st.none()),
    st.tuples(st.just("withdraw"), HEADS, st.none()),
)


@given(st.booleans(), st.lists(EVENTS, max_size=40))
def test_against_a_dumb_twin(again: bool, events: list[tuple[str, str, object]]) -> None:
    leases, twin = Leases(10, again=again), Dumb(10)
    for kind, head, detail in events:
        if kind == "give":
            assert isinstance(detail, int)
            free = twin.free()
            indices, _ = leases.give(head, detail, 2, 0.0)
            assert set(indices) <= free
            assert len(indices) <= detail
            assert indices or not detail or not free, "something is given while something is free"
            twin.out.update({index: {head} for index in indices})
        elif kind == "heard":
            assert isinstance(detail, tuple)
            completed, held = detail
            leases.heard(head, sorted(completed), sorted(held), 0.0)
            for index in completed - set(twin.finished):
                twin.finished[index] = head
                twin.out.pop(index, None)
            for index in held - set(twin.finished):
                twin.out.setdefault(index, set()).add(head)
        else:
            before = twin.free()
            if kind == "lose":
                twin.finished = {index: owner for index, owner in twin.finished.items() if owner != head}
            for holders in twin.out.values():
                holders.discard(head)
            freed = leases.lose(head) if kind == "lose" else leases.withdraw(head)
            assert set(freed) == twin.free() - before
        assert leases.free == len(twin.free())
        assert leases.completed == len(twin.finished)
        assert leases.done == (len(twin.finished) == 10)
        assert leases.holders() == {head for holders in twin.out.values() for head in holders}


def test_the_heir_of_a_head_has_what_it_had_completed() -> None:
    leases = Leases(4)
    leases.give("a", 2, 1, 0.0)
    leases.give("a", 1, 1, 0.0)
    leases.heard("a", [0, 1], [2], 1.0)
    assert leases.lose("a", "b") == [2], "only what isn't done is given again"
    assert leases.completed == 2
    assert leases.lose("b") == [0, 1], "now it is lost with the heir"
