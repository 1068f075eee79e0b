"""A swarm as a flow: its throughput is the least of its stages' summed rates, and peers come, go and move.

No messages, so 32 hours of 400 peers take seconds. What is decided is decided by production's functions
(`swarm/balance/rule.py`, `swarm/balance/grants.py`), from views as late as production's: a peer sees its own stage and
its neighbours almost at once, of the others what their last summary says. A move takes what it takes there: the state
comes while the peer serves its old stage; the record of a step grants it, or, if that is far away, its sum goes to
another replica; if it still helps then; and between the two stages it serves none. A newcomer serves when it has its
state.
"""

import functools
import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from swarmd.config import LimitsConfig, NodeConfig
from swarmd.sim.spot_market.preemptions import Change
from swarmd.swarm.balance.balancer import rest_seconds, settle_seconds
from swarmd.swarm.balance.grants import objection
from swarmd.swarm.balance.rule import (
    STATE_BYTES_PER_PARAMETER,
    Candidate,
    StageLoad,
    Terms,
    in_order,
    may_spare,
    pays,
    plan_balance,
    plan_place,
    plan_published,
)
from swarmd.swarm.history.record import Move
from swarmd.swarm.membership.gossip import CHANGE_SECONDS
from swarmd.swarm.peer.early_exit import FINISH_SECONDS

Rule = Literal["none", "random", "published", "balance"]
"""`none`: nobody moves, newcomers go where they are needed; `random`: they go anywhere."""

DETECT_SECONDS = 3.0  # from a peer's death until its neighbours count without it (`liveness.py`)
HEAR_SECONDS = 1.0  # of a summary, or of a neighbour's news
STATE_BYTES = STATE_BYTES_PER_PARAMETER * 31_600_000  # a model of a billion parameters in 32 stages
SUM_SHARE = 4 / STATE_BYTES_PER_PARAMETER  # of the state's bytes, that a sum of gradients has: fp32
STEP_SECONDS = 60.0  # at the end of a step moves are granted


@dataclass(frozen=True)
class Setting:
    """The rule by which a swarm is rebalanced, and the costs of moves."""

    rule: Rule
    period_s: float = 300.0
    stages: int = 32
    state_bytes: float = STATE_BYTES
    bytes_per_second: float = 25e6  # 200 Mb/s
    step_s: float = STEP_SECONDS
    move_wait_s: float = LimitsConfig().move_wait_s  # for the end of a step; inf: moves always wait for it
    terms_switch_s: float = 10.0
    notice_s: float = 0.0  # that a peer is told before it goes; it drains at the end of that
    drain_s: float = NodeConfig("").drain_s
    powers: tuple[float, ...] = (1.0,)  # of peers, drawn

    @property
    def download_s(self) -> float:
        return self.state_bytes / self.bytes_per_second

    @property
    def hand_over_s(self) -> float:
        """The longest time to leave in the middle of a step: to end what is under way, and to hand the sum over."""
        return FINISH_SECONDS + SUM_SHARE * self.download_s


@dataclass(frozen=True)
class Flow:
    """The result. Throughput in percent of the best placement of the peers alive at each moment."""

    overall: float
    first_hour: float
    last_hour: float
    moves: int
    moves_per_hour: float
    peers: float  # mean
    curve: tuple[float, ...]  # percent in each tenth of an hour


@dataclass
class Body:
    """A peer."""

    name: str
    power: float
    stage: int = -1
    state: Literal["joining", "serving", "moving", "between", "drained", "gone"] = "joining"
    target: int = -1  # while it moves
    arrived_s: float = -math.inf  # by its last move
    ending: bool = False  # it will be gone soon


class Stage:
    """One stage's peers, and what others know of them."""

    def __init__(self) -> None:
        self.peers: dict[str, Body] = {}  # who serves it, is on its way to it, or on its way elsewhere
        self.serving = 0.0  # power
        self.near = self.far = StageLoad(0.0, 0)  # as neighbours and as all others see it
        self.told_s = -math.inf  # of its last summary
        self.due = self.looking = False  # whether a summary, a look at the balance is to come


