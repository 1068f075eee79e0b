"""The proof of promise 3: swarms train for real in virtual time, under dozens of failures a run, and end with the
parameters of a plain PyTorch loop over the same data.

A seed draws the swarm and its faults (`trainings.py`).
"""

import asyncio
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from swarmd.config import RunConfig
from swarmd.layout import Column, FittedTable
from swarmd.printable import counted, ledger_words, span
from swarmd.screen import MORE, cells
from swarmd.sim.campaign.checks import Line, Violation
from swarmd.sim.campaign.play import Outcome, Play, play, report
from swarmd.sim.campaign.seeds import Job, OutOfTime, Result, time_limit
from swarmd.sim.campaign.trainings import FAULTS, STEPS, Training, draw_training
from swarmd.sim.campaign.watch import Watch
from swarmd.sim.engines.training import Text, plain_steps
from swarmd.sim.world.compute import torch_engine
from swarmd.sim.world.world import World

TOLERANCE = 1e-5  # of promise 3: norm of the difference over norm, per tensor
COUNTS = ("resent", "subtracted", "lost", "duplicated")  # of the ledger
LOSS_TOLERANCE = 1e-5  # of the loss of a step, relative
CPU_SECONDS = 240.0  # for one seed; most take ten


class Yardstick:
    """The reference from a single process: the loss of every step and the parameters after it."""

    def __init__(self, run: RunConfig) -> None:
        steps = [
            (loss, {name: value.detach().clone() for name, value in module.named().items()})
            for loss, module in plain_steps(run)
        ]
        self.losses = [loss for loss, _ in steps]
        self._parameters = [parameters for _, parameters in steps]

    def farthest(self, version: int, parameters: Mapping[str, Tensor]) -> tuple[float, str]:
        """The tensor that is farthest away after so many steps: norm of the difference over norm."""
        expected = self._parameters[version - 1]
        far = {
            name: float((value.detach() - expected[name]).norm() / expected[name].norm())
            for name, value in parameters.items()
        }
        return max((math.inf if math.isnan(it) else it, name) for name, it in far.items())


@dataclass
class TrainingWatch(Watch):
    """The watch of a world that trains: after every step the parameters are those of a single process, nearly."""

    yardstick: Yardstick = field(kw_only=True)
    _measured: dict[int, int] = field(default_factory=dict)  # versions, of `everyone`

    def check_numbers(self, lines: Sequence[Line]) -> Iterator[Violation]:
        for it in lines:
            step, loss, expected = it.line["step"], it.line["loss"], self.yardstick.losses[it.line["step"] - 1]
            if loss is None or abs(loss - expected) > LOSS_TOLERANCE * expected:
                yield Violation(3, f"the loss of step {step} is {loss}, not {expected}", step, peer=it.peer)
        for number, peer in enumerate(self.everyone):
            engine = peer.compute.engine if peer.compute is not None else None
            if engine is None or not engine.version or self._measured.get(number) == engine.version:
                continue
            self._measured[number] = step = engine.version
            far, tensor = self.yardstick.farthest(step, engine.module.named())
            if not far <= TOLERANCE:
                yield Violation(
                    3, f"{tensor} of {peer.name} is {far:.1e} away after {step} steps", step, peer=peer.name
                )

    def farthest(self) -> tuple[float, str]:
        """At the end: the farthest tensor of all peers at the last version; "" if there is none."""
        engines = [it.compute.engine for it in self.world.peers.values() if it.compute is not None]
        last = [it for it in engines if it.version == self.world.run.steps]
        return max((self.yardstick.farthest(it.version, it.module.named()) for it in last), default=(0.0, ""))


class TrainingPlay(Play):
    """A training under way."""

    watch: TrainingWatch
    scenario: Training

    def build(self, *, trace: bool) -> tuple[World, Watch]:
        it = self.scenario
        world = World(self.run, Text(self.run), seed=it.seed, link=it.link, engine=torch_engine, trace=trace)
        return world, TrainingWatch(world, yardstick=Yardstick(self.run))

    async def _until(self, done: Callable[[], bool]) -> bool:
        """Lets time pass until `done`, as long as the swarm makes progress."""
        loop = asyncio.get_running_loop()
        version, since, patience = -1, 0.0, self.scenario.patience_seconds()

        def over() -> bool:
            nonlocal version, since
            if self.version() != version:
                version, since = self.version(), loop.time()
            return done() or loop.time() - since > patience

        held = await super()._until(over)
        if held and not done():
            text = f"nothing came of version {version} for {patience:.0f} virtual seconds, most of them without a fault"
            self.watch.found.append(Violation(6, text, version + 1))
        return held and done()

    def figures(self) -> dict[str, Any]:
        """Figures of the history that survives, from every peer that remembers it."""
        living = [it.peer.history for it in self.world.peers.values()]
        chain = {
            record.step: record
            for history in sorted(living, key=lambda history: history.version)
            for record in (history.chain.at(step) for step in range(1, history.version + 1))
            if record is not None
        }
        everyone, chained = self.watch.everyone, {it.hash for it in chain.values()}
        lines = {(line["record"], line["stage"]): line for it in everyone for line in it.store.ledger}
        counted = [line for (record, _), line in lines.items() if record in chained]
        far, tensor = self.watch.farthest()
        return {
            "steps": max((history.version for history in living), default=0),
            **{name: sum(line[name] for line in counted) for name in COUNTS},
            "forked": sum(1 for record in chain.values() if record.forked),
            "voided": len({line["record"] for it in everyone for line in it.store.voided} - chained),
            "difference": far,
            "tensor": tensor,
        }


