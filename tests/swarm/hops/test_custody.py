"""The time at which a holder is given up: silence, hops that its beats do not name, an endless task, no answer."""

import asyncio
import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.hops.custody import (
    HUNG_FLOOR_SECONDS,
    MUTE_KEPT,
    MUTE_TIMES,
    OVERTAKEN,
    SERVICE_CEILING_SECONDS,
    STUCK_TIMES,
    TRIAL_FLOOR_SECONDS,
    UNANSWERED_CEILING_SECONDS,
    UNANSWERED_FLOOR_SECONDS,
    UNANSWERED_TIMES,
    UNCLAIMED_SECONDS,
    UNDER_WAY_CEILING_SECONDS,
    UNDER_WAY_TIMES,
    Custody,
    Holder,
    Passed,
    lateness,
    straggling,
    stuck,
    unanswered,
)
from swarmd.swarm.membership.rhythm import SILENCE_FLOOR_SECONDS, Rhythm
from swarmd.swarm.wire.messages.hop import Beat, Hop, HopBeat
from swarmd.values import ComputeProgress, Encoded, HopId

NOW = 100.0
FAST, SLOW = Rhythm(1.0, 0.1), Rhythm(10.0, 1.0)


def hop(index: int, nbytes: int = 100, step: int = 1) -> Hop:
    return Hop(step, index, "", False, False, "fp32", b"", Encoded("fp32", (nbytes,), (b"x" * nbytes,)))


@pytest.mark.parametrize(
    ("sent", "claimed", "holder", "reason"),
    [
        (NOW - 1, None, Holder(), ""),
        (NOW - SILENCE_FLOOR_SECONDS, None, Holder(), ""),
        (NOW - SILENCE_FLOOR_SECONDS - 0.1, None, Holder(), "no beat for 6.1 s"),
        (NOW - 50, NOW - 1, Holder(FAST, last_beat=NOW - 1), ""),
        (NOW - 50, NOW - 7, Holder(FAST, last_beat=NOW - 7), "no beat for 7.0 s"),
        (NOW - 50, NOW - 9, Holder(SLOW, last_beat=NOW - 9), ""),
        (NOW - 90, NOW - 29, Holder(SLOW, last_beat=NOW - 29), "no beat for 29.0 s"),
        (NOW - UNCLAIMED_SECONDS, None, Holder(FAST, last_beat=NOW - 1), ""),
        (NOW - UNCLAIMED_SECONDS - 1, None, Holder(FAST, last_beat=NOW - 1), "its beats don't name the hop"),
        (NOW - 90, NOW - 21, Holder(FAST, last_beat=NOW - 1), "its beats don't name the hop"),
        (NOW - 50, NOW, Holder(FAST, last_beat=NOW, busy_seconds=HUNG_FLOOR_SECONDS), ""),
        (NOW - 50, NOW, Holder(FAST, last_beat=NOW, busy_seconds=31), "one task computes since 31 s"),
        (NOW - 50, NOW, Holder(FAST, last_beat=NOW, busy_seconds=31, service_seconds=4), ""),
        (NOW - 5, NOW, Holder(FAST, last_beat=NOW, busy_seconds=41, service_seconds=4), "one task computes since 41 s"),
    ],
)
def test_when_a_holder_is_late(sent: float, claimed: float | None, holder: Holder, reason: str) -> None:
    with_loop: list[str] = []

    async def main() -> None:
        hop = Passed("a", sent, asyncio.get_running_loop().create_future(), claimed)
        with_loop.append(lateness(NOW, hop, holder))

    run_virtual(main())
    assert with_loop == [reason]


SLOW_HOLDER = Holder(FAST, last_beat=NOW, service_seconds=10.0)


@pytest.mark.parametrize(
    ("state", "seconds", "holder", "rival", "moves"),
    [
        ("waiting", 3.0, SLOW_HOLDER, 1.0, True),
        ("backward", 3.0, SLOW_HOLDER, 1.0, True),
        ("waiting", 1.9, SLOW_HOLDER, 1.0, False),  # not long yet
        ("waiting", 0.5, SLOW_HOLDER, 0.1, False),  # too short to be worth a transfer
        ("passed", 60.0, SLOW_HOLDER, 1.0, False),  # the wait is for another
        ("", 60.0, SLOW_HOLDER, 1.0, False),  # no beat has named it yet
        ("waiting", 60.0, SLOW_HOLDER, None, False),  # nobody is idle
        ("waiting", 60.0, SLOW_HOLDER, 6.0, False),  # who is idle is hardly faster
        ("waiting", 9.5, SLOW_HOLDER, 1.0, False),  # it is nearly done
        ("waiting", 30.0, SLOW_HOLDER, 1.0, True),  # in a long queue
        ("waiting", 30.0, Holder(FAST, last_beat=NOW, service_seconds=1.0), 1.0, False),
    ],
)
def test_when_an_idle_replica_should_have_a_hop(
    state: str, seconds: float, holder: Holder, rival: float | None, moves: bool
) -> None:
    async def main() -> None:
        lost = asyncio.get_running_loop().create_future()
        hop = Passed("a", NOW - 90, lost, claimed=NOW, state=state, since=NOW - seconds)
        assert bool(straggling(NOW, hop, holder, rival)) == moves

    run_virtual(main())


