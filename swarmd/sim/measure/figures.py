"""Figures that only a simulation can give: how fast a paused peer is found in each stage, what a slow peer costs, what
a large swarm's traffic is. Every one is simulated, and so are called wherever they are quoted.

Stages compute nothing here (`phantom.py`): durations and sizes are those of a pretended device and model.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from swarmd.config import ModelConfig, RunConfig
from swarmd.sim.engines.phantom import NoText, PhantomEngine
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.device import Speed
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.world.world import World
from swarmd.values import HopId

SETTLED_SECONDS = 60.0  # by then the first microbatches have gone through the whole swarm
KINDS_SHOWN = 12
PROGRESS_SECONDS = 10.0  # virtual, between two words on the progress
LIMIT_SECONDS = 3600.0  # virtual; nothing here takes so long unless something is wrong
HOME_LINK = LinkSpec(delay_s=0.025, bytes_per_second=60e6)  # 50 ms round trip, 480 Mb/s
PARAMETERS = 25_000_000  # of a stage: its round moves 50 MB in and out of each replica, at fp16
SLOWER = 10.0  # times slower than the rest, the straggler
MEETING_SECONDS = 60.0  # after the last peer was started: all have met, and what is counted begins
GC_THRESHOLDS = (200_000, 20, 100)  # a large world is millions of objects that live long: not to be looked at often
WAVE = 50  # peers of a large swarm that are started at once
SECONDS = 1.5  # of an ordinary device per microbatch, a third of it forward


def plan_run(stages: int, microbatches: int, steps: int) -> RunConfig:
    """A run of microbatches of 2048 tokens, 4096 wide."""
    model = ModelConfig(
        vocabulary=50_000, hidden=4096, ffn=11_008, heads=32, layers=stages, stages=stages, sequence_length=2048
    )
    return RunConfig(
        name="figures",
        model=model,
        steps=steps,
        sequences_per_step=microbatches,
        sequences_per_microbatch=1,
        validate_every=0,
        checkpoint_every=0,
        rebalance_seconds=0.0,  # a phantom has no state to take along
    )


def speed_of(seconds: float) -> Speed:
    """A device that takes so long for a microbatch, a third of it forward."""
    return Speed(seconds / 3, 2 * seconds / 3, 0.05)


def open_world(run: RunConfig, *, seed: int = 0) -> World:
    """An empty world of phantoms behind home links."""
    return World(
        run, NoText(run), seed=seed, link=HOME_LINK, engine=lambda run, stage: PhantomEngine(run, stage, PARAMETERS)
    )


# ------------------------------------------------------------------------------------------------- a paused peer


def detection_seconds(stage: int, *, stages: int = 16, replicas: int = 2) -> float:
    """Virtual seconds from the moment that a replica of a stage is stopped in the middle of its work until nobody
    waits for its hops any more: its custodians, or for a head the conductor.
    """

    async def main() -> float:
        run = plan_run(stages, 256, 2)
        world = open_world(run)
        for number in range(stages * replicas):
            await world.start(f"peer{number:02d}", stage=number % stages, speed=speed_of(SECONDS))
        victim = f"peer{stage + stages:02d}"
        loop = asyncio.get_running_loop()
        await world.until(lambda: loop.time() > SETTLED_SECONDS and len(_waiting_for(world, victim)) > 1, LIMIT_SECONDS)
        held = _waiting_for(world, victim)
        world.pause(victim)
        began = loop.time()
        await world.until(lambda: not held & _waiting_for(world, victim), LIMIT_SECONDS)
        seconds = loop.time() - began
        await world.stop()
        return seconds

    return run_virtual(main())


def _waiting_for(world: World, name: str) -> set[HopId]:
    """The hops that others wait for a peer to finish."""
    keys: set[HopId] = set()
    for it in world.peers.values():
        if it.name != name and it.peer.journeys is not None and it.peer.conductor is not None:
            passed_on = it.peer.journeys.custodian.custody.waiting()
            keys |= {key for key, passed in passed_on.items() if passed.holder == name}
            keys |= it.peer.conductor.desk.leased_to(name)
    return keys


# ------------------------------------------------------------------------------------------------- a slow peer


@dataclass(frozen=True)
class Straggler:
    """The cost of one slow peer."""

    stage: int | None  # its stage; None: all are equally fast
    seconds: float  # virtual, per step
    kept: float  # throughput, relative to a swarm of equals
    of_capacity: float  # the same, relative to what is left of the stage's capacity


def straggler_costs(
    *, stages: int = 3, replicas: int = 4, microbatches: int = 240, steps: int = 3
) -> Iterator[Straggler]:
    """One peer that is ten times slower, as head, in the middle, as tail."""
    capacity = (replicas - 1 + 1 / SLOWER) / replicas
    base = _step_seconds(None, stages, replicas, microbatches, steps)
    yield Straggler(None, base, 1.0, 1.0)
    for stage in (0, stages // 2, stages - 1):
        seconds = _step_seconds(stage, stages, replicas, microbatches, steps)
        yield Straggler(stage, seconds, base / seconds, base / seconds / capacity)


def _step_seconds(slow: int | None, stages: int, replicas: int, microbatches: int, steps: int) -> float:
    async def main() -> float:
        world = open_world(plan_run(stages, microbatches, steps + 1))
        for number in range(stages * replicas):
            seconds = SECONDS * (SLOWER if number == slow else 1.0)
            await world.start(f"peer{number:02d}", stage=number % stages, speed=speed_of(seconds))
        peers = [it.peer for it in world.peers.values()]
        await world.until(lambda: all(peer.history.version >= 1 for peer in peers), LIMIT_SECONDS)
        began = asyncio.get_running_loop().time()
        await world.until(lambda: all(peer.history.version > steps for peer in peers), LIMIT_SECONDS)
        ended = asyncio.get_running_loop().time()
        await world.stop()
        return (ended - began) / steps

    return run_virtual(main())


# ------------------------------------------------------------------------------------------------- a large swarm


@dataclass(frozen=True)
class Scale:
    """The figures of a swarm of some size over some time."""

    peers: int
    stages: int
    virtual_seconds: float  # since a minute after the last peer was started
    cpu_seconds: float  # for these
    joining_cpu_seconds: float  # until then
    steps: int
    microbatches: int
    lost: int
    duplicated: int
    messages: float  # requests, answers and gossip copies sent, per peer and second
    gossip: float  # gossip copies sent, per peer and second
    gossip_bytes: float  # of those copies, per peer and second
    by_kind: dict[str, float]  # messages of the most frequent kinds, per peer and second


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """The garbage of a large world is looked for less often meanwhile."""
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


async def _start_waves(world: World, peers: int, stages: int, speed: Speed) -> None:
    """Starts peers round the stages: the first alone, as it founds the run, then many at once, as machines come when
    somebody rents them.
    """
    waves = [range(1), *(range(start, min(start + WAVE, peers)) for start in range(1, peers, WAVE))]
    for wave in waves:
        await asyncio.gather(*(world.start(f"peer{number:04d}", stage=number % stages, speed=speed) for number in wave))


def measure_scale(
    peers: int,
    stages: int,
    virtual_seconds: float,
    *,
    seconds: float = 5.0,
    microbatches_per_peer: int = 6,
    on_progress: Callable[[float, int], None] = lambda seconds, version: None,
) -> Scale:
    """Runs a swarm for so many virtual seconds after the last peer was started; `seconds` is a device's time per
    microbatch. `on_progress` gets virtual seconds and the newest version now and then.
    """

    async def main() -> Scale:
        began = time.process_time()
        world = open_world(plan_run(stages, max(1, microbatches_per_peer * peers // stages), 1_000_000))
        await _start_waves(world, peers, stages, speed_of(seconds))
        loop = asyncio.get_running_loop()
        await asyncio.sleep(MEETING_SECONDS)
        gc.freeze()  # what there is by now is there to the end
        start, first, joined = loop.time(), world.network.count(), time.process_time()
        while loop.time() < start + virtual_seconds:
            await asyncio.sleep(min(PROGRESS_SECONDS, start + virtual_seconds - loop.time()))
            world.check()
            on_progress(loop.time() - start, max(it.peer.history.version for it in world.peers.values()))
        ended = time.process_time()
        last, span = world.network.count(), (loop.time() - start) * peers
        frames, sizes = last.frames - first.frames, last.bytes - first.bytes
        gossiped = ("Card", "Summary")
        newest = max((it.peer.history for it in world.peers.values()), key=lambda history: history.version)
        lines = [line for it in world.peers.values() for line in it.store.ledger]
        await world.stop()
        return Scale(
            peers=peers,
            stages=stages,
            virtual_seconds=virtual_seconds,
            cpu_seconds=ended - joined,
            joining_cpu_seconds=joined - began,
            steps=newest.version,
            microbatches=newest.version * world.run.microbatches,
            lost=sum(line["lost"] for line in lines),
            duplicated=sum(line["duplicated"] for line in lines),
            messages=sum(frames.values()) / span,
            gossip=sum(frames[kind] for kind in gossiped) / span,
            gossip_bytes=sum(sizes[kind] for kind in gossiped) / span,
            by_kind={kind: round(count / span, 4) for kind, count in frames.most_common(KINDS_SHOWN)},
        )

    with _seldom_collected():
        return run_virtual(main())
