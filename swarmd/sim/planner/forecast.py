"""Forecasts the speed of a planned swarm and its bottleneck: the best placement of its devices, rehearsed for a step.

Large swarms and long steps are rehearsed smaller (`rehearsal.py`): what is simulated then is the share that such a
swarm reaches of what its slowest stage could do. That share is applied to the full size, and the forecast says so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from swarmd.config import RunConfig
from swarmd.errors import ConfigError
from swarmd.printable import counted, duration, size
from swarmd.printable import share as shown
from swarmd.sim.engines.phantom import BYTES_PER_ELEMENT
from swarmd.sim.planner import costs
from swarmd.sim.planner.costs import StageSpeed, WireFormat
from swarmd.sim.planner.devices import Device, Group
from swarmd.sim.planner.placement import Placement, plan_placement
from swarmd.sim.planner.rehearsal import Actor, ActorFigures, Rehearsal, rehearse
from swarmd.sizes import stage_parameters

PEERS_SIMULATED = 12  # about, in one rehearsal: a few seconds each
MICROBATCHES_SIMULATED = 16  # at most, per peer and step: the middle of such a step is steady
HOPS_PER_PEER = 2  # as `swarm/steps/head.py` keeps under way
ENDURED_SECONDS = 2e5  # virtual, of the step that is rehearsed: a minute or more of this machine's time
HOP_SECONDS = 30.0  # the longest way of a microbatch between two peers that still makes a swarm
RTT_SECONDS = 5.0  # the longest round trip that does: who is silent for little more is taken for lost
BUSY_ENOUGH = 0.85  # a stage whose device or link is in use for so much of the time is what limits the swarm


@dataclass(frozen=True)
class Question:
    """The swarm, the model and the network that a plan is asked for."""

    run: RunConfig
    groups: tuple[Group, ...]
    rtt_s: float
    wire: WireFormat
    dtype: str  # auto | fp32 | bf16 | fp16, of matrix products
    one_machine: bool = False  # profiled peers share this computer's cores
    placement: Placement | None = None  # None: the best that is found

    def dtype_on(self, device: Device) -> str:
        """The dtype of a device's products: what the run demands, or what is asked for, or what is fast there."""
        if self.run.precision == "fp32":
            return "fp32"
        return device.fast_dtype if self.dtype == "auto" else self.dtype

    def needs(self, stage: int, device: Device) -> float:
        """The least that a stage needs of a device's memory, in bytes."""
        return costs.memory_bytes(self.run, stage, device, self.dtype_on(device))


@dataclass(frozen=True)
class GroupInStage:
    """The peers of one group in one stage."""

    device: str
    stage: int
    count: int
    seconds: float  # of the device, per microbatch
    recompute: float  # share of the microbatches whose forward runs twice
    utilisation: float  # share of the whole step that the device computes microbatches
    flops_share: float | None  # of the datasheet's rate, while it computes; None for measured devices
    uplink: float  # share in use by hops, in the middle of a step
    downlink: float
    sent: float  # bytes/s, averaging included
    received: float
    memory_bytes: float  # the least that the device needs
    memory_share: float


@dataclass(frozen=True)
class Forecast:
    """The figures of one placement."""

    tokens_per_second: float
    step_s: float
    overhead_s: float  # of the step: filling and draining the pipeline, averaging, commit
    bottleneck: str
    rows: tuple[GroupInStage, ...]
    rehearsed: str  # how much of it was simulated
    of_bound: float  # tokens per second over what the slowest stage could do


def forecast(question: Question) -> Forecast:
    """The best placement of the groups and what comes of it. Raises ConfigError if there is none."""
    groups = question.groups
    _check_links(question)
    rates = _rates(question, _speeds(question, None))
    best = question.placement or plan_placement([group.count for group in groups], rates)
    if best is None:
        raise ConfigError(_why_not(question, rates))
    speeds = _speeds(question, best)  # recomputing depends on how many share a stage
    rates = _rates(question, speeds)
    return _rehearsed(question, best, best if question.one_machine else scale_down(best), speeds, rates)


