"""When this peer looks whether it should go to another stage, and what it sees then.

Every peer looks, from time to time and soon after someone has come or gone, with the same pure rule (`rule.py`) at
what it knows of all stages; whoever the rule names begins to move. Its card says so at once, so that others count
without it. Views differ now and then: the conductor, who grants moves in the record, refuses those that don't help any
more. A peer that has moved rests for an hour, so that nobody goes to and fro.
"""

import asyncio
import dataclasses
import logging
import random
import statistics
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from swarmd.config import RunConfig
from swarmd.errors import ConfigError, Refused
from swarmd.swarm.balance.rule import (
    Balance,
    Candidate,
    StageLoad,
    Terms,
    download_seconds,
    in_order,
    may_spare,
    pays,
    plan_balance,
    stage_works,
    with_move,
)
from swarmd.swarm.balance.sizes import state_bytes
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Move
from swarmd.swarm.membership.table import ADMITTING, STAYING, Membership, nan_to_zero
from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.messages.presence import Card, Summary
from swarmd.values import PeerId

log = logging.getLogger(__name__)

REST_PERIODS = 12  # after a move a peer stays so long: an hour by default
SETTLE_SHARE = 0.05  # of the period: news that come together are looked at together ...
SETTLE_CEILING_SECONDS = 3.0  # ... but a stage that has lost a peer slows everyone down meanwhile
SAME_SPEED = 1.5  # speeds that differ by less from the median count as equal: warming up and other load change them so
MEASURED_TASKS = 60  # of the device, some thirty microbatches, until its speed counts: the first ones are slow
SPEED_SPREAD = 16.0  # no peer counts as faster or slower by more: what it says of itself may be wrong

LEAVING = (*STAYING, "draining")  # states of a peer that goes to another stage and hasn't left its own yet

Powers = Mapping[PeerId, float]


def settle_seconds(period_s: float) -> float:
    """From a change until it is looked at."""
    return min(SETTLE_SHARE * period_s, SETTLE_CEILING_SECONDS)


def rest_seconds(period_s: float) -> float:
    """From a peer's arrival at a stage until it may go again of its own accord."""
    return REST_PERIODS * period_s


# ------------------------------------------------------------------------------------------------- what is seen


def measured_powers(cards: Sequence[Card], works: Sequence[float]) -> dict[PeerId, float]:
    """What each peer can do, by its own word; who has measured too little is ordinary. 1 each if nobody has."""
    said = {it.peer: works[it.stage] / seconds for it in cards
            if it.measured and 0 <= it.stage < len(works) and (seconds := nan_to_zero(it.service_seconds))}  # fmt: skip
    middle = statistics.median(said.values()) if said else 1.0

    def power(peer: PeerId) -> float:
        ratio = min(SPEED_SPREAD, max(1 / SPEED_SPREAD, said.get(peer, middle) / middle))
        return middle if 1 / SAME_SPEED <= ratio <= SAME_SPEED else middle * ratio

    return {it.peer: power(it.peer) for it in cards}


def stage_loads(
    cards: Sequence[Card], works: Sequence[float], summaries: Mapping[int, Summary] | None = None
) -> list[StageLoad]:
    """Every stage, from the cards of those known, and from the summaries of those stages that have more peers."""
    powers, summaries = measured_powers(cards, works), summaries or {}
    stages = range(len(works))
    power, staying, candidates = [0.0] * len(works), [0] * len(works), [list[Candidate]() for _ in stages]
    known = [[it for it in cards if it.stage == at and it.state in STAYING] for at in stages]
    summed = {at for at in stages if at in summaries and 0 < len(known[at]) < summaries[at].peers}
    for it in cards:
        away = it.moving in stages and it.state in LEAVING
        if it.stage not in stages or it.stage in summed or not (away or it.state in (*STAYING, "joining")):
            continue
        if it.ending:  # whoever is to take its place may come before it goes
            continue
        power[it.moving if away else it.stage] += powers[it.peer]
        if it.state in STAYING and not away:
            staying[it.stage] += 1
            if it.rested:
                candidates[it.stage].append(Candidate(powers[it.peer], it.peer, it.has_data, it.memory_bytes))
    for at in sorted(summed):
        _add_summary(summaries[at], power, staying, candidates)
    return [StageLoad(power[at], staying[at], in_order(candidates[at])) for at in stages]


