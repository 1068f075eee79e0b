"""A toy run, swarms of it in virtual time, and what must hold of every one of them."""

import asyncio
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
import torch

from swarmd.config import CodecConfig, LimitsConfig, ModelConfig, OptimizerConfig, RunConfig
from swarmd.sim.engines.training import Text, plain_training
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.compute import SimCompute
from swarmd.sim.world.device import Speed
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.history.listener import HistoryListener
from swarmd.swarm.history.record import Record
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.membership.order import leader_order
from swarmd.swarm.peer.served_stage import ServedStage
from swarmd.swarm.rounds.member import Rounds
from tests.stage.toy import FP32

torch.set_num_threads(1)

RUN_SECONDS = 600.0  # virtual; a run of ten steps takes about four when nothing goes wrong
TICK_SECONDS = 0.001  # virtual; how exactly `moment` catches one
TOLERANCE = 1e-5  # of norm of the difference over norm, per tensor: promise 3

RUN = RunConfig(
    name="toy",
    model=ModelConfig(vocabulary=128, hidden=16, ffn=32, heads=2, layers=3, stages=3, sequence_length=12),
    optimizer=OptimizerConfig(learning_rate=2e-2, betas=(0.9, 0.99), warmup_steps=2, decay="constant"),
    codecs=FP32,
    steps=10,
    sequences_per_step=16,
    sequences_per_microbatch=2,
    validate_every=0,
    checkpoint_every=0,
    rebalance_seconds=0.0,
    seed=3,
)
SHORT = dataclasses.replace(RUN, steps=6)
PAIRS = {"head1": 0, "head2": 0, "middle1": 1, "middle2": 1, "tail1": 2, "tail2": 2}
"""Two replicas a stage."""


class Records(HistoryListener):
    """Calls back with each record that a peer has applied."""

    def __init__(self, callback: Callable[[Record], None]) -> None:
        self._callback = callback

    def on_record(self, record: Record) -> None:
        self._callback(record)


def long(*cases: Any) -> list[Any]:
    """Cases that only `make test-long` plays, as another of their kind is always played."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long) for case in cases]


def codecs(name: Any) -> CodecConfig:
    return CodecConfig(name, name, name)


async def start_all(
    world: World, layout: dict[str, int] = PAIRS, *, speed: Speed | None = None, limits: LimitsConfig | None = None
) -> None:
    for name, stage in layout.items():
        await world.start(name, stage=stage, speed=speed, limits=limits)


def train(
    run: RunConfig,
    events: Callable[[World], Awaitable[None]] | None = None,
    *,
    layout: dict[str, int] = PAIRS,
    seed: int = 0,
    link: LinkSpec | None = None,
    speed: Speed | None = None,
    limits: LimitsConfig | None = None,
) -> World:
    """Runs a swarm to the end of its run; `events` is what happens to it meanwhile."""

    async def main() -> World:
        world = World(run, Text(run), seed=seed, link=link)
        await start_all(world, layout, speed=speed, limits=limits)
        if events is not None:
            await events(world)
        await world.until(lambda: everyone_at(world, run.steps), RUN_SECONDS)
        await world.finish(RUN_SECONDS)
        return world

    return run_virtual(main())


def everyone_at(world: World, version: int) -> bool:
    return all(it.peer.history.version >= version for it in world.peers.values())


async def moment(world: World, predicate: Callable[[], bool], seconds: float = RUN_SECONDS) -> None:
    """Lets virtual time pass until just after something holds."""
    async with asyncio.timeout(seconds):
        while not predicate():
            for it in world.peers.values():
                if it.task.done() and not it.task.cancelled():
                    it.task.result()
            await asyncio.sleep(TICK_SECONDS)


def step_of(world: World) -> int:
    """The step that the most advanced peer computes."""
    return max(it.peer.history.version for it in world.peers.values()) + 1


def accumulated(it: SimPeer, step: int) -> int:
    """Microbatches in a peer's sum of a step."""
    return 0 if it.peer.sums is None else len(it.peer.sums.of(step).accumulated)


def conductor_of(world: World) -> SimPeer:
    """The conductor of the present step."""
    return next(it for it in world.peers.values() if it.peer.conductor and it.peer.conductor.is_first(step_of(world)))


def leader_of(world: World, step: int, stage: int) -> SimPeer:
    """The leader of a stage's round: first in the order that the conductor follows."""
    replicas = [name for name, it in world.peers.items() if it.peer.stage == stage and it.peer.state == "serving"]
    members = world.peers[replicas[0]].peer.history.chain.members(stage)
    return world.peers[leader_order(step, stage, replicas, members)[0]]


