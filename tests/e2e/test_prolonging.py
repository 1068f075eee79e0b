"""More steps for a run of real daemons: the founder says how many, the other comes without options."""

import asyncio
import dataclasses
import itertools
from pathlib import Path

import pytest

from swarmd.config import prolonged
from swarmd.schedule import learning_rate_at
from swarmd.sim.engines.training import plain_training
from swarmd.stage.export import assemble
from swarmd.text.data import load_data
from tests.e2e.swarm import Daemon, run_command, swarm
from tests.e2e.test_training import RUN, TOLERANCE, write_settings

SHORT = dataclasses.replace(
    RUN,
    model=dataclasses.replace(RUN.model, layers=2, stages=2),
    optimizer=dataclasses.replace(RUN.optimizer, decay="linear"),
    steps=5,
    sequences_per_step=8,
    validate_every=0,
)
LONG = prolonged(SHORT, 9)


def check_ledgers(daemons: list[Daemon], before: list[str]) -> None:
    """One chain, each step once, with the rate of its total. `before`: the records that the first total gave."""
    for daemon in daemons:
        lines = daemon.ledger()
        assert [line["step"] for line in lines] == list(range(1, LONG.steps + 1))
        for one, other in itertools.pairwise(lines):
            assert other["parent"] == one["record"]
        for line in lines:
            total = SHORT.steps if line["step"] <= SHORT.steps else LONG.steps
            assert line["lr"] == learning_rate_at(LONG.optimizer, line["step"], total)
        assert [line["record"] for line in lines[: SHORT.steps - 1]] == before[:-1]
        assert lines[SHORT.steps - 1]["continues"] == before[-1]


@pytest.mark.timeout(400)
async def test_a_run_that_is_over_goes_on_for_more_steps(tmp_path: Path) -> None:
    async with swarm() as it:
        daemons = await it.found(write_settings(SHORT, tmp_path / "run.toml"), [0, 1])
        assert [await daemon.end() for daemon in daemons] == [0, 0]
        homes, before = [daemon.home for daemon in daemons], [line["record"] for line in daemons[0].ledger()]
        code, _, error = await run_command("swarmd", "start", "--resume", "--steps", "4", "--home", str(homes[0]))
        assert (code, error.count("\n")) == (2, 1)
        assert "has done 5 steps already" in error
        first = await it.start("--resume", "--steps", str(LONG.steps), home=homes[0])
        second = await it.start("--bootstrap", await first.address(), home=homes[1])
        status = await second.until(
            lambda status: status["version"] > SHORT.steps or status["state"] == "finished", 200
        )
        assert status["steps"] == LONG.steps
        assert [await daemon.end() for daemon in (first, second)] == [0, 0]
        rates = "learning rate 0 at step 5 of 5, 0.0025 at step 6 of 9"
        assert f"run {RUN.name} goes on to 9 steps instead of 5: {rates}" in (homes[0] / "swarmd.log").read_text()
        for home in homes:
            assert f"was prolonged from 5 to 9 steps: {rates}" in (home / "swarmd.log").read_text()
        check_ledgers([first, second], before)
        await check_parameters([home / "checkpoints" for home in homes], tmp_path)


async def check_parameters(directories: list[Path], cache: Path) -> None:
    """They are those of one process whose schedule changes where the run was prolonged."""
    data = load_data(LONG, cache_directory=cache)
    tokens = {
        (step, index): bytes(await data.microbatch(step, index))
        for step in range(1, LONG.steps + 1)
        for index in range(LONG.microbatches)
    }
    totals = [SHORT.steps] * SHORT.steps
    _, module = await asyncio.to_thread(plain_training, LONG, lambda _, step, index: tokens[step, index], totals)
    version, found = assemble(directories, LONG)
    assert version == LONG.steps
    expected = module.named()
    for name, value in found.named().items():
        far = float((value - expected[name]).norm().detach() / expected[name].norm().detach())
        assert far <= TOLERANCE, f"{name} is {far:.1e} away"
