"""The trainings of the proof: a small Llama, dozens of faults spread over all steps but the last.

Faults spare a stage's last replica with state, and a peer that dies comes back, so that the fiftieth fault finds as
much to strike as the first.
"""

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass

from swarmd.config import CodecConfig, ModelConfig, OptimizerConfig, RunConfig
from swarmd.sim.engines.reference import Symbols
from swarmd.sim.faults.commands import Join, Leave
from swarmd.sim.faults.course import Fault
from swarmd.sim.faults.draw import draw_limits, draw_link
from swarmd.sim.faults.draw_fault import DRAWS, log_uniform, neat
from swarmd.sim.faults.logical import InStep, PointFault
from swarmd.sim.faults.machines import Crash, Preemption
from swarmd.sim.faults.scenario import RECOVERY_SECONDS, SLACK, Scenario

STEPS = 20  # of promise 3
FAULTS = 50  # that strike a run, at least
DRAWN_PER_FAULT = 2.4  # some find their peer dead, or must spare a stage's last replica
DEADLY = ("crash", "power loss")  # actions at points
BACK_SECONDS = (0.2, 40.0)  # after which a dead peer is started again
LEARNING_RATE = 2.5e-3  # at 2e-2 the toy's training amplifies rounding so much that even a calm run ends 4e-5 apart
EPS = 1e-5  # of Adam. At 1e-8 a single element whose gradient is nearly zero can move by 1e-5 of its tensor's norm
# because sums were added in another order, in a plain loop as in a swarm
LONGEST_SECONDS = 130.0  # of a fault, with the time until it strikes and until a dead peer is back
HELD_UP_SECONDS = 60.0  # by a fault, on average: the longest last 90, and most hold nobody up


@dataclass(frozen=True)
class Training(Scenario):
    """A scenario in which a small Llama is trained."""

    def run_config(self) -> RunConfig:
        return RunConfig(
            name="proof",
            model=ModelConfig(
                vocabulary=128, hidden=16, ffn=32, heads=2, layers=self.stages, stages=self.stages, sequence_length=12
            ),
            optimizer=OptimizerConfig(
                learning_rate=LEARNING_RATE, eps=EPS, betas=(0.9, 0.99), warmup_steps=2, decay="constant"
            ),
            codecs=CodecConfig("fp32", "fp32", "fp32"),
            steps=self.steps,
            sequences_per_step=2 * self.microbatches,
            sequences_per_microbatch=2,
            seed=self.seed,
            validate_every=self.validate_every,
            validation_microbatches=2,
            checkpoint_every=self.checkpoint_every,
            rebalance_seconds=self.rebalance_seconds,
        )

    def safety_seconds(self) -> float:
        """Faults wait for their steps, and each may hold one up."""
        return self.liveness_seconds() + HELD_UP_SECONDS * len(self.faults)

    def patience_seconds(self) -> float:
        """A step that takes longer than this has stalled: its faults are over by then."""
        return RECOVERY_SECONDS + LONGEST_SECONDS + SLACK * self.step_seconds()


def draw_training(seed: int, faults: int = FAULTS) -> Training:
    """Three to five stages of two to four replicas, and enough faults that at least `faults` strike."""
    rng = random.Random(f"proof/{seed}")
    calm = Training(
        seed=seed,
        replicas=tuple(rng.randint(2, 4) for _ in range(rng.randint(3, 5))),
        microbatches=rng.randint(6, 10),
        steps=STEPS,
        speeds=tuple(neat(log_uniform(rng, 0.03, 0.3)) for _ in range(rng.randint(1, 4))),  # slow: room for faults
        link=draw_link(rng),
        limits=draw_limits(rng),
        symbols=Symbols(activation_bytes=1536),  # 2 sequences x 12 tokens x 16 wide in fp32
        validate_every=rng.choice((0, 5)),
        checkpoint_every=rng.choice((0, 5)),
    )
    return dataclasses.replace(calm, faults=tuple(draw_spread(rng, calm, round(DRAWN_PER_FAULT * faults))))


def draw_spread(rng: random.Random, calm: Training, count: int) -> Iterator[Fault]:
    """Faults of every kind, so many in all, as many in each step but the last."""
    kinds = list(DRAWS)
    weights = [DRAWS[kind][0] for kind in kinds]
    for number in range(count):
        step = 1 + number * (calm.steps - 1) // count
        kind = rng.choices(kinds, weights)[0]
        drawn = DRAWS[kind][1](rng, calm, neat(rng.uniform(0, calm.step_seconds())), number)
        if isinstance(drawn, PointFault) and drawn.step is not None:
            drawn = dataclasses.replace(drawn, at_s=0.0, step=step)
        yield InStep(0.0, step, lasting_only(rng, drawn))
        if isinstance(drawn, Leave):
            later_s = neat(drawn.at_s + log_uniform(rng, *BACK_SECONDS))
            yield InStep(0.0, step, Join(later_s, f"heir{number}", calm.peers[drawn.peer]))


def lasting_only(rng: random.Random, fault: Fault) -> Fault:
    """The same fault, but a peer that dies of it comes back."""
    if isinstance(fault, PointFault) and fault.action not in DEADLY:
        return fault
    if isinstance(fault, Crash | Preemption | PointFault) and fault.back_s is None:
        return dataclasses.replace(fault, back_s=neat(log_uniform(rng, *BACK_SECONDS)))
    return fault
