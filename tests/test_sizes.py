"""How large a stage is at least, and which runs are no runs for a device."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from swarmd.config import ModelConfig, RunConfig
from swarmd.settings import load_run
from swarmd.sizes import (
    application_bytes,
    computing_bytes,
    graph_bytes,
    needed_bytes,
    resident_bytes,
    stepping_bytes,
    unfit,
)

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
    sizes = [needed_bytes(run, stage) for stage in range(4)]
    assert sizes[1] == sizes[2] == min(sizes) < sizes[0] < sizes[3]
    assert unfit(run, sizes[1]) == ""
    assert unfit(run, sizes[1] - 1)
    assert "stage 0 of run toy" in unfit(run, sizes[1], wanted=0)
    assert unfit(run, sizes[0], wanted=0) == ""
    assert all(least > resident_bytes(run, stage) for stage, least in enumerate(sizes))


@pytest.mark.parametrize("stages", [1, 2])
def test_runs_of_few_stages_have_a_smallest_too(stages: int) -> None:
    assert unfit(changed(stages=stages), 1.0)
    assert not unfit(changed(stages=stages), 1 * GB)


def test_what_is_unknown_limits_nothing() -> None:
    assert unfit(changed(hidden=1 << 20, ffn=1 << 20), 0.0) == ""


# ------------------------------------------------------------------------------------------------- as counted

COUNTED = json.loads((Path(__file__).parent / "pretended" / "bytes.json").read_text())
"""Megabytes by card, preset, stage and work, counted on a pretended device."""
CARDS = {"sm_80": True, "sm_75": True, "sm_75-math": False}
"""Whether attention is fused there."""
KINDS = [(card, preset, stage) for card in CARDS for preset in COUNTED[card] for stage in COUNTED[card][preset]]


def close(megabytes: float) -> Any:
    """Within a tenth; of a few megabytes, within what rounding and small buffers leave open."""
    return pytest.approx(megabytes * 1e6, rel=0.1, abs=2.5e6)


@pytest.mark.parametrize(("card", "preset", "stage"), KINDS)
def test_the_formula_is_what_was_counted(card: str, preset: str, stage: str) -> None:
    run, counted, fused = load_run(preset), COUNTED[card][preset][stage], CARDS[card]
    assert resident_bytes(run, int(stage)) == close(counted["build"])
    computing = computing_bytes(run, int(stage), fused=fused)
    assert computing == close(counted["tail, block" if "tail, block" in counted else "backward, block"])
    others = (run.model.layers // run.model.stages - 1) * application_bytes(run, 2, fused=fused)
    assert computing + others == close(counted["tail, graphs" if "tail, graphs" in counted else "backward, graphs"])
    if "forward, graphs" in counted:
        assert graph_bytes(run, 2, fused=fused) == close(counted["forward, graphs"] - counted["build"])
    if "apply" in counted:
        assert stepping_bytes(run, int(stage)) == close(counted["apply"])


@pytest.mark.parametrize(("stage", "computing", "stepping"), [(0, 10.8, 12.0), (1, 7.5, 7.0), (2, 11.6, 13.1)])
def test_13b_shared_fits_cards_of_16_gb_at_every_stage(stage: int, computing: float, stepping: float) -> None:
    run = load_run("13b-shared")
    assert computing_bytes(run, stage) < computing * GB
    assert stepping_bytes(run, stage) < stepping * GB
