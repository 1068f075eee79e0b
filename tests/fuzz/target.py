"""A surface that takes what others wrote, as the fuzzer and the tests play cases on it."""

import gc
import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.fuzz.mutation import read_case

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
STALL_SECONDS = 0.1  # of this thread's work on one case: longer, and a daemon's event loop stands still
TRIES = 3  # of a slow case, before it counts: what else a thread does now and then takes long by chance


class Finding(AssertionError):
    """Something that no case may bring about."""


class Target(ABC):
    """One surface. `play` raises for all that must not happen; errors that it declares are its own to expect."""

    @abstractmethod
    def seeds(self) -> Iterable[Any]:
        """Valid cases, to begin with."""

    @abstractmethod
    def play(self, case: Any) -> None:
        """Plays a case. Raises ValueError or the like for none that isn't one: it passes those over."""

    def close(self) -> None:  # noqa: B027  # most hold nothing
        """Lets go of what it holds."""


def names() -> list[str]:
    """The names of all targets."""
    return sorted(path.stem for path in (HERE / "targets").glob("*.py"))


def load(name: str) -> Target:
    """A target, ready to be played upon."""
    target: Target = importlib.import_module(f"tests.fuzz.targets.{name}").TARGET()
    return target


def play(target: Target, data: bytes, stall_s: float = STALL_SECONDS) -> None:
    """Plays the case in some bytes. Raises Finding if it takes too long, and all that `Target.play` does."""
    try:
        case = read_case(data)
    except ValueError:
        return
    seconds = _seconds(target, case)
    for _ in range(TRIES - 1):
        if seconds <= stall_s:
            return
        gc.collect()
        seconds = min(seconds, _seconds(target, read_case(data)))
    if seconds > stall_s:
        raise Finding(f"it took {seconds:.2f} s")


def _seconds(target: Target, case: Any) -> float:
    began = time.thread_time()
    target.play(case)
    return time.thread_time() - began
