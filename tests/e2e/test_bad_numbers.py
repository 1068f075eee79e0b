"""A model that has diverged, in real daemons: its steps are skipped at once, and after so many of them the run ends."""

import dataclasses
from pathlib import Path

import pytest

from swarmd.config import CodecConfig, CodecName
from tests.e2e.swarm import check_replicas, run_command, swarm
from tests.e2e.test_training import RUN, write_settings

LIMIT = 6
SKIP_SECONDS = 10.0  # from the first lease to the record, on a busy machine


@pytest.mark.timeout(300)
@pytest.mark.parametrize("codec", ["int8", pytest.param("fp32", marks=pytest.mark.long)])
async def test_a_diverged_run_skips_its_steps_and_ends(codec: CodecName, tmp_path: Path) -> None:
    run = dataclasses.replace(
        RUN,
        steps=40,
        skips_limit=LIMIT,
        validate_every=0,
        checkpoint_every=2,
        codecs=CodecConfig(codec, codec, "fp16"),
        optimizer=dataclasses.replace(RUN.optimizer, learning_rate=1e9, clip_norm=0.0, warmup_steps=0),
    )
    async with swarm() as it:
        daemons = await it.found(write_settings(run, tmp_path / "run.toml"), [0, 1, 1, 2])
        assert [await daemon.end() for daemon in daemons] == [1] * len(daemons)
        for daemon in daemons:
            lines = daemon.ledger()
            skipped = [line for line in lines if line["skipped"]]
            assert [line["step"] for line in skipped] == [line["step"] for line in lines][-LIMIT:]
            assert len({line["digest"] for line in lines[-LIMIT - 1 :]}) == 1, "a skipped step changes nothing"
            assert not any(line["forked"] for line in lines)
            assert max(line["seconds"] for line in skipped) < SKIP_SECONDS
            assert "is not finite" in skipped[0]["why"]
            log = daemon.log()
            assert f"{LIMIT} steps in a row were skipped, up to step {lines[-1]['step']}" in log
            assert f"checkpoint is version {lines[-LIMIT]['step'] - 2}, in" in log or "no checkpoint" in log
        check_replicas(daemons)
        again = ("swarmd", "start", "--home", str(daemons[0].home), "--model", str(tmp_path / "run.toml"), "--resume")
        code, _, error = await run_command(*again, "--device", "cpu", "--listen", "/ip4/127.0.0.1/tcp/0")
        assert code == 2, "a service that starts it again doesn't go on for ever"
        assert "this run has ended" in error
        assert str(daemons[0].home / "ended.json") in error
