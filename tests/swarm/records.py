"""Records of a toy run for tests."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from swarmd.config import ModelConfig, OptimizerConfig, RunConfig
from swarmd.swarm.history.record import Record, build_record
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.swarm.wire.messages.round import StageReport

RUN = RunConfig(
    name="toy", model=ModelConfig(32, 8, 16, 2, 2, 2, 8), optimizer=OptimizerConfig(warmup_steps=2), steps=10
)


def report(stage: int, **changes: Any) -> StageReport:
    plain = StageReport(
        stage=stage,
        digest=f"d{stage}",
        squared_norm=4.0 + stage,
        tokens=64,
        loss_sum=128.0 if stage == 1 else 0.0,
        microbatches=8,
        resent=stage,
        lost=0,
        duplicated=0,
        finite=True,
        members=(f"m{stage}", f"n{stage}"),
        holders=(f"m{stage}",),
    )
    return dataclasses.replace(plain, **changes)


def record(*reports: StageReport, **changes: Any) -> Record:
    return build_record(
        RUN,
        changes.pop("parent", "parent"),
        changes.pop("step", 3),
        reports or (report(0), report(1)),
        **{"conductor": "c", "seconds": 1.5, "validation_loss": None, **changes},
    )


def skipped(step: int = 3, before: Record | None = None, **changes: Any) -> Record:
    blame = Blame("activation", 1, "12D3KooWpeer", 7)
    return record(report(0), report(1, finite=False, blame=blame, **changes), step=step, before=before)


async def believe(it: Record, source: str, voters: Sequence[str]) -> bool:
    """Takes every record for a decided one."""
    return True
