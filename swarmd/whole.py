"""Versions of a run that are not gone on from, though they are the newest: some stage has no checkpoint of them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PassedOver:
    """A version newer than the one that is whole."""

    version: int
    lacking: tuple[int, ...]  # stages without a whole checkpoint
    stages: int  # of the run
    damaged: tuple[str, ...] = ()  # of these, whose checkpoint is there and damaged: where, in a few words

    def __str__(self) -> str:
        why = f"no checkpoint of {name_stages(self.lacking)} ({self.stages - len(self.lacking)} of {self.stages} stages"
        broken = f"; damaged: {', '.join(self.damaged)}" if self.damaged else ""
        return f"version {self.version} is passed over: {why} are here{broken})"


def name_stages(stages: Sequence[int]) -> str:
    """Stages in words."""
    if len(stages) == 1:
        return f"stage {stages[0]}"
    return f"stages {', '.join(map(str, stages[:-1]))} and {stages[-1]}"
