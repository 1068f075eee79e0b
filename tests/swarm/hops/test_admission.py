"""Whether one more hop is taken, and who hears that there is room again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

import pytest

from swarmd.config import LimitsConfig
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.fence import Fence
from swarmd.swarm.hops.admission import Admission
from swarmd.swarm.hops.ailing import FAILURES, REST_SECONDS
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.hops.under_way import HopsUnderWay, HopUnderWay
from swarmd.swarm.tasks import Tasks
from swarmd.swarm.wire.messages.hop import Busy, Room
from swarmd.values import HopId
from tests.swarm.contexts import stage_context

LIMITS = LimitsConfig(in_flight_hops=3, in_flight_bytes=100)


class Told:
    """Links that remember who was told how much room there is."""

    def __init__(self) -> None:
        self.fence = Fence()
        self.rooms: list[tuple[str, int]] = []

    async def tell_all(self, peers: list[str], message: Room, *, deadline_s: float) -> dict[str, object]:
        self.rooms += [(peer, message.hops) for peer in peers]
        return {}


async def forever() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nothing ends this")


def admit(test: Callable[[Admission, HopsUnderWay, Told], Awaitable[None]]) -> None:
    """Runs a test with a peer's admission while its tasks run."""

    async def main() -> None:
        told, hops = Told(), HopsUnderWay()
        tasks = Tasks(told.fence)
        async with tasks.running(forever()):
            context = stage_context(limits=LIMITS, links=told, hops=hops, sums=StepSums(), tasks=tasks)
            await test(Admission(context), hops, told)

    run_virtual(main())


def begin(hops: HopsUnderWay, *sizes: int) -> asyncio.Event:
    """Hops of so many bytes are under way until the event is set."""
    end = asyncio.Event()
    for nbytes in sizes:
        hops.begin(HopUnderWay(HopId(1, len(hops)), "a", nbytes, admitted=0.0), end.wait())
    return end


@pytest.mark.parametrize(
    ("sizes", "room", "fits"),
    [((), 3, True), ((10, 10), 1, True), ((1, 1, 1), 0, False), ((1, 1, 1, 1), 0, False), ((100,), 2, False)],
)
def test_hops_are_taken_within_bounds_on_count_and_bytes(sizes: tuple[int, ...], room: int, fits: bool) -> None:
    async def test(admission: Admission, hops: HopsUnderWay, told: Told) -> None:
        begin(hops, *sizes)
        assert (admission.room(), admission.has_room()) == (room, fits)

    admit(test)


def test_who_was_refused_is_told_of_room_once() -> None:
    async def test(admission: Admission, hops: HopsUnderWay, told: Told) -> None:
        end = begin(hops, 1, 1, 1)
        assert [admission.refuse(peer) for peer in ("a", "b", "a", "gone")] == [Busy(3)] * 4
        admission.peer_lost("gone")
        admission.offer_room()
        await asyncio.sleep(1)
        assert told.rooms == []
        end.set()
        await asyncio.sleep(1)
        admission.offer_room()
        admission.offer_room()
        await asyncio.sleep(1)
        assert told.rooms == [("a", 3), ("b", 3)]

    admit(test)


def test_a_paused_peer_has_no_room_and_says_so_when_it_has_again() -> None:
    async def test(admission: Admission, hops: HopsUnderWay, told: Told) -> None:
        admission.pause(retiring=True)
        assert (admission.room(), admission.has_room(), admission.retiring) == (0, False, True)
        assert admission.refuse("a") == Busy(0)
        admission.resume()
        await asyncio.sleep(1)
        assert (admission.has_room(), admission.retiring, told.rooms) == (True, False, [("a", 3)])

    admit(test)


def test_a_peer_that_leaves_has_no_room_though_it_is_idle() -> None:
    async def test(admission: Admission, hops: HopsUnderWay, told: Told) -> None:
        admission.refuse("a")
        admission.close()
        admission.resume()
        await asyncio.sleep(1)
        assert (admission.has_room(), told.rooms) == (False, [])

    admit(test)


def test_after_failures_in_a_row_it_rests_and_then_offers_room() -> None:
    async def test(admission: Admission, hops: HopsUnderWay, told: Told) -> None:
        for number in range(FAILURES):
            assert not admission.resting
            admission.fail_at(f"hop {number}", ValueError("a bug"))
        assert (admission.resting, admission.room(), told.fence.count) == (True, 0, FAILURES)
        admission.refuse("a")
        await asyncio.sleep(REST_SECONDS - 0.1)
        assert told.rooms == []
        await asyncio.sleep(0.2)
        assert (admission.resting, told.rooms) == (False, [("a", 3)])

    admit(test)


def test_a_rest_ends_with_the_peer() -> None:
    async def test(admission: Admission, hops: HopsUnderWay, told: Told) -> None:
        for number in range(FAILURES):
            admission.fail_at(f"hop {number}", ValueError("a bug"))
        admission.refuse("a")
        admission.close()
        await asyncio.sleep(2 * REST_SECONDS)
        assert told.rooms == []

    admit(test)