def beat(*indices: int, busy: float = 0.0) -> Beat:
    return Beat(tuple(HopBeat(1, index, "waiting", 0.0) for index in indices), 0, busy, 0.1)


def test_a_holder_that_beats_is_waited_for_and_one_that_stops_is_not() -> None:
    async def main() -> None:
        loop, custody = asyncio.get_running_loop(), Custody()
        lost = custody.track(HopId(1, 0), "a")
        for _ in range(100):
            await asyncio.sleep(1)
            custody.on_beat("a", beat(0), loop.time())
            custody.look_for_late(loop.time())
        assert not lost.done()
        await asyncio.sleep(SILENCE_FLOOR_SECONDS + 0.1)
        custody.look_for_late(loop.time())
        assert lost.result().startswith("no beat")

    run_virtual(main())


def test_a_hop_that_beats_stop_naming_is_taken_back_alone() -> None:
    async def main() -> None:
        loop, custody = asyncio.get_running_loop(), Custody()
        kept, dropped = custody.track(HopId(1, 0), "a"), custody.track(HopId(1, 1), "a")
        for second in range(25):
            await asyncio.sleep(1)
            custody.on_beat("a", beat(0, 1) if second < 2 else beat(0), loop.time())
            custody.on_beat("b", beat(1), loop.time())  # somebody else's word counts for nothing
            custody.look_for_late(loop.time())
        assert not kept.done()
        assert dropped.result() == "its beats don't name the hop"

    run_virtual(main())


def test_on_a_thin_line_a_hop_is_given_more_time_each_time_until_it_arrives() -> None:
    """Else it would be sent again and again, each time behind its own older copies."""

    async def main() -> list[float]:
        loop, custody, waited = asyncio.get_running_loop(), Custody(), []
        for _ in range(6):
            lost, began = custody.track(HopId(1, 0), "a"), loop.time()
            while not lost.done():
                await asyncio.sleep(0.5)
                custody.look_for_late(loop.time())
            waited.append(loop.time() - began)
            custody.done(HopId(1, 0))
        return waited

    waited = run_virtual(main())
    assert waited[0] == pytest.approx(SILENCE_FLOOR_SECONDS, abs=1)
    for first, second in pairwise(waited):
        assert second == pytest.approx(min(UNDER_WAY_CEILING_SECONDS, UNDER_WAY_TIMES * first), abs=1)
    assert waited[-1] == pytest.approx(UNDER_WAY_CEILING_SECONDS, abs=1)


def test_how_long_hops_are_under_way_is_learned_from_those_that_arrive() -> None:
    holder = Holder()
    holder.arrived(10.0)
    assert holder.patience() == 20.0
    assert holder.arrival_patience(UNCLAIMED_SECONDS) == 20.0
    for _ in range(50):
        holder.arrived(0.1)
    assert holder.patience() == SILENCE_FLOOR_SECONDS

    async def main() -> float:
        loop, custody = asyncio.get_running_loop(), Custody()
        custody.track(HopId(1, 0), "a")
        await asyncio.sleep(5)
        custody.on_beat("a", beat(0), loop.time())  # it has just come
        custody.done(HopId(1, 0))
        custody.track(HopId(1, 1), "a")
        return custody.look_for_late(loop.time()) - loop.time()

    assert run_virtual(main()) == pytest.approx(UNDER_WAY_TIMES * 5.0)
    holder = Holder()
    holder.arrived(7.0)
    holder.arrived(8.0)
    assert holder.under_way_seconds == 8.0


def test_a_silent_holder_loses_all_its_hops_within_a_second() -> None:
    """That the first of them is given up says nothing of the line to the others."""

    async def main() -> list[float]:
        loop, custody = asyncio.get_running_loop(), Custody()
        lost = []
        for index in range(4):
            lost.append(custody.track(HopId(1, index), "a"))
            await asyncio.sleep(0.25)
        custody.on_beat("a", beat(*range(3)), loop.time())
        fell_silent, given_up = loop.time(), dict[int, float]()
        while len(given_up) < len(lost):
            await asyncio.sleep(0.05)
            custody.look_for_late(loop.time())
            given_up.update({at: loop.time() for at, it in enumerate(lost) if it.done() and at not in given_up})
        return [at - fell_silent for at in given_up.values()]

    assert max(run_virtual(main())) < SILENCE_FLOOR_SECONDS + 1.0


