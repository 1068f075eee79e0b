"""Which hops are under way here, and what is said of them."""

import asyncio

import pytest

from swarmd.swarm.hops.retention import Retained
from swarmd.swarm.hops.under_way import HopsUnderWay, HopUnderWay
from swarmd.swarm.wire.messages.hop import Hop
from swarmd.values import Encoded, HopId

STEP = 5
HOP = Hop(STEP, 1, "", False, False, "fp32", b"", Encoded("fp32", (0,), (b"",)), 0.0, 1)


def hop(
    index: int, custodian: str = "a", step: int = STEP, *, given_up: bool = False, side_task: bool = False
) -> HopUnderWay:
    key = HopId(step, index)
    return HopUnderWay(key, custodian, 10, admitted=0.0, given_up=given_up, side_task=side_task)


async def begin(hops: HopsUnderWay, *those: HopUnderWay) -> asyncio.Event:
    """They are under way until the event is set."""
    end = asyncio.Event()
    for it in those:
        hops.begin(it, end.wait())
    await asyncio.sleep(0)
    return end


async def test_a_hop_is_under_way_once_and_until_its_journey_ends() -> None:
    hops, it = HopsUnderWay(), hop(1)
    end = await begin(hops, it)
    assert (hops.busy, len(hops), hops.nbytes, list(hops)) == (True, 1, 10, [it])
    again = end.wait()
    with pytest.raises(AssertionError, match="under way once"):
        hops.begin(hop(1), again)
    again.close()
    end.set()
    await hops.absent(it.hop)
    await asyncio.sleep(0)
    assert (hops.busy, hops.nbytes, hops.get(it.hop)) == (False, 0, None)
    await begin(hops, hop(1))


async def test_only_what_comes_into_the_sum_is_on_its_way() -> None:
    hops = HopsUnderWay()
    end = await begin(hops, hop(1), hop(2, given_up=True), hop(3, side_task=True), hop(4, step=STEP + 1))
    assert hops.indices(STEP) == [1]
    assert [hops.is_under_way(HopId(STEP, index)) for index in range(5)] == [False, True, False, False, False]
    end.set()
    await asyncio.sleep(0)


async def test_a_hop_waits_for_a_side_task_and_a_side_task_for_a_hop() -> None:
    hops = HopsUnderWay()
    end = await begin(hops, hop(1), hop(2, side_task=True))
    for wait, waits in (
        (hops.undisturbed(HopId(STEP, 1)), False),
        (hops.undisturbed(HopId(STEP, 2)), True),
        (hops.absent(HopId(STEP, 1)), True),
        (hops.absent(HopId(STEP, 3)), False),
    ):
        task = asyncio.create_task(wait)
        await asyncio.sleep(0)
        assert task.done() != waits
        task.cancel()
    end.set()
    await hops.undisturbed(HopId(STEP, 2))
    await hops.absent(HopId(STEP, 1))


async def test_beats_are_told_what_is_held_for_whom_and_that_a_hop_came() -> None:
    hops = HopsUnderWay()
    entered = asyncio.create_task(hops.entered.wait())
    await asyncio.sleep(0)
    one, other, third, own = hop(1), hop(2, "b"), hop(3), hop(4, "")
    end = await begin(hops, one, other, third, own)
    await asyncio.sleep(0)
    assert entered.done()
    assert hops.by_custodian() == {"a": [one, third], "b": [other]}
    end.set()
    await asyncio.sleep(0)


async def test_the_hop_on_the_device_is_shown_as_such_and_who_has_the_one_that_was_passed_on() -> None:
    hops, passed = HopsUnderWay(), hop(2)
    passed.move("passed")
    passed.retained = Retained(HOP, holder="next")
    end = await begin(hops, hop(1), passed, hop(3))
    assert hops.queues(HopId(STEP, 1)) == {"computing": 1, "passed": 1, "waiting": 1}
    assert hops.queues(None) == {"passed": 1, "waiting": 2}
    rows = [(row.index, row.state, row.custodian, row.holder) for row in hops.rows(HopId(STEP, 3))]
    assert rows == [(1, "waiting", "a", ""), (2, "passed", "a", "next"), (3, "computing", "a", "")]
    end.set()
    await asyncio.sleep(0)
