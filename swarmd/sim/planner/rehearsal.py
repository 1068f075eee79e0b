"""One step of a planned swarm in virtual time: production peers, pretended devices and links, nothing computed.

Takes peers with their stage, speeds and links; gives how long a step takes, how fast microbatches come out in the
middle of it, and how busy everybody is meanwhile. Knows no device by name and no plan.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from swarmd.config import CodecName, LimitsConfig, RunConfig
from swarmd.sim.engines.phantom import NoText, PhantomEngine, encoded
from swarmd.sim.planner.costs import StageSpeed, WireFormat
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.machine import Host
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.history.listener import HistoryListener
from swarmd.swarm.history.record import Record
from swarmd.values import BackwardResult, Encoded, HopId, TailResult

WINDOW = (0.25, 0.80)  # of a step's microbatches: the swarm is full by the first and not yet draining at the second
MIDDLE_SHARE = 0.1  # of a step, below which its middle is a burst, which says nothing of devices and links
LIMIT_SECONDS = 1e7  # virtual; a plan that takes longer for two steps is none
WARM_STEPS = 1  # until everyone has measured everyone
MEASURED_STEP = WARM_STEPS + 1

Story = Callable[[World], Coroutine[Any, Any, None]]
"""Events that are played in a world once all its peers were started; its actors are called `peer0000` and so on."""


@dataclass(frozen=True)
class Actor:
    """One peer of the rehearsal."""

    stage: int
    speed: StageSpeed
    up: float  # bytes/s
    down: float
    host: int | None = None  # several on one computer have its number


@dataclass(frozen=True)
class ActorFigures:
    """One actor's figures in the middle of the measured step."""

    microbatches: float  # per second
    busy: float  # share of the time that its device computed
    sent: float  # share of its uplink that hops took
    received: float

    def at(self, share: float) -> "ActorFigures":
        """The figures of one that gets only so much of the work."""
        return ActorFigures(*(share * value for value in (self.microbatches, self.busy, self.sent, self.received)))


@dataclass(frozen=True)
class RehearsalFigures:
    """The figures of a rehearsal."""

    step_s: float
    rate: float  # microbatches per second in the middle of the step
    middle: tuple[float, float]  # seconds of the step between which that was
    actors: tuple[ActorFigures, ...]
    traffic: tuple[tuple[float, float], ...]  # bytes sent and received by each actor in the whole measured step


