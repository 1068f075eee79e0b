"""Real daemons that were started at the wrong stages put it right themselves."""

import asyncio
import dataclasses
from collections.abc import Sequence

import pytest

from tests.e2e.swarm import Daemon, check_replicas, run_command, swarm
from tests.e2e.test_training import RUN, write_settings

STEPS = 1_000_000  # never done
SETTLED_SECONDS = 240.0  # a daemon each for seven stages' worth of torch on two cores
BEST = {"0": 2, "1": 2, "2": 3}  # the last stage has the most work
LOOKS = 3  # further looks at the balance, in which nobody moves
PERIOD_SECONDS = 20.0
EQUALLY_FAST = ("benchmarks.paced", "x8")  # seven devices of their own; otherwise whoever gets a core seems fast


async def stages(daemons: Sequence[Daemon]) -> list[int]:
    return [(await daemon.status())["stage"] for daemon in daemons]


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_five_at_the_first_stage_and_one_at_each_other_settle_and_stay() -> None:
    # Wide enough that the stages take what their shapes say, and not what every task costs; and with so little between
    # that the last stage's vocabulary weighs: 3/2/2 has three quarters of the throughput of 2/2/3.
    model = dataclasses.replace(RUN.model, hidden=128, ffn=64)
    run = dataclasses.replace(
        RUN,
        model=model,
        steps=STEPS,
        sequences_per_step=32,
        sequences_per_microbatch=1,
        rebalance_seconds=PERIOD_SECONDS,
    )
    async with swarm(EQUALLY_FAST) as it:
        text = it.directory / "text.txt"  # small: five heads prepare it on the same cores
        text.write_text("".join(f"{number} is the square root of {number * number}.\n" for number in range(5_000)))
        settings = write_settings(run, it.directory / "run.toml")
        daemons = await it.found(settings, [0, 0, 0, 0, 0, 1, 2], "--data", str(text))
        await daemons[0].until(lambda status: status["peers"] == BEST, SETTLED_SECONDS)
        status = await daemons[0].until(lambda status: status["peers"] == BEST and status["step"] > 3)
        until = status["uptime_seconds"] + LOOKS * PERIOD_SECONDS
        settled = await stages(daemons)
        while (await daemons[0].status())["uptime_seconds"] < until:
            await asyncio.sleep(1)
            assert await stages(daemons) == settled, "\n".join(daemon.log() for daemon in daemons)
        movers = [daemon for daemon in daemons[:5] if (await daemon.status())["stage"] != 0]
        reasons = [(await daemon.status())["moved_because"] for daemon in movers]
        assert len(movers) == 3
        assert all("needs it more than stage 0" in reason for reason in reasons)
        code, out, _ = await run_command("swarmctl", "--home", str(movers[0].home), "status")
        assert code == 0
        assert "moved because" in out
        assert check_replicas(daemons) > 3
