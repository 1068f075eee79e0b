"""What a step's sum says that it contains, and when it takes in more."""

import asyncio
from collections.abc import Callable

import pytest

from swarmd.swarm.hops.step_sum import StepSum, StepSums
from swarmd.swarm.wire.framing import from_frame, to_frame
from swarmd.swarm.wire.messages.fields import LOSS_LIMIT, TALLY_LIMIT
from swarmd.swarm.wire.messages.hop import NOBODY, SOMEONE, Blame
from swarmd.swarm.wire.messages.round import Holdings

BLAME = Blame("loss", 1, "peer", 3)
STEP = 5


def test_a_new_sum_is_open_and_empty() -> None:
    it = StepSum()
    assert (it.empty, it.done, it.blame, it.frozen, it.settled) == (True, set(), NOBODY, False, False)


def test_an_index_counts_once() -> None:
    it = StepSum()
    it.add(3, 2.0, "a")
    it.add(3, 2.0, "b")
    assert (it.accumulated, it.loss_sum, it.sources) == ({3}, 2.0, {3: "a"})
    it.add(4, 1.0, "b")
    assert (it.accumulated, it.loss_sum, it.sources) == ({3, 4}, 3.0, {3: "a", 4: "b"})


def test_what_is_taken_out_may_come_again() -> None:
    it = StepSum()
    it.add(3, 2.0, "a")
    it.take_out(3, 2.0)
    it.take_out(3, 2.0)
    assert (it.accumulated, it.loss_sum, it.sources, it.subtracted, it.empty) == (set(), 0.0, {}, 1, True)
    it.add(3, 2.0, "b")
    assert (it.has(3), it.sources[3], it.empty) == (True, "b", False)
    it.take_out(3, 2.0)
    assert it.subtracted == 2


def test_an_inherited_index_is_taken_out_like_one_of_its_own() -> None:
    it = StepSum()
    it.inherit([3], [], 2.0, resent=0, subtracted=0)
    it.take_out(3, 2.0)
    assert (it.accumulated, it.loss_sum, it.subtracted) == (set(), 0.0, 1)


@pytest.mark.parametrize(("first", "said"), [(BLAME, BLAME), (NOBODY, SOMEONE)])
def test_a_spoiled_index_is_done_with_and_the_first_one_is_blamed(first: Blame, said: Blame) -> None:
    it = StepSum()
    it.spoil(2, first)
    assert not it.empty
    it.add(1, 1.0, "a")
    it.spoil(4, Blame("activation", 0, "other", 4))
    assert (it.done, it.accumulated, it.blame) == ({1, 2, 4}, {1}, said)
    assert it.has(2) and not it.has(3) and not it.empty


def test_a_sum_that_is_inherited_counts_with_all_that_was_said_of_it() -> None:
    it = StepSum()
    it.add(1, 1.0, "a")
    it.inherit([2, 3], [4], 5.0, resent=6, subtracted=7)
    assert (it.accumulated, it.spoiled, it.loss_sum, it.resent, it.subtracted) == ({1, 2, 3}, {4}, 6.0, 6, 7)
    assert it.blame == SOMEONE
    it.inherit([5], [], 1.0, resent=1, subtracted=1)
    assert (it.loss_sum, it.resent, it.subtracted) == (7.0, 7, 8)
    with pytest.raises(AssertionError, match="counts once"):
        it.inherit([3], [], 1.0, resent=0, subtracted=0)


def test_a_question_opens_no_sum() -> None:
    sums = StepSums()
    assert (sums.open_steps, sums.thaws) == ((), 0)
    assert not sums.has(STEP, 1)
    assert not sums.is_frozen(STEP)
    assert not sums._sums
    sums.of(STEP).add(1, 1.0, "a")
    assert sums.has(STEP, 1) and not sums.has(STEP, 2) and not sums.has(STEP + 1, 1)


def test_a_frozen_step_says_nothing_of_the_next() -> None:
    sums = StepSums()
    sums.freeze(STEP)
    assert sums.is_frozen(STEP) and not sums.is_frozen(STEP + 1)
    sums.freeze(STEP + 1)
    assert sums.is_frozen(STEP)
    sums.end_step(STEP)
    assert not sums.is_frozen(STEP) and sums.is_frozen(STEP + 1)


def test_a_settled_sum_stays_so_until_it_thaws() -> None:
    sums = StepSums()
    sums.freeze(STEP)
    sums.settle(STEP)
    sums.freeze(STEP)
    assert sums.of(STEP).settled
    sums.thaw(STEP)
    assert not sums.of(STEP).settled and not sums.is_frozen(STEP)
    sums.freeze(STEP)
    assert not sums.of(STEP).settled


def test_a_sum_that_another_peer_has_is_empty_here() -> None:
    sums = StepSums()
    sums.of(STEP).add(1, 1.0, "a")
    sums.forget(STEP)
    assert sums.open_steps == ()
    sums.forget(STEP)
    assert sums.of(STEP).empty


async def test_who_waits_hears_of_a_change_only() -> None:
    sums = StepSums()

    async def changes(change: Callable[[], None]) -> bool:
        waiting = asyncio.create_task(sums.changed.wait())
        await asyncio.sleep(0)
        change()
        await asyncio.sleep(0)
        heard = waiting.done()
        waiting.cancel()
        return heard

    assert await changes(lambda: sums.freeze(STEP))
    assert not await changes(lambda: sums.freeze(STEP))
    assert await changes(lambda: sums.settle(STEP))
    assert await changes(lambda: sums.thaw(STEP))
    assert await changes(lambda: sums.forget(STEP))


def test_whatever_becomes_of_a_sum_its_figures_can_be_said() -> None:
    """A message with a number out of its bounds can't be sent: rounding, or what others say, must make none."""

    def said(it: StepSum) -> Holdings:
        holdings = Holdings((), (), it.loss_sum, it.resent, finite=True, subtracted=it.subtracted)
        assert from_frame(to_frame(holdings)) == holdings
        return holdings

    it = StepSum()
    for index, loss in enumerate((0.1, 0.2, 0.3)):
        it.add(index, loss, "a")
    for index, loss in ((2, 0.3), (1, 0.2), (0, 0.1)):
        it.take_out(index, loss)
    assert said(it).loss_sum == pytest.approx(0.0)
    it.add(9, 0.1, "a")
    it.loss_sum = 0.1 - 1e-17 * 3
    it.take_out(9, 0.1)
    assert said(it).loss_sum == 0.0
    for index in range(2):
        it.inherit([index], [], LOSS_LIMIT, resent=TALLY_LIMIT, subtracted=TALLY_LIMIT)
    assert said(it) == Holdings((), (), LOSS_LIMIT, TALLY_LIMIT, finite=True, subtracted=TALLY_LIMIT)
