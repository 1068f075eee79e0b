"""Decides from time to time if this peer should go to another stage.

Every peer looks, from time to time and soon after someone has come or gone, with the same pure rule (`rule.py`) at
what it knows of all stages; a peer that the rule names begins to move. Its card says so at once, so that others count
without it. Views differ now and then: the conductor, who grants moves in the record, refuses those that don't help any
more. A peer that has moved rests for an hour, so that nobody goes to and fro.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from swarmd.errors import ConfigError, Refused
from swarmd.swarm.balance.outlook import Outlook
from swarmd.swarm.balance.rule import Balance, may_spare, plan_balance
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Move
from swarmd.swarm.membership.states import ADMITTING

log = logging.getLogger(__name__)

REST_PERIODS = 12  # after a move a peer stays so long: an hour by default
SETTLE_SHARE = 0.05  # of the period: news that come together are looked at together ...
SETTLE_CEILING_SECONDS = 3.0  # ... but a stage that has lost a peer slows everyone down meanwhile
MEASURED_TASKS = 60  # of the device, some thirty microbatches, until its speed counts: the first ones are slow


def settle_seconds(period_s: float) -> float:
    """From a change until it is looked at."""
    return min(SETTLE_SHARE * period_s, SETTLE_CEILING_SECONDS)


def rest_seconds(period_s: float) -> float:
    """From a peer's arrival at a stage until it may go again of its own accord."""
    return REST_PERIODS * period_s


class Balancer:
    """This peer's looks at the balance, and the moves that follow."""

    def __init__(self, context: PeerContext, outlook: Outlook, move: Callable[[int], Awaitable[None]]) -> None:
        self._run, self._membership, self._history = context.run, context.membership, context.history
        self._rng, self._outlook, self._move = context.rng, outlook, move
        self.reason = ""  # of the move that is under way, or of the last one

    async def run(self) -> None:
        """Looks until the run is over. Returns at once if it is never to be rebalanced."""
        period_s, loop = self._run.rebalance_seconds, asyncio.get_running_loop()
        if period_s <= 0 or self._run.model.stages == 1:
            return
        await self._membership.changed.until(lambda: self._history.version > 0)  # rates are measured in the first step
        seen: tuple[int, ...] = ()
        due = loop.time() + period_s * (0.5 + self._rng.random())  # not everyone at the same moment
        while not self._history.finished:
            if self._replicas() != seen:
                await asyncio.sleep(settle_seconds(period_s))
            elif loop.time() < due:
                await self._news(due)
                continue
            seen, due = self._replicas(), loop.time() + period_s
            if not await self._look():
                await asyncio.sleep(period_s)  # a move was refused: not the same again at once

    async def _news(self, due: float) -> None:
        """Returns when someone has come or gone, or a look is due."""
        generation = self._membership.generation
        seconds = max(0.0, due - asyncio.get_running_loop().time())
        await self._membership.changed.until(lambda: self._membership.generation != generation, seconds)

    def _replicas(self) -> tuple[int, ...]:
        """The number of peers at work by stage, without those whose machines will be gone soon."""
        members, stages = self._membership, range(self._run.model.stages)
        return tuple(sum(not card.ending for card in members.stage(at)) + members.unseen(at) for at in stages)

    async def _look(self) -> bool:
        """Moves if the rule names this peer. False if it was to, and couldn't."""
        plan = self.plan()
        for move in plan.moves if plan is not None else ():
            if move.peer == self._membership.own.peer:
                return await self._go(plan, move)  # type: ignore[arg-type]
        return True

    def plan(self) -> Balance | None:
        """Applies the rule to the swarm as it is known now. None if its result can't concern this peer."""
        own, steps = self._membership.own, self._run.steps
        able = own.state in ADMITTING and own.moving < 0 and own.rested and not own.ending and not self._history.behind
        if not able or self._history.version >= steps - 1:
            return None
        loads = self._outlook.loads()
        if not may_spare(own.stage, loads, self._outlook.works):
            return None
        return plan_balance(loads, self._outlook.works, self._outlook.terms)

    async def _go(self, plan: Balance, move: Move) -> bool:
        self.reason = plan.reason(move)
        log.info("goes from stage %d to %d: %s", move.source, move.target, self.reason)
        try:
            await self._move(move.target)
        except (Refused, ConfigError) as trouble:
            log.info("stays at stage %d: %s", move.source, trouble)
            self.reason = ""
            return False
        return True
