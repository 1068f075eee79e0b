"""A peer's looks at the balance: when it looks, when the rule's word counts for it, and what becomes of its moves."""

import asyncio
import dataclasses
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.config import ModelConfig, RunConfig
from swarmd.errors import ConfigError, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.balance.balancer import REST_PERIODS, Balancer, rest_seconds, settle_seconds
from swarmd.swarm.balance.outlook import Outlook
from swarmd.swarm.balance.rule import StageLoad, plan_balance
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.messages.presence import Card, Summary
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context

PERIOD_S = 100.0
SETTLE_S = 3.0
STEPS = 50
RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, 3, 3, 8), steps=STEPS, rebalance_seconds=PERIOD_S)
"""Three stages of nearly the same work."""


class Rig:
    """A balancer of "me" at stage 0, which has two more peers; a move is noted, and takes "me" nowhere."""

    def __init__(self, run: RunConfig = RUN) -> None:
        self.own = OwnCard(card("me", stage=0))
        self.membership = Membership(self.own)
        self.history: Any = SimpleNamespace(version=1, behind=False, finished=False)
        self.moves: list[int] = []
        self.trouble: Exception | None = None
        self.looks: list[float] = []
        self._sequence = 1
        context = peer_context(run=run, membership=self.membership, history=self.history, rng=random.Random(1))
        self.outlook = Outlook(run, self.membership)
        self._loads = self.outlook.loads
        self.outlook.loads = self._look  # type: ignore[method-assign]
        self.balancer = Balancer(context, self.outlook, self._move)
        for peer, stage in (("a", 0), ("b", 0), ("c", 1), ("d", 2)):
            self.hear(peer, stage=stage)

    def _look(self, besides: Iterable[Card] = ()) -> list[StageLoad]:
        self.looks.append(asyncio.get_running_loop().time())
        return self._loads(besides)

    async def _move(self, stage: int) -> None:
        self.moves.append(stage)
        if self.trouble is not None:
            raise self.trouble

    def hear(self, peer: str, **changes: Any) -> None:
        self._sequence += 1
        self.membership.hear(card(peer, sequence=self._sequence, **changes), 0.0)
        self.membership.changed.notify()

    def say(self, **changes: Any) -> None:
        """The own card says something else."""
        self.own.card = dataclasses.replace(self.own.card, **changes)

    def uneven(self) -> None:
        """Stages 0 and 1 get peers that stage 2 lacks; the rule names "me" to go there."""
        for peer, stage in (("b2", 0), ("c2", 1), ("c3", 1)):
            self.hear(peer, stage=stage)


def try_it(events: Callable[[Rig], Awaitable[None]], **changes: Any) -> None:
    async def main() -> None:
        await events(Rig(dataclasses.replace(RUN, **changes)))

    run_virtual(main())


def running(events: Callable[[Rig], Awaitable[None]], **changes: Any) -> None:
    """Lets things happen while a balancer runs that has looked for the first time."""

    async def around(it: Rig) -> None:
        balancing = asyncio.create_task(it.balancer.run())
        await asyncio.sleep(SETTLE_S + 1)
        assert it.looks == [SETTLE_S]
        await events(it)
        assert not balancing.done()
        balancing.cancel()

    try_it(around, **changes)


# ------------------------------------------------------------------------------------------------- when it looks


def test_news_settle_for_a_share_of_the_period_but_for_seconds_at_most() -> None:
    assert [settle_seconds(period) for period in (10.0, 60.0, 300.0)] == [0.5, 3.0, 3.0]
    assert rest_seconds(300.0) == REST_PERIODS * 300.0 == 3600.0


@pytest.mark.parametrize(
    "changes",
    [{"rebalance_seconds": 0.0}, {"rebalance_seconds": -1.0}, {"model": dataclasses.replace(RUN.model, stages=1)}],
    ids=["never", "less than never", "one stage"],
)
def test_a_run_that_is_never_rebalanced_is_not_looked_at(changes: dict[str, Any]) -> None:
    async def events(it: Rig) -> None:
        balancing = asyncio.create_task(it.balancer.run())
        await asyncio.sleep(0)
        assert balancing.done()
        await balancing

    try_it(events, **changes)


