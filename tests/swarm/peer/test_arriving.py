"""A peer's ways to the swarm's version: by records, by others' state, back to a checkpoint, to another history."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.membership.standing import Standing
from swarmd.swarm.peer.arriving import Arriving
from swarmd.swarm.recovery.forks import Crossing
from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context

STAGE, VERSION = 1, 5


class Rig:
    """Peer `p` of stage 1 at version 5, with a replica `q` there."""

    def __init__(self) -> None:
        self.own_card, self.cards = OwnCard(card("p", stage=STAGE, version=VERSION)), {"q": self.sibling(VERSION)}
        self.log, self.changed, self.foreign = list[Any](), Signal(), False
        self.history: Any = SimpleNamespace(
            finished=False,
            behind=False,
            broken=0,
            version=VERSION,
            lock=asyncio.Lock(),
            catch_up=self._catch_up,
            fall_behind=self._fall_behind,
            replace=self._replace,
            chain=SimpleNamespace(took_part=lambda peer: True),
            took_part=lambda step: self.log.append("took part"),
            origin=SimpleNamespace(decided=lambda: self.log.append("decided")),
        )
        self.served = self._stage(STAGE)
        self.state: Any = b"state"
        self.returns: Any = SimpleNamespace(due=None, making=self._making, done=self._done, state=self._state)
        self.returning = False
        self.way: Crossing | None = None
        self.crossed = True
        self.mover = SimpleNamespace(between=False, end=self._end_move)
        self.switch: Any = SimpleNamespace(served=self.served, donors=lambda stage: list(self.cards), enter=self._enter)
        rig = self

        class Members:
            own = property(lambda _: rig.own_card.card)
            changed, standing = rig.changed, Standing()

            def kin(self) -> list[Card]:
                return [rig.own_card.card, *rig.cards.values()]

            def newest(self) -> Card:
                return max(self.kin(), key=lambda it: it.version)

            def foreign(self) -> list[str]:
                return ["x"] if rig.foreign else []

            def get(self, peer: str) -> Card | None:
                return rig.cards.get(peer)

        context = peer_context(membership=Members(), history=self.history, own=self.own_card)
        forks: Any = SimpleNamespace(look=self._look, arrive=self._arrive, stay=self._stay)
        parts: dict[str, Any] = {"returns": self.returns, "forks": forks, "switch": self.switch, "mover": self.mover}
        self.arriving = Arriving(context, **parts)

    def sibling(self, version: int, **changes: Any) -> Card:
        return card("q", stage=STAGE, version=version, **changes)

    def _stage(self, stage: int) -> Any:
        async def import_state(state: bytes) -> str:
            if isinstance(state, BaseException):
                raise state
            return "digest"

        joiner = SimpleNamespace(reach_version=self._reach, ended=self._ended, pull=self._pull)
        return SimpleNamespace(
            stage=stage,
            joiner=joiner,
            compute=SimpleNamespace(import_state=import_state),
            admission=SimpleNamespace(paused=False),
            serve=lambda: self.log.append("serves"),
        )

    async def _catch_up(self, source: str, version: int) -> None:
        self.log.append(("catches up", source, version))
        self.history.version = version

    def _fall_behind(self, why: str) -> None:
        self.log.append(why)
        self.history.behind, self.history.broken = True, 0

    def _replace(self, of: Any, digest: str) -> None:
        self.log.append(("at", of.step))

    async def _reach(self, donors: Any, changed: Signal) -> None:
        self.log.append(f"reaches as {self.own_card.state}")
        await asyncio.sleep(1)
        self.history.behind = False

    async def _ended(self) -> None:
        self.log.append("no longer")

    async def _pull(self, donors: Callable[[], list[str]]) -> bool:
        self.log.append(("pulls from", donors(), self.own_card.state, self.arriving.crossing))
        return self.crossed

    @contextlib.contextmanager
    def _making(self) -> Iterator[None]:
        self.returning = True
        yield
        self.returning = False

    def _done(self, of: Any) -> None:
        self.returns.due = None

    async def _state(self, of: Any, stage: int) -> Any:
        assert self.returning
        self.log.append(("loads", of.step, stage))
        return self.state

    async def _enter(self, stage: int) -> Any:
        self.log.append(("enters", stage))
        self.switch.served = self._stage(stage)
        return self.switch.served

    async def _end_move(self) -> None:
        self.log.append("moves no more")

    @contextlib.asynccontextmanager
    async def _look(self) -> AsyncIterator[Crossing | None]:
        yield self.way

    async def _arrive(self, way: Crossing, compute: Any) -> None:
        self.log.append("arrives")

    async def _stay(self, compute: Any) -> None:
        self.log.append("stays")

    async def keep_up(self, seconds: float = 5.0) -> list[Any]:
        """Keeps up for so long. Returns what happened."""
        keeping = asyncio.ensure_future(self.arriving.keep_up())
        await asyncio.sleep(seconds)
        self.history.finished = True
        self.changed.notify()
        await keeping
        return self.log


def try_it(events: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        await events(Rig())

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- by others' state


def test_with_everyone_at_its_version_nothing_happens() -> None:
    async def events(it: Rig) -> None:
        assert await it.keep_up() == []

    try_it(events)


def test_it_asks_whoever_is_ahead_for_records() -> None:
    async def events(it: Rig) -> None:
        it.cards["q"] = it.sibling(VERSION + 2)
        assert await it.keep_up() == [("catches up", "q", VERSION + 2)]

    try_it(events)


@pytest.mark.parametrize(("paused", "state"), [(False, "serving"), (True, "paused")])
def test_with_gradients_gone_it_fetches_the_whole_state_and_is_what_it_was(paused: bool, state: str) -> None:
    async def events(it: Rig) -> None:
        it.history.behind, it.served.admission.paused = True, paused
        assert await it.keep_up() == ["reaches as joining", "serves"]
        assert it.own_card.state == state

    try_it(events)


@pytest.mark.parametrize(
    ("changes", "fetches"), [({}, True), ({"broken": VERSION}, False), ({"version": VERSION - 1}, False)]
)
def test_parameters_that_came_out_not_finite_are_fetched_where_another_has_them(
    changes: dict[str, Any], fetches: bool
) -> None:
    async def events(it: Rig) -> None:
        it.history.broken = VERSION
        it.cards["q"] = dataclasses.replace(it.sibling(VERSION), **changes)
        assert ("reaches as joining" in await it.keep_up()) == fetches

    try_it(events)


def test_between_two_stages_its_move_brings_it_up() -> None:
    async def events(it: Rig) -> None:
        it.mover.between, it.history.behind, it.switch.served = True, True, None
        assert await it.keep_up() == []

    try_it(events)


# ------------------------------------------------------------------------------------------------- returning


def return_to(version: int, *, stage: int | None = None, member: bool = True) -> Any:
    return SimpleNamespace(step=version, place_of=lambda peer: stage, names=lambda peer, incarnation: member)


@pytest.mark.parametrize(("member", "said"), [(True, ["took part"]), (False, [])])
def test_it_loads_its_stage_of_the_version_to_return_to(member: bool, said: list[str]) -> None:
    async def events(it: Rig) -> None:
        it.returns.due = return_to(3, member=member)
        await it.arriving.make_return()
        assert it.log == ["moves no more", ("enters", STAGE), ("loads", 3, STAGE), ("at", 3), *said]
        assert not it.returning

    try_it(events)


def test_the_record_may_send_it_to_another_stage() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = return_to(3, stage=2)
        await it.arriving.make_return()
        assert it.log[1:3] == [("enters", 2), ("loads", 3, 2)]

    try_it(events)


@pytest.mark.parametrize("state", [None, ValueError("torn"), MemoryError()], ids=["nobody has it", "torn", "no memory"])
def test_where_that_cannot_be_had_it_goes_on_to_what_others_are_at(state: Any) -> None:
    async def events(it: Rig) -> None:
        it.returns.due, it.state = return_to(3), state
        await it.arriving.make_return()
        assert it.log[-1] == "reaches as joining"
        assert ("at", 3) not in it.log

    try_it(events)


def test_a_return_interrupts_what_a_peer_is_at() -> None:
    async def events(it: Rig) -> None:
        reaching = asyncio.ensure_future(it.arriving.reach(it.served))
        await asyncio.sleep(0.5)
        it.returns.due = return_to(3)
        it.changed.notify()
        await reaching
        assert it.log[:3] == ["reaches as serving", "no longer", "moves no more"]
        assert ("at", 3) in it.log

    try_it(events)


def test_after_a_return_it_serves_again() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = return_to(3)
        assert "serves" in await it.keep_up()
        assert it.own_card.state == "serving"

    try_it(events)


# ------------------------------------------------------------------------------------------------- crossing


@pytest.mark.parametrize(("crossed", "said"), [(True, "arrives"), (False, "stays")])
def test_it_crosses_to_the_history_that_wins_and_is_what_it_was(crossed: bool, said: str) -> None:
    async def events(it: Rig) -> None:
        it.own_card.become("paused")
        it.way, it.crossed = Crossing(2, "x", ("x", "y")), crossed
        await it.arriving._cross()
        assert it.log == [("pulls from", ["x", "y"], "joining", True), said, ("catches up", "p", VERSION)]
        assert it.own_card.state == "paused"
        assert not it.arriving.crossing

    try_it(events)


def test_between_two_stages_it_does_not_cross() -> None:
    async def events(it: Rig) -> None:
        it.way, it.mover.between = Crossing(2, "x", ("x",)), True
        await it.arriving._cross()
        assert it.log == []

    try_it(events)
