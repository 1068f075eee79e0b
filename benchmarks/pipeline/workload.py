"""The workload that every system of the comparison shares: the settings, the microbatches, the optimizer step and the
line of results.

Relies on torch, swarmd's settings and its model, so that all systems compute the same layers. It is imported by the
rivals only; the swarm takes the same settings from the same file and does the rest itself. Knows no rival.
"""

import argparse
import json
import os
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn

from swarmd.config import RunConfig
from swarmd.settings import load_run

CORPUS_BYTES = 8 << 20  # of Python source; more than the longest measurement reads of it


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that each system takes."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--model", required=True, help="TOML file of the run")
    arguments.add_argument("--warmup", type=int, default=1, help="steps that are not measured")
    arguments.add_argument("--steps", type=int, default=2, help="steps that are measured")
    return arguments


def load_workload(path: str) -> RunConfig:
    """The run, and torch at the number of threads that the environment names."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return load_run(path)


def read_corpus() -> Tensor:
    """Source text of Python's standard library as bytes, in the order of the file names."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= CORPUS_BYTES:
            break
    return torch.frombuffer(text, dtype=torch.uint8)


def microbatch(run: RunConfig, corpus: Tensor, step: int, index: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a microbatch, int64 [sequences_per_microbatch, sequence_length] each."""
    length, sequences = run.model.sequence_length, run.sequences_per_microbatch
    first = (step * run.microbatches + index) * sequences
    starts = [(first + sequence) * length % (corpus.numel() - length) for sequence in range(sequences)]
    samples = torch.stack([corpus[start : start + length + 1] for start in starts]).long()
    return samples[:, :-1].contiguous(), samples[:, 1:].contiguous()


def make_optimizer(module: nn.Module, run: RunConfig) -> torch.optim.Optimizer:
    """AdamW in its fastest form."""
    settings = run.optimizer
    return torch.optim.AdamW(
        module.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def step_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, run: RunConfig) -> None:
    """Ends a global batch: mean over its tokens, clipping (of what this process holds), AdamW, gradients to None."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, 1.0 / (run.microbatches * run.tokens_per_microbatch))
    torch.nn.utils.clip_grad_norm_(module.parameters(), run.optimizer.clip_norm, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def print_result(run: RunConfig, steps: int, seconds: float, loss: float) -> None:
    """The line that the benchmark reads. loss: nats per token of the last measured step."""
    tokens = steps * run.microbatches * run.tokens_per_microbatch
    print(json.dumps({"tokens": tokens, "seconds": seconds, "loss": loss}), flush=True)
