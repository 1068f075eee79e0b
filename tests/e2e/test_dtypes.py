"""A swarm whose daemons compute in different dtypes: what its replicas hold is the same all the same."""

import dataclasses

import pytest

from tests.e2e.swarm import check_replicas, swarm
from tests.e2e.test_training import INT8, write_settings

RUN = dataclasses.replace(INT8, name="dtypes", steps=16)
REPLICAS = (("fp32", 0), ("bf16", 1), ("fp16", 2), ("fp16", 0), ("fp32", 1), ("bf16", 2))
KILLED = 4


@pytest.mark.timeout(300)
async def test_replicas_in_fp32_bf16_and_fp16_hold_the_same_and_lose_nothing_when_one_is_killed() -> None:
    async with swarm() as it:
        model = write_settings(RUN, it.directory / "run.toml")
        dtype, stage = REPLICAS[0]
        daemons = [await it.start("--model", str(model), "--stage", str(stage), "--compute-dtype", dtype)]
        entry = await daemons[0].address()
        for dtype, stage in REPLICAS[1:]:
            daemons.append(
                await it.start("--bootstrap", entry, "--stage", str(stage), "--compute-dtype", dtype, "--wait", "60")
            )
        found = [
            await daemon.until(lambda status: status["microbatches_done"] > 0 and status["version"] > 0)
            for daemon in daemons
        ]
        assert [status["dtype"] for status in found] == [dtype for dtype, _ in REPLICAS]
        daemons[KILLED].kill()
        left = [daemon for number, daemon in enumerate(daemons) if number != KILLED]
        assert [await daemon.end() for daemon in left] == [0] * len(left)
        assert check_replicas(left) == RUN.steps
        ledger = left[0].ledger()
    assert all((line["lost"], line["duplicated"], line["skipped"]) == (0, 0, False) for line in ledger)
    assert ledger[-1]["loss"] < ledger[0]["loss"] - 0.3
