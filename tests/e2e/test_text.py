"""Runs on text that their founder's machine has: who has no copy serves other stages, and nobody follows a path."""

import dataclasses
import json
from pathlib import Path

import pytest

from swarmd.config import DataConfig, fingerprint, to_plain
from tests.e2e.swarm import run_command, swarm
from tests.e2e.test_training import INT8, write_settings

TWO = dataclasses.replace(INT8, model=dataclasses.replace(INT8.model, layers=2, stages=2), steps=1_000_000)


def write_text(directory: Path) -> Path:
    path = directory / "private.txt"
    path.write_text("".join(f"{number} is the square root of {number * number}.\n" for number in range(5_000)))
    return path


@pytest.mark.timeout(300)
async def test_who_has_no_copy_serves_another_stage_and_is_told_how_to_be_a_head() -> None:
    async with swarm() as it:
        text = write_text(it.directory)
        run = dataclasses.replace(TWO, data=DataConfig(source=str(text)))
        founder = await it.start("--model", str(write_settings(run, it.directory / "run.toml")), "--stage", "1")
        address = await founder.address()
        await founder.until(lambda status: bool(status["run"]))
        blind = await it.start("--bootstrap", address)
        await blind.until(lambda status: status["stage"] == 1)
        assert "--data SOURCE makes this daemon a head; without, it serves other stages" in blind.log()
        common = ("--device", "cpu", "--listen", "/ip4/127.0.0.1/tcp/0", "--home", str(it.directory / "x"))
        code, _, error = await run_command("swarmd", "start", *common, "--bootstrap", address, "--stage", "0")
        assert code == 2
        assert "--data SOURCE makes this daemon a head" in error
        head = await it.start("--bootstrap", address, "--data", str(text))
        await head.until(lambda status: status["stage"] == 0 and status["step"] > 2)
        kept = [json.loads((daemon.home / "run.json").read_text()) for daemon in (founder, blind, head)]
        assert all("private" not in json.dumps(each["run"]) for each in kept), "no path travels"
        assert [each["data"] for each in kept] == [str(text), "", str(text)], "the user's own words stay at home"


@pytest.mark.timeout(120)
async def test_a_home_that_may_have_its_path_from_a_stranger_asks_for_it(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    run = dataclasses.replace(TWO, data=DataConfig(source=str(text)))
    home = tmp_path / "home"
    home.mkdir()
    (home / "run.json").write_text(
        json.dumps({"run": to_plain(run), "fingerprint": fingerprint(run), "stage": 0, "peers": []})
    )
    common = ("--home", str(home), "--device", "cpu", "--listen", "/ip4/127.0.0.1/tcp/0")
    code, _, error = await run_command("swarmd", "start", "--resume", *common)
    assert code == 2
    assert "--data SOURCE makes this daemon a head" in error
    assert not (home / "data").exists()


@pytest.mark.timeout(300)
async def test_a_path_that_a_stranger_names_is_not_read() -> None:
    """A hostile peer's settings name a file of whoever joins it: as those of the first release, which followed it."""
    async with swarm() as it:
        secret = write_text(it.directory)
        run = dataclasses.replace(TWO, data=DataConfig(source=str(secret)))
        home = it.directory / "hostile"
        home.mkdir()
        plain = {"run": to_plain(run), "fingerprint": fingerprint(run), "stage": 1, "peers": []}
        (home / "run.json").write_text(json.dumps(plain))
        hostile = await it.start("--resume", "--stage", "1", home=home)
        await hostile.until(lambda status: status["stage"] == 1)
        victim = await it.start("--bootstrap", await hostile.address())
        await victim.until(lambda status: status["stage"] == 1)
        assert "--data SOURCE makes this daemon a head" in victim.log()
        assert not (victim.home / "data").exists()