def test_nobody_looks_before_the_first_step_is_committed() -> None:
    async def events(it: Rig) -> None:
        it.history.version = 0
        balancing = asyncio.create_task(it.balancer.run())
        await asyncio.sleep(10 * PERIOD_S)
        assert it.looks == []
        it.history.version = 1
        it.membership.changed.notify()
        await asyncio.sleep(SETTLE_S + 1)
        assert it.looks == [10 * PERIOD_S + SETTLE_S]
        balancing.cancel()

    try_it(events)


def test_it_looks_once_a_period() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(2 * PERIOD_S)
        assert it.looks == [SETTLE_S, SETTLE_S + PERIOD_S, SETTLE_S + 2 * PERIOD_S]

    running(events)


def test_it_looks_soon_after_someone_has_come_or_gone_at_all_that_came_together() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(50 - SETTLE_S - 1)
        it.hear("e", stage=1)
        await asyncio.sleep(1)
        it.hear("f", stage=2)
        await asyncio.sleep(10)
        assert it.looks == [SETTLE_S, 50 + SETTLE_S]
        it.membership.suspect("f")
        it.membership.changed.notify()
        await asyncio.sleep(SETTLE_S + 1)
        assert it.looks == [SETTLE_S, 50 + SETTLE_S, 61 + SETTLE_S]
        await asyncio.sleep(PERIOD_S)
        assert it.looks[3:] == [61 + SETTLE_S + PERIOD_S], "a period after the last look"

    running(events)


def test_what_changes_no_number_waits_until_a_look_is_due() -> None:
    async def events(it: Rig) -> None:
        generation = it.membership.generation
        it.hear("c", stage=1, state="paused")
        assert it.membership.generation != generation
        await asyncio.sleep(PERIOD_S)
        assert it.looks == [SETTLE_S, SETTLE_S + PERIOD_S]

    running(events)


def test_a_peer_whose_machine_will_be_gone_soon_counts_as_gone() -> None:
    async def events(it: Rig) -> None:
        assert it.balancer._replicas() == (3, 1, 1)
        it.hear("c", stage=1, ending=True)
        it.hear("e", stage=1, state="draining")
        assert it.balancer._replicas() == (3, 1, 1), "one goes, one has come"
        it.membership.suspect("e")
        assert it.balancer._replicas() == (3, 0, 1)

    try_it(events)


def test_the_peers_of_a_far_stage_count_by_number() -> None:
    async def events(it: Rig) -> None:
        it.membership.report(Summary(2, (), 7))
        it.membership.changed.notify()
        assert it.balancer._replicas() == (3, 1, 7)
        await asyncio.sleep(SETTLE_S + 1)
        assert it.looks == [SETTLE_S, 2 * SETTLE_S + 1]

    running(events)


def test_after_a_refusal_it_looks_no_sooner_than_a_period_later() -> None:
    async def events(it: Rig) -> None:
        it.uneven()
        it.trouble = Refused("another one goes")
        balancing = asyncio.create_task(it.balancer.run())
        await asyncio.sleep(SETTLE_S + 1)
        it.hear("f", stage=2)
        await asyncio.sleep(PERIOD_S - 2)
        assert (it.moves, it.looks) == ([2], [SETTLE_S])
        await asyncio.sleep(SETTLE_S + 2)
        assert it.looks == [SETTLE_S, PERIOD_S + 2 * SETTLE_S], "it has seen the news then"
        balancing.cancel()

    try_it(events)


def test_it_looks_until_the_run_is_over() -> None:
    async def events(it: Rig) -> None:
        balancing = asyncio.create_task(it.balancer.run())
        await asyncio.sleep(SETTLE_S + 1)
        it.history.finished = True
        it.hear("e", stage=1)
        await asyncio.sleep(SETTLE_S + PERIOD_S)
        assert balancing.done()
        balancing = asyncio.create_task(it.balancer.run())
        await asyncio.sleep(0)
        assert balancing.done(), "it doesn't look even once"

    try_it(events)


