"""The workload that every system of the comparison shares: the settings, the microbatches, the optimizer step and the
line of results.

Relies on torch, swarmd's settings and its model, so that all systems compute the same layers. The swarm takes the same
settings from the same file and does the rest itself; its rivals read the microbatches that its head would read from a
file. Knows no rival.
"""

import argparse
import asyncio
import json
import os
import tempfile
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from swarmd.config import RunConfig
from swarmd.settings import load_run


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that each system takes."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--model", required=True, help="TOML file of the run")
    arguments.add_argument("--batches", help="file of write_batches; the swarm reads the same text itself")
    arguments.add_argument("--warmup", type=int, default=1, help="steps that are not measured")
    arguments.add_argument("--steps", type=int, default=2, help="steps that are measured")
    return arguments


def load_workload(path: str) -> RunConfig:
    """The run, and torch at the number of threads that the environment names."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return load_run(path)


def write_batches(run: RunConfig, steps: int, path: Path) -> None:
    """Writes the tokens of the run's first steps, as a head reads them: int32 [steps, microbatches, B, T + 1]."""
    from swarmd.text.data import load_data  # needs packages that hivemind's environment lacks

    with tempfile.TemporaryDirectory() as cache:
        data = load_data(run, cache_directory=Path(cache))

        async def read() -> bytes:
            indices = [(step, index) for step in range(1, steps + 1) for index in range(run.microbatches)]
            return b"".join([bytes(await data.microbatch(step, index)) for step, index in indices])

        tokens = numpy.frombuffer(asyncio.run(read()), dtype="<i4")
    shape = (steps, run.microbatches, run.sequences_per_microbatch, run.model.sequence_length + 1)
    with path.open("wb") as file:
        numpy.save(file, tokens.reshape(shape))


class Batches:
    """The microbatches that `write_batches` wrote."""

    def __init__(self, path: str) -> None:
        self._tokens = numpy.load(path, mmap_mode="r")

    def microbatch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 [B, T] each. Steps count from 0, and begin again when there are no more."""
        tokens = torch.from_numpy(self._tokens[step % len(self._tokens), index].astype(numpy.int64))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def make_optimizer(module: nn.Module, run: RunConfig) -> torch.optim.Optimizer:
    """AdamW in its fastest form; gains don't decay, as everywhere in a run."""
    settings = run.optimizer
    parameters = list(module.parameters())
    return torch.optim.AdamW(
        [
            {"params": [it for it in parameters if it.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [it for it in parameters if it.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def step_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, run: RunConfig) -> None:
    """Ends a global batch: mean over its tokens, AdamW, gradients to None. The norm is computed as for clipping, though
    the presets clip nothing: a process knows the norm of what it holds, and the swarm that of the whole model.
    """
    assert not run.optimizer.clip_norm, "a preset that clips has other losses in each system"
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, 1.0 / (run.microbatches * run.tokens_per_microbatch))
    torch.nn.utils.get_total_norm(gradients, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def print_result(run: RunConfig, steps: int, seconds: float, loss: float) -> None:
    """The line that the benchmark reads. loss: nats per token of the last measured step."""
    tokens = steps * run.microbatches * run.tokens_per_microbatch
    print(json.dumps({"tokens": tokens, "seconds": seconds, "loss": loss}), flush=True)