class MeteredEngine(PhantomEngine):
    """A phantom of the plan's sizes that notes when it did what of the measured step."""

    codecs = ("fp32", "fp16", "bf16", "int8")

    def __init__(self, run: RunConfig, stage: int, parameters: int, wire: WireFormat) -> None:
        super().__init__(run, stage, parameters)
        self._wire = wire
        self.done: list[tuple[float, bool]] = []  # when, and whether it was a forward

    def _activation(self, codec: str) -> Encoded:
        model, wire = self.run.model, self._wire
        shape = (self.run.sequences_per_microbatch, model.sequence_length, model.hidden // wire.factor)
        return encoded(codec, shape, wire.bytes_per_element)

    def forward(self, hop: HopId, *args: Any, **options: Any) -> Encoded:
        result = super().forward(hop, *args, **options)
        self._note(hop, forward=True)
        return result

    def backward(self, hop: HopId, *args: Any, **options: Any) -> BackwardResult:
        result = super().backward(hop, *args, **options)
        self._note(hop, forward=False)
        return result

    def tail(self, hop: HopId, *args: Any, **options: Any) -> TailResult:
        result = super().tail(hop, *args, **options)
        self._note(hop, forward=True)
        self._note(hop, forward=False)
        return result

    def _note(self, hop: HopId, *, forward: bool) -> None:
        if hop.step == MEASURED_STEP:
            self.done.append((asyncio.get_running_loop().time(), forward))


class Progress(HistoryListener):
    """The moments at which a peer came to its versions, and the bytes that it had sent and received by then."""

    def __init__(self, it: SimPeer) -> None:
        self._transport = it.transport
        self.reached: dict[int, float] = {}  # version -> loop time
        self.traffic: dict[int, tuple[float, float]] = {}  # version -> bytes sent, bytes received
        it.peer.history.listen(self)

    def on_record(self, record: Record) -> None:
        sent, received = self._transport.traffic()
        self.reached[record.step] = asyncio.get_running_loop().time()
        self.traffic[record.step] = float(sent), float(received)

    def bytes_between(self, before: int, after: int) -> tuple[float, float]:
        """Bytes sent and received between two versions."""
        (sent, received), (sent_by_then, received_by_then) = self.traffic[before], self.traffic[after]
        return sent_by_then - sent, received_by_then - received


def _code(wire: WireFormat) -> CodecName:
    """The name that peers agree on; sizes are the wire's own."""
    assert wire.codec in ("fp32", "fp16", "bf16", "int8")
    return cast("CodecName", wire.codec)


@dataclass(frozen=True)
class Rehearsal:
    """The swarm and the step that are rehearsed."""

    run: RunConfig
    actors: Sequence[Actor]
    wire: WireFormat
    rtt_s: float
    parameters: Sequence[int]  # of each stage, for the traffic of its round
    crowd: Sequence[float] = (1.0,)  # as in `Host`, for actors that share a computer
    seed: int = 0
    story: Story | None = None  # events meanwhile

    def short_run(self) -> RunConfig:
        """The run, of so many steps as are played. Nobody moves: the placement is what is asked about."""
        averaging = "int8" if self.run.codecs.averaging == "int8-bnb" else self.run.codecs.averaging
        codecs = replace(self.run.codecs, activations=_code(self.wire), gradients=_code(self.wire), averaging=averaging)
        return replace(
            self.run,
            codecs=codecs,
            steps=WARM_STEPS + 2,
            validate_every=0,
            checkpoint_every=1 << 30,
            rebalance_seconds=0.0,
        )


def rehearse(it: Rehearsal) -> RehearsalFigures:
    """Plays the first two steps of the run and measures the second."""
    return run_virtual(_play(it, it.short_run()))


async def _play(it: Rehearsal, run: RunConfig) -> RehearsalFigures:
    world, progress = await _open(it, run)
    peers = list(world.peers.values())
    if it.story is not None:
        world.spawn(it.story(world))
    await world.until(lambda: all(MEASURED_STEP in each.reached for each in progress), LIMIT_SECONDS)
    await world.stop()
    opened: list[Any] = [each.compute.engine for each in peers if each.compute is not None]
    engines: list[MeteredEngine] = [engine for engine in opened if isinstance(engine, MeteredEngine)]
    assert len(engines) == len(it.actors), "every actor has a stage from the start"
    # By the last peer to apply a record: others may have begun the next step's microbatches by then.
    began, ended = (max(each.reached[version] for each in progress) for version in (WARM_STEPS, MEASURED_STEP))
    first, last, rate = _window(run, engines, began, ended)
    return RehearsalFigures(
        step_s=ended - began,
        rate=rate,
        middle=(first - began, last - began),
        actors=tuple(
            _measure(run, actor, engine, it.wire, first, last, whole=first == began)
            for actor, engine in zip(it.actors, engines, strict=True)
        ),
        traffic=tuple(each.bytes_between(WARM_STEPS, MEASURED_STEP) for each in progress),
    )


async def _open(it: Rehearsal, run: RunConfig) -> tuple[World, list[Progress]]:
    """A world with all actors in it, and how far each of them comes."""

    def open_engine(run: RunConfig, stage: int) -> MeteredEngine:
        return MeteredEngine(run, stage, it.parameters[stage], it.wire)

    world = World(run, NoText(run), seed=it.seed, link=LinkSpec(delay_s=it.rtt_s / 2), engine=open_engine)
    hosts: dict[int, Host] = {}
    progress = []
    for number, actor in enumerate(it.actors):
        peer = await world.start(
            f"peer{number:04d}",
            stage=actor.stage,
            speed=actor.speed.speed(),
            limits=LimitsConfig(),
            uplink=actor.up,
            downlink=actor.down,
        )
        progress.append(Progress(peer))
        if actor.host is not None:
            peer.machine.host = hosts.setdefault(actor.host, Host(it.crowd))
    return world, progress


def _window(run: RunConfig, engines: Sequence[MeteredEngine], began: float, ended: float) -> tuple[float, float, float]:
    """The middle of the step, and microbatches per second that came back to the heads in it."""
    tails = [engine for engine in engines if engine.stage == run.model.stages - 1]
    finished = sorted(at for engine in tails for at, forward in engine.done if not forward)
    assert finished, "a step ends once the last stage has trained all its microbatches"
    first, last = int(WINDOW[0] * len(finished)), max(1, int(WINDOW[1] * len(finished)))
    seconds = finished[last - 1] - finished[first] if last - first >= 2 else 0.0
    rests = not all(_works(engines, stage, finished[first], finished[last - 1]) for stage in range(run.model.stages))
    if rests or seconds < MIDDLE_SHARE * (ended - began):  # so short a step is all filling and draining
        return began, ended, len(finished) / (ended - began)
    return finished[first], finished[last - 1], (last - 1 - first) / seconds


def _works(engines: Sequence[MeteredEngine], stage: int, first: float, last: float) -> bool:
    """Tells if a stage computes both ways between these times."""
    done = [it for engine in engines if engine.stage == stage for it in engine.done if first < it[0] <= last]
    return len({forward for _, forward in done}) == 2


def _measure(
    run: RunConfig, actor: Actor, engine: MeteredEngine, wire: WireFormat, first: float, last: float, *, whole: bool
) -> ActorFigures:
    """The figures of an actor between two times, which may be those of the `whole` step."""
    seconds = last - first
    during = [forward for at, forward in engine.done if whole or first < at <= last]
    forwards, backwards = during.count(True), during.count(False)
    busy = forwards * actor.speed.forward_s + backwards * actor.speed.backward_s
    tensor = wire.nbytes(run)
    onward, back = actor.stage < run.model.stages - 1, actor.stage > 0
    sent = tensor * (forwards * onward + backwards * back)
    received = tensor * (forwards * back + backwards * onward)
    return ActorFigures(backwards / seconds, busy / seconds, sent / seconds / actor.up, received / seconds / actor.down)