# ------------------------------------------------------------------------------------------------- whom it concerns


def test_it_goes_where_the_rule_sends_it() -> None:
    async def events(it: Rig) -> None:
        assert await it.balancer._look()
        assert (it.moves, it.balancer.reason) == ([], ""), "nobody needs to go"
        it.uneven()
        assert await it.balancer._look()
        assert it.moves == [2]
        assert it.balancer.reason == "stage 2 needs it more than stage 0: 100% more throughput"

    try_it(events)


def test_another_that_is_named_goes_by_itself() -> None:
    async def events(it: Rig) -> None:
        it.uneven()
        it.hear("z", stage=0)
        plan = it.balancer.plan()
        assert plan is not None
        assert [move.peer for move in plan.moves] == ["z", "me"][: len(plan.moves)]
        assert await it.balancer._look()
        assert it.moves == [2] * (len(plan.moves) - 1)

    try_it(events)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "joining"},
        {"state": "paused"},
        {"state": "draining"},
        {"moving": 1},
        {"moving": 0},
        {"rested": False},
        {"ending": True},
    ],
)
def test_a_peer_that_cannot_go_now_makes_no_plan(changes: dict[str, Any]) -> None:
    async def events(it: Rig) -> None:
        it.uneven()
        assert it.balancer.plan() is not None
        it.say(state="waiting")
        assert it.balancer.plan() is not None
        it.say(**changes)
        assert it.balancer.plan() is None
        assert await it.balancer._look(), "nothing was refused"

    try_it(events)


def test_a_peer_that_lacks_a_commit_makes_no_plan() -> None:
    async def events(it: Rig) -> None:
        it.uneven()
        it.history.behind = True
        assert it.balancer.plan() is None

    try_it(events)


@pytest.mark.parametrize(("version", "plans"), [(STEPS - 2, True), (STEPS - 1, False), (STEPS, False)])
def test_with_the_last_step_nobody_goes(version: int, plans: bool) -> None:
    async def events(it: Rig) -> None:
        it.uneven()
        it.history.version = version
        assert (it.balancer.plan() is not None) == plans

    try_it(events)


def test_a_stage_that_can_spare_nobody_makes_no_plan_for_others() -> None:
    async def events(it: Rig) -> None:
        for peer in ("e", "f", "g", "h"):
            it.hear(peer, stage=1)
        for peer in ("a", "b"):
            it.membership.suspect(peer)
        outlook = it.outlook
        assert plan_balance(outlook.loads(), outlook.works, outlook.terms).moves
        assert it.balancer.plan() is None

    try_it(events)


def test_the_plan_keeps_to_the_terms_of_the_run() -> None:
    async def events(it: Rig) -> None:
        it.uneven()
        it.outlook.terms = dataclasses.replace(it.outlook.terms, minimum=9)
        plan = it.balancer.plan()
        assert plan is not None
        assert plan.moves == ()

    try_it(events)


# ------------------------------------------------------------------------------------------------- what becomes of it


@pytest.mark.parametrize("trouble", [Refused("another one goes"), ConfigError("the stage doesn't fit")])
def test_a_move_that_is_not_made_has_no_reason(trouble: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def events(it: Rig) -> None:
        it.uneven()
        it.trouble = trouble
        caplog.set_level(logging.INFO)
        assert not await it.balancer._look()
        assert (it.moves, it.balancer.reason) == ([2], "")
        assert f"stays at stage 0: {trouble}" in caplog.text

    try_it(events)


def test_the_reason_is_there_while_it_goes() -> None:
    async def events(it: Rig) -> None:
        reasons: list[str] = []

        async def move(stage: int) -> None:
            reasons.append(it.balancer.reason)

        it.balancer._move = move
        it.uneven()
        await it.balancer._look()
        assert reasons == [it.balancer.reason] != [""]

    try_it(events)


def test_what_nobody_foresaw_is_not_swallowed() -> None:
    async def events(it: Rig) -> None:
        it.uneven()
        it.trouble = KeyError("bug")
        with pytest.raises(KeyError):
            await it.balancer._look()

    try_it(events)
