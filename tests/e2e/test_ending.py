"""The end of a run of real daemons: where the final state is, and what is said of it."""

import dataclasses
from pathlib import Path

import pytest

from tests.e2e.swarm import Daemon, swarm
from tests.e2e.test_training import RUN, write_settings

ENDING = dataclasses.replace(
    RUN, model=dataclasses.replace(RUN.model, layers=2, stages=2), steps=4, sequences_per_step=8, validate_every=0
)


async def finish(tmp_path: Path, *machines: str) -> list[Daemon]:
    """A daemon for each stage, on machines of these names, to the end of the run."""
    async with swarm() as it:
        model = write_settings(ENDING, tmp_path / "run.toml")
        first = await it.start("--model", str(model), "--stage", "0", home=tmp_path / "0", machine=machines[0])
        words = ("--bootstrap", await first.address(), "--stage", "1")
        second = await it.start(*words, home=tmp_path / "1", machine=machines[1])
        assert [await first.end(), await second.end()] == [0, 0]
        return [first, second]


def final(daemon: Daemon) -> list[str]:
    return sorted(path.name for path in daemon.home.glob(f"checkpoints/step-{ENDING.steps:06d}/*.json"))


@pytest.mark.timeout(300)
async def test_two_machines_have_both_stages(tmp_path: Path) -> None:
    daemons = await finish(tmp_path, "one", "two")
    for daemon in daemons:
        assert final(daemon) == ["stage-0.json", "stage-1.json"]
        assert "the final state, version 4: stage 0" in daemon.log()
        assert "on one machine only" not in daemon.log()


@pytest.mark.timeout(300)
async def test_one_machine_has_each_stage_once_and_says_so(tmp_path: Path) -> None:
    daemons = await finish(tmp_path, "", "")
    assert [final(daemon) for daemon in daemons] == [["stage-0.json"], ["stage-1.json"]]
    for daemon in daemons:
        assert "Stages 0 and 1 on one machine only: all peers are on one machine" in daemon.log()
        assert "waiting for the final state" not in daemon.log()
