"""What makes the pipeline benchmark a comparison: all train on the same microbatches, and their losses agree."""

import asyncio
import dataclasses
from pathlib import Path

import numpy
import torch

from benchmarks.pipeline.__main__ import AGREEMENT, BASELINE, PRESETS, SYSTEMS
from benchmarks.pipeline.report import Measurement, disagreements
from benchmarks.pipeline.workload import Batches, write_batches
from swarmd.settings import load_run
from swarmd.text.data import load_data

PIPELINE = Path(__file__).parents[2] / "benchmarks" / "pipeline"


def measured(system: str, loss: float, number: int = 0) -> Measurement:
    return Measurement("hidden256", system, number, {"tokens": 1, "seconds": 1.0, "loss": loss})


def test_rivals_train_on_what_a_head_reads(tmp_path: Path) -> None:
    run = load_run(str(PIPELINE / "hidden256.toml"))
    run = dataclasses.replace(run, sequences_per_step=8)
    write_batches(run, 3, tmp_path / "batches.npy")
    data, batches = load_data(run, cache_directory=tmp_path), Batches(str(tmp_path / "batches.npy"))
    for step in range(3):
        for index in range(run.microbatches):
            inputs, targets = batches.microbatch(step, index)
            tokens = numpy.frombuffer(asyncio.run(data.microbatch(step + 1, index)), dtype="<i4").astype(numpy.int64)
            expected = torch.from_numpy(tokens).view(run.sequences_per_microbatch, -1)
            assert torch.equal(inputs, expected[:, :-1])
            assert torch.equal(targets, expected[:, 1:])


def test_no_preset_clips_and_each_rival_has_a_bound() -> None:
    """Processes of one stage know the norm of that stage only."""
    assert all(load_run(str(PIPELINE / f"{preset}.toml")).optimizer.clip_norm == 0 for preset in PRESETS)
    assert set(SYSTEMS) == {BASELINE, *AGREEMENT}


def test_losses_that_are_not_those_of_the_same_training_are_named() -> None:
    good = [measured("plain", 5.0), measured("gpipe", 5.004), measured("swarm", 4.96)]
    assert not disagreements(good, BASELINE, AGREEMENT)
    bad = [measured("plain", 5.0), measured("gpipe", 5.006), measured("swarm", 5.06), measured("1f1b", float("nan"))]
    sentences = disagreements(bad, BASELINE, AGREEMENT)
    assert ["gpipe" in sentences[0], "swarm" in sentences[1], "1f1b" in sentences[2]] == [True] * 3


def test_losses_are_compared_within_a_round() -> None:
    """A loss belongs to a step, and rounds may have been measured with others."""
    apart = [measured("plain", 5.0), measured("gpipe", 3.0, 1), measured("plain", 3.0, 1)]
    assert not disagreements(apart, BASELINE, AGREEMENT)
    failed = Measurement("hidden256", "plain", 2, None, "failed")
    assert not disagreements([failed, measured("gpipe", 3.0, 2)], BASELINE, AGREEMENT)
