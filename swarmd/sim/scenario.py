"""A scenario: a small swarm, its machines and network, and what befalls it; and how one seed draws all of it.

Plain data that prints as Python, so a scenario that found something can be kept (`named.py`) and written by hand. How
it is played is `play.py`.
"""

import dataclasses
import math
import random
from dataclasses import dataclass, field

from swarmd.config import CodecConfig, LimitsConfig, ModelConfig, OptimizerConfig, RunConfig
from swarmd.sim.compute import Speed
from swarmd.sim.faults import (
    Clog,
    Corruption,
    Crash,
    Cut,
    Fault,
    Hang,
    Join,
    Leave,
    OneWay,
    Partition,
    Pause,
    PointFault,
    Preemption,
    Slowdown,
)
from swarmd.sim.network import Link
from swarmd.sim.points import all_points
from swarmd.sim.reference import Symbols
from swarmd.values import PeerId

FAULTS_AT_MOST = 10  # of a drawn scenario
SLACK = 20.0  # a step may take so many times what the scenario's own speeds make of it, faults aside
RECOVERY_SECONDS = 400.0  # to notice and mend what happened before the healing: the sum of production's longest
# patiences on one path (silence of a peer 120 s, a fork 30 s, doubled bans 60 s, a round's repairs 120 s, retries)
SAFETY_SHARE = 0.7  # faults strike within this share of what the run takes without them
GIB = 1 << 30

LINK, LIMITS, SYMBOLS = Link(), LimitsConfig(), Symbols()  # what a scenario has where it says nothing else


@dataclass(frozen=True)
class Scenario:
    """Everything that decides how a run in virtual time goes."""

    seed: int = 0
    replicas: tuple[int, ...] = (2, 2)  # of each stage
    microbatches: int = 8
    steps: int = 5
    speeds: tuple[float, ...] = (0.01,)  # seconds of a forward, by peer in order, over and over; a backward takes twice
    link: Link = LINK
    uplinks: tuple[float, ...] = ()  # bytes a second, by peer in order, over and over; empty: the link's
    limits: LimitsConfig = LIMITS
    symbols: Symbols = SYMBOLS
    chunk_bytes: int = 1024  # of a state on its way to a joiner
    validate_every: int = 0
    checkpoint_every: int = 0
    faults: tuple[Fault, ...] = ()
    story: str = field(default="", compare=False)

    @property
    def stages(self) -> int:
        return len(self.replicas)

    @property
    def peers(self) -> dict[PeerId, int]:
        """Who is there from the start, and at which stage; the first founds the run."""
        return {
            f"{name_of(stage, self.stages)}{number}": stage
            for number in range(1, max(self.replicas) + 1)
            for stage, count in enumerate(self.replicas)
            if number <= count
        }

    def speed(self, peer: PeerId) -> Speed:
        """Of a peer's device; newcomers are as fast as those they resemble."""
        forward_s = self.speeds[self._place(peer) % len(self.speeds)]
        return Speed(forward_s, 2 * forward_s, min(0.002, forward_s))

    def uplink(self, peer: PeerId) -> float | None:
        return self.uplinks[self._place(peer) % len(self.uplinks)] if self.uplinks else None

    def _place(self, peer: PeerId) -> int:
        names = list(self.peers)
        return names.index(peer) if peer in names else sum(map(ord, peer))

    def run_config(self) -> RunConfig:
        """The run. Widths are those of a toy: nobody computes with them."""
        return RunConfig(
            name="symbols",
            model=ModelConfig(8, 2, 2, 1, self.stages, self.stages, 4),
            optimizer=OptimizerConfig(learning_rate=0.5, warmup_steps=2, decay="linear"),
            codecs=CodecConfig("fp32", "fp32", "fp32"),
            steps=self.steps,
            sequences_per_step=self.microbatches,
            sequences_per_microbatch=1,
            seed=self.seed,
            validate_every=self.validate_every,
            validation_microbatches=2,
            checkpoint_every=self.checkpoint_every,
        )

    def step_seconds(self) -> float:
        """What a step takes without faults, roughly: the way of one microbatch, what the slowest stage needs for all
        of them, and the round.
        """
        peers = self.peers
        rates = [
            sum(1 / (3 * self.speed(peer).forward_s) for peer, at in peers.items() if at == stage)
            for stage in range(self.stages)
        ]
        slowest = max(self.speed(peer).forward_s for peer in peers)
        way = self.stages * (3 * slowest + 2 * self.frame_seconds())
        at_once = self.replicas[0] * min(2, self.limits.in_flight_hops)
        narrow = max(1.0, self.replicas[0] / min(self.replicas)) if self.limits.in_flight_hops < 4 else 1.0
        return way + self.microbatches * max(1 / min(rates), narrow * way / at_once) + 12 * self.frame_seconds()

    def frame_seconds(self) -> float:
        """What a small frame takes from one peer to another."""
        slowest = min((self.link.bytes_per_second, *self.uplinks))
        return self.link.delay_s + self.link.jitter_s + (500 + self.symbols.activation_bytes) / slowest

    def run_seconds(self) -> float:
        """What the whole run takes without faults, roughly."""
        return self.steps * self.step_seconds()

    def liveness_seconds(self) -> float:
        """Within which the rest of the run must be done once everything is healed."""
        return RECOVERY_SECONDS + SLACK * self.run_seconds()

    def text(self) -> str:
        """As Python, one setting a line, and only what differs from the defaults."""
        lines = []
        for it in dataclasses.fields(self):
            value = getattr(self, it.name)
            if it.name in ("faults", "story") or value == it.default:
                continue
            lines.append(f"    {it.name}={short(value)},")
        faults = [f"        {short(fault)}," for fault in self.faults]
        if faults:
            lines += ["    faults=(", *faults, "    ),"]
        return "\n".join(["Scenario(", *lines, ")"])


