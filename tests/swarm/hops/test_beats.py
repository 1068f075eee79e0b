"""Beats: to whom, when, and what they say."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.hops.beats import (
    BEAT_CEILING_SECONDS,
    BEAT_PATIENCE_SECONDS,
    LOOK_CEILING_SECONDS,
    Beats,
    beat_interval,
)
from swarmd.swarm.hops.custody import UNCLAIMED_SECONDS, Custody
from swarmd.swarm.hops.under_way import HopsUnderWay, HopUnderWay
from swarmd.swarm.membership.rhythm import SILENCE_CEILING_SECONDS
from swarmd.swarm.membership.table import SMALL_SWARM
from swarmd.swarm.tasks import alongside
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.hop import BEAT_SECONDS, Beat, HopBeat
from swarmd.values import ComputeProgress, HopId
from tests.swarm.contexts import stage_context

STEP = 4


class Rig:
    """A holder of hops. Custodians that are `deaf` answer nothing."""

    def __init__(self, population: int = 3) -> None:
        self.hops, self.sent = HopsUnderWay(), list[tuple[float, str, Beat]]()
        self.deaf, self.deadlines = set[str](), set[float]()
        self.taken = list[tuple[Any, ...]]()
        self.answers: dict[type, Any] = {}
        self.ends: dict[int, asyncio.Event] = {}
        context = stage_context(
            links=SimpleNamespace(tell_all=self._tell),
            membership=SimpleNamespace(population=lambda: population),
            compute=SimpleNamespace(progress=lambda: ComputeProgress(17, None, 2.5, 0.5, 1.0)),
            scope=SimpleNamespace(handle=self.answers.__setitem__),
            tasks=SimpleNamespace(start=asyncio.ensure_future),
            hops=self.hops,
        )
        custody = SimpleNamespace(on_beat=lambda *about: self.taken.append(about))
        self.beats = Beats(context, cast("Custody", custody))

    async def _tell(self, peers: list[str], beat: Beat, *, deadline_s: float) -> None:
        (peer,) = peers
        self.sent.append((now(), peer, beat))
        self.deadlines.add(deadline_s)
        if peer in self.deaf:
            await asyncio.sleep(deadline_s)

    def hold(self, index: int, custodian: str) -> HopUnderWay:
        self.ends[index] = asyncio.Event()
        it = HopUnderWay(HopId(STEP, index), custodian, 10, admitted=now(), since=now())
        self.hops.begin(it, self.ends[index].wait())
        return it

    def times(self, custodian: str) -> list[float]:
        return [at for at, peer, _ in self.sent if peer == custodian]

    async def release(self) -> None:
        for end in self.ends.values():
            end.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def now() -> float:
    return asyncio.get_running_loop().time()


def play(test: Callable[[Rig], Coroutine[Any, Any, None]], population: int = 3) -> None:
    async def main() -> None:
        rig = Rig(population)
        async with alongside(rig.beats.run()) as running:
            await test(rig)
            assert not running.done()
        await rig.release()

    run_virtual(main())


def test_a_holder_with_many_custodians_beats_to_each_before_it_is_given_up() -> None:
    assert beat_interval(1) == beat_interval(2) == BEAT_SECONDS
    assert [beat_interval(count) for count in (10, 1000)] == [5.0, BEAT_CEILING_SECONDS]
    assert beat_interval(1, SMALL_SWARM + 1) == 2.0
    assert beat_interval(100, SMALL_SWARM + 1) == BEAT_CEILING_SECONDS
    assert min(UNCLAIMED_SECONDS, SILENCE_CEILING_SECONDS) > BEAT_CEILING_SECONDS


def test_up_to_which_size_a_swarm_notices_lost_peers_soon() -> None:
    assert beat_interval(4, SMALL_SWARM) == 2.0
    assert beat_interval(4, SMALL_SWARM + 1) == 8.0


def test_nothing_is_said_without_a_hop_of_somebody_else() -> None:
    async def test(rig: Rig) -> None:
        await asyncio.sleep(10)
        rig.hold(1, "")
        await asyncio.sleep(10)
        assert rig.sent == []

    play(test)


def test_a_beat_says_of_each_hop_in_what_state_it_is_and_how_the_device_does() -> None:
    async def test(rig: Rig) -> None:
        rig.hold(1, "a")
        rig.hold(2, "b")
        await asyncio.sleep(0.25)
        rig.hold(3, "a").move("passed")
        await asyncio.sleep(1)
        (at, _, beat), (_, other, second) = rig.sent
        assert at == BEAT_SECONDS
        assert beat == Beat(
            (HopBeat(STEP, 1, "waiting", BEAT_SECONDS), HopBeat(STEP, 3, "passed", BEAT_SECONDS - 0.25)),
            counter=17,
            busy_seconds=2.5,
            service_seconds=1.5,
            next_seconds=BEAT_SECONDS,
        )
        assert (other, [it.index for it in second.hops]) == ("b", [2])
        assert rig.deadlines == {BEAT_PATIENCE_SECONDS}

    play(test)


def test_a_custodian_hears_every_second_until_its_hop_has_gone() -> None:
    async def test(rig: Rig) -> None:
        rig.hold(1, "a")
        await asyncio.sleep(4.5)
        assert rig.times("a") == [1.0, 2.0, 3.0, 4.0]
        await rig.release()
        await asyncio.sleep(10)
        assert len(rig.sent) == 4

    play(test)


def test_the_first_look_is_a_second_after_the_first_hop() -> None:
    async def test(rig: Rig) -> None:
        for index, come in enumerate((3.25, 9.75)):
            await asyncio.sleep(come - now())
            rig.hold(index, "a")
            await asyncio.sleep(1.5)
            await rig.release()
            await asyncio.sleep(1)
        assert rig.times("a") == [3.25 + BEAT_SECONDS, 9.75 + BEAT_SECONDS]

    play(test)


def test_of_many_each_hears_when_it_was_promised_and_a_new_one_at_the_next_look() -> None:
    async def test(rig: Rig) -> None:
        for number in range(20):
            rig.hold(number, f"c{number}")
        await asyncio.sleep(6.5)
        rig.hold(20, "new")
        await asyncio.sleep(20)
        first, *rest = rig.times("c0")
        assert first == BEAT_SECONDS
        promised = [beat.next_seconds for _, peer, beat in rig.sent if peer == "c0"]
        assert promised == [10.0] + [10.5] * len(rest), "20 or 21 of them at 2 beats a second"
        for at, after, seconds in zip((first, *rest), rest, promised, strict=False):
            assert abs(after - at - seconds) <= LOOK_CEILING_SECONDS / 2
        assert rig.times("new")[0] == BEAT_SECONDS + 3 * LOOK_CEILING_SECONDS

    play(test)


def test_in_a_large_swarm_beats_are_rarer_and_looks_are_not() -> None:
    async def test(rig: Rig) -> None:
        for number in range(3):
            rig.hold(number, f"c{number}")
        await asyncio.sleep(9)
        assert rig.times("c0") == [1.0, 7.0]
        rig.hold(9, "new")
        await asyncio.sleep(BEAT_CEILING_SECONDS / 4)
        assert 9.0 < rig.times("new")[0] <= 9.0 + 1.5, "a quarter of 6 s"

    play(test, SMALL_SWARM + 1)


def test_a_custodian_that_gives_another_hop_after_a_while_is_a_new_one() -> None:
    async def test(rig: Rig) -> None:
        for number in range(20):
            rig.hold(number, f"c{number}")
        rig.hold(20, "a")
        await asyncio.sleep(1.5)
        assert rig.times("a") == [1.0]
        rig.ends[20].set()
        await asyncio.sleep(3)
        rig.hold(21, "a")
        await asyncio.sleep(LOOK_CEILING_SECONDS)
        assert len(rig.times("a")) == 2, "long before the 10.5 s that were promised to it"

    play(test)


def test_a_beat_that_is_not_heard_is_overtaken_by_the_next_after_its_patience_and_holds_up_no_other() -> None:
    async def test(rig: Rig) -> None:
        rig.deaf.add("a")
        rig.hold(1, "a")
        rig.hold(2, "b")
        await asyncio.sleep(6.5)
        assert rig.times("a") == [1.0, 3.0, 5.0]
        assert rig.times("b") == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    play(test)


def test_a_beat_that_comes_is_custody_s_affair() -> None:
    async def test(rig: Rig) -> None:
        beat = Beat((HopBeat(STEP, 1, "waiting", 1.0),), 3, 0.0, 0.0)
        await asyncio.sleep(5)
        assert await rig.answers[Beat]("a", beat) == Ack()
        assert rig.taken == [("a", beat, 5.0)]

    play(test)
