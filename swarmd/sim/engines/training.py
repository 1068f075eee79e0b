"""A model small enough to train in a test, its text, and the plain PyTorch loop that a swarm must equal."""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy
import torch
from torch import Tensor

from swarmd.config import RunConfig
from swarmd.schedule import learning_rate_at
from swarmd.stage.model import StageModule, build_whole, loss_sum

Tokens = Callable[[RunConfig, int, int], bytes]
"""A microbatch by step and index."""

WORDS = ("swarm", "peer", "stage", "hop", "lease", "round", "part", "the", "of", "and", "a", "comes", "goes", "learns")
HELD_OUT_STEP = -1  # of the sequences that no step trains on


def toy_tokens(run: RunConfig, step: int, index: int) -> bytes:
    """A microbatch of made-up sentences, the same on every machine."""
    rows = []
    for row in range(run.sequences_per_microbatch):
        draw = random.Random(f"{step}/{index}/{row}")
        text = " ".join(draw.choice(WORDS) for _ in range(run.model.sequence_length)).encode()
        rows.append(list(text[: run.model.sequence_length + 1]))
    return numpy.asarray(rows, dtype="<i4").tobytes()


def as_ids(run: RunConfig, tokens: bytes) -> Tensor:
    """Token ids [B, T + 1]."""
    ids = numpy.frombuffer(tokens, dtype="<i4").reshape(run.sequences_per_microbatch, -1)
    return torch.from_numpy(ids.astype(numpy.int64))


class Text:
    """The Data port on made-up sentences."""

    digest = "text"

    def __init__(self, run: RunConfig) -> None:
        self._run = run

    async def microbatch(self, step: int, index: int) -> bytes:
        return toy_tokens(self._run, step, index)

    async def held_out(self, index: int) -> bytes:
        return toy_tokens(self._run, HELD_OUT_STEP, index)


def plain_steps(
    run: RunConfig, tokens: Tokens = toy_tokens, totals: Sequence[int] = ()
) -> Iterator[tuple[float, StageModule]]:
    """The reference: one process, the whole model, autograd's own accumulation and torch's own AdamW and clipping.
    After every step its loss and the module, which is the same one each time. `totals`: of the run when each of its
    first steps was done, if it was prolonged after them.
    """
    module = build_whole(run.model, run.seed)
    gains = [parameter for parameter in module.parameters() if parameter.ndim == 1]
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    settings = run.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": gains, "weight_decay": 0.0}],
        betas=settings.betas,
        eps=settings.eps,
    )
    for step in range(1, run.steps + 1):
        total = 0.0
        for index in range(run.microbatches):
            ids = as_ids(run, tokens(run, step, index))
            loss = loss_sum(module(ids[:, :-1]), ids[:, 1:]) / (run.microbatches * run.tokens_per_microbatch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(settings, step, totals[step - 1] if step <= len(totals) else run.steps)
        optimizer.step()
        optimizer.zero_grad()
        yield total, module


def plain_training(
    run: RunConfig, tokens: Tokens = toy_tokens, totals: Sequence[int] = ()
) -> tuple[list[float], StageModule]:
    """All of it: the losses of the steps, and the trained module."""
    steps = list(plain_steps(run, tokens, totals))
    return [loss for loss, _ in steps], steps[-1][1]