def test_whoever_is_silent_altogether_loses_all_that_was_passed_on_to_it() -> None:
    async def main() -> None:
        custody = Custody()
        early = custody.track(HopId(1, 0), "a")
        await asyncio.sleep(SILENCE_FLOOR_SECONDS - 1)
        late, other = custody.track(HopId(1, 1), "a"), custody.track(HopId(1, 2), "b")
        custody.look_for_late(asyncio.get_running_loop().time(), is_silent=lambda peer: peer == "a")
        assert (early.done(), late.done(), other.done()) == (True, True, False)

    run_virtual(main())


def test_one_looks_again_when_something_can_be_late() -> None:
    async def main() -> None:
        loop, custody = asyncio.get_running_loop(), Custody()
        assert custody.look_for_late(loop.time()) == math.inf
        await asyncio.sleep(10)
        custody.track(HopId(1, 0), "a")
        assert custody.look_for_late(loop.time()) == 10 + SILENCE_FLOOR_SECONDS
        await asyncio.sleep(3)
        custody.on_beat("a", Beat((HopBeat(1, 0, "passed", 0.0),), 0, 0.0, 0.1), loop.time())
        assert custody.look_for_late(loop.time()) == 13 + SILENCE_FLOOR_SECONDS
        custody.on_beat("a", beat(0), loop.time())
        assert custody.look_for_late(loop.time()) == loop.time(), "it waits: another may be faster soon"

    run_virtual(main())


def test_a_broken_connection_ends_the_wait_for_all_hops_of_that_peer() -> None:
    async def main() -> None:
        custody = Custody()
        first, second, other = (custody.track(HopId(1, index), peer) for index, peer in enumerate("aab"))
        custody.disconnected("a")
        assert (first.result(), second.result(), other.done()) == ("disconnected", "disconnected", False)
        custody.done(HopId(1, 0))
        custody.done(HopId(1, 1))
        assert list(custody.waiting()) == [HopId(1, 2)]
        custody.done(HopId(9, 9))

    run_virtual(main())


def test_a_peer_that_held_nothing_for_a_while_is_not_late_at_once() -> None:
    async def main() -> None:
        loop, custody = asyncio.get_running_loop(), Custody()
        custody.track(HopId(1, 0), "a")
        custody.on_beat("a", beat(0, busy=29.0), loop.time())
        custody.done(HopId(1, 0))
        await asyncio.sleep(500)
        lost = custody.track(HopId(1, 1), "a")
        custody.look_for_late(loop.time())
        assert not lost.done()

    run_virtual(main())


@pytest.mark.parametrize(
    ("progress", "word"),
    [
        (ComputeProgress(0, None, 0.0, 0.0, 0.0), ""),
        (ComputeProgress(9, HopId(1, 0), STUCK_TIMES * HUNG_FLOOR_SECONDS, 1.0, 1.0), ""),
        (ComputeProgress(9, HopId(1, 0), STUCK_TIMES * HUNG_FLOOR_SECONDS + 1, 1.0, 1.0), "at one task for 301 s"),
        (ComputeProgress(9, HopId(1, 0), 1000.0, 5.0, 10.0), ""),
        (ComputeProgress(9, None, 0.0, 1.0, 1.0, "the thread has died"), "the thread has died"),
    ],
)
def test_a_device_that_died_or_is_far_beyond_hung_is_stuck(progress: ComputeProgress, word: str) -> None:
    assert word in stuck(progress)
    assert bool(stuck(progress)) == bool(word)


USUAL = Rhythm(2.0, 1.0)
LONG_USUAL = Rhythm(20.0, 5.0)


@pytest.mark.parametrize(
    ("waited", "usual", "tries", "shown", "given_up"),
    [
        (UNANSWERED_FLOOR_SECONDS, USUAL, 0, True, False),
        (UNANSWERED_FLOOR_SECONDS + 1, USUAL, 0, True, True),
        (UNANSWERED_FLOOR_SECONDS + 1, USUAL, 0, False, False),  # nobody answers: it may not be this one's fault
        (UNANSWERED_FLOOR_SECONDS + 1, Rhythm(), 0, True, False),  # nothing was measured yet
        (UNANSWERED_CEILING_SECONDS + 1, Rhythm(), 0, False, True),
        (UNANSWERED_TIMES * 25.0, LONG_USUAL, 0, True, False),
        (UNANSWERED_TIMES * 25.0 + 1, LONG_USUAL, 0, True, True),
        (2 * UNANSWERED_FLOOR_SECONDS, USUAL, 1, True, False),  # the more often it was moved, the longer
        (2 * UNANSWERED_FLOOR_SECONDS + 1, USUAL, 1, True, True),
    ],
)
def test_how_long_a_holder_that_beats_may_leave_a_hop_unanswered(
    waited: float, usual: Rhythm, tries: int, *, shown: bool, given_up: bool
) -> None:
    assert bool(unanswered(waited, usual, tries, shown=shown)) == given_up


