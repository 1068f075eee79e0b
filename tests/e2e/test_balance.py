"""Real daemons that were started at the wrong stages put it right themselves."""

import dataclasses
from typing import Any

import pytest

from tests.e2e.swarm import check_replicas, run_command, swarm
from tests.e2e.test_training import RUN, write_settings

STEPS = 1_000_000  # never done
SETTLED_SECONDS = 240.0  # a daemon each for seven stages' worth of torch on two cores
BEST = [{"0": 3, "1": 2, "2": 2}, {"0": 2, "1": 3, "2": 2}, {"0": 2, "1": 2, "2": 3}]
LOOKS = 3  # further looks at the balance, in which nobody moves
PERIOD_SECONDS = 20.0


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_five_at_the_first_stage_and_one_at_each_other_settle_and_stay() -> None:
    model = dataclasses.replace(RUN.model, layers=3, stages=3)
    run = dataclasses.replace(
        RUN, model=model, steps=STEPS, sequences_per_step=32, sequences_per_microbatch=1,
        rebalance_seconds=PERIOD_SECONDS,
    )  # fmt: skip
    async with swarm() as it:
        text = it.directory / "text.txt"  # small: five heads prepare it on the same cores
        text.write_text("".join(f"{number} is the square root of {number * number}.\n" for number in range(5_000)))
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, source=str(text)))
        daemons = await it.found(write_settings(run, it.directory / "run.toml"), [0, 0, 0, 0, 0, 1, 2])
        await daemons[0].until(lambda status: status["peers"] in BEST, SETTLED_SECONDS)
        status = await daemons[0].until(lambda status: status["peers"] in BEST and status["step"] > 3)
        settled, uptime = status["peers"], status["uptime_seconds"]

        def looked(status: dict[str, Any]) -> bool:
            assert status["peers"] == settled, "nobody moves any more"
            return bool(status["uptime_seconds"] > uptime + LOOKS * PERIOD_SECONDS)

        await daemons[0].until(looked, SETTLED_SECONDS)
        movers = [daemon for daemon in daemons[:5] if (await daemon.status())["stage"] != 0]
        reasons = [(await daemon.status())["moved_because"] for daemon in movers]
        assert len(movers) in (2, 3)
        assert all("needs it more than stage 0" in reason for reason in reasons)
        code, out, _ = await run_command("swarmctl", "--home", str(movers[0].home), "status")
        assert code == 0
        assert "moved because" in out
        assert "needs it more than stage 0" in movers[0].log()
        assert check_replicas(daemons) > 3
