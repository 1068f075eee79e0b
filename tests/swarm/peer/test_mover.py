"""Moves that are out of the question, and moves whose asker waits no longer."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import Refused
from swarmd.swarm.peer import mover as module
from swarmd.swarm.peer.mover import Mover
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.records import RUN


class Way:
    """A move that is at the old stage until it is told to leave, and arrives when it is told to."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.target, self.has_left, self.back = _[-1], False, ""
        self.arrived = asyncio.Event()

    async def run(self) -> str:
        await self.arrived.wait()
        return self.back


class Rig:
    """Peer `p` of stage 0, with one more replica there and one at stage 1."""

    def __init__(self) -> None:
        self.own_card = OwnCard(card("p", stage=0))
        self.others = [card("q", stage=0), card("r", stage=1)]
        self.closed = False
        self.early_exit = SimpleNamespace(doing="", close=lambda: setattr(self, "closed", True))
        self.switch = SimpleNamespace(served=SimpleNamespace(early_exit=self.early_exit), obstacle=lambda stage: "")
        rig = self

        class Members:
            own = property(lambda _: rig.own)

            def staying(self, stage: int) -> list[Any]:
                return [it for it in (rig.own, *rig.others) if it.stage == stage]

        context = peer_context(
            run=RUN,
            membership=Members(),
            history=SimpleNamespace(finished=False),
            tasks=SimpleNamespace(start=asyncio.ensure_future),
            own=self.own_card,
        )
        self.mover = Mover(context, cast("Any", None), cast("Any", self.switch))

    @property
    def own(self) -> Card:
        return self.own_card.card

    def _set_card(self, **changes: Any) -> None:
        self.own_card.card = dataclasses.replace(self.own, **changes)

    async def begin(self, stage: int = 1) -> "asyncio.Future[None]":
        asked = asyncio.ensure_future(self.mover.move(stage))
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())
        await turns()
        return asked

    @property
    def way(self) -> Any:
        return self.mover.under_way


async def turns() -> None:
    """Lets the event loop turn as often as anything here takes."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MoveUnderWay", Way)


# ------------------------------------------------------------------------------------------------- out of the question


@pytest.mark.parametrize(
    ("change", "stage", "why"),
    [
        (lambda it: it._set_card(state="paused"), 1, "this peer is paused"),
        (lambda it: setattr(it.switch, "obstacle", lambda stage: "no data"), 1, "no data"),
        (lambda it: it.others.clear(), 1, "stage 0 would be left with 0 replicas"),
        (lambda it: None, 0, "it serves stage 0 already"),
        (lambda it: None, 2, "this run has no stage 2"),
        (lambda it: setattr(it.switch, "obstacle", lambda stage: 1 / 0), -1, "this run has no stage -1"),
    ],
)
async def test_it_is_refused_before_anything_is_downloaded(change: Callable[[Rig], None], stage: int, why: str) -> None:
    it = Rig()
    change(it)
    with pytest.raises(Refused, match=why):
        await it.mover.move(stage)
    assert it.mover.under_way is None
    assert it.own.moving == -1


async def test_one_move_at_a_time() -> None:
    it = Rig()
    await it.begin()
    with pytest.raises(Refused, match="on its way to stage 1 already"):
        await it.mover.move(1)
    await it.mover.end()


# ------------------------------------------------------------------------------------------------- how it ends


async def test_it_serves_the_new_stage() -> None:
    it = Rig()
    asked = await it.begin()
    assert (it.mover.target, it.own.moving) == (1, 1)
    it.way.has_left = True
    it._set_card(state="joining", heir="q")
    it.way.arrived.set()
    await asked
    assert (it.mover.target, it.own.moving, it.own.heir, it.own.state) == (None, -1, "", "serving")


async def test_back_at_its_old_stage_it_says_why() -> None:
    it = Rig()
    asked = await it.begin()
    it.way.back = "stage 1 can't be opened here"
    it.way.arrived.set()
    with pytest.raises(Refused, match="stage 1 can't be opened here"):
        await asked
    assert it.own.state == "serving"


@pytest.mark.parametrize("has_left", [False, True])
async def test_when_its_asker_waits_no_longer_it_goes_on_once_the_old_stage_is_left(has_left: bool) -> None:
    it = Rig()
    asked = await it.begin()
    it.way.has_left = has_left
    asked.cancel()
    await turns()
    assert asked.cancelled()
    assert (it.mover.target == 1) == has_left


WAYS_TO_END: list[tuple[Callable[[Mover], Awaitable[None]], bool, bool]] = [
    (Mover.drain, False, False),
    (Mover.drain, True, True),
    (Mover.end, False, False),
    (Mover.end, True, False),
]


@pytest.mark.parametrize(("end", "has_left", "goes_on"), WAYS_TO_END)
async def test_a_drain_ends_it_at_the_old_stage_and_a_return_anywhere(
    end: Callable[[Mover], Awaitable[None]], has_left: bool, goes_on: bool
) -> None:
    it = Rig()
    asked = await it.begin()
    it.way.has_left = has_left
    await end(it.mover)
    assert (it.mover.target == 1) == goes_on
    if not goes_on:
        with pytest.raises(Refused, match="this peer leaves"):
            await asked
    assert it.closed == (end is Mover.drain), "what it had begun to hand over stays as it is"
    await it.mover.end()


async def test_a_move_that_is_ended_before_it_has_begun_is_over() -> None:
    """A return may be decided in the same turn of the event loop."""
    it = Rig()
    moving = it.mover.move(1)
    moving.send(None)  # up to its first wait
    await it.mover.end()
    moving.close()
    assert (it.mover.target, it.own.moving) == (None, -1)
    again = await it.begin()
    it.way.arrived.set()
    await again


async def test_what_it_is_at_once_the_state_is_here() -> None:
    it = Rig()
    assert it.mover.doing == ""
    await it.begin()
    assert it.mover.doing == "asking for it"
    it.early_exit.doing = "handing 3 microbatches over"
    assert it.mover.doing == "handing 3 microbatches over"
    it.way.has_left = True
    assert it.mover.doing == "opening it"
    await it.mover.end()