def short(value: object) -> str:
    """A dataclass as Python without its defaults; numbers with few digits."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = [it for it in dataclasses.fields(value) if getattr(value, it.name) != it.default]
        return f"{type(value).__name__}({', '.join(f'{it.name}={short(getattr(value, it.name))}' for it in given)})"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(short, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)


def name_of(stage: int, stages: int) -> str:
    """What a stage's peers are called."""
    if stage == 0:
        return "head"
    if stage == stages - 1:
        return "tail"
    return "middle" if stages == 3 else f"stage{stage}x"


# ------------------------------------------------------------------------------------------------- drawing


def draw_scenario(seed: int) -> Scenario:
    """Everything from one seed. Sizes are mostly small: most bugs need few peers, and small runs are quick."""
    rng = random.Random(f"scenario/{seed}")
    stages = rng.choices((1, 2, 3, 4, 5), (1, 4, 4, 1, 1))[0]
    calm = Scenario(
        seed=seed,
        replicas=tuple(rng.choices((1, 2, 3, 4), (2, 5, 2, 1))[0] for _ in range(stages)),
        microbatches=min(40, 2 + int(rng.expovariate(1 / 7))),
        steps=rng.randint(3, 7),
        speeds=tuple(neat(log_uniform(rng, 0.002, 0.08)) for _ in range(rng.randint(1, 4))),
        link=draw_link(rng),
        uplinks=tuple(neat(log_uniform(rng, 2e4, 1e7)) for _ in range(3)) if rng.random() < 0.2 else (),
        limits=draw_limits(rng),
        symbols=Symbols(
            activation_bytes=rng.choice((128, 256, 2048)),
            state_bytes=rng.choice((500, 4_000, 20_000)),
            spoiled=rng.choice((0.0, 0.0, 0.0, 0.02)),
        ),
        validate_every=rng.choice((0, 0, 2)),
        checkpoint_every=rng.choice((0, 0, 2)),
    )
    return dataclasses.replace(calm, faults=draw_faults(rng, calm))


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """Every order of magnitude as often."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def neat(value: float) -> float:
    """Two digits are enough, and can be read."""
    return float(f"{value:.2g}")


def draw_link(rng: random.Random) -> Link:
    """From a rack to the other side of the earth."""
    delay_s = neat(log_uniform(rng, 0.0003, 0.1))
    return Link(
        delay_s=delay_s,
        bytes_per_second=neat(log_uniform(rng, 1e5, 1e8)),
        jitter_s=neat(delay_s * rng.choice((0.0, 0.0, 0.5, 3.0))),
        loss=rng.choice((0.0, 0.0, 0.0, 0.01, 0.05)),
    )


def draw_limits(rng: random.Random) -> LimitsConfig:
    """Often far too tight."""
    if rng.random() < 0.4:
        return LimitsConfig()
    return LimitsConfig(
        in_flight_bytes=rng.choice((1, 1000, 2 * GIB)),
        in_flight_hops=rng.choice((1, 2, 3, 8, 64)),
        retained_bytes=rng.choice((0, 400, 3000, 4 * GIB)),
        held_gradients=rng.choice((1, 2, 4)),
    )


def draw_faults(rng: random.Random, calm: Scenario) -> tuple[Fault, ...]:
    """A few kinds of faults for each scenario, so that those that need each other meet without being drowned."""
    kinds = rng.sample(list(DRAWS), rng.randint(1, 3))
    weights = [DRAWS[kind][0] for kind in kinds]
    span = SAFETY_SHARE * calm.run_seconds()
    faults = []
    for number in range(rng.randint(1, FAULTS_AT_MOST)):
        kind = rng.choices(kinds, weights)[0]
        faults.append(DRAWS[kind][1](rng, calm, neat(rng.uniform(0, span)), number))
    return tuple(sorted(faults, key=lambda fault: (fault.at_s, repr(fault))))


def lasting(rng: random.Random, calm: Scenario) -> float:
    """How long a fault lasts: some are blinks, some outlast every patience of the swarm."""
    return neat(
        rng.choice((log_uniform(rng, 0.01, 3.0), calm.step_seconds() * rng.uniform(0.2, 3), rng.uniform(3, 90)))
    )


def one(rng: random.Random, calm: Scenario) -> PeerId:
    """Any peer that is there from the start."""
    return rng.choice(list(calm.peers))


def two(rng: random.Random, calm: Scenario) -> tuple[PeerId, PeerId]:
    """Two different ones, if there are two."""
    names = list(calm.peers)
    first = rng.choice(names)
    return first, rng.choice([name for name in names if name != first] or [first])


def back(rng: random.Random) -> float | None:
    """When a dead peer is started again."""
    return None if rng.random() < 0.4 else neat(log_uniform(rng, 0.2, 40.0))


def _crash(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Crash(at_s, one(rng, calm), rng.random() < 0.4, back(rng), rng.random() < 0.5)


def _preemption(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    names = list(calm.peers)
    return Preemption(at_s, tuple(sorted(rng.sample(names, max(1, len(names) // 2)))), back(rng))


def _join(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Join(at_s, f"newcomer{number}", rng.choice((None, rng.randrange(calm.stages))))


def _leave(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Leave(at_s, one(rng, calm))


def _pause(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Pause(at_s, one(rng, calm), lasting(rng, calm))


def _hang(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Hang(at_s, one(rng, calm), lasting(rng, calm))


def _slowdown(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Slowdown(at_s, one(rng, calm), rng.choice((3.0, 10.0, 100.0)), lasting(rng, calm))


def _partition(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    names = list(calm.peers)
    rng.shuffle(names)
    cut = rng.randint(1, max(1, len(names) - 1))
    return Partition(at_s, (tuple(sorted(names[:cut])), tuple(sorted(names[cut:]))), lasting(rng, calm))


def _one_way(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return OneWay(at_s, *two(rng, calm), lasting(rng, calm))


def _clog(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Clog(at_s, *two(rng, calm), lasting(rng, calm))


def _cut(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Cut(at_s, *two(rng, calm))


def _corruption(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Corruption(at_s, one(rng, calm), rng.choice((0.02, 0.2)), lasting(rng, calm))


def _point(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    peer, other = two(rng, calm)
    action = rng.choice(("crash", "crash", "power loss", "pause", "cut"))
    return PointFault(
        at_s=0.0,
        peer=peer,
        step=rng.randint(1, calm.steps - 1),
        point=rng.choice(all_points()),
        action=action,
        other=other if action == "cut" else "",
        seconds=lasting(rng, calm) if action == "pause" else 0.0,
        back_s=back(rng) if action in ("crash", "power loss") else None,
    )


DRAWS = {
    Crash.kind: (3, _crash),
    Preemption.kind: (1, _preemption),
    Join.kind: (2, _join),
    Leave.kind: (1, _leave),
    Pause.kind: (3, _pause),
    Hang.kind: (1, _hang),
    Slowdown.kind: (1, _slowdown),
    Partition.kind: (2, _partition),
    OneWay.kind: (2, _one_way),
    Clog.kind: (2, _clog),
    Cut.kind: (4, _cut),
    Corruption.kind: (1, _corruption),
    PointFault.kind: (5, _point),
}
"""How often a kind is drawn among those that a scenario has, and how."""
