"""Whole swarms of real daemons: they train what one process would train, and replicas never differ."""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from swarmd.config import CodecConfig, DataConfig, ModelConfig, OptimizerConfig, RunConfig
from swarmd.sim.engines.training import plain_training
from swarmd.stage.export import assemble
from swarmd.text.data import load_data
from tests.e2e.swarm import Daemon, Swarm, check_replicas, swarm

STEPS = 10
TOLERANCE = 1e-5  # promise 3, per tensor: norm of the difference over norm

RUN = RunConfig(
    name="e2e",
    model=ModelConfig(vocabulary=256, hidden=32, ffn=64, heads=2, layers=3, stages=3, sequence_length=32),
    data=DataConfig(source="stdlib"),
    optimizer=OptimizerConfig(learning_rate=5e-3, betas=(0.9, 0.99), warmup_steps=3, decay="constant"),
    codecs=CodecConfig("fp32", "fp32", "fp32"),
    steps=STEPS,
    sequences_per_step=16,
    sequences_per_microbatch=2,
    validate_every=5,
    checkpoint_every=1000,
    rebalance_seconds=0.0,  # nobody goes where the test doesn't send it
    seed=7,
)
INT8 = dataclasses.replace(RUN, codecs=CodecConfig("int8", "int8", "fp16"))


def write_settings(run: RunConfig, path: Path) -> Path:
    """A run as the TOML file that a user would write."""
    text = [f"{key} = {_toml(value)}" for key, value in vars(run).items() if not dataclasses.is_dataclass(value)]
    for name, table in vars(run).items():
        if dataclasses.is_dataclass(table):
            text += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in vars(table).items())]
    path.write_text("\n".join(text))
    return path


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return str(list(value) if isinstance(value, tuple) else value)


def reference(run: RunConfig, cache: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and parameters of a plain PyTorch loop over the same data."""
    data = load_data(run, cache_directory=cache)

    def tokens(run: RunConfig, step: int, index: int) -> bytes:
        return bytes(asyncio.run(data.microbatch(step, index)))

    losses, module = plain_training(run, tokens)
    return losses, {name: value.detach() for name, value in module.named().items()}


async def train(it: Swarm, run: RunConfig, stages: Sequence[int]) -> list[Daemon]:
    """Runs a swarm to its end."""
    daemons = await it.found(write_settings(run, it.directory / "run.toml"), stages)
    assert [await daemon.end() for daemon in daemons] == [0] * len(daemons)
    return daemons


@pytest.mark.timeout(240)
async def test_fp32_on_the_wire_gives_the_parameters_of_one_process(tmp_path: Path) -> None:
    losses, expected = await asyncio.to_thread(reference, RUN, tmp_path)
    async with swarm() as it:
        daemons = await train(it, RUN, [0, 1, 2])
        version, module = assemble([daemon.home / "checkpoints" for daemon in daemons], RUN)
        ledger = daemons[0].ledger()
    assert version == STEPS
    far = {
        name: float((value.detach() - expected[name]).norm() / expected[name].norm())
        for name, value in module.named().items()
    }
    assert max(far.values()) <= TOLERANCE, far
    assert [line["loss"] for line in ledger] == pytest.approx(losses, rel=1e-5)
    assert all((line["lost"], line["duplicated"]) == (0, 0) for line in ledger)
    assert [line["step"] for line in ledger if line["validation_loss"] is not None] == [6]


@pytest.mark.timeout(300)
async def test_int8_on_the_wire_with_two_replicas_a_stage(tmp_path: Path) -> None:
    losses, _ = await asyncio.to_thread(reference, INT8, tmp_path)
    async with swarm() as it:
        daemons = await train(it, INT8, [0, 1, 2, 0, 1, 2])
        assert check_replicas(daemons) == STEPS
        ledger = daemons[0].ledger()
    assert ledger[-1]["loss"] == pytest.approx(losses[-1], rel=0.01)
    assert all(line["microbatches"] == INT8.microbatches and len(line["members"]) <= 2 for line in ledger)
    assert any(len(line["members"]) == 2 for line in ledger), "both replicas take part"
    assert all((line["lost"], line["duplicated"]) == (0, 0) for line in ledger)
