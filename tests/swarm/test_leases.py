"""Leases: every index goes out, is completed once, and comes back when its head is lost."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from swarmd.swarm.leases import Leases


def test_every_index_is_given_once() -> None:
    leases = Leases(16)
    given_out: list[int] = []
    while leases.free:
        indices, again = leases.give("a", 4, 2)
        assert not again
        given_out += indices
    assert given_out == list(range(16))
    assert leases.give("a", 4, 2) == ([], False)


def test_shares_shrink_near_the_end_so_that_nobody_hoards() -> None:
    leases = Leases(16)
    sizes = []
    while leases.free:
        sizes.append(len(leases.give("a", 100, 2)[0]))
    assert sizes == [4, 3, 3, 2, 1, 1, 1, 1]


def test_a_step_is_done_when_all_are_completed() -> None:
    leases = Leases(4)
    leases.give("a", 4, 1)
    leases.give("b", 4, 1)
    leases.heard("a", [0, 1], [])
    assert (leases.completed, leases.done) == (2, False)
    leases.heard("b", [2, 3], [])
    assert (leases.completed, leases.done) == (4, True)


def test_what_a_lost_head_completed_is_given_again_and_said_so() -> None:
    leases = Leases(6)
    leases.give("a", 2, 1)
    leases.give("b", 1, 1)
    leases.heard("a", [0], [1])
    assert leases.lose("a") == [0, 1]
    assert leases.give("b", 1, 1) == ([0], True)
    assert leases.give("b", 1, 1) == ([1], True)
    assert leases.give("b", 1, 1) == ([3], False), "after those, fresh ones"
    assert leases.lose("stranger") == []


def test_the_first_to_complete_an_index_has_it() -> None:
    leases = Leases(2)
    leases.heard("a", [0], [])
    leases.heard("b", [0, 1], [])
    assert leases.lose("b") == [1]
    assert leases.completed == 1


def test_a_new_conductor_hears_what_is_out_before_it_gives_the_rest() -> None:
    leases = Leases(4, again=True)
    leases.heard("a", [0], [1])
    leases.heard("b", [], [1])
    assert leases.give("b", 4, 1) == ([2], True)
    assert leases.give("b", 4, 1) == ([3], True)
    assert leases.heads() == {"a", "b"}


@dataclass
class Dumb:
    """The same bookkeeping, an index at a time."""

    size: int
    owner: dict[int, str] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)

    def free(self) -> set[int]:
        return set(range(self.size)) - set(self.owner) - set(self.finished)


HEADS = st.sampled_from(["a", "b", "c"])
INDICES = st.sets(st.integers(0, 9))
EVENTS = st.one_of(
    st.tuples(st.just("give"), HEADS, st.integers(0, 5)),
    st.tuples(st.just("heard"), HEADS, st.tuples(INDICES, INDICES)),
    st.tuples(st.just("lose"), HEADS, st.none()),
)


@given(st.booleans(), st.lists(EVENTS, max_size=40))
def test_against_a_dumb_twin(again: bool, events: list[tuple[str, str, object]]) -> None:
    leases, twin = Leases(10, again=again), Dumb(10)
    for kind, head, detail in events:
        if kind == "give":
            assert isinstance(detail, int)
            free = twin.free()
            indices, _ = leases.give(head, detail, 2)
            assert set(indices) <= free
            assert len(indices) <= detail
            assert indices or not detail or not free, "something is given while something is free"
            twin.owner.update(dict.fromkeys(indices, head))
        elif kind == "heard":
            assert isinstance(detail, tuple)
            completed, held = detail
            leases.heard(head, sorted(completed), sorted(held))
            for index in completed - set(twin.finished):
                twin.finished[index] = head
                twin.owner.pop(index, None)
            for index in held - set(twin.finished) - set(twin.owner):
                twin.owner[index] = head
        else:
            expected = {index for index, owner in {**twin.owner, **twin.finished}.items() if owner == head}
            assert set(leases.lose(head)) == expected
            for index in expected:
                twin.owner.pop(index, None)
                twin.finished.pop(index, None)
        assert leases.free == len(twin.free())
        assert leases.completed == len(twin.finished)
        assert leases.done == (len(twin.finished) == 10)
        assert leases.heads() == {*twin.owner.values(), *twin.finished.values()}
