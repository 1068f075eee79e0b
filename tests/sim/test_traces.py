"""The golden rule of a refactoring: what happens in virtual time stays the same, event by event.

`traces.json` has the hash over all events of every scenario that has a name and of 20 seeds. A change of structure
leaves them equal. A change that means to alter what happens says why in its commit, passes a campaign of 1,000 seeds,
and records them anew: `python -m tests.sim.test_traces`.
"""

import json
from pathlib import Path

import pytest

from swarmd.sim.campaign.play import play
from swarmd.sim.faults.draw import draw_scenario
from swarmd.sim.faults.named import NAMED
from swarmd.sim.faults.scenario import Scenario

RECORDED = Path(__file__).with_name("traces.json")
SEEDS = (1, 2, 3, 5, 7, 11, 42, 101, 256, 404, 777, 1001, 1234, 2026, 4711, 9000, 12000, 40961, 65537, 99991)


def scenarios() -> dict[str, Scenario]:
    return {**NAMED, **{f"seed {seed}": draw_scenario(seed) for seed in SEEDS}}


@pytest.mark.parametrize("name", scenarios())
def test_what_happens_is_what_was_recorded(name: str) -> None:
    assert play(scenarios()[name], trace=True).trace == json.loads(RECORDED.read_text())[name]


if __name__ == "__main__":
    RECORDED.write_text(
        json.dumps({name: play(it, trace=True).trace for name, it in scenarios().items()}, indent=1) + "\n"
    )