class Swarm:
    """One run over a trace."""

    def __init__(self, setting: Setting, trace: Sequence[Change], seed: int, hours: float = 32.0) -> None:
        self._setting, self._trace, self._hours = setting, trace, hours
        self._rng = random.Random(f"flow/{seed}")
        self._works = [1.0] * setting.stages
        self._terms = Terms(setting.download_s, setting.terms_switch_s)
        self._stages = [Stage() for _ in range(setting.stages)]
        self._bodies: dict[int, Body] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._now = 0.0
        self._alive = 0.0  # power of everyone
        self._rest_s = rest_seconds(setting.period_s)
        self._movers: dict[str, Body] = {}
        self._waiting: list[Body] = []  # movers that have the state
        self._meter = Meter(hours)
        self.moves = 0

    def run(self) -> Flow:
        """From the first peers to the end."""
        setting, end = self._setting, self._hours * 3600
        for change in self._trace:
            happens = self._comes if change.comes else self._goes
            if not change.comes and setting.notice_s > 0:
                self._at(change.at_s - setting.notice_s, functools.partial(self._told, change.instance))
                self._at(
                    change.at_s - min(setting.notice_s, setting.drain_s),
                    functools.partial(self._drain, change.instance),
                )
            self._at(change.at_s, functools.partial(happens, change.instance))
        if setting.rule == "published":
            self._every(setting.period_s, self._publish)
        elif setting.rule == "balance":
            for stage in range(setting.stages):
                self._every(setting.period_s, functools.partial(self._look, stage), self._rng.random())
        self._every(setting.step_s, self._grant)
        while self._events and self._events[0][0] < end:
            now, _, event = heapq.heappop(self._events)
            if now > self._now:
                self._meter.add(self._now, now, *self._rates(), len(self._bodies))
                self._now = now
            event()
        self._meter.add(self._now, end, *self._rates(), len(self._bodies))
        return self._meter.flow(self.moves)

    def _at(self, seconds: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (seconds, self._count, event))

    def _every(self, period_s: float, event: Callable[[], None], phase: float = 1.0) -> None:
        def happen() -> None:
            event()
            self._at(self._now + period_s, happen)

        self._at(self._now + phase * period_s, happen)

    def _rates(self) -> tuple[float, float]:
        """The throughput, and that of the best placement: exact for equal peers, a bound for others."""
        stages, powers = len(self._stages), self._setting.powers
        best = len(self._bodies) // stages * powers[0] if len(powers) == 1 else self._alive / stages
        return min(stage.serving for stage in self._stages), best

    # ---------------------------------------------------------------------------------------------- peers

    def _comes(self, instance: int) -> None:
        body = self._bodies[instance] = Body(f"p{instance:05d}", self._rng.choice(self._setting.powers))
        self._alive += body.power
        stages = range(len(self._stages))
        if self._setting.rule == "random" and self._now > 0:
            body.stage = self._rng.randrange(len(stages))
        else:
            # Whoever is asked counts those whom it has just placed (`places.py`).
            found = plan_place([StageLoad(it, 0) for it in self._powers()], self._works, list(stages))
            assert found is not None
            body.stage = found
        self._stages[body.stage].peers[body.name] = body
        self._changed(body.stage)
        if self._now == 0:  # the run begins with its first peers
            self._serve(body)
        else:
            self._at(self._now + self._setting.download_s, lambda: self._arrive(body))

    def _told(self, instance: int) -> None:
        """It has word that it will be gone soon, and works on."""
        if (body := self._bodies.get(instance)) is not None:  # else it comes later
            body.ending = True
            self._changed(body.stage)

    def _drain(self, instance: int) -> None:
        """It ends its work, and hands it on."""
        self._told(instance)
        if (body := self._bodies.get(instance)) is not None:
            self._stop(body)
            body.state = "drained"

    def _stop(self, body: Body) -> None:
        if body.state in ("serving", "moving"):
            self._stages[body.stage].serving -= body.power

    def _goes(self, instance: int) -> None:
        body = self._bodies.pop(instance)
        self._movers.pop(body.name, None)
        self._alive -= body.power
        self._stop(body)
        body.state = "gone"
        stage, target = body.stage, body.target

        def noticed() -> None:
            del self._stages[stage].peers[body.name]
            self._changed(stage)
            if target >= 0:
                self._changed(target)

        self._at(self._now + DETECT_SECONDS, noticed)

    def _arrive(self, body: Body) -> None:
        if body.state in ("joining", "between"):
            self._serve(body)

    def _serve(self, body: Body) -> None:
        body.state = "serving"
        self._stages[body.stage].serving += body.power
        self._changed(body.stage)

    # ---------------------------------------------------------------------------------------------- views

    def _load(self, stage: int) -> StageLoad:
        """A stage as its own peers see it."""
        peers = [it for it in self._stages[stage].peers.values() if not it.ending]
        staying = [it for it in peers if it.state in ("serving", "gone")]
        rested = (it for it in staying if self._now - it.arrived_s >= self._rest_s)
        power = sum(it.power for it in peers if it.state != "moving") + self._incoming(stage)
        return StageLoad(power, len(staying), in_order(Candidate(it.power, it.name) for it in rested))

    def _incoming(self, stage: int) -> float:
        return sum(it.power for it in self._movers.values() if it.target == stage and not it.ending)

    def _powers(self) -> list[float]:
        """Of all stages, as whoever knows everything sees them."""
        powers = [sum(it.power for it in stage.peers.values() if not it.ending) for stage in self._stages]
        for it in self._movers.values():
            if it.ending:
                continue
            powers[it.stage] -= it.power
            powers[it.target] += it.power
        return powers

    def _changed(self, stage: int) -> None:
        """Something about a stage is new: it is heard near it soon, and far from it with the next summary."""
        it = self._stages[stage]

        def heard() -> None:
            it.near = self._load(stage)
            for near in (stage - 1, stage, stage + 1):
                if 0 <= near < len(self._stages):
                    self._look_soon(near)

        self._at(self._now + HEAR_SECONDS, heard)
        if not it.due and self._setting.rule == "balance":
            it.due = True
            self._at(max(self._now, it.told_s + CHANGE_SECONDS), lambda: self._sum_up(stage))

    def _sum_up(self, stage: int) -> None:
        it = self._stages[stage]
        it.due, it.told_s = False, self._now
        load = self._load(stage)

        def heard() -> None:
            mean = load.power / max(1, load.staying)
            it.far = StageLoad(load.power, load.staying, (Candidate(mean),) * len(load.candidates))
            for other in range(len(self._stages)):
                self._look_soon(other)

        self._at(self._now + HEAR_SECONDS, heard)

    def _view(self, stage: int) -> list[StageLoad]:
        """All stages, as the peers of one see them."""
        view = [it.far for it in self._stages]
        for near in range(max(0, stage - 1), min(len(view), stage + 2)):
            view[near] = self._stages[near].near
        return view

    # ---------------------------------------------------------------------------------------------- moves

    def _look_soon(self, stage: int) -> None:
        if self._setting.rule == "balance" and not self._stages[stage].looking:
            self._stages[stage].looking = True
            self._at(self._now + settle_seconds(self._setting.period_s), lambda: self._look(stage))

    def _look(self, stage: int) -> None:
        """Each peer of a stage looks whether it should go; they see the same."""
        self._stages[stage].looking = False
        view = self._view(stage)
        if not may_spare(stage, view, self._works):
            return
        for move in plan_balance(view, self._works, self._terms).moves:
            if move.source == stage:
                self._begin(move)

    def _publish(self) -> None:
        """SWARM's rule, at its best: everyone knows everything; a queue is what waits for a stage, shared evenly."""
        queues: list[dict[str, float]] = []
        for it, power in zip(self._stages, self._powers(), strict=True):
            serving = [body for body in it.peers.values() if body.state == "serving"]
            queues.append({body.name: 1 / max(power, 1e-9) / len(serving) for body in serving} or {"": 1e9})
        move = plan_published(queues)
        if move is not None and len(queues[move.source]) > 1:
            self._begin(move)

    def _begin(self, move: Move) -> None:
        body = self._stages[move.source].peers.get(move.peer)
        if body is None or body.state != "serving" or body.ending:
            return
        body.state, body.target = "moving", move.target
        self._movers[body.name] = body
        self._changed(move.source)
        self._changed(move.target)
        self._at(self._now + self._setting.download_s, lambda: self._ask(body))

    def _ask(self, body: Body) -> None:
        """It has the state: it waits for the record, or leaves before if that is far away."""
        step_s = self._setting.step_s
        if step_s - self._now % step_s <= self._setting.move_wait_s:
            self._waiting.append(body)
        else:
            self._let_go([body], self._setting.hand_over_s)

    def _grant(self) -> None:
        """The record of a step."""
        waiting, self._waiting = self._waiting, []
        self._let_go(waiting, 0.0)

    def _let_go(self, waiting: list[Body], leaving_s: float) -> None:
        """Lets the movers that have their state go, if that still helps and leaves enough behind."""
        granted: list[Move] = []
        for body in waiting:
            if self._movers.pop(body.name, None) is None or body.state != "moving":  # it is gone
                continue
            move = Move(body.name, body.stage, body.target)
            stay = ("serving", "moving", "gone")
            staying = {
                at: [it.name for it in self._stages[at].peers.values() if it.state in stay and not it.ending]
                for at in (body.stage, body.target)
            }
            helps = self._setting.rule == "published" or self._helps(body, move)
            if helps and not body.ending and not objection(move, staying, granted):
                granted.append(move)
                self._leave(body, leaving_s)
            else:
                body.state, body.target = "serving", -1
                self._changed(move.source)
                self._changed(move.target)

    def _helps(self, body: Body, move: Move) -> bool:
        """The conductor's guard: who is on the way still counts where it is, so the first to ask get there."""
        loads = [StageLoad(sum(it.power for it in stage.peers.values() if not it.ending), 0) for stage in self._stages]
        return pays(move, body.power, loads, self._works)

    def _leave(self, body: Body, leaving_s: float) -> None:
        """From now on it serves nobody, until it has left its stage and is at the next one."""
        old, new = self._stages[body.stage], self._stages[body.target]
        old.serving -= body.power
        del old.peers[body.name]
        self._changed(body.stage)
        body.stage, body.target, body.state, body.arrived_s = body.target, -1, "between", self._now
        new.peers[body.name] = body
        self._changed(body.stage)
        self.moves += 1
        self._at(self._now + leaving_s + self._setting.terms_switch_s, lambda: self._arrive(body))


