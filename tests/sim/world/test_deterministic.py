"""A world is the same for the same seed, whatever the hash seed of the process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import asyncio
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.faults import point_actions
from tests.sim.world.worlds import traced
from tests.sim.toy import everyone_at, moment

async def events(world):
    world.fail_at("*", 2, "serve.Plan", point_actions.pause_for(0.5))
    await moment(world, lambda: everyone_at(world, 1))
    world.network.partition([["head1", "middle1"]])
    await asyncio.sleep(1)
    world.heal()
    world.network.clog("head2", "tail1", 0.2)
    world.crash("middle2", power=True)
    await asyncio.sleep(0.1)
    await world.restart("middle2", disk=False)

world = traced(events, seed=5, link=LinkSpec(delay_s=0.01, jitter_s=0.02, loss=0.02))
print(world.trace.count, world.trace.hash)
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trace_whatever_the_hash_seed() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    answers = [process.communicate(timeout=50) for process in runs]
    assert all(process.returncode == 0 for process in runs), answers
    assert answers[0][0] == answers[1][0]
    assert int(answers[0][0].split()[0]) > 800
