"""Early exits: the peers that may leave in the middle of a step, their heirs, and departures that fail half-way."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.errors import PeerUnreachable, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.hops.under_way import HopsUnderWay
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.peer.early_exit import EarlyExit
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.move import AskStay
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import stage_context

STEP, STAGE = 5, 1
STAY = AskStay(STEP, "r", STAGE)


class Stage:
    """Peer `p` at a stage with one more replica, `q`, in step 5."""

    def __init__(self) -> None:
        self.own_card, self.cards = OwnCard(card("p", stage=STAGE)), [card("q", stage=STAGE)]
        self.promises, self.leads, self.averaged, self.missing = {"q"}, "c", False, list[int]()
        self.asked, self.paused, self.gives = list[str](), False, True
        self.history: Any = SimpleNamespace(
            version=STEP - 1,
            record_hash="r",
            crosses_at=None,
            finished=False,
            behind=False,
            ready=True,
            lock=asyncio.Lock(),
            await_version=self._at_version,
            left=self._left,
        )
        self.over = asyncio.Event()
        self.sums, self.journeys = StepSums(), self._journeys()
        self.handovers: Any = SimpleNamespace(unsure="", give=self._give)
        context = stage_context(
            run=SimpleNamespace(model=SimpleNamespace(stages=3)),
            links=SimpleNamespace(ask=self._ask),
            membership=self._membership(),
            history=self.history,
            own=self.own_card,
            stage=STAGE,
            compute=SimpleNamespace(progress=lambda: SimpleNamespace(running=None)),
            scope=SimpleNamespace(handle=lambda kind, answer: None),
            tasks=SimpleNamespace(start=asyncio.ensure_future),
            sums=self.sums,
        )
        conductor: Any = SimpleNamespace(conductor_of=lambda step: self.leads)
        rounds: Any = SimpleNamespace(averaged=lambda step: self.averaged)
        handovers: Any = self.handovers
        self.exit = EarlyExit(context, conductor, self.journeys, rounds, handovers, None)

    def _membership(self) -> Any:
        stage = self

        class Members:
            own = property(lambda _: stage.own)

            def staying(self, at: int) -> list[Any]:
                return [stage.own, *stage.cards]

            def is_silent(self, peer: str, now: float) -> bool:
                return False

            def is_live(self, peer: str) -> bool:
                return True

            def missing_stages(self, stages: int) -> list[int]:
                return stage.missing

        return Members()

    def _journeys(self) -> Any:
        def pause(*, retiring: bool) -> None:
            self.paused = retiring

        def resume() -> None:
            self.paused = False

        admission = SimpleNamespace(closed=False, pause=pause, resume=resume)
        return SimpleNamespace(hops=HopsUnderWay(), admission=admission)

    @property
    def own(self) -> Card:
        return self.own_card.card

    def _set_card(self, **changes: Any) -> None:
        self.own_card.card = dataclasses.replace(self.own, **changes)

    async def _at_version(self, *_: Any) -> None: ...

    async def _left(self, step: int) -> None:
        await self.over.wait()

    async def _ask(self, peer: str, question: AskStay, *, deadline_s: float) -> Ack:
        assert question == STAY
        self.asked.append(peer)
        await asyncio.sleep(1)
        if peer not in self.promises:
            raise PeerUnreachable("it is gone")
        return Ack()

    async def _give(self, siblings: list[str]) -> str:
        await asyncio.sleep(1)
        if not self.gives:
            return ""
        self.sums.of(STEP).accumulated.clear()
        return siblings[0]

    def end_step(self) -> None:
        self.history.version = STEP
        self.over.set()
        self.sums.changed.notify()


def try_it(events: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        await events(Stage())

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- staying


def test_who_is_at_work_promises_to_stay() -> None:
    async def events(it: Stage) -> None:
        assert await it.exit._answer("q", STAY) == Ack()
        assert it.exit.stays == STEP
        assert await it.exit.leave() == "", "it has promised"
        assert it.asked == []

    try_it(events)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda it: it._set_card(state="draining"), "may leave stage 1 itself"),
        (lambda it: it._set_card(ending=True), "may leave stage 1 itself"),
        (lambda it: setattr(it.journeys.admission, "closed", True), "may leave stage 1 itself"),
        (lambda it: setattr(it.history, "behind", True), "may have to fetch"),
        (lambda it: setattr(it.history, "ready", False), "may have to fetch"),
        (lambda it: setattr(it.history, "crosses_at", 3), "may have to fetch"),
    ],
    ids=["drains", "ends", "closed", "behind", "not ready", "crosses"],
)
def test_who_may_be_gone_itself_promises_nothing(change: Callable[[Stage], None], why: str) -> None:
    async def events(it: Stage) -> None:
        change(it)
        with pytest.raises(Refused, match=why):
            await it.exit._answer("q", STAY)
        assert it.exit.stays == 0

    try_it(events)


@pytest.mark.parametrize("peer", ["q", "q2", "q3", "q4"])
def test_of_two_that_ask_each_other_one_promises(peer: str) -> None:
    """The one that comes first in the order that both compute alike stays."""

    async def events(it: Stage) -> None:
        it.cards, it.promises = [card(peer, stage=STAGE)], {peer}
        leaving = asyncio.ensure_future(it.exit.leave())
        await asyncio.sleep(0.5)
        if rendezvous(f"heir/{STEP}/{STAGE}", ["p", peer])[0] == "p":
            assert await it.exit._answer(peer, STAY) == Ack()
            assert await leaving == ""
        else:
            with pytest.raises(Refused):
                await it.exit._answer(peer, STAY)
            assert await leaving == peer

    try_it(events)


# ------------------------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it._set_card(state="draining"),
        lambda it: setattr(it.history, "crosses_at", 3),
        lambda it: setattr(it.history, "finished", True),
        lambda it: setattr(it, "leads", "p"),
        lambda it: setattr(it, "averaged", True),
        lambda it: setattr(it, "missing", [2]),
        lambda it: it.sums.freeze(STEP),
        lambda it: it.exit.close(),
        lambda it: setattr(it, "cards", []),
    ],
    ids=["drains", "crosses", "run over", "conducts", "averaged", "stage empty", "frozen", "closed", "alone"],
)
def test_who_has_to_do_with_the_steps_end_stays(change: Callable[[Stage], None]) -> None:
    async def events(it: Stage) -> None:
        change(it)
        assert await it.exit.leave() == ""
        assert it.asked == []
        assert not it.paused

    try_it(events)


def test_with_nothing_of_the_step_it_leaves_as_soon_as_somebody_stays() -> None:
    async def events(it: Stage) -> None:
        it.cards, it.promises = [card("q", stage=STAGE), card("r", stage=STAGE)], {"r"}
        assert await it.exit.leave() == "r"
        assert it.asked[-2:] == ["r", "r"], "the promise is asked for twice"
        assert it.paused
        assert it.own.state == "draining"

    try_it(events)


def test_nobody_promises_and_everything_is_as_it_was() -> None:
    async def events(it: Stage) -> None:
        it.promises = set()
        assert await it.exit.leave() == ""
        assert it.own.state == "serving"
        assert not it.paused

    try_it(events)


def test_the_heir_has_the_sum_when_it_leaves() -> None:
    async def events(it: Stage) -> None:
        it.sums.of(STEP).accumulated = {1, 2}
        assert await it.exit.leave() == "q"
        assert it.sums.of(STEP).empty
        assert it.exit.heir == (STEP, "q")

    try_it(events)


def test_an_heir_that_takes_no_sum_leaves_everything_as_it_was() -> None:
    async def events(it: Stage) -> None:
        it.sums.of(STEP).accumulated, it.gives = {1, 2}, False
        assert await it.exit.leave() == ""
        assert it.own.state == "serving"
        assert not it.paused

    try_it(events)


def test_while_the_heir_may_have_the_sum_it_is_asked_again() -> None:
    async def events(it: Stage) -> None:
        it.sums.of(STEP).accumulated, it.gives, it.handovers.unsure = {1, 2}, False, "q"
        leaving = asyncio.ensure_future(it.exit.leave())
        await asyncio.sleep(10)
        assert not leaving.done()
        assert it.paused
        it.gives, it.handovers.unsure = True, ""
        assert await leaving == "q"

    try_it(events)


def test_when_the_heir_of_its_sum_is_gone_it_takes_nothing_until_the_step_is_over() -> None:
    """The device still has that sum, and would add to it."""

    async def events(it: Stage) -> None:
        it.sums.of(STEP).accumulated = {1, 2}
        leaving = asyncio.ensure_future(it.exit.leave())
        await asyncio.sleep(1.5)
        it.promises = set()
        await asyncio.sleep(10)
        assert not leaving.done()
        assert it.paused
        it.end_step()
        assert await leaving == ""
        assert it.own.state == "serving"
        assert not it.paused

    try_it(events)


# ------------------------------------------------------------------------------------------------- given up


async def cancel(task: "asyncio.Future[Any]") -> None:
    task.cancel()
    await asyncio.wait([task])


def test_given_up_before_anything_is_handed_over_it_goes_on_at_once() -> None:
    async def events(it: Stage) -> None:
        it.sums.of(STEP).accumulated = {1, 2}
        leaving = asyncio.ensure_future(it.exit.leave())
        await asyncio.sleep(1.5)
        assert it.paused
        await cancel(leaving)
        assert not it.paused
        assert it.own.state == "serving"

    try_it(events)


def test_given_up_with_the_sum_handed_over_it_goes_on_when_the_step_is_over() -> None:
    async def events(it: Stage) -> None:
        it.sums.of(STEP).accumulated = {1, 2}
        leaving = asyncio.ensure_future(it.exit.leave())
        await asyncio.sleep(2.5)
        assert it.exit.heir == (STEP, "q")
        await cancel(leaving)
        await asyncio.sleep(10)
        assert it.paused
        assert it.own.state == "draining"
        it.end_step()
        await asyncio.sleep(0.1)
        assert not it.paused
        assert it.own.state == "serving"

    try_it(events)


def test_a_closed_stage_goes_on_no_more() -> None:
    async def events(it: Stage) -> None:
        it.sums.of(STEP).accumulated = {1, 2}
        leaving = asyncio.ensure_future(it.exit.leave())
        await asyncio.sleep(1.5)
        it.exit.close()
        await cancel(leaving)
        assert it.paused
        assert it.own.state == "draining", "what is said from now on is another's affair"

    try_it(events)
