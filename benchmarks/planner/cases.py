"""The swarms whose throughput is predicted and measured: peers, stages, widths, codecs, a slow peer, a slow link."""

from dataclasses import dataclass

from swarmd.config import CodecConfig, CodecName, DataConfig, ModelConfig, OptimizerConfig, RunConfig

NEVER = 1_000_000  # steps between checkpoints: no disk inside a measured step


@dataclass(frozen=True)
class Case:
    """One swarm on this machine. Every daemon has one CPU thread, and computes for a share of the time only."""

    name: str
    replicas: tuple[int, ...]  # of each stage
    hidden: int = 256
    layers: int = 4
    sequence_length: int = 128
    microbatches: int = 48
    codec: CodecName = "int8"
    slow: int | None = None  # stage whose last replica is half as fast as the others
    link_bytes_per_second: float | None = None  # between head and tail

    @property
    def slowness(self) -> float:
        """The times that a device takes as long as a core, so that they fit on two cores together."""
        return 2.0 if sum(self.replicas) <= 2 else 3.0

    def run(self, steps: int) -> RunConfig:
        model = ModelConfig(
            vocabulary=256,
            hidden=self.hidden,
            ffn=round(self.hidden * 8 / 3 / 16) * 16,
            heads=self.hidden // 64,
            layers=self.layers,
            stages=len(self.replicas),
            sequence_length=self.sequence_length,
        )
        return RunConfig(
            name=f"planner-{self.name.replace(' ', '-')}",
            model=model,
            data=DataConfig(),
            optimizer=OptimizerConfig(learning_rate=1e-3, decay="constant"),
            codecs=CodecConfig(activations=self.codec, gradients=self.codec),
            steps=steps,
            sequences_per_step=4 * self.microbatches,
            sequences_per_microbatch=4,
            validate_every=0,
            checkpoint_every=NEVER,
        )


CASES = (
    Case("2 stages", (1, 1)),
    Case("2 stages, width 384", (1, 1), hidden=384, microbatches=24),
    Case("3 stages, fp16", (1, 1, 1), layers=6, codec="fp16", microbatches=36),
    Case("2 + 2 peers", (2, 2)),
    Case("width 128, 256 tokens", (1, 1), hidden=128, sequence_length=256),
    Case("one of 2 tails at half speed", (1, 2), slow=1),
    Case("link of 100 Mb/s, fp32", (1, 1), layers=2, codec="fp32", link_bytes_per_second=100e6 / 8),
)
