"""The policies of routing beside each other: how much of a stage's speed each of them uses where peers are unequal,
change, are badly connected, or say late how they are.

Production peers in virtual time (`rehearsal.py`), nothing computed. There are three stages, and the middle one is the
tightest: heads and tails together have twice its speed. What is measured is a share of the sum of its peers' speeds.
"""

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swarmd.config import RoutingPolicy, RunConfig
from swarmd.sim.measure.figures import HOME_LINK, LIMIT_SECONDS, SLOWER, plan_run
from swarmd.sim.planner.costs import StageSpeed, WireFormat, find_wire
from swarmd.sim.planner.rehearsal import WARM_STEPS, Actor, Rehearsal, Story, rehearse
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.world.world import World

POLICIES: tuple[RoutingPolicy, ...] = ("iwrr", "weighted", "p2c")
SECONDS = 3.0  # of a peer of speed 1 per microbatch, a third of it forward: a tensor of 8 MB takes 0.14 s of its line
SPARE = 2.0  # times the middle stage's speed have the heads, and the tails
TAILS = 3
MICROBATCHES = 60  # per step and unit of the middle stage's speed: filling and draining take a few of them
LAG_SECONDS = 30.0  # by which gossip comes late, where it does
LAG_SLOPE = 0.25  # seconds of it more per second, until it is so large: at once, heartbeats would seem to have ceased
FAR_SECONDS = 0.75  # one way to the distant peer: half a microbatch there and back
THIN_SHARE = 0.5  # of its device's microbatches get through the thin line


@dataclass(frozen=True)
class Situation:
    """A swarm in which the policies are compared. Events of a single peer concern the first of the middle stage."""

    name: str
    speeds: tuple[float, ...]  # of the middle stage's peers; 1.0 takes SECONDS per microbatch
    heads: int = 2
    lag_s: float = 0.0  # of all gossip, cards with queues among it
    slows: bool = False  # in the middle of the measured step it becomes SLOWER
    far: bool = False
    thin: bool = False

    @property
    def power(self) -> float:
        """The middle stage's speed."""
        return sum(self.speeds)


EVEN, UNEVEN, ONE_SLOW = (1.0,) * 6, (1.0, 1.0, 2.0, 2.0, 4.0, 4.0), (1.0 / SLOWER, *(1.0,) * 5)
SITUATIONS = (
    Situation("even speeds", EVEN),
    Situation("speeds 1, 2, 4", UNEVEN),
    Situation("one ten times slower", ONE_SLOW),
    Situation("one becomes ten times slower", EVEN, slows=True),
    Situation("speeds 1, 2, 4, cards 30 s late", UNEVEN, lag_s=LAG_SECONDS),
    Situation("one becomes slower, cards 30 s late", EVEN, lag_s=LAG_SECONDS, slows=True),
    Situation("one far away", EVEN, far=True),
    Situation("one behind a thin line", EVEN, thin=True),
    Situation("eight heads, speeds 1, 2, 4", UNEVEN, heads=8),
    Situation("eight heads, cards 30 s late", UNEVEN, heads=8, lag_s=LAG_SECONDS),
)


@dataclass(frozen=True)
class PolicyFigures:
    """The figures of one policy in one situation."""

    situation: str
    policy: RoutingPolicy
    seed: int
    speeds: tuple[float, ...]  # of the middle stage's peers
    used: float  # microbatches per second in the middle of the step, over the sum of the speeds
    used_in_step: float  # the same over the whole step: filling, draining and averaging are in it
    shares: tuple[float, ...]  # each middle peer's of the microbatches, over its share in the sum of the speeds


def compare(seeds: int, *, named: str = "", microbatches: int = MICROBATCHES) -> Iterator[PolicyFigures]:
    """Every policy in every situation whose name has this in it."""
    for situation in SITUATIONS:
        if named in situation.name:
            for policy in POLICIES:
                for seed in range(seeds):
                    yield measure(situation, policy, seed, microbatches)


def measure(situation: Situation, policy: RoutingPolicy, seed: int, microbatches: int = MICROBATCHES) -> PolicyFigures:
    """Plays two steps, and measures the second from a quarter to four fifths of its microbatches (`rehearsal.py`)."""
    wire = find_wire("int8")
    run = plan_run(3, round(microbatches * situation.power), WARM_STEPS + 1)
    run = dataclasses.replace(run, routing=policy)
    slows_s = run.microbatches * SECONDS / situation.power / 2
    done = rehearse(
        Rehearsal(
            run,
            plan_actors(situation, run, wire),
            wire,
            rtt_s=2 * HOME_LINK.delay_s,
            parameters=[1] * 3,
            seed=seed,
            story=story_of(situation, slows_s),
        )
    )
    speeds = mean_speeds(situation, slows_s, *done.middle)
    counts = [it.microbatches for it in done.actors[situation.heads : -TAILS]]
    in_step = run.microbatches / done.step_s * SECONDS / sum(mean_speeds(situation, slows_s, 0.0, done.step_s))
    return PolicyFigures(
        situation.name,
        policy,
        seed,
        situation.speeds,
        used=done.rate * SECONDS / sum(speeds),
        used_in_step=in_step,
        shares=tuple(count / sum(counts) / (speed / sum(speeds)) for count, speed in zip(counts, speeds, strict=True)),
    )


def plan_actors(situation: Situation, run: RunConfig, wire: WireFormat) -> list[Actor]:
    """Heads, middle peers, tails. A middle peer sends and receives an activation and a gradient per microbatch."""
    rate = HOME_LINK.bytes_per_second
    thin = THIN_SHARE * situation.speeds[0] / SECONDS * 2 * wire.nbytes(run)
    lines = [thin if situation.thin else rate, *(rate for _ in situation.speeds[1:])]
    return [
        *(Actor(0, _device(SPARE * situation.power / situation.heads), rate, rate) for _ in range(situation.heads)),
        *(Actor(1, _device(it), line, line) for it, line in zip(situation.speeds, lines, strict=True)),
        *(Actor(2, _device(SPARE * situation.power / TAILS), rate, rate) for _ in range(TAILS)),
    ]


def _device(speed: float) -> StageSpeed:
    return StageSpeed(SECONDS / speed / 3, 2 * SECONDS / speed / 3, 0.0, {})


def story_of(situation: Situation, slows_s: float) -> Story:
    """The events of a situation. `slows_s`: seconds after the measured step began."""

    async def story(world: World) -> None:
        victim = list(world.peers)[situation.heads]
        if situation.far:
            for other in world.peers:
                world.network.set_link(victim, other, LinkSpec(FAR_SECONDS))
                world.network.set_link(other, victim, LinkSpec(FAR_SECONDS))
        while world.network.gossip_lag_s < situation.lag_s:
            await asyncio.sleep(1.0)
            world.network.gossip_lag_s += LAG_SLOPE
        if situation.slows:
            peers = [it.peer for it in world.peers.values()]
            await world.until(lambda: all(it.history.version >= WARM_STEPS for it in peers), LIMIT_SECONDS)
            await asyncio.sleep(slows_s)
            world.slow(victim, SLOWER)

    return story


def mean_speeds(situation: Situation, slows_s: float, start_s: float, end_s: float) -> Sequence[float]:
    """Mean speeds of the middle peers between two moments of the measured step; a thin line's is what gets through."""
    first = situation.speeds[0] * (THIN_SHARE if situation.thin else 1.0)
    if situation.slows:
        before = min(1.0, max(0.0, (slows_s - start_s) / (end_s - start_s)))
        first *= before + (1.0 - before) / SLOWER
    return (first, *situation.speeds[1:])
