"""How large a stage is at least, and which runs are no runs for a device."""

import dataclasses
from typing import Any

import pytest

from swarmd.config import ModelConfig, RunConfig
from swarmd.swarm.balance.sizes import least_bytes, state_bytes, unfit

TOY = RunConfig("toy", ModelConfig(256, 32, 64, 2, 4, 4, 16), sequences_per_step=8, sequences_per_microbatch=4)
GB = 1e9


def changed(**model: Any) -> RunConfig:
    return dataclasses.replace(TOY, model=dataclasses.replace(TOY.model, **model))


@pytest.mark.parametrize(
    "run",
    [
        changed(hidden=1 << 20, ffn=1 << 20),
        changed(hidden=1 << 15, ffn=1 << 17, layers=1 << 14, stages=2),
        changed(vocabulary=1 << 20, hidden=1 << 14, stages=1),
        changed(sequence_length=1 << 20, hidden=1 << 13),
        dataclasses.replace(
            TOY,
            sequences_per_step=1 << 20,
            sequences_per_microbatch=1 << 20,
            model=ModelConfig(1 << 20, 64, 64, 2, 1, 1, 1 << 10),
        ),
    ],
)
def test_a_bomb_is_told_by_arithmetic(run: RunConfig) -> None:
    said = unfit(run, 24 * GB)
    assert said.startswith("the smallest stage of run toy takes ")
    assert "this device has 24.0 GB" in said


def test_the_smallest_stage_must_fit_and_no_other() -> None:
    run = changed(vocabulary=1 << 16)
    sizes = [least_bytes(run, stage) for stage in range(4)]
    assert sizes[1] == sizes[2] == min(sizes) < sizes[0] < sizes[3]
    assert unfit(run, sizes[1]) == ""
    assert unfit(run, sizes[1] - 1)
    assert "stage 0 of run toy" in unfit(run, sizes[1], wanted=0)
    assert unfit(run, sizes[0], wanted=0) == ""
    assert all(least > state_bytes(run, stage) for stage, least in enumerate(sizes))


@pytest.mark.parametrize("stages", [1, 2])
def test_runs_of_few_stages_have_a_smallest_too(stages: int) -> None:
    assert unfit(changed(stages=stages), 1.0)
    assert not unfit(changed(stages=stages), 1 * GB)


def test_what_is_unknown_limits_nothing() -> None:
    assert unfit(changed(hidden=1 << 20, ffn=1 << 20), 0.0) == ""