def everyone(world: World) -> Iterable[SimPeer]:
    """The living and the dead."""
    return [*world.peers.values(), *world.dead.values()]


def served_of(it: SimPeer) -> ServedStage:
    assert it.peer.served is not None, f"{it.name} has no stage yet"
    return it.peer.served


def sums_of(it: SimPeer) -> StepSums:
    return served_of(it).sums


def journeys_of(it: SimPeer) -> Journeys:
    assert it.peer.journeys is not None, f"{it.name} has no stage yet"
    return it.peer.journeys


def rounds_of(it: SimPeer) -> Rounds:
    assert it.peer.served is not None, f"{it.name} has no stage yet"
    return it.peer.served.rounds


def compute_of(it: SimPeer) -> SimCompute:
    assert it.compute is not None, f"{it.name} opened no stage"
    return it.compute


# ------------------------------------------------------------------------------------------------- what must hold


def check_agreement(world: World, gaps: Iterable[str] = ()) -> None:
    """Promise 2, and one unbroken history: equal (record, stage) means equal digests, each step has one record. `gaps`:
    peers whose state was replaced, and whose ledgers therefore lack steps.
    """
    records = {0: ""}
    digests: dict[tuple[str, int], tuple[str, str]] = {}
    for it in everyone(world):
        for line in it.store.ledger:
            assert records.setdefault(line["step"], line["record"]) == line["record"], f"{it.name} has another history"
            seen = (line["grad_digest"], line["digest"])
            key = (line["record"], line["stage"])
            assert digests.setdefault(key, seen) == seen, f"{it.name} differs from its replicas at step {line['step']}"
        for before, after in itertools.pairwise(it.store.ledger):
            assert before["step"] < after["step"], f"{it.name} went back"
            if it.name not in gaps:
                assert (after["step"], after["parent"]) == (before["step"] + 1, before["record"]), (
                    f"{it.name} has a gap"
                )
            assert after["parent"] == records.get(after["step"] - 1, after["parent"]), f"{it.name} left the chain"
    for it in world.peers.values():
        assert it.peer.history.version == world.run.steps, f"{it.name} stopped at {it.peer.history.version}"
        if it.store.ledger:  # who came at the very end has the last version from a donor
            assert it.store.ledger[-1]["step"] == world.run.steps


def check_exact(world: World, totals: tuple[int, ...] = ()) -> None:
    """Promises 1 and 3: every index counted once, and the parameters of a plain single-process loop. `totals`: of the
    run at each of its first steps, if it was prolonged.
    """
    for it in everyone(world):
        for line in it.store.ledger:
            assert (line["lost"], line["duplicated"], line["microbatches"]) == (0, 0, world.run.microbatches), line
    name, far = distance(world, totals)
    assert far <= TOLERANCE, f"{name} is {far:.1e} away from single-process training"


def distance(world: World, totals: tuple[int, ...] = ()) -> tuple[str, float]:
    """The tensor that is furthest from the single-process one: |difference| / |tensor|."""
    expected = reference(world.run, totals)[1]
    far: dict[str, float] = {}
    for it in world.peers.values():
        for name, value in compute_of(it).engine.module.named().items():
            off = (value.detach() - expected[name]).norm() / expected[name].norm()
            far[f"{it.name}: {name}"] = float(off)
    worst = max(far, key=lambda name: far[name])
    return worst, far[worst]


@functools.cache
def reference(run: RunConfig, totals: tuple[int, ...] = ()) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final parameters of a plain PyTorch loop over the same data."""
    losses, module = plain_training(run, totals=totals)
    return losses, {name: value.detach() for name, value in module.named().items()}


def ledger_of(world: World) -> list[dict[str, Any]]:
    """The ledger of a peer that has been there from the first step."""
    return next(it.store.ledger for it in world.peers.values() if it.store.ledger[0]["step"] == 1)


def total(world: World, name: str) -> int:
    """A count of the ledger over all steps and stages."""
    lines = {(line["step"], line["stage"]): line[name] for it in everyone(world) for line in it.store.ledger}
    return sum(lines.values())


def trace(world: World, end: float) -> str:
    """Names everything that happened: all ledgers and the time at which the run ended."""
    ledgers = {it.name: it.store.ledger for it in everyone(world)}
    return hashlib.blake2b(json.dumps([ledgers, end], sort_keys=True).encode(), digest_size=8).hexdigest()
