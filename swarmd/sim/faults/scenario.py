"""A scenario: a small swarm, its machines and network, and the faults that strike it.

Plain data that prints as Python, so a scenario that found something can be kept (`named.py`) and written by hand. How
one seed draws all of it is `draw.py`; how it is played, `play.py`.
"""

import dataclasses
from dataclasses import dataclass, field

from swarmd.config import CodecConfig, LimitsConfig, ModelConfig, OptimizerConfig, RunConfig
from swarmd.sim.engines.reference import Symbols
from swarmd.sim.faults.course import Fault
from swarmd.sim.world.device import Speed
from swarmd.sim.world.network import LinkSpec
from swarmd.values import PeerId

SLACK = 20.0  # a step may take so many times what the scenario's own speeds make of it, faults aside
RECOVERY_SECONDS = 400.0  # to notice and mend what happened before the healing: the sum of production's longest
# patiences on one path (silence of a peer 120 s, a fork 30 s, doubled bans 60 s, a round's repairs 120 s, retries)

LINK, LIMITS, SYMBOLS = LinkSpec(), LimitsConfig(), Symbols()  # what a scenario has where it says nothing else


@dataclass(frozen=True)
class Scenario:
    """Everything that decides how a run in virtual time goes."""

    seed: int = 0
    replicas: tuple[int, ...] = (2, 2)  # of each stage
    microbatches: int = 8
    steps: int = 5
    speeds: tuple[float, ...] = (0.01,)  # seconds of a forward, by peer in order, over and over; a backward takes twice
    link: LinkSpec = LINK
    uplinks: tuple[float, ...] = ()  # bytes a second, by peer in order, over and over; empty: the link's
    downlinks: tuple[float, ...] = ()
    limits: LimitsConfig = LIMITS
    symbols: Symbols = SYMBOLS
    open_seconds: float = 0.0  # that a device takes to open a stage
    chunk_bytes: int = 1024  # of a state on its way to a joiner
    validate_every: int = 0
    checkpoint_every: int = 0
    rebalance_seconds: float = 0.0  # 0: nobody moves of its own accord
    faults: tuple[Fault, ...] = ()
    story: str = field(default="", compare=False)

    @property
    def stages(self) -> int:
        return len(self.replicas)

    @property
    def peers(self) -> dict[PeerId, int]:
        """The peers that are there from the start, with their stages; the first founds the run."""
        return {
            f"{name_of(stage, self.stages)}{number}": stage
            for number in range(1, max(self.replicas) + 1)
            for stage, count in enumerate(self.replicas)
            if number <= count
        }

    def speed(self, peer: PeerId) -> Speed:
        """The speed of a peer's device; newcomers are as fast as those they resemble."""
        forward_s = self.speeds[self._place(peer) % len(self.speeds)]
        return Speed(forward_s, 2 * forward_s, min(0.002, forward_s), open_s=self.open_seconds)

    def uplink(self, peer: PeerId) -> float | None:
        return self.uplinks[self._place(peer) % len(self.uplinks)] if self.uplinks else None

    def downlink(self, peer: PeerId) -> float | None:
        return self.downlinks[self._place(peer) % len(self.downlinks)] if self.downlinks else None

    def _place(self, peer: PeerId) -> int:
        names = list(self.peers)
        return names.index(peer) if peer in names else sum(map(ord, peer))

    def run_config(self) -> RunConfig:
        """The run. Widths are those of a toy: nobody computes with them, but all stages seem about as hard."""
        return RunConfig(
            name="symbols",
            model=ModelConfig(8, 2, 100, 1, self.stages, self.stages, 4),
            optimizer=OptimizerConfig(learning_rate=0.5, warmup_steps=2, decay="linear"),
            codecs=CodecConfig("fp32", "fp32", "fp32"),
            steps=self.steps,
            sequences_per_step=self.microbatches,
            sequences_per_microbatch=1,
            seed=self.seed,
            validate_every=self.validate_every,
            validation_microbatches=2,
            checkpoint_every=self.checkpoint_every,
            rebalance_seconds=self.rebalance_seconds,
        )

    def step_seconds(self) -> float:
        """Seconds of a step without faults, roughly: the way of one microbatch, the time that the slowest stage needs
        for all of them, and the round.
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
        """Seconds of a small frame from one peer to another."""
        slowest = min((self.link.bytes_per_second, *self.uplinks, *self.downlinks))
        return self.link.delay_s + self.link.jitter_s + (500 + self.symbols.activation_bytes) / slowest

    def run_seconds(self) -> float:
        """Seconds of the whole run without faults, roughly."""
        return self.steps * self.step_seconds()

    def safety_seconds(self) -> float:
        """Seconds in which faults may strike."""
        return self.run_seconds()

    def liveness_seconds(self) -> float:
        """Seconds within which the rest of the run must be done once everything is healed."""
        return RECOVERY_SECONDS + SLACK * self.run_seconds()

    def text(self) -> str:
        """The scenario as Python, one setting a line, without those that have their defaults."""
        lines = []
        for it in dataclasses.fields(self):
            value = getattr(self, it.name)
            if it.name in ("faults", "story") or value == it.default:
                continue
            lines.append(f"    {it.name}={short(value)},")
        faults = [f"        {short(fault)}," for fault in self.faults]
        if faults:
            lines += ["    faults=(", *faults, "    ),"]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def short(value: object) -> str:
    """A dataclass as Python without its defaults; numbers with few digits."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = [it for it in dataclasses.fields(value) if getattr(value, it.name) != it.default]
        return f"{type(value).__name__}({', '.join(f'{it.name}={short(getattr(value, it.name))}' for it in given)})"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(short, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)


def name_of(stage: int, stages: int) -> str:
    """The name of a stage's peers, without their number."""
    if stage == 0:
        return "head"
    if stage == stages - 1:
        return "tail"
    return "middle" if stages == 3 else f"stage{stage}x"
