"""A drain: what it tells a person, who takes the sum, when a step needs the peer, and what happens at the bound."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.peer import drain as module
from swarmd.swarm.peer.drain import Drain, Drained
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context

STEP, STAGE = 5, 1


class Rig:
    """Peer `p` at a stage with one more replica, `q`, in step 5."""

    def __init__(self, *others: Any, bound_s: float = 20.0) -> None:
        self.own, self.others = card("p", stage=STAGE), list(others) or [card("q", stage=STAGE)]
        self.gone, self.missing = set[str](), list[int]()
        self.sums = StepSums()
        self.hops, self.given_up = SimpleNamespace(busy=False), 0
        self.served: Any = SimpleNamespace(
            journeys=SimpleNamespace(hops=self, give_up_all=self._give_up_all),
            sums=self.sums,
            early_exit=SimpleNamespace(heir=(0, "")),
            head=None,
            handovers=SimpleNamespace(give=self._give),
            rounds=SimpleNamespace(leads=lambda step: False),
        )
        self.takes, self.saved = {"q"}, 0
        self.history: Any = SimpleNamespace(
            version=STEP - 1, finished=False, record=None, origin=SimpleNamespace(founder="f")
        )
        self.desk = SimpleNamespace(all_done=False)
        self.busy = False
        membership = SimpleNamespace(
            own=self.own,
            stage=lambda stage: [self.own, *self.others],
            missing_stages=lambda stages: self.missing,
            get=lambda peer: next((it for it in [self.own, *self.others] if it.peer == peer), None),
            is_live=lambda peer: peer not in self.gone,
        )
        run, conductor = SimpleNamespace(model=SimpleNamespace(stages=3)), SimpleNamespace(desk=self.desk)
        context = peer_context(run=run, membership=membership, history=self.history)
        saving: Any = SimpleNamespace(save=self._save)
        self.drain = Drain(context, cast("Any", conductor), cast("Any", self.served), saving, bound_s)

    def __len__(self) -> int:
        return int(self.busy)

    def _give_up_all(self) -> int:
        return self.given_up

    async def _give(self, siblings: list[str]) -> str:
        await asyncio.sleep(1)
        for peer in siblings:
            if peer in self.takes:
                self.sums.of(STEP).accumulated.clear()
                return peer
        return ""

    async def _save(self) -> bool:
        self.saved += 1
        return True


def try_it(events: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await events()

    run_virtual(main())


@pytest.mark.parametrize(
    ("drained", "said"),
    [
        (Drained(), "nothing of the step was left here"),
        (Drained("12D3KooWheir", 3), "3 microbatches of the step went to KooWheir"),
        (Drained(given_up=2, lost=4), "2 microbatches under way must go elsewhere, 4 must be done again"),
        (Drained(stage_left_empty=True), "its stage is left empty, and the swarm waits for another peer there"),
    ],
)
def test_what_a_person_reads(drained: Drained, said: str) -> None:
    assert drained.sentence() == said


def test_with_nothing_of_the_step_it_leaves_at_once() -> None:
    async def events() -> None:
        assert await Rig().drain.run() == Drained()

    try_it(events)


def test_a_replica_takes_the_sum() -> None:
    async def events() -> None:
        it = Rig()
        it.sums.of(STEP).accumulated = {1, 2, 3}
        assert await it.drain.run() == Drained("q", 3)

    try_it(events)


def test_a_replica_whose_machine_ends_soon_is_asked_last() -> None:
    async def events() -> None:
        for names in (("a", "b"), ("b", "a")):
            it = Rig(card(names[0], stage=STAGE, ending=True), card(names[1], stage=STAGE))
            assert it.drain._siblings() == [names[1], names[0]]

    try_it(events)


def test_what_nobody_takes_is_lost_at_the_bound() -> None:
    async def events() -> None:
        it = Rig()
        it.takes, it.sums.of(STEP).accumulated = set(), {1, 2}
        began = asyncio.get_running_loop().time()
        assert await it.drain.run() == Drained(lost=2)
        assert asyncio.get_running_loop().time() - began == pytest.approx(20.0, abs=1.0)
        assert it.saved == 0, "a replica has the state"

    try_it(events)


def test_a_frozen_sum_stays_until_the_record_has_it() -> None:
    async def events() -> None:
        it = Rig()
        it.sums.of(STEP).accumulated = {1, 2}
        it.sums.freeze(STEP)
        draining = asyncio.ensure_future(it.drain.run())
        await asyncio.sleep(5)
        assert "are being averaged" in it.drain.doing
        it.history.version = STEP
        assert await draining == Drained()

    try_it(events)


def test_the_last_replica_writes_a_checkpoint() -> None:
    async def events() -> None:
        it = Rig(card("q", stage=STAGE, state="draining"))
        it.sums.of(STEP).accumulated = {1}
        assert await it.drain.run() == Drained(lost=1, stage_left_empty=True)
        assert it.saved == 1

    try_it(events)


@pytest.mark.parametrize(
    ("acceptors", "change", "needed"),
    [
        ("pq", lambda it: None, True),
        ("pqr", lambda it: None, False),
        ("pqr", lambda it: it.gone.add("q"), True),
        ("qrs", lambda it: None, False),
        ("pq", lambda it: it.missing.append(2), False),
        ("qrs", lambda it: setattr(it.desk, "all_done", True), True),
        ("qrs", lambda it: setattr(it.served.rounds, "leads", lambda step: True), True),
    ],
    ids=["half", "one of three", "no majority without it", "no acceptor", "stage empty", "conducts", "leads a round"],
)
def test_a_step_that_cannot_be_decided_without_it_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, acceptors: str, change: Callable[[Rig], None], needed: bool
) -> None:
    monkeypatch.setattr(module, "plan_acceptors", lambda *_: tuple(acceptors))

    async def events() -> None:
        it = Rig(*(card(peer, stage=STAGE) for peer in "qrs"))
        change(it)
        assert it.drain._is_needed() == needed

    try_it(events)
