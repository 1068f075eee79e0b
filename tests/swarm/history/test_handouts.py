"""Handouts: what was given counts until its step is over, whoever else gets it, and for an heir, too."""

from swarmd.swarm.history.handouts import Handouts


def test_what_was_given_is_remembered_by_step_stage_and_index() -> None:
    it = Handouts()
    it.give(3, 1, (0, 2), "a")
    it.give(3, 1, (2,), "b")
    assert it.given(3, 1, range(8), "a") == [0, 2]
    assert it.given(3, 1, range(8), "b") == [2]
    assert it.given(3, 1, (1, 3), "a") == []
    assert it.given(3, 0, range(8), "a") == it.given(4, 1, range(8), "a") == it.given(3, 1, range(8), "c") == []


def test_an_heir_counts_as_given_what_is_in_the_sum_that_it_has() -> None:
    it = Handouts()
    it.give(3, 1, (0, 2), "a")
    it.give(3, 1, (1,), "b")
    it.inherit("a", "b")
    assert it.given(3, 1, range(8), "b") == [0, 1, 2]
    assert it.given(3, 1, range(8), "a") == [0, 2]


def test_the_last_source_counts() -> None:
    it = Handouts()
    it.take(3, 1, (0, 2), "a")
    it.take(3, 1, (2,), "b")
    assert [it.source(3, 1, index) for index in range(3)] == ["a", "", "b"]
    assert it.source(3, 0, 0) == it.source(4, 1, 0) == ""


def test_a_microbatch_is_given_in_the_name_of_whoever_gave_it_or_asked_to_lead() -> None:
    it = Handouts()
    assert it.warrant(3, 2, 0) == ""
    it.lead(3, "conductor")
    assert it.warrant(3, 2, 0) == it.warrant(3, 0, 0) == "conductor"
    it.take(3, 1, (0,), "custodian")
    assert [it.warrant(3, 2, index) for index in (0, 1)] == ["custodian", "conductor"]
    assert it.warrant(4, 2, 0) == ""


def test_a_step_that_is_over_is_forgotten_and_so_is_another_state() -> None:
    it = Handouts()
    for step in (2, 3, 4):
        it.give(step, 1, (0,), "a")
        it.take(step, 1, (0,), "a")
        it.lead(step, "c")
    it.end_step(3)
    assert [it.given(step, 1, (0,), "a") for step in (2, 3, 4)] == [[], [], [0]]
    assert [it.source(step, 1, 0) for step in (2, 3, 4)] == ["", "", "a"]
    assert [it.warrant(step, 0, 0) for step in (2, 3, 4)] == ["", "", "c"]
    it.forget()
    assert it.given(4, 1, (0,), "a") == [] and it.source(4, 1, 0) == it.warrant(4, 0, 0) == ""
