"""A run small enough for tests, and its training through engines without a swarm."""

import itertools
from collections.abc import Callable, Sequence

from swarmd.config import CodecConfig, ComputeConfig, ModelConfig, OptimizerConfig, RunConfig
from swarmd.schedule import learning_rate_at
from swarmd.sim.engines.training import toy_tokens
from swarmd.stage.engine import StageEngine
from swarmd.values import Encoded, HopId

FP32 = CodecConfig("fp32", "fp32", "fp32")


def toy_run(*, stages: int = 2, shared: bool = False, codecs: CodecConfig = FP32, steps: int = 20) -> RunConfig:
    """4 block applications of width 32 over bytes, 3 microbatches of 2 sequences a step."""
    return RunConfig(
        name="toy",
        model=ModelConfig(256, 32, 64, 2, 4, stages, 24, shared=shared),
        optimizer=OptimizerConfig(learning_rate=3e-3, betas=(0.9, 0.99), weight_decay=0.1, warmup_steps=3),
        codecs=codecs,
        steps=steps,
        sequences_per_step=6,
        sequences_per_microbatch=2,
        seed=5,
    )


def journey(
    run: RunConfig,
    engines: Sequence[StageEngine],
    hop: HopId,
    *,
    evaluate: bool = False,
    text: Callable[[RunConfig, int, int], bytes] = toy_tokens,
) -> tuple[float, int]:
    """One microbatch through one engine per stage and back; the loss sum and its tokens."""
    tokens, codecs = text(run, *hop), run.codecs
    activation: Encoded | None = None
    for engine in engines[:-1]:
        activation = engine.forward(hop, tokens, activation, codec=codecs.activations, evaluate=evaluate)
    result = engines[-1].tail(hop, tokens, activation, codec=codecs.gradients, evaluate=evaluate)
    gradient = result.gradient
    for engine in [] if evaluate else engines[-2::-1]:
        assert gradient is not None
        gradient = engine.backward(hop, gradient, codec=codecs.gradients).gradient
    return result.loss_sum, result.tokens


def finish_step(run: RunConfig, replicas: Sequence[Sequence[StageEngine]], step: int) -> list[list[str]]:
    """The rounds and the commit of a step. replicas[stage] are that stage's engines; returns their digests."""
    tokens = run.microbatches * run.tokens_per_microbatch
    squared = 0.0
    for engines in replicas:
        size, members = engines[0].gradient_size, len(engines)
        cuts = [
            size * part // (members + 1) for part in range(members + 2)
        ]  # one part more than members: any cut will do
        for engine in engines:
            engine.freeze(step)
        parts = []
        for start, stop in itertools.pairwise(cuts):
            shares = [engine.contribution(step, start, stop, codec=run.codecs.averaging) for engine in engines]
            parts.append(engines[0].reduce(shares, tokens, codec=run.codecs.averaging))
        summaries = {engine.assemble(step, parts) for engine in engines}
        assert len(summaries) == 1, "the same bytes make the same gradient"
        squared += summaries.pop().squared_norm
    clip = min(1.0, run.optimizer.clip_norm / squared**0.5)
    rate = learning_rate_at(run.optimizer, step, run.steps)
    return [[engine.apply(step, learning_rate=rate, clip_factor=clip) for engine in engines] for engines in replicas]


def train_pipeline(
    run: RunConfig,
    compute: ComputeConfig | None = None,
    text: Callable[[RunConfig, int, int], bytes] = toy_tokens,
) -> tuple[list[float], list[StageEngine]]:
    """The same training through one engine per stage."""
    engines = [StageEngine(run, stage, compute=compute) for stage in range(run.model.stages)]
    losses = []
    for step in range(1, run.steps + 1):
        sums = [journey(run, engines, HopId(step, index), text=text) for index in range(run.microbatches)]
        finish_step(run, [[engine] for engine in engines], step)
        losses.append(sum(loss for loss, _ in sums) / sum(tokens for _, tokens in sums))
    return losses, engines