async def wait_for(
    custody: Custody, key: HopId, holder: str, *, stalled: Callable[[], bool] = lambda: False, trial: bool = False
) -> float:
    """Seconds until a holder that beats all the time, and claims the hop, loses it; 1e9: never."""
    loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    lost = custody.track(key, holder, trial=trial)
    while not lost.done() and loop.time() - began < 4 * UNANSWERED_CEILING_SECONDS:
        custody.on_beat(holder, Beat((HopBeat(*key, "passed", 0.0),), 1, 0.0, 1e9, 1e9), loop.time())
        custody.look_for_late(loop.time(), is_stalled=stalled)
        await asyncio.sleep(1.0)
    custody.done(key, lost)
    return loop.time() - began if lost.done() else 1e9


def answer(custody: Custody, holder: str, now: float, took: float = 2.0) -> None:
    for index in range(OVERTAKEN):
        custody.answered(HopId(1, 100 + index), holder, now - took, now)


@pytest.mark.parametrize(("trial", "floor"), [(False, UNANSWERED_FLOOR_SECONDS), (True, TRIAL_FLOOR_SECONDS)])
def test_a_hop_that_others_overtake_is_taken_away_and_its_holder_gets_nothing_for_longer_and_longer(
    trial: bool, floor: float
) -> None:
    async def main() -> None:
        custody, loop = Custody(), asyncio.get_running_loop()
        for times in range(3):
            await asyncio.sleep(10.0)
            loop.call_later(5.0, lambda: answer(custody, "good", loop.time(), floor / 20))
            waited = await wait_for(custody, HopId(1, times), "bad", trial=trial)
            assert floor < waited < floor + 3
            silent_for = 0
            while custody.is_mute("bad", loop.time()):
                await asyncio.sleep(1.0)
                silent_for += 1
            assert abs(silent_for - MUTE_TIMES * floor * 2**times) < 3
        answer(custody, "bad", loop.time())
        assert not custody._mute, "it answers again"

    run_virtual(main())


def test_without_a_sign_that_others_answer_it_is_waited_for_much_longer() -> None:
    async def main() -> None:
        waited = await wait_for(Custody(), HopId(1, 0), "bad")
        assert UNANSWERED_CEILING_SECONDS < waited < UNANSWERED_CEILING_SECONDS + 3

    run_virtual(main())


def test_while_nobody_can_answer_no_time_passes() -> None:
    async def main() -> None:
        custody, loop = Custody(), asyncio.get_running_loop()
        loop.call_later(5.0, lambda: answer(custody, "good", loop.time()))
        waited = await wait_for(custody, HopId(1, 0), "bad", stalled=lambda: loop.time() < 5000.0)
        assert 5000.0 + UNANSWERED_FLOOR_SECONDS - 3 < waited < 5000.0 + UNANSWERED_FLOOR_SECONDS + 3

    run_virtual(main())


def test_of_hops_and_holders_that_let_wait_a_bounded_number_is_remembered() -> None:
    async def main() -> None:
        custody = Custody()
        custody.usual.observe(1.0)
        for number in range(MUTE_KEPT + 10):
            key, holder = HopId(1, number), f"p{number}"
            passed = Passed(holder, 0.0, asyncio.get_running_loop().create_future(), overtaken=OVERTAKEN)
            assert custody._unanswered(1000.0, key, passed, lambda holder: None)
        assert len(custody._mute) == MUTE_KEPT
        custody.end_step(1)
        assert not custody._tries

    run_virtual(main())


def test_a_holder_is_not_believed_that_a_hop_takes_it_for_ever() -> None:
    async def main() -> None:
        loop, custody = asyncio.get_running_loop(), Custody()
        custody.track(HopId(1, 0), "a")
        custody.on_beat("a", Beat((), 0, 0.0, 1e9, 1e9), loop.time())
        assert custody._holders["a"].service_seconds == SERVICE_CEILING_SECONDS
        custody.answered(HopId(1, 1), "b", loop.time() - 2.0, loop.time())
        custody.on_beat("a", Beat((), 0, 0.0, 1e9, 1e9), loop.time())
        assert custody._holders["a"].service_seconds <= UNANSWERED_TIMES * 4.0

    run_virtual(main())
