"""Six real daemons under every kind of fault: nothing is lost or counted twice, replicas agree, everyone comes back,
and the parameters are those of one process. `make chaos` is the long version with figures.
"""

import asyncio
import dataclasses
import tempfile
from pathlib import Path

import pytest

from benchmarks.chaos.__main__ import RUN
from benchmarks.chaos.fleet import Pace
from benchmarks.chaos.outcome import check_ledgers, distance
from benchmarks.chaos.report import failures, result_of
from benchmarks.chaos.trial import TrialOptions, run_trial
from benchmarks.toml import as_toml

SHORT = TrialOptions(stages=3, replicas=2, pace=Pace(0.02, 0.04), peace_s=3, faults_s=40, every_s=(5, 6), seed=5)
SMALL = dataclasses.replace(RUN, sequences_per_step=48, checkpoint_every=2)


@pytest.mark.timeout(600)
async def test_faults_of_every_kind_cost_nothing_but_time() -> None:
    with tempfile.TemporaryDirectory(prefix="swarmd-") as directory:
        home = Path(directory)
        model = home / "run.toml"
        model.write_text(as_toml(SMALL))
        trial = await run_trial(SHORT, SMALL, model, home)
        homes = [daemon.home.path for daemon in trial.recorder.daemons]
        assert trial.version > 0, "no version was saved by all daemons at the end"
        distances = await asyncio.to_thread(distance, homes, SMALL, trial.version, home / "data")
        ledgers = check_ledgers(homes, SMALL, trial.version)
        result = result_of(trial, SHORT, SMALL, ledgers, distances, home)
    assert failures(result, goals=False) == []
    assert len({event.fault.kind for event in trial.recorder.events}) >= 4, "the machine was too slow for faults"
