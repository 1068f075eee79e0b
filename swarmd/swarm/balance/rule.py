"""The rule by which peers go to other stages, and newcomers get theirs. Pure: plain data in, plain data out.

Two rules. `plan_published` is SWARM's (arXiv 2301.11913, algorithm 2): the peer with the shortest queue of the stage
with the least queued goes to the stage with the most. `plan_balance` is ours. A stage's capacity is the sum of its
replicas' service rates, its load the work of a microbatch over that, and the swarm is as fast as the stage of least
capacity. So it looks for the moves, or exchanges, that raise the least capacity, several at once if only that helps,
and names them if they pay for their downloads and for what measurements may be wrong by.

Power is what a peer has wherever it is: microbatches per second of a stage of work 1. At a stage of work w it serves
power / w. The works of a model's stages follow from its shape (`stage_works`).
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from swarmd.config import ModelConfig
from swarmd.swarm.history.record import Move
from swarmd.values import PeerId

GAIN_SHARE = 0.02  # of the throughput, that a plan must gain at least
GAIN_OF_MOVER = 0.5  # ... and of what a mover serves: measurements of rates are wrong by less than half a peer
EXCHANGE_SHARE = 0.1  # of the throughput, that a plan with exchanges must gain: they follow small differences of rates
PAYBACK_SECONDS = 600.0  # a placement is taken to last so long: by then a move must have paid
DOWNLOAD_DRAG = 0.2  # of the mover's work that its download costs, its donors' included: it goes behind activations
SWITCH_SECONDS = 10.0  # between two stages: to open the new one, load the state and repeat the commits since
DOWNLOAD_BYTES_PER_SECOND = 25e6  # 200 Mb/s, what volunteers have
STATE_BYTES_PER_PARAMETER = 12  # fp32: the parameter and two moments
MOVES_AT_MOST = 64  # in one plan


@dataclass(frozen=True)
class Candidate:
    """A replica that may go elsewhere. In a large swarm a far stage's are known by number only: `peer` is empty."""

    power: float
    peer: PeerId = ""
    has_data: bool = True  # it can be a head
    memory_bytes: float = 0.0  # of its device; 0: unknown