class Meter:
    """Adds up what was done and what could have been."""

    STEP = 360.0  # seconds of a point of the curve

    def __init__(self, hours: float) -> None:
        self._hours = hours
        points = math.ceil(hours * 3600 / self.STEP)
        self._done, self._best, self._peers = [0.0] * points, [0.0] * points, 0.0

    def add(self, start: float, stop: float, rate: float, best: float, peers: float) -> None:
        """So it was from `start` to `stop`."""
        self._peers += peers * (stop - start)
        while start < stop:
            point = int(start / self.STEP)
            if point >= len(self._done):
                return
            until = min(stop, (point + 1) * self.STEP)
            self._done[point] += rate * (until - start)
            self._best[point] += best * (until - start)
            start = until if until > start else stop

    def flow(self, moves: int) -> Flow:
        hour = int(3600 / self.STEP)
        return Flow(
            overall=self._percent(slice(None)),
            first_hour=self._percent(slice(hour)),
            last_hour=self._percent(slice(len(self._done) - hour, None)),
            moves=moves,
            moves_per_hour=moves / self._hours,
            peers=self._peers / (self._hours * 3600),
            curve=tuple(self._percent(slice(at, at + 1)) for at in range(len(self._done))),
        )

    def _percent(self, part: slice) -> float:
        return 100 * sum(self._done[part]) / max(1e-9, sum(self._best[part]))
