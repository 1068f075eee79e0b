"""A sum on its way from one peer to another: it is with exactly one of them, or the giver knows that it can't tell."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.config import ModelConfig, RunConfig
from swarmd.errors import OutOfRange, PeerFault, PeerUnreachable, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.hops.under_way import HopsUnderWay, HopUnderWay
from swarmd.swarm.rounds.handover import LAST_ELEMENTS, SLICE_ELEMENTS, HandOvers, cut
from swarmd.swarm.wire.messages.common import to_ranges
from swarmd.swarm.wire.messages.drain import HandOver, SumTaken
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.values import Encoded, HopId
from tests.swarm.contexts import stage_context

RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, 3, 3, 8))
STEP = 3
SIZE = SLICE_ELEMENTS + LAST_ELEMENTS + 5  # three slices


class Peer:
    """A replica of stage 1. Its device absorbs what it is told to, and its links go to the peers of `others`."""

    def __init__(self, name: str, others: "dict[str, Peer]") -> None:
        self.name, self.others = name, others
        others[name] = self
        self.sums, self.hops = StepSums(), HopsUnderWay()
        self.own = SimpleNamespace(peer=name, state="serving")
        self.live: Callable[[str], bool] = lambda peer: True
        self.history = SimpleNamespace(version=STEP - 1, record_hash="r", await_version=self._at_version)
        self.absorbed: list[tuple[list[int], int]] = []
        self.absorbs = True
        self.sent: list[HandOver] = []
        self.lost = 0  # so many of the answers to last slices are lost
        self.completed: list[int] = []
        context = stage_context(
            run=RUN,
            links=SimpleNamespace(ask=self._ask),
            membership=SimpleNamespace(own=self.own, is_live=lambda peer: self.live(peer)),
            history=self.history,
            scope=SimpleNamespace(handle=lambda kind, handler: None),
            sums=self.sums,
            hops=self.hops,
            stage=1,
            compute=SimpleNamespace(gradient_size=SIZE, contribution=self._contribution, absorb=self._absorb),
        )
        self.handovers = HandOvers(context, self.completed.extend)

    async def _at_version(self, version: int, record: str, peer: str, seconds: float) -> None:
        assert (version, record) == (STEP - 1, "r")

    async def _contribution(self, step: int, start: int, stop: int, *, codec: str) -> Encoded:
        return Encoded(codec, (stop - start,), (b"",))

    async def _absorb(self, step: int, indices: Sequence[int], slices: Sequence[Encoded]) -> bool:
        await asyncio.sleep(0.1)
        if self.absorbs:
            self.absorbed.append((list(indices), len(slices)))
        return self.absorbs

    async def _ask(self, peer: str, message: HandOver, **options: Any) -> SumTaken:
        self.sent.append(message)
        answer = await self.others[peer].handovers._answer(self.name, message)
        if answer.whole and self.lost:
            self.lost -= 1
            raise PeerUnreachable("the answer is lost")
        return answer


def peers(*names: str) -> list[Peer]:
    others: dict[str, Peer] = {}
    return [Peer(name, others) for name in names]


def fill(it: Peer, *indices: int) -> None:
    for index in indices:
        it.sums.of(STEP).add(index, 2.0, "source")


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@pytest.mark.parametrize("size", [0, 1, LAST_ELEMENTS, LAST_ELEMENTS + 1, SLICE_ELEMENTS, SIZE, 5 * SLICE_ELEMENTS])
def test_slices_follow_each_other_and_the_last_one_is_short(size: int) -> None:
    slices = cut(size)
    borders = [0, *(stop for _, stop in slices)]
    assert [start for start, _ in slices] == borders[:-1] and borders[-1] == size
    assert all(0 < stop - start <= SLICE_ELEMENTS for start, stop in slices)
    assert all(stop - start <= LAST_ELEMENTS for start, stop in slices[-1:])


@virtually
async def test_the_heir_has_all_that_the_giver_had() -> None:
    giver, heir = peers("g", "h")
    fill(giver, 1, 2)
    giver.sums.of(STEP).spoil(4, Blame("loss"))
    giver.sums.of(STEP).resent = giver.sums.of(STEP).subtracted = 3
    fill(heir, 7)
    assert await giver.handovers.give(["h"]) == "h"
    assert giver.sums.of(STEP).empty and giver.handovers.unsure == ""
    it = heir.sums.of(STEP)
    assert (it.accumulated, it.spoiled, it.loss_sum, it.resent, it.subtracted) == ({1, 2, 7}, {4}, 6.0, 3, 3)
    assert (heir.absorbed, heir.completed) == ([([1, 2], 3)], [1, 2, 4])


@virtually
async def test_an_answer_that_is_lost_is_asked_for_again_and_the_sum_counts_once() -> None:
    giver, heir = peers("g", "h")
    fill(giver, 1)
    giver.lost = 1
    assert await giver.handovers.give(["h"]) == "h"
    assert (heir.absorbed, heir.sums.of(STEP).accumulated) == ([([1], 3)], {1})


@virtually
async def test_a_giver_that_cannot_tell_asks_the_same_one_again_and_nobody_else() -> None:
    giver, _, heir = peers("g", "other", "h")
    fill(giver, 1)
    giver.lost = 2
    assert await giver.handovers.give(["h", "other"]) == ""
    assert giver.handovers.unsure == "h" and giver.sums.has(STEP, 1)
    giver.sent.clear()
    assert await giver.handovers.give(["other", "h"]) == "h"
    assert [(message.start, message.stop) for message in giver.sent] == cut(SIZE)[-1:]
    assert heir.absorbed == [([1], 3)]


@virtually
async def test_whoever_refuses_leaves_it_to_the_next() -> None:
    giver, leaving, frozen, has, heir = peers("g", "leaving", "frozen", "has", "h")
    fill(giver, 1)
    fill(has, 1)
    leaving.own.state = "draining"
    frozen.sums.freeze(STEP)
    assert await giver.handovers.give(["leaving", "frozen", "has", "h"]) == "h"
    assert heir.sums.has(STEP, 1) and giver.sums.of(STEP).empty


@virtually
async def test_a_device_that_takes_nothing_leaves_the_sum_where_it_was() -> None:
    giver, heir = peers("g", "h")
    fill(giver, 1)
    heir.absorbs = False
    assert await giver.handovers.give(["h"]) == ""
    assert giver.sums.has(STEP, 1) and heir.sums.of(STEP).empty and giver.handovers.unsure == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda giver: fill(giver, 9),
        lambda giver: giver.sums.freeze(STEP),
        lambda giver: giver.hops.begin(HopUnderWay(HopId(STEP, 5), "c", 0, admitted=0.0), asyncio.sleep(100)),
        lambda giver: setattr(giver.history, "version", STEP),
    ],
    ids=["more came", "frozen", "under way", "committed"],
)
def test_a_sum_that_changes_meanwhile_is_not_given(change: Callable[[Peer], None]) -> None:
    async def main() -> None:
        giver, heir = peers("g", "h")
        fill(giver, 1)
        async with giver.sums.lock:
            giving = asyncio.create_task(giver.handovers.give(["h"]))
            await asyncio.sleep(1)
            change(giver)
        assert await giving == ""
        assert heir.absorbed == [] and giver.sums.has(STEP, 1)

    run_virtual(main())


@virtually
async def test_what_is_on_its_way_into_the_heirs_sum_counts_as_being_there() -> None:
    giver, heir = peers("g", "h")
    fill(giver, 1)
    heir.hops.begin(HopUnderWay(HopId(STEP, 1), "c", 0, admitted=0.0), asyncio.sleep(100))
    assert await giver.handovers.give(["h"]) == ""
    assert heir.absorbed == []


FIRST = HandOver(
    STEP, "r", 1, 0, SLICE_ELEMENTS, Encoded("fp32", (SLICE_ELEMENTS,), (b"",)), to_ranges([1]), (), 2.0, 0, 0
)


@pytest.mark.parametrize(
    ("changes", "trouble"),
    [
        ({"start": 5}, Refused),
        ({"stage": 2}, Refused),
        ({"stop": SLICE_ELEMENTS + 1}, PeerFault),
        ({"stop": 0}, PeerFault),
        ({"data": Encoded("fp32", (1,), (b"x" * (8 * SLICE_ELEMENTS + 9),))}, PeerFault),
        ({"indices": to_ranges([RUN.microbatches])}, OutOfRange),
    ],
)
def test_slices_that_cannot_be_are_not_kept(changes: dict[str, Any], trouble: type[Exception]) -> None:
    async def main() -> None:
        (heir,) = peers("h")
        with pytest.raises(trouble):
            await heir.handovers._answer("g", dataclasses.replace(FIRST, **changes))
        assert not any(it.slices for it in heir.handovers._incoming.values())

    run_virtual(main())


@virtually
async def test_one_sum_comes_at_a_time_unless_its_giver_is_gone() -> None:
    (heir,) = peers("h")
    assert await heir.handovers._answer("g", FIRST) == SumTaken(False)
    with pytest.raises(Refused, match="another peer"):
        await heir.handovers._answer("other", FIRST)
    heir.live = lambda peer: peer != "g"
    assert await heir.handovers._answer("other", FIRST) == SumTaken(False)


@virtually
async def test_a_slice_of_another_sum_begins_anew() -> None:
    (heir,) = peers("h")
    await heir.handovers._answer("g", FIRST)
    changed = dataclasses.replace(FIRST, start=SLICE_ELEMENTS, stop=SLICE_ELEMENTS + 5, indices=to_ranges([1, 2]))
    with pytest.raises(Refused, match="begin again"):
        await heir.handovers._answer("g", changed)
    assert heir.handovers._incoming == {}


@virtually
async def test_nothing_is_taken_once_the_stage_is_closed_and_what_came_is_forgotten_with_the_step() -> None:
    (heir,) = peers("h")
    await heir.handovers._answer("g", FIRST)
    heir.handovers.end_step()
    assert heir.handovers._incoming == {}
    heir.handovers.close()
    with pytest.raises(Refused, match="itself"):
        await heir.handovers._answer("g", FIRST)