def in_order(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The weakest first."""
    return tuple(sorted(candidates, key=lambda it: (it.power, it.peer)))


@dataclass(frozen=True)
class StageLoad:
    """One stage in the eyes of the peer that decides."""

    power: float  # of all who serve it or are on their way to it, without those who are on their way elsewhere
    staying: int  # replicas that serve it and aren't on their way elsewhere
    candidates: tuple[Candidate, ...] = ()  # of those, who may go, the weakest first: the rest has come lately


@dataclass(frozen=True)
class Terms:
    """The cost of a move, and the gain that it must bring."""

    download_s: float = 0.0
    switch_s: float = SWITCH_SECONDS
    minimum: int = 1  # replicas that a stage keeps
    needs: tuple[float, ...] = ()  # bytes of a device's memory that each stage takes at least; none: anyone can hold it

    def can_serve(self, it: Candidate, stage: int) -> bool:
        """Tells if a peer can serve a stage, for all that is known."""
        short = bool(self.needs) and 0 < it.memory_bytes < self.needs[stage]
        return not short and (stage > 0 or it.has_data)


@dataclass(frozen=True)
class Balance:
    """A plan. `before`, `after`: the swarm's throughput in microbatches per second."""

    moves: tuple[Move, ...]
    before: float
    after: float

    @property
    def gain(self) -> float:
        """Relative to the throughput before."""
        return self.after / self.before - 1 if self.before > 0 else 0.0

    def reason(self, move: Move) -> str:
        """Why a peer goes, in a sentence for its status."""
        others = len(self.moves) - 1
        beside = f", with {others} other move{'' if others == 1 else 's'}" if others else ""
        return f"stage {move.target} needs it more than stage {move.source}: {self.gain:.0%} more throughput{beside}"


@dataclass(frozen=True)
class _Step:
    """One move, or two peers that change places."""

    source: int
    target: int
    goes: Candidate
    comes: Candidate | None
    worst: float  # the lesser capacity of the two stages afterwards
    spare: float  # what the source has left


def stage_works(model: ModelConfig) -> tuple[float, ...]:
    """Multiplications per token of each stage's forward, relative to the first stage's blocks."""
    blocks = model.layers // model.stages * (4 * model.hidden**2 + 3 * model.hidden * model.ffn)
    vocabulary = model.vocabulary * model.hidden / blocks
    return (*(1.0 for _ in range(model.stages - 1)), 1.0 + vocabulary)


def download_seconds(model: ModelConfig) -> float:
    """Seconds that a stage's state takes on an ordinary line."""
    block = 4 * model.hidden**2 + 3 * model.hidden * model.ffn
    blocks = 1 if model.shared else model.layers // model.stages
    return STATE_BYTES_PER_PARAMETER * block * blocks / DOWNLOAD_BYTES_PER_SECOND


def capacities(loads: Sequence[StageLoad], works: Sequence[float]) -> list[float]:
    """Microbatches per second of each stage."""
    return [load.power / work for load, work in zip(loads, works, strict=True)]


def may_spare(stage: int, loads: Sequence[StageLoad], works: Sequence[float]) -> bool:
    """A first, cheap look at a stage: it isn't the slowest, and has a peer that can go."""
    have, candidates = capacities(loads, works), loads[stage].candidates
    enough = (1 + GAIN_SHARE) * min(have)
    return bool(candidates) and have[stage] - candidates[0].power / works[stage] > enough


def plan_place(loads: Sequence[StageLoad], works: Sequence[float], stages: Sequence[int]) -> int | None:
    """The stage that needs a newcomer most, of those it can serve: that of least capacity, the first of equals."""
    have = capacities(loads, works)
    return min(stages, key=lambda stage: (have[stage], stage)) if stages else None


# ------------------------------------------------------------------------------------------------- the published rule


def plan_published(queues: Sequence[Mapping[PeerId, float]]) -> Move | None:
    """SWARM's rule: queues of each stage's peers; one move, or none. Stages and peers are compared strictly, in order,
    so the first of equals counts. It would empty a stage; its caller must not let it.
    """
    loads = [sum(stage.values()) for stage in queues]
    most, least = loads.index(max(loads)), loads.index(min(loads))
    if most == least or not queues[least]:
        return None
    peer = min(queues[least], key=lambda peer: queues[least][peer])
    return Move(peer, least, most)


# ------------------------------------------------------------------------------------------------- our rule


def plan_balance(loads: Sequence[StageLoad], works: Sequence[float], terms: Terms) -> Balance:
    """The moves that pay, all to be begun at once; none if the placement is good enough.

    Each step of the search raises the least capacity of the two stages it touches, so the search ends. Steps are taken
    into the plan as soon as all that came since the last of it pay for themselves together.
    """
    state = _Placement(loads, works, terms)
    before = state.least()
    plan, taken, steps = Balance((), before, before), list[_Step](), list[_Step]()
    cost = 0.0  # microbatches that are not done because of the steps that aren't in the plan yet
    if len(loads) < 2 or before <= 0.0:  # an empty stage's state is nowhere: it waits for a peer that has it
        return plan
    while len(taken) + len(steps) < MOVES_AT_MOST and (step := state.improve()) is not None:
        state.take(step)
        steps.append(step)
        cost += sum(_cost(it, at, works, terms) for it, at, _ in _leaving(step))
        gain = state.least() - plan.after
        if gain * PAYBACK_SECONDS > cost and _is_sure(gain, before, steps, works):
            taken += steps
            moves = tuple(Move(it.peer, at, to) for step in taken for it, at, to in _leaving(step))
            plan, steps, cost = Balance(moves, before, state.least()), [], 0.0
    return plan


def pays(move: Move, power: float, loads: Sequence[StageLoad], works: Sequence[float]) -> bool:
    """Tells if a move still helps once its state is here. `loads` count the mover at its old stage."""
    have = capacities(loads, works)
    left = have[move.source] - power / works[move.source]
    return min(left, have[move.target] + power / works[move.target]) > have[move.target]


def _leaving(step: _Step) -> list[tuple[Candidate, int, int]]:
    """The peers that go, each with the stages from and to which it goes."""
    first = [(step.goes, step.source, step.target)]
    return first if step.comes is None else [*first, (step.comes, step.target, step.source)]


def _cost(it: Candidate, stage: int, works: Sequence[float], terms: Terms) -> float:
    return it.power / works[stage] * (DOWNLOAD_DRAG * terms.download_s + terms.switch_s)


def _is_sure(gain: float, before: float, steps: Sequence[_Step], works: Sequence[float]) -> bool:
    """Tells if a gain is more than what measurements may be wrong by."""
    exchanges = any(step.comes is not None for step in steps)
    shares = [step.goes.power / works[step.target] for step in steps if step.comes is None]
    mean = sum(shares) / len(shares) if shares else 0.0
    return gain >= max((EXCHANGE_SHARE if exchanges else GAIN_SHARE) * before, GAIN_OF_MOVER * mean)


class _Placement:
    """A placement that is changed step by step."""

    def __init__(self, loads: Sequence[StageLoad], works: Sequence[float], terms: Terms) -> None:
        self._works, self._terms = works, terms
        self._have = capacities(loads, works)
        self._free = [load.staying - terms.minimum for load in loads]
        self._candidates = [list(load.candidates) for load in loads]

    def least(self) -> float:
        return min(self._have)

    def improve(self) -> _Step | None:
        """The step that helps the slowest stage most: a move if one helps, else an exchange."""
        low = min(self._have)
        target = self._have.index(low)
        sources = [
            at for at, have in enumerate(self._have) if have > low and self._free[at] > 0 and self._candidates[at]
        ]
        best: _Step | None = None
        for source in sources:
            if self._have[source] - self._candidates[source][0].power / self._works[source] > low:
                best = self._better(best, source, target, None)
        if best is None and self._free[target] > 0:
            for source in sources:
                for comes in self._candidates[target] if self._differ(source, target) else ():
                    best = self._better(best, source, target, comes)
        return best

    def _differ(self, source: int, target: int) -> bool:
        """Tells if an exchange between two stages could help: someone at the source is stronger."""
        here = self._candidates[target]
        return bool(here) and self._candidates[source][-1].power > here[0].power

    def _better(self, best: _Step | None, source: int, target: int, comes: Candidate | None) -> _Step | None:
        """The best step so far, or a better one from this source."""
        have, works = self._have, self._works
        back = comes.power if comes is not None else 0.0
        even = (have[source] - have[target]) / (1 / works[source] + 1 / works[target])  # would make them equal
        if comes is not None and not self._terms.can_serve(comes, source):
            return best
        candidates = self._candidates[source]
        if target == 0 or self._terms.needs:
            candidates = [it for it in candidates if self._terms.can_serve(it, target)]
        place = bisect_left(candidates, even + back, key=lambda it: it.power)
        for at in (place - 1, place):
            if 0 <= at < len(candidates):
                goes = candidates[at]
                left = have[source] - (goes.power - back) / works[source]
                worst = min(left, have[target] + (goes.power - back) / works[target])
                if worst > have[target] and (best is None or (worst, left) > (best.worst, best.spare)):
                    best = _Step(source, target, goes, comes, worst, left)
        return best

    def take(self, step: _Step) -> None:
        """Counts a step as taken: its movers don't move again, and are replicas of neither stage."""
        for it, at, other in _leaving(step):
            self._have[at] -= it.power / self._works[at]
            self._have[other] += it.power / self._works[other]
            self._free[at] -= 1
            self._candidates[at].remove(it)


def with_move(loads: Sequence[StageLoad], move: Move, power: float) -> list[StageLoad]:
    """The loads with someone on its way."""
    changed = list(loads)
    old, new = loads[move.source], loads[move.target]
    stay = tuple(it for it in old.candidates if it.peer != move.peer)
    changed[move.source] = replace(old, power=old.power - power, staying=old.staying - 1, candidates=stay)
    changed[move.target] = replace(new, power=new.power + power)
    return changed
