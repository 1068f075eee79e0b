"""The square-cube law: how busy devices are when a stage's compute grows like the cube of the width and its traffic
like the square.

The paper's four models (Ryabinin et al. 2023, section 4.1) at 500 Mb/s and five latencies, simulated with the
production code, beside the figures that the paper measured. One peer per stage, a V100 each, no averaging: utilisation
is that of the middle of a step, where the pipeline is full.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from swarmd.config import ModelConfig, RunConfig
from swarmd.sim.planner import costs
from swarmd.sim.planner.costs import WireFormat
from swarmd.sim.planner.devices import DEVICES, Device
from swarmd.sim.planner.rehearsal import Actor, Rehearsal, rehearse

RTTS_S = (0.0, 0.010, 0.050, 0.100, 0.200)
LINK_BYTES_PER_SECOND = 500e6 / 8
STAGES = 4
MICROBATCHES = 160  # 40 for each stage: the middle half of them is steady
DEVICE = "V100"
DTYPE = "fp16"  # as the paper; V100s have no bf16
SMALL_VOCABULARY = 2  # embedding and unembedding are left out, so that all stages are alike


@dataclass(frozen=True)
class Shape:
    """One of the paper's configurations. The tokens of a microbatch are reported, not published."""

    name: str
    hidden: int
    ffn: int
    heads: int
    sequences: int
    layers_per_stage: int
    published: tuple[float, ...]  # percent, for each latency

    def run(self) -> RunConfig:
        model = ModelConfig(
            vocabulary=SMALL_VOCABULARY,
            hidden=self.hidden,
            ffn=self.ffn,
            heads=self.heads,
            layers=STAGES * self.layers_per_stage,
            stages=STAGES,
            sequence_length=512,
            shared=True,
            compute_dtype="bf16",
        )
        return RunConfig(
            name=self.name,
            model=model,
            sequences_per_step=MICROBATCHES * self.sequences,
            sequences_per_microbatch=self.sequences,
            validate_every=0,
            recompute=False,
        )


SHAPES = (
    Shape("base", 768, 3072, 12, 4, 1, (18.0, 11.8, 4.9, 2.8, 1.5)),
    Shape("xxlarge", 4096, 16384, 32, 4, 1, (32.1, 28.9, 20.1, 14.9, 10.1)),
    Shape("GPT-3", 12288, 49152, 96, 1, 1, (82.1, 79.3, 70.3, 60.2, 48.5)),
    Shape("ours", 4096, 16384, 32, 1, 16, (89.5, 87.2, 79.5, 71.5, 59.2)),
)


@dataclass(frozen=True)
class Cell:
    """One model at one latency."""

    model: str
    rtt_s: float
    published: float  # percent
    utilisation: float  # percent, mean of the stages
    compute_s: float  # of a device per microbatch
    transfer_s: float  # of a middle stage's link per microbatch, each way


def measure(wire: WireFormat, dtype: str = DTYPE, device: Device | None = None, layers: int = 16) -> Iterator[Cell]:
    """Every model at every latency. `layers`: applications of a block in a stage of "ours"."""
    device = device or DEVICES[DEVICE]
    roomy = replace(device, memory_bytes=float("inf"))  # GPT-3's layer with its optimizer fits no V100
    for given in SHAPES:
        shape = replace(given, layers_per_stage=layers) if given.name == "ours" else given
        run = shape.run()
        speed = costs.stage_speed(run, 1, roomy, dtype, wire, pace=1.0, held=1.0, replicas=1)
        for rtt, published in zip(RTTS_S, shape.published, strict=True):
            actors = [Actor(stage, speed, LINK_BYTES_PER_SECOND, LINK_BYTES_PER_SECOND) for stage in range(STAGES)]
            done = rehearse(Rehearsal(run, actors, wire, rtt_s=rtt, parameters=[1] * STAGES))
            busy = sum(actor.busy for actor in done.actors) / len(done.actors)
            transfer = 2 * wire.nbytes(run) / LINK_BYTES_PER_SECOND
            yield Cell(shape.name, rtt, published, 100 * busy, speed.total_s, transfer)
