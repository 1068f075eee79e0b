"""The commit record: what it says of a step, and what names it."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.config import RunConfig, prolonged
from swarmd.errors import PeerFault
from swarmd.schedule import learning_rate_at
from swarmd.swarm.history.record import (
    Record,
    build_record,
    build_return,
    check_report,
    clip_factor,
    genesis_hash,
    is_of_now,
    record_to_plain,
)
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.history.record_format import LATER, write_record
from swarmd.swarm.wire.messages.fields import SQUARED_NORM_LIMIT, STAGE_LIMIT
from swarmd.swarm.wire.messages.hop import SOMEONE, Blame
from tests.swarm.records import RUN, record, report, skipped


def test_a_record_follows_from_the_reports() -> None:
    it = record()
    assert (it.loss, it.tokens, it.skipped) == (2.0, 64, False)
    assert it.grad_norm == pytest.approx(3.0)
    assert it.clip_factor == pytest.approx(1 / 3)
    assert it.learning_rate == learning_rate_at(RUN.optimizer, 3, RUN.steps)
    assert it.members() == ("m0", "n0", "m1", "n1")


@pytest.mark.parametrize("changes", [{"conductor": "other"}, {"seconds": 9.0}, {"validation_loss": 3.0}])
def test_two_conductors_who_saw_the_same_rounds_decide_the_same_record(changes: dict[str, Any]) -> None:
    assert record(**changes).hash == record().hash


@pytest.mark.parametrize(
    "other",
    [
        record(parent="another"),
        record(step=4),
        record(report(0, digest="e0"), report(1)),
        record(report(0, squared_norm=4.1), report(1)),
        record(report(0), report(1, loss_sum=129.0)),
        record(report(0), report(1, tokens=65)),
        record(report(0), report(1, finite=False)),
    ],
)
def test_whatever_decides_the_next_version_is_in_the_hash(other: Record) -> None:
    assert other.hash != record().hash


def test_records_are_named_alike_after_a_journey() -> None:
    it = record(validation_loss=2.5)
    again = record_from_raw(RUN, it.raw)
    assert again == it
    assert again.hash == it.hash
    assert len(it.hash) == 32
    assert genesis_hash(RUN) != genesis_hash(dataclasses.replace(RUN, seed=1))


# ------------------------------------------------------------------------------------------------- prolonged runs

LONGER = prolonged(prolonged(RUN, 20), 15)


def at(run: RunConfig, step: int) -> Record:
    """A record as it is decided in a run."""
    return build_record(run, "parent", step, (report(0), report(1)), conductor="c", seconds=1.5, validation_loss=None)


def test_each_record_follows_the_schedule_of_its_time() -> None:
    twenty = prolonged(RUN, 20)
    old, mid, new = at(RUN, 9), at(twenty, 9), at(LONGER, 9)
    assert [it.total_steps for it in (old, mid, new)] == [0, 20, 15]
    assert [it.learning_rate for it in (old, mid, new)] == [
        learning_rate_at(RUN.optimizer, 9, steps) for steps in (10, 20, 15)
    ]
    for it in (old, mid, new):
        assert record_from_raw(LONGER, it.raw) == it, "all of them are records of the run"
    assert len({it.hash for it in (old, mid, new)}) == len({it.state for it in (old, mid, new)}) == 3
    assert [is_of_now(LONGER, it) for it in (old, mid, new)] == [False, False, True]
    assert record_from_raw(LONGER, at(twenty, 20).raw).step == 20, "it was shortened after that"


@pytest.mark.parametrize(
    "changes",
    [
        {"total_steps": 12},
        {"total_steps": RUN.steps},
        {"total_steps": 20},
        {"total_steps": "10"},
        {"step": 16},
        {"continues": "hash"},
        {"continues": 5},
    ],
)
def test_a_record_of_no_schedule_of_the_run_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PeerFault):
        record_from_raw(LONGER, write_record({**record_to_plain(at(LONGER, 9)), **changes}))


def test_what_the_first_release_wrote_keeps_its_name() -> None:
    """Hashes as commit 849cc63 gave them, of a record without the later fields."""
    old = {name: value for name, value in record_to_plain(record()).items() if name not in dict(LATER)}
    it = record_from_raw(LONGER, write_record(old))
    assert (it.hash, it.state) == ("92130820aed6b3b11fe0a7f39437db86", "178bc9d12baf05a81b81ae76b41dbae0")
    assert genesis_hash(RUN) == genesis_hash(LONGER) == "87f7f3c334821905e58f4ba1b321c248"


def test_a_return_with_which_a_prolonged_run_begins_names_what_it_continues() -> None:
    old = at(RUN, 9)
    members, lives = (("m0",), ("m1",)), {"m0": 1, "m1": 2}
    it = build_return(old, members, lives, after="founder", after_version=9, conductor="c", continues=old.hash)
    assert it.state == old.state, "the same parameters"
    assert is_of_now(LONGER, it)
    assert record_from_raw(LONGER, it.raw) == it
    assert it.hash != dataclasses.replace(it, continues="").hash


# ------------------------------------------------------------------------------------------------- bad numbers


@pytest.mark.parametrize(
    "bad",
    [
        {"finite": False},
        {"squared_norm": math.inf},
        {"squared_norm": math.nan},
        {"loss_sum": math.nan},
        {"loss_sum": math.inf},
    ],
)
def test_bad_numbers_make_a_step_that_is_skipped(bad: dict[str, Any]) -> None:
    it = record(report(0), report(1, **bad))
    assert (it.skipped, it.loss, it.grad_norm, it.clip_factor) == (True, 0.0, 0.0, 0.0)
    assert record_from_raw(RUN, it.raw) == it, "it can be written as JSON"


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=40), st.floats(0.01, 100))
def test_clipping_never_lengthens_and_never_leaves_more_than_the_limit(squares: list[float], limit: float) -> None:
    norm, factor = clip_factor(squares, limit)
    assert norm == pytest.approx(math.sqrt(sum(squares)))
    assert 0 < factor <= 1
    assert norm * factor <= limit
    if norm < 0.9 * limit:
        assert factor == 1


def test_norms_as_large_as_a_report_may_name_have_a_finite_sum() -> None:
    norm, factor = clip_factor([SQUARED_NORM_LIMIT] * STAGE_LIMIT, 1.0)
    assert math.isfinite(norm)
    assert factor > 0


def test_no_limit_means_no_clipping() -> None:
    assert clip_factor([1e6], 0.0) == (1000.0, 1.0)
    assert clip_factor([0.0, 0.0], 1.0) == (0.0, 1.0)


# ------------------------------------------------------------------------------------------------- skipped steps


def test_skipped_steps_in_a_row_are_counted_in_the_chain() -> None:
    one = skipped(2)
    two = skipped(3, one)
    assert (one.skips, two.skips, record(step=4, before=two).skips) == (1, 2, 0)
    assert two.why == "the activation of microbatch 7 at stage 1, peer KooWpeer, is not finite"
    for it in (one, two):
        assert record_from_raw(RUN, it.raw) == it


def test_the_count_is_part_of_a_records_name_and_the_reason_is_not() -> None:
    one = skipped()
    assert dataclasses.replace(one, skips=2).hash != one.hash
    assert dataclasses.replace(one, why="other words").hash == one.hash


@pytest.mark.parametrize(
    ("blame", "words"),
    [
        (Blame("loss", 2, "12D3KooWpeer", 0), "the loss of microbatch 0 at stage 2, peer KooWpeer, is not finite"),
        (Blame("average", 1, "12D3KooWpeer"), "the average at stage 1, peer KooWpeer, is not finite"),
        (Blame("\x1b[2J", 0, "peer\x1b[2Jpeer", 3), "the number of microbatch 3 at stage 0 is not finite"),
        (SOMEONE, "the number is not finite"),
    ],
)
def test_of_a_peers_word_only_what_is_harmless_is_shown(blame: Blame, words: str) -> None:
    assert blame.words() == words


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": 0},
        {"tokens": 0},
        {"microbatches": 9},
        {"digest": ""},
    ],
    ids=str,
)
def test_a_report_of_which_no_record_could_be_made_is_its_leaders_fault(changes: dict[str, Any]) -> None:
    check_report(report(1), 1, 8)
    with pytest.raises(PeerFault):
        check_report(dataclasses.replace(report(1), **changes), 1, 8)
    check_report(report(1, finite=False, digest=""), 1, 8)
