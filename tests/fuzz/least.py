"""The least of many cases that reaches as much as all of them: what is kept as a corpus.

libFuzzer's own merge starts the program again as it was started, which it can't for Python.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from tests.fuzz.mutation import read_case
from tests.fuzz.target import HERE, Target

ROOM = f"{HERE.parents[1] / 'swarmd'}/"
SIMULATOR = f"{ROOM}sim/"  # it is not what is tried

Branch = tuple[str, int, int]
"""A line of a file, and the one that ran after it in the same call."""


def least(make: Callable[[], Target], cases: Iterable[bytes]) -> list[bytes]:
    """The cases that each reach a branch which no smaller one of them does, smallest first."""
    reached: set[Branch] = set()

    def enter(frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        name, last = frame.f_code.co_filename, frame.f_lineno
        if not name.startswith(ROOM) or name.startswith(SIMULATOR):
            return None

        def step(frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
            nonlocal last
            reached.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    kept = []
    sys.settrace(enter)
    threading.settrace(enter)
    try:
        target = make()
        for data in sorted(cases, key=lambda it: (len(it), it)):
            before = len(reached)
            target.play(read_case(data))
            if len(reached) > before:
                kept.append(data)
        target.close()
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return kept
