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
from swarmd.sim.spot_market.meter import Flow, Meter
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


@dataclass
class Peer:
    """A peer of the flow."""

    name: str
    power: float
    stage: int = -1
    state: Literal["joining", "serving", "moving", "between", "drained", "gone"] = "joining"
    target: int = -1  # while it moves
    arrived_s: float = -math.inf  # by its last move
    ending: bool = False  # it will be gone soon


class Stage:
    """One stage's peers, and the views that others have of them."""

    def __init__(self) -> None:
        self.peers: dict[str, Peer] = {}  # those that serve it, come to it, or are about to leave it
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
        self._peers: dict[int, Peer] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._now = 0.0
        self._alive = 0.0  # power of everyone
        self._rest_s = rest_seconds(setting.period_s)
        self._movers: dict[str, Peer] = {}
        self._waiting: list[Peer] = []  # movers that have the state
        self._meter = Meter(hours)
        self.moves = 0

    def run(self) -> Flow:
        """Plays the trace, from the first peers to the end."""
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
                self._meter.add(self._now, now, *self._rates(), len(self._peers))
                self._now = now
            event()
        self._meter.add(self._now, end, *self._rates(), len(self._peers))
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
        best = len(self._peers) // stages * powers[0] if len(powers) == 1 else self._alive / stages
        return min(stage.serving for stage in self._stages), best

    # ---------------------------------------------------------------------------------------------- peers

    def _comes(self, instance: int) -> None:
        peer = self._peers[instance] = Peer(f"p{instance:05d}", self._rng.choice(self._setting.powers))
        self._alive += peer.power
        stages = range(len(self._stages))
        if self._setting.rule == "random" and self._now > 0:
            peer.stage = self._rng.randrange(len(stages))
        else:
            # The peer that is asked counts those that it has just placed (`places.py`).
            found = plan_place([StageLoad(it, 0) for it in self._powers()], self._works, list(stages))
            assert found is not None
            peer.stage = found
        self._stages[peer.stage].peers[peer.name] = peer
        self._changed(peer.stage)
        if self._now == 0:  # the run begins with its first peers
            self._serve(peer)
        else:
            self._at(self._now + self._setting.download_s, lambda: self._arrive(peer))

    def _told(self, instance: int) -> None:
        """Tells a peer that it will be gone soon; it works on."""
        if (peer := self._peers.get(instance)) is not None:  # else it comes later
            peer.ending = True
            self._changed(peer.stage)

    def _drain(self, instance: int) -> None:
        """Has a peer end its work, and hand it on."""
        self._told(instance)
        if (peer := self._peers.get(instance)) is not None:
            self._stop(peer)
            peer.state = "drained"

    def _stop(self, peer: Peer) -> None:
        if peer.state in ("serving", "moving"):
            self._stages[peer.stage].serving -= peer.power

    def _goes(self, instance: int) -> None:
        peer = self._peers.pop(instance)
        self._movers.pop(peer.name, None)
        self._alive -= peer.power
        self._stop(peer)
        peer.state = "gone"
        stage, target = peer.stage, peer.target

        def noticed() -> None:
            del self._stages[stage].peers[peer.name]
            self._changed(stage)
            if target >= 0:
                self._changed(target)

        self._at(self._now + DETECT_SECONDS, noticed)

    def _arrive(self, peer: Peer) -> None:
        if peer.state in ("joining", "between"):
            self._serve(peer)

    def _serve(self, peer: Peer) -> None:
        peer.state = "serving"
        self._stages[peer.stage].serving += peer.power
        self._changed(peer.stage)

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
        """The powers of all stages, with the knowledge of everything."""
        powers = [sum(it.power for it in stage.peers.values() if not it.ending) for stage in self._stages]
        for it in self._movers.values():
            if it.ending:
                continue
            powers[it.stage] -= it.power
            powers[it.target] += it.power
        return powers

    def _changed(self, stage: int) -> None:
        """Spreads news of a stage: it is heard near it soon, and far from it with the next summary."""
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
        """Has each peer of a stage look whether it should go; they see the same."""
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
            serving = [peer for peer in it.peers.values() if peer.state == "serving"]
            queues.append({peer.name: 1 / max(power, 1e-9) / len(serving) for peer in serving} or {"": 1e9})
        move = plan_published(queues)
        if move is not None and len(queues[move.source]) > 1:
            self._begin(move)

    def _begin(self, move: Move) -> None:
        peer = self._stages[move.source].peers.get(move.peer)
        if peer is None or peer.state != "serving" or peer.ending:
            return
        peer.state, peer.target = "moving", move.target
        self._movers[peer.name] = peer
        self._changed(move.source)
        self._changed(move.target)
        self._at(self._now + self._setting.download_s, lambda: self._ask(peer))

    def _ask(self, peer: Peer) -> None:
        """Takes a mover that has the state: it waits for the record, or leaves before if that is far away."""
        step_s = self._setting.step_s
        if step_s - self._now % step_s <= self._setting.move_wait_s:
            self._waiting.append(peer)
        else:
            self._let_go([peer], self._setting.hand_over_s)

    def _grant(self) -> None:
        """Grants moves in the record of a step."""
        waiting, self._waiting = self._waiting, []
        self._let_go(waiting, 0.0)

    def _let_go(self, waiting: list[Peer], leaving_s: float) -> None:
        """Lets the movers that have their state go, if that still helps and leaves enough behind."""
        granted: list[Move] = []
        for peer in waiting:
            if self._movers.pop(peer.name, None) is None or peer.state != "moving":  # it is gone
                continue
            move = Move(peer.name, peer.stage, peer.target)
            stay = ("serving", "moving", "gone")
            staying = {
                at: [it.name for it in self._stages[at].peers.values() if it.state in stay and not it.ending]
                for at in (peer.stage, peer.target)
            }
            helps = self._setting.rule == "published" or self._helps(peer, move)
            if helps and not peer.ending and not objection(move, staying, granted):
                granted.append(move)
                self._leave(peer, leaving_s)
            else:
                peer.state, peer.target = "serving", -1
                self._changed(move.source)
                self._changed(move.target)

    def _helps(self, peer: Peer, move: Move) -> bool:
        """The conductor's guard: a mover on its way still counts where it is, so the first to ask get there."""
        loads = [StageLoad(sum(it.power for it in stage.peers.values() if not it.ending), 0) for stage in self._stages]
        return pays(move, peer.power, loads, self._works)

    def _leave(self, peer: Peer, leaving_s: float) -> None:
        """Takes a peer out of its stage: it serves nobody until it is at the next one."""
        old, new = self._stages[peer.stage], self._stages[peer.target]
        old.serving -= peer.power
        del old.peers[peer.name]
        self._changed(peer.stage)
        peer.stage, peer.target, peer.state, peer.arrived_s = peer.target, -1, "between", self._now
        new.peers[peer.name] = peer
        self._changed(peer.stage)
        self.moves += 1
        self._at(self._now + leaving_s + self._setting.terms_switch_s, lambda: self._arrive(peer))
