"""Retained messages: answers are evicted first, what waits for its answer never; bytes are counted."""

import pytest

from swarmd.swarm.hops.retention import Retention
from swarmd.swarm.wire.messages.hop import Gradient, Hop, NotFinite
from swarmd.values import Encoded, HopId


def hop(index: int, nbytes: int = 100, step: int = 1) -> Hop:
    return Hop(step, index, "", False, False, "fp32", b"", Encoded("fp32", (nbytes,), (b"x" * nbytes,)))


def gradient(nbytes: int = 100) -> Gradient:
    return Gradient(Encoded("fp32", (nbytes,), (b"g" * nbytes,)), 0.0, 0.0)


def answered(retention: Retention, index: int, holder: str, step: int = 1) -> None:
    kept = retention.keep(HopId(step, index), hop(index, step=step))
    kept.holder, kept.answered = holder, True


def test_answers_are_evicted_before_messages_and_the_oldest_first() -> None:
    retention = Retention(450)
    answered(retention, 0, "a")
    answered(retention, 1, "b")
    for index in (0, 1):
        retention.keep_answer(HopId(1, index), gradient())
    assert (retention.nbytes, retention.evicted) == (400, 0)
    answered(retention, 2, "c")
    assert (retention.nbytes, retention.evicted) == (400, 1)
    assert retention.answer(HopId(1, 0)) is None
    assert retention.answer(HopId(1, 1)) is not None
    answered(retention, 3, "d")
    answered(retention, 4, "e")
    assert (retention.nbytes, retention.evicted) == (400, 3)
    assert [key.index for peer in "abcde" for key, _ in retention.answered_by(peer)] == [1, 2, 3, 4]


def test_a_message_that_waits_for_its_answer_is_never_evicted() -> None:
    retention = Retention(150)
    for index in range(3):
        retention.keep(HopId(1, index), hop(index))
    assert (retention.nbytes, retention.evicted) == (300, 0)


def test_what_is_over_the_limit_is_evicted_as_soon_as_its_answer_comes() -> None:
    retention = Retention(150)
    first, second = (retention.keep(HopId(1, index), hop(index)) for index in range(2))
    retention.mark_answered(second)
    assert (retention.nbytes, retention.evicted, second.answered) == (100, 1, True)
    retention.mark_answered(first)
    assert retention.retained(HopId(1, 0)) is first


def test_bytes_are_counted_whatever_happens() -> None:
    retention = Retention(1 << 20)
    answered(retention, 0, "a")
    retention.keep_answer(HopId(1, 0), gradient(30))
    retention.keep_answer(HopId(1, 0), gradient(99))  # the first answer stays
    assert retention.nbytes == 130
    retention.keep_answer(HopId(1, 5), NotFinite())
    assert retention.answer(HopId(1, 5)) == NotFinite()
    assert retention.nbytes == 130
    retention.drop(HopId(1, 0))
    retention.drop(HopId(1, 0))
    assert retention.nbytes == 0


def test_only_hops_that_a_peer_answered_are_lost_with_it() -> None:
    retention = Retention(1 << 20)
    answered(retention, 0, "a")
    answered(retention, 1, "b")
    retention.keep(HopId(1, 2), hop(2)).holder = "a"
    assert [key for key, _ in retention.answered_by("a")] == [HopId(1, 0)]


def test_a_step_that_has_ended_leaves_nothing() -> None:
    retention = Retention(1 << 20)
    for step in (1, 2):
        answered(retention, 0, "a", step)
        retention.keep_answer(HopId(step, 0), gradient())
    retention.end_step(1)
    assert retention.nbytes == 200
    assert [key for key, _ in retention.answered_by("a")] == [HopId(2, 0)]


def test_a_hop_is_passed_on_once() -> None:
    retention = Retention(1000)
    retention.keep(HopId(1, 0), hop(0))
    with pytest.raises(AssertionError):
        retention.keep(HopId(1, 0), hop(0))
