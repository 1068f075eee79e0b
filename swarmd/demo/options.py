"""The options of `swarmd demo`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoOptions:
    """The options given to `swarmd demo`."""

    peers: int
    model: str
    stages: int | None
    steps: int | None
    home: Path | None
    as_json: bool
    timeout_s: float
    kill_every_s: float | None = None  # None: nobody is killed
    uneven: bool = False  # all that may be are at the first stage, and move to where they are needed