def _speeds(question: Question, placement: Placement | None) -> list[list[StageSpeed]]:
    """[group][stage]"""
    run, stages = question.run, question.run.model.stages
    peers = sum(group.count for group in question.groups)
    found = []
    for group in question.groups:
        row = []
        for stage in range(stages):
            replicas = max(1, placement.replicas(stage)) if placement else max(1, peers // stages)
            held = HOPS_PER_PEER * peers * (stages - stage) / stages / replicas
            row.append(
                costs.stage_speed(
                    run,
                    stage,
                    group.device,
                    question.dtype_on(group.device),
                    question.wire,
                    pace=group.pace,
                    held=held,
                    replicas=replicas,
                )
            )
        found.append(row)
    return found


def _rates(question: Question, speeds: Sequence[Sequence[StageSpeed]]) -> list[list[float]]:
    """Microbatches per second that a peer of each group could do in each stage; 0 where its memory is too small."""
    run, tensor = question.run, question.wire.nbytes(question.run)
    last = run.model.stages - 1
    rates = []
    for group, row in zip(question.groups, speeds, strict=True):
        links = tensor / min(group.up, group.down)  # each boundary takes a tensor in and a tensor out
        rates.append(
            [
                1.0 / max(speed.total_s, ((stage > 0) + (stage < last)) * links)
                if question.needs(stage, group.device) <= group.device.memory_bytes
                else 0.0
                for stage, speed in enumerate(row)
            ]
        )
    return rates


def _why_not(question: Question, rates: Sequence[Sequence[float]]) -> str:
    run = question.run
    peers = sum(group.count for group in question.groups)
    for stage in range(run.model.stages):
        if not any(row[stage] for row in rates):
            need = min(question.needs(stage, it.device) for it in question.groups) / 1e9
            return (
                f"no device of --peers has the {need:.1f} GB that stage {stage} of {run.name} needs; "
                "add larger ones, or cut the model into more stages (--stages)."
            )
    stages = run.model.stages
    return f"{run.name} has {counted(stages, 'stage')}, for which {counted(peers, 'peer')} can't be enough; add peers."


def scale_down(placement: Placement) -> Placement:
    """A swarm of the same kind that is quick to simulate."""
    peers = sum(map(sum, placement.counts))
    factor = -(-peers // PEERS_SIMULATED)
    counts = [[max(1, round(count / factor)) if count else 0 for count in row] for row in placement.counts]
    return Placement(tuple(map(tuple, counts)))


def _rehearsed(
    question: Question,
    full: Placement,
    small: Placement,
    speeds: Sequence[Sequence[StageSpeed]],
    rates: Sequence[Sequence[float]],
) -> Forecast:
    run = question.run
    scale = _size(full) / _size(small)
    short = _shorter(run, small, rates, scale)
    _check_endures(question, full, short.microbatches / small.throughput(rates))
    actors, owners = _actors(question, full, small, speeds)
    parameters = [_averaged(run, stage, full, small) for stage in range(run.model.stages)]
    crowd = next((group.device.crowd for group in question.groups if group.device.crowd), (1.0,))
    done = rehearse(Rehearsal(short, actors, question.wire, rtt_s=question.rtt_s, parameters=parameters, crowd=crowd))
    load = run.microbatches / scale / short.microbatches  # less than 1: not every peer of the full size gets one
    overhead = max(0.0, done.step_s - short.microbatches / done.rate)
    step = max(1.0, load) * short.microbatches / done.rate + overhead
    played = [actor.at(min(1.0, load)) for actor in done.actors]
    rows = tuple(_rows(question, full, speeds, owners, played, step, overhead))
    part = "" if scale == 1 and small == full else f" {_size(small)} of the {counted(_size(full), 'peer')} and"
    cut = f" {short.microbatches:,} of the {counted(run.microbatches, 'microbatch')} of a step"
    whole = "the whole swarm and step were simulated"
    tokens = run.microbatches * run.tokens_per_microbatch / step
    return Forecast(
        tokens_per_second=tokens,
        step_s=step,
        overhead_s=overhead,
        bottleneck=_bottleneck(question, rows, overhead / step),
        rows=rows,
        rehearsed=whole if not part and short.microbatches == run.microbatches else f"simulated were{part}{cut}",
        of_bound=tokens / run.tokens_per_microbatch / full.throughput(rates),
    )


def _check_links(question: Question) -> None:
    """Refuses links over which a microbatch, or a word, takes longer than peers wait for each other. Raises
    ConfigError.
    """
    if question.rtt_s > RTT_SECONDS and sum(group.count for group in question.groups) > 1:
        raise ConfigError(
            f"--rtt {1e3 * question.rtt_s:g} is more than {1e3 * RTT_SECONDS:,.0f} ms, and peers that hear of each "
            "other so late take each other for lost; name a shorter round trip."
        )
    nbytes = question.wire.nbytes(question.run)
    for group in question.groups if question.run.model.stages > 1 else ():
        if (seconds := nbytes / min(group.up, group.down)) > HOP_SECONDS:
            raise ConfigError(
                f"the activations of a microbatch of {question.run.name} are {size(nbytes)} and would take "
                f"{duration(seconds)} to or from {group.label}; name faster links in --peers, or a run with smaller "
                "microbatches."
            )


def _check_endures(question: Question, placement: Placement, computing_s: float) -> None:
    """Refuses a swarm whose step takes so long that nobody would wait for it, here or there. Raises ConfigError."""
    run = question.run
    averaging_s = max(
        (
            BYTES_PER_ELEMENT[run.codecs.averaging] * stage_parameters(run.model, stage) / min(group.up, group.down)
            for group, counts in zip(question.groups, placement.counts, strict=True)
            for stage, count in enumerate(counts)
            if count and placement.replicas(stage) > 1
        ),
        default=0.0,
    )
    if (step_s := computing_s + averaging_s) > ENDURED_SECONDS:
        raise ConfigError(
            f"a step of {run.name} would take {duration(step_s)} or longer with these devices and links; name faster "
            "ones in --peers, or a run with fewer sequences a step."
        )


def _size(placement: Placement) -> int:
    return sum(map(sum, placement.counts))


def _shorter(run: RunConfig, placement: Placement, rates: Sequence[Sequence[float]], scale: float) -> RunConfig:
    """A step that is long enough to have a steady middle, and gives a peer no more than the full size does."""
    stages = range(run.model.stages)
    slowest = min(rate for row in rates for rate in row if rate)
    units = max(placement.capacity(rates, stage) for stage in stages) / slowest
    steady = round(MICROBATCHES_SIMULATED * max(units, _size(placement) / len(stages)))
    count = min(math.ceil(run.microbatches / scale), steady)
    return replace(run, sequences_per_step=count * run.sequences_per_microbatch)


def _actors(
    question: Question, full: Placement, small: Placement, speeds: Sequence[Sequence[StageSpeed]]
) -> tuple[list[Actor], list[tuple[int, int]]]:
    """One per peer, heads first, and the group and stage of each.

    Where peers don't divide evenly, those that are rehearsed are a little faster or slower, device and link, so that
    every stage has its share of the capacity: else another stage would be the slowest.
    """
    actors, owners, scale = [], [], _size(full) / _size(small)
    for stage in range(question.run.model.stages):
        for number, group in enumerate(question.groups):
            count = small.counts[number][stage]
            host = 0 if question.one_machine and group.device.cores else None
            pace = full.counts[number][stage] / count / scale if count else 1.0
            speed = speeds[number][stage].at(pace)
            for _ in range(count):
                actors.append(Actor(stage, speed, group.up * pace, group.down * pace, host))
                owners.append((number, stage))
    return actors, owners


def _averaged(run: RunConfig, stage: int, full: Placement, small: Placement) -> int:
    """Elements of a stage's gradient in the rehearsal: each of n members sends and gets (n - 1) / n of it twice, so
    that it is a little larger where fewer average than will.
    """
    many, few = full.replicas(stage), small.replicas(stage)
    if few < 2:
        return stage_parameters(run.model, stage)
    return round(stage_parameters(run.model, stage) * (1 - 1 / many) / (1 - 1 / few))


def _rows(
    question: Question,
    full: Placement,
    speeds: Sequence[Sequence[StageSpeed]],
    owners: Sequence[tuple[int, int]],
    actors: Sequence[ActorFigures],
    step: float,
    overhead: float,
) -> list[GroupInStage]:
    """One for each group in each stage that is not empty."""
    run, rows, steady = question.run, [], 1 - overhead / step
    for stage in range(run.model.stages):
        for number, group in enumerate(question.groups):
            count = full.counts[number][stage]
            played = [actor for actor, owner in zip(actors, owners, strict=True) if owner == (number, stage)]
            if not count or not played:
                continue
            speed, device = speeds[number][stage], group.device
            need = question.needs(stage, group.device)
            averaging = 2 * BYTES_PER_ELEMENT[run.codecs.averaging] * stage_parameters(run.model, stage)
            averaging *= 1 - 1 / full.replicas(stage)
            peak = device.peak(question.dtype_on(device))
            operations = (1 + costs.BACKWARD_TIMES) * costs.stage_flops(run, stage) / speed.total_s
            rows.append(
                GroupInStage(
                    device=group.label,
                    stage=stage,
                    count=count,
                    seconds=speed.total_s,
                    recompute=speed.recompute,
                    utilisation=_mean(played, "busy") * steady,
                    flops_share=None if device.points else operations / group.pace / peak,
                    uplink=_mean(played, "sent"),
                    downlink=_mean(played, "received"),
                    sent=_mean(played, "sent") * group.up * steady + averaging / step,
                    received=_mean(played, "received") * group.down * steady + averaging / step,
                    memory_bytes=need,
                    memory_share=need / device.memory_bytes,
                )
            )
    return rows


def _mean(played: Sequence[ActorFigures], what: str) -> float:
    return sum(float(getattr(it, what)) for it in played) / len(played)


def _bottleneck(question: Question, rows: Sequence[GroupInStage], overhead: float) -> str:
    """Names the device or link that limits the swarm; if all have time to spare, where the time goes instead."""
    steady = max(1e-9, 1 - overhead)
    best: tuple[float, str] = (0.0, "")
    for stage in range(question.run.model.stages):
        mine = [row for row in rows if row.stage == stage]
        peers = sum(row.count for row in mine)
        for what, of in (
            ("compute", [row.utilisation / steady for row in mine]),
            ("uplink", [row.uplink for row in mine]),
            ("downlink", [row.downlink for row in mine]),
        ):
            share = sum(value * row.count for value, row in zip(of, mine, strict=True)) / peers
            best = max(best, (share, f"stage {stage}, {what}"))
    share, name = best
    if question.one_machine:
        return "the cores that all peers share"
    if share >= BUSY_ENOUGH:
        return f"{name} ({shown(share)} in use)"
    return f"nothing is full: {name} is {shown(share)} in use, the rest is latency and uneven turns"