def _add_summary(it: Summary, power: list[float], staying: list[int], candidates: list[list[Candidate]]) -> None:
    """A far stage: its peers are known by number only."""
    away = [(target, nan_to_zero(each)) for target, each in it.away if 0 <= target < len(power)]
    own = nan_to_zero(it.power)
    power[it.stage] += own
    for target, each in away:
        power[target] += each
    staying[it.stage] += max(0, it.peers - len(away))
    mean = own / max(1, it.peers - len(away))
    candidates[it.stage] += [Candidate(mean)] * min(max(0, it.candidates), staying[it.stage])


def sum_up(stage: int, cards: Sequence[Card], works: Sequence[float], shown: tuple[Card, ...], peers: int) -> Summary:
    """What one of a stage's peers says of it to everyone."""
    powers = measured_powers(cards, works)
    own = [it for it in cards if it.stage == stage and it.state in LEAVING]
    load = stage_loads([it for it in cards if it.stage == stage], works)[stage]
    away = tuple((it.moving, powers[it.peer]) for it in own if it.moving >= 0)
    return Summary(stage, shown, peers, load.power, len(load.candidates), away)


class Outlook:
    """All stages as this peer sees them."""

    def __init__(self, run: RunConfig, membership: Membership) -> None:
        self.works = stage_works(run.model)
        needs = tuple(state_bytes(run, stage) for stage in range(run.model.stages))
        self.terms = Terms(download_seconds(run.model), needs=needs)
        self._membership = membership

    def loads(self, besides: Iterable[Card] = ()) -> list[StageLoad]:
        """As things are; `besides`: cards that count, too, or instead of those that are known."""
        cards = {card.peer: card for card in self._membership.kin()}
        cards.update((card.peer, card) for card in besides)
        return stage_loads([cards[peer] for peer in sorted(cards)], self.works, self._membership.summaries())

    def objection(self, wish: Move, granted: Iterable[Move]) -> str:
        """The conductor's guard: why a move doesn't help any more, beside those that are granted; "" if it does.
        Everyone else who is on the way still counts where it is: of several that go to the same place, the first to ask
        get there.
        """
        cards = [_as_it_was(card) for card in self._membership.kin()]
        powers = measured_powers(cards, self.works)
        loads = self.loads(cards)
        where = {card.peer: card.stage for card in cards}
        for move in granted:
            if where.get(move.peer) == move.source:  # else it has left already
                loads = with_move(loads, move, powers.get(move.peer, 0.0))
        if wish.target not in range(len(loads)) or wish.source not in range(len(loads)):
            return f"this run has no stage {wish.target}"
        if pays(wish, powers.get(wish.peer, 0.0), loads, self.works):
            return ""
        return f"stage {wish.target} doesn't need it more than stage {wish.source} any more"


def _as_it_was(card: Card) -> Card:
    """A card of someone who is on its way, as if it weren't."""
    leaves = card.moving >= 0 and card.state in LEAVING
    return dataclasses.replace(card, moving=-1, state="serving") if leaves else card


# ------------------------------------------------------------------------------------------------- when


class Balancer:
    """This peer's looks at the balance, and the moves that follow."""

    def __init__(
        self,
        run: RunConfig,
        membership: Membership,
        history: History,
        outlook: Outlook,
        changed: Signal,
        rng: random.Random,
        *,
        move: Callable[[int], Awaitable[None]],
    ) -> None:
        self._run, self._membership, self._history, self._outlook = run, membership, history, outlook
        self._changed, self._rng, self._move = changed, rng, move
        self.reason = ""  # of the move that is under way, or of the last one

    async def run(self) -> None:
        """Looks until the run is over. Returns at once if it is never to be rebalanced."""
        period_s, loop = self._run.rebalance_seconds, asyncio.get_running_loop()
        if period_s <= 0 or self._run.model.stages == 1:
            return
        await self._changed.until(lambda: self._history.version > 0)  # rates are measured in the first step
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
        await self._changed.until(lambda: self._membership.generation != generation, seconds)

    def _replicas(self) -> tuple[int, ...]:
        """How many peers each stage has at work, without those whose machines will be gone soon."""
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
        """What the rule says of the swarm now; None if it can't concern this peer."""
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
