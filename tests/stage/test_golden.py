"""A recorded loss curve: a change that should not alter numbers must leave it alone.

Recorded from the plain PyTorch loop by `python -m tests.stage.test_golden`, which writes the file anew.
"""

import json
from pathlib import Path

import pytest

from swarmd.sim.engines.training import plain_training
from tests.stage.toy import toy_run, train_pipeline

GOLDEN = Path(__file__).with_name("golden_loss.json")
TOLERANCE = 1e-4  # nats per token: other CPUs and versions of torch add in another order, nothing else may differ
STAGES = 4


def recorded() -> list[float]:
    losses: list[float] = json.loads(GOLDEN.read_text())["losses"]
    return losses


def test_the_plain_loop_still_gives_the_recorded_curve() -> None:
    losses, _ = plain_training(toy_run(stages=STAGES))
    assert losses == pytest.approx(recorded(), abs=TOLERANCE)


def test_the_stages_give_the_recorded_curve() -> None:
    losses, _ = train_pipeline(toy_run(stages=STAGES))
    assert losses == pytest.approx(recorded(), abs=TOLERANCE)
    assert losses[-1] < losses[0] - 1.0


if __name__ == "__main__":
    curve, _ = plain_training(toy_run(stages=STAGES))
    GOLDEN.write_text(json.dumps({"losses": [round(loss, 6) for loss in curve]}, indent=1) + "\n")
