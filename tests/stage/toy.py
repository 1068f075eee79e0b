"""A run small enough for tests, its text, and the plain PyTorch loop that a swarm must equal."""

import itertools
import random
from collections.abc import Callable, Sequence

import numpy
import torch
from torch import Tensor

from swarmd.config import CodecConfig, ModelConfig, OptimizerConfig, RunConfig
from swarmd.schedule import learning_rate_at
from swarmd.stage.engine import StageEngine
from swarmd.stage.model import StageModule, build_whole, loss_sum
from swarmd.values import Encoded, HopId

Tokens = Callable[[RunConfig, int, int], bytes]
"""A microbatch by step and index."""

FP32 = CodecConfig("fp32", "fp32", "fp32")
WORDS = ("swarm", "peer", "stage", "hop", "lease", "round", "part", "the", "of", "and", "a", "comes", "goes", "learns")


def toy_run(
    *, stages: int = 2, shared: bool = False, codecs: CodecConfig = FP32, recompute: bool = False, steps: int = 20
) -> RunConfig:
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
        recompute=recompute,
    )


def toy_tokens(run: RunConfig, step: int, index: int) -> bytes:
    """A microbatch of made-up sentences, the same on every machine."""
    rows = []
    for row in range(run.sequences_per_microbatch):
        draw = random.Random(f"{step}/{index}/{row}")
        text = " ".join(draw.choice(WORDS) for _ in range(run.model.sequence_length)).encode()
        rows.append(list(text[: run.model.sequence_length + 1]))
    return numpy.asarray(rows, dtype="<i4").tobytes()


def as_ids(run: RunConfig, tokens: bytes) -> Tensor:
    ids = numpy.frombuffer(tokens, dtype="<i4").reshape(run.sequences_per_microbatch, -1)
    return torch.from_numpy(ids.astype(numpy.int64))


def plain_training(run: RunConfig, tokens: Tokens = toy_tokens) -> tuple[list[float], StageModule]:
    """The reference: one process, the whole model, autograd's own accumulation and torch's own AdamW and clipping."""
    module = build_whole(run.model, run.seed)
    gains = [parameter for parameter in module.parameters() if parameter.ndim == 1]
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    settings = run.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": gains, "weight_decay": 0.0}],
        betas=settings.betas,
        eps=settings.eps,
    )
    losses = []
    for step in range(1, run.steps + 1):
        total = 0.0
        for index in range(run.microbatches):
            ids = as_ids(run, tokens(run, step, index))
            loss = loss_sum(module(ids[:, :-1]), ids[:, 1:]) / (run.microbatches * run.tokens_per_microbatch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(settings, step, run.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, module


def journey(run: RunConfig, engines: Sequence[StageEngine], hop: HopId, *, evaluate: bool = False) -> tuple[float, int]:
    """One microbatch through one engine per stage and back; the loss sum and its tokens."""
    tokens, codecs = toy_tokens(run, *hop), run.codecs
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


def train_pipeline(run: RunConfig) -> tuple[list[float], list[StageEngine]]:
    """The same training through one engine per stage."""
    engines = [StageEngine(run, stage) for stage in range(run.model.stages)]
    losses = []
    for step in range(1, run.steps + 1):
        sums = [journey(run, engines, HopId(step, index)) for index in range(run.microbatches)]
        finish_step(run, [[engine] for engine in engines], step)
        losses.append(sum(loss for loss, _ in sums) / sum(tokens for _, tokens in sums))
    return losses, engines
