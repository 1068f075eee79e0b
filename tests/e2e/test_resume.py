"""Checkpoints on disks bring a run back: a whole swarm that was killed, and a stage that lost all its replicas."""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from swarmd.config import RunConfig
from swarmd.stage.export import assemble
from tests.e2e.swarm import Daemon, run_command, swarm
from tests.e2e.test_training import RUN, TOLERANCE, reference, write_settings

SAVING = dataclasses.replace(RUN, steps=16, sequences_per_step=32, checkpoint_every=4, validate_every=0)
AT_ONCE = ("--found-after", "1")  # nobody else is there to look for
PATIENCE = ("--stage-lost-timeout", "3")


async def at_version(daemon: Daemon, version: int) -> None:
    await daemon.until(lambda status: status["version"] >= version, seconds=240)


async def kill_all(daemons: Sequence[Daemon]) -> None:
    for daemon in daemons:
        daemon.kill()
    for daemon in daemons:
        await daemon.process.wait()


def check_history(daemons: Sequence[Daemon]) -> None:
    """Promise 8: everyone's ledger has each step once, along one chain."""
    records: dict[int, str] = {}
    for daemon in daemons:
        lines = daemon.ledger()
        for line in lines:
            assert records.setdefault(line["step"], line["record"]) == line["record"], f"{daemon.home} at {line}"
            assert (line["microbatches"], line["lost"], line["duplicated"]) == (SAVING.microbatches, 0, 0)
        for before, after in itertools.pairwise(lines):
            assert (after["step"], after["parent"]) == (before["step"] + 1, before["record"]), f"{daemon.home}: {after}"
    assert sorted(records) == list(range(1, SAVING.steps + 1))


async def check_parameters(run: RunConfig, daemons: Sequence[Daemon], cache: Path) -> None:
    """Promise 3: they are those of one process that was never interrupted."""
    _, expected = await asyncio.to_thread(reference, run, cache)
    version, module = assemble([daemon.home / "checkpoints" for daemon in daemons], run)
    far = {
        name: float((value.detach() - expected[name]).norm() / expected[name].norm())
        for name, value in module.named().items()
    }
    assert version == run.steps
    assert max(far.values()) <= TOLERANCE, far


@pytest.mark.timeout(900)
async def test_a_killed_swarm_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    """All daemons are killed; one's newest checkpoint is damaged; the run ends as if nothing had happened."""
    async with swarm() as it:
        model = write_settings(SAVING, it.directory / "run.toml")
        daemons = await it.found(model, [0, 1, 2])
        await at_version(daemons[0], 10)
        await kill_all(daemons)
        homes = [daemon.home for daemon in daemons]
        newest = max(homes[1].glob("checkpoints/step-*/stage-1.safetensors"))
        flip(newest)
        anew = ("start", "--model", str(model), "--home", str(homes[0]), *AT_ONCE)
        code, _, error = await run_command("swarmd", *anew)
        assert code == 2, "it would begin anew"
        assert "--resume" in error
        first = await it.start("--resume", *AT_ONCE, home=homes[0])
        await first.until(lambda status: bool(status["waiting_for"]) and status["state"] == "joining")
        address = await first.address()
        again = [first, *[await it.start("--bootstrap", address, home=home) for home in homes[1:]]]
        assert [await daemon.end(400) for daemon in again] == [0] * 3
        check_history(again)
        await check_parameters(SAVING, again, tmp_path)
        assert all((home / "ledger-void.jsonl").exists() for home in homes), "what was done after the checkpoint"


def flip(path: Path) -> None:
    """One bit of the last byte is wrong."""
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_stage_that_is_gone_is_brought_back_from_copies(tmp_path: Path) -> None:
    """All replicas of the middle stage are killed at once, disks and all; one of the heads takes their place."""
    async with swarm() as it:
        model = write_settings(SAVING, it.directory / "run.toml")
        first = await it.start("--model", str(model), "--stage", "0", *PATIENCE)
        address = await first.address()
        others = [await it.start("--bootstrap", address, "--stage", str(stage), *PATIENCE) for stage in (1, 2, 0, 1, 2)]
        daemons = [first, *others]
        await asyncio.gather(*(at_version(daemon, 7) for daemon in daemons))
        await asyncio.gather(*(has_copy(daemon) for daemon in daemons))
        lost = [daemons[1], daemons[4]]
        await kill_all(lost)
        left = [daemon for daemon in daemons if daemon not in lost]
        assert [await daemon.end(400) for daemon in left] == [0] * 4
        check_history(left)
        await check_parameters(SAVING, left, tmp_path)


async def has_copy(daemon: Daemon) -> None:
    """Two stages are on its disk."""
    async with asyncio.timeout(120):
        while len({path.name for path in daemon.home.glob("checkpoints/step-*/stage-*.json")}) < 2:
            await asyncio.sleep(0.1)


async def test_a_home_of_another_run_is_left_as_it_is(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoints" / "step-000005" / "stage-0.json"
    saved.parent.mkdir(parents=True)
    saved.write_text("{}")
    (tmp_path / "run.json").write_text(json.dumps({"run": {}, "fingerprint": "00ff", "stage": 0, "peers": []}))
    code, _, error = await run_command("swarmd", "start", "--model", "tiny", "--resume", "--home", str(tmp_path))
    assert code == 2
    assert "00ff" in error
    assert "--home" in error
    assert saved.read_text() == "{}"


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_founder_that_always_resumes(tmp_path: Path) -> None:
    """A service can't change its words: it begins the run where nothing is saved, though it was begun before, and goes
    on with it later.
    """
    async with swarm() as it:
        run = dataclasses.replace(SAVING, model=dataclasses.replace(SAVING.model, layers=2, stages=2))
        words = ("--model", str(write_settings(run, it.directory / "run.toml")), "--resume", *AT_ONCE)
        homes = tmp_path / "first", tmp_path / "second"

        async def begin() -> list[Daemon]:
            first = await it.start(*words, home=homes[0])
            await first.until(lambda status: "stage 1" in status["waiting_for"])
            second = await it.start("--bootstrap", await first.address(), home=homes[1])
            return [first, second]

        alone = await it.start(*words, home=homes[0])
        await alone.until(lambda status: "stage 1" in status["waiting_for"])
        assert (homes[0] / "run.json").exists()
        await kill_all([alone])
        daemons = await begin()
        await at_version(daemons[0], 10)
        await kill_all(daemons)
        daemons = await begin()
        assert [await daemon.end(400) for daemon in daemons] == [0] * 2
        check_history(daemons)
        assert all((home / "ledger-void.jsonl").exists() for home in homes), "it went on, and didn't begin again"


async def test_nothing_to_resume(tmp_path: Path) -> None:
    code, _, error = await run_command("swarmd", "start", "--resume", "--home", str(tmp_path))
    assert code == 2
    assert "--model" in error