def examine(seed: int, faults: int = FAULTS, cpu_s: float = CPU_SECONDS) -> Result:
    """Plays a seed's training."""
    torch.set_num_threads(1)
    scenario, began = draw_training(seed, faults), time.monotonic()
    try:
        with time_limit(cpu_s):
            outcome = play(scenario, course=TrainingPlay)
    except OutOfTime as trouble:
        lines = (f"seed {seed}: promise 6: {trouble}", *scenario.text().splitlines(), f"replay: {replay_command(seed)}")
        return Result(seed, 6, lines, wall_s=time.monotonic() - began)
    shape = "-".join(map(str, scenario.replicas))
    return Result(
        seed,
        promise=0 if outcome.passed else outcome.violations[0].promise,
        lines=() if outcome.passed else tuple(explain(scenario, outcome, cpu_s)),
        trace=outcome.trace,
        virtual_s=outcome.virtual_s,
        wall_s=time.monotonic() - began,
        struck=outcome.struck,
        figures={"replicas": shape, **outcome.figures},
    )


def explain(scenario: Training, outcome: Outcome, cpu_s: float) -> list[str]:
    """The report of a run that broke a promise, with its last events."""
    try:
        with time_limit(cpu_s):
            outcome = play(scenario, trace=True, course=TrainingPlay)
    except OutOfTime:
        pass  # what was found before is shown
    return [*report(scenario, outcome), f"replay: {replay_command(scenario.seed)}"]


def replay_command(seed: int) -> str:
    """The command that plays a seed again."""
    return f"python -m swarmd.sim prove --first {seed} --seeds 1"


def job(faults: int = FAULTS, cpu_s: float = CPU_SECONDS) -> Job:
    """The job of proving seeds."""
    return Job(functools.partial(examine, faults=faults, cpu_s=cpu_s), replay_command, 2 * cpu_s)


# ------------------------------------------------------------------------------------------------- what is shown

_COLUMNS = (
    Column("seed"),
    Column("replicas", 2),
    Column("faults"),
    Column("steps", 4),
    Column("sent again", 5),
    Column("subtracted", 6),
    Column("lost"),
    Column("counted twice", 1),
    Column("forked", 7),
    Column("voided", 8),
    Column("difference"),
    Column("tensor", 3, right=False),
    Column("virtual time", 9),
    Column("took", 10),
)


def render(results: Sequence[Result]) -> FittedTable:
    """A row for each seed."""
    return FittedTable(_COLUMNS, [cells(*_row(result)) for result in results], MORE)


def _row(result: Result) -> tuple[object, ...]:
    it = result.figures
    if not it:
        none = dict.fromkeys(column.name for column in _COLUMNS) | {"seed": result.seed, "difference": "did not end"}
        return tuple("" if value is None else value for value in none.values())
    counts = (it[name] for name in ("steps", *COUNTS, "forked", "voided"))
    times = (span(result.virtual_s), span(result.wall_s))
    return (
        result.seed,
        it["replicas"],
        sum(result.struck.values()),
        *counts,
        f"{it['difference']:.1e}",
        it["tensor"] or "-",
        *times,
    )


def progress(result: Result) -> str:
    """A sentence on a seed that was played."""
    struck, took = counted(sum(result.struck.values()), "fault"), span(result.wall_s)
    if not result.figures:
        return f"seed {result.seed} did not end, {took}"
    return f"seed {result.seed}: {struck}, largest difference {result.figures['difference']:.1e}, {took}"


def is_weak(result: Result, faults: int) -> bool:
    """True if too few faults struck a run for it to prove anything."""
    return not result.promise and sum(result.struck.values()) < faults


def conclusion(results: Sequence[Result], faults: int) -> list[str]:
    """The worst of all seeds, and whether they prove it."""
    ended = [result for result in results if result.figures]
    if not ended:
        return ["no seed came to its end"]
    worst = max(ended, key=lambda result: float(result.figures["difference"]))
    where = f"{worst.figures['tensor']} in seed {worst.seed}"
    sums = {it: sum(result.figures[it] for result in ended) for it in (*COUNTS, "forked", "voided")}
    struck = [sum(result.struck.values()) for result in ended]
    weak = [str(result.seed) for result in results if is_weak(result, faults)]
    least, most = min(struck), max(struck)
    each = f"{least} faults each" if least == most else f"{least} to {most} faults each"
    lines = [
        f"{counted(len(ended), 'run')} of {counted(STEPS, 'step')}, {each}, {sum(struck)} in all: "
        + ledger_words(sums),
        f"largest difference: {worst.figures['difference']:.1e} of {TOLERANCE:.0e} allowed, of {where}",
    ]
    if weak:
        lines.append(f"fewer than {faults} faults struck in seeds {', '.join(weak)}: they prove nothing")
    return lines
