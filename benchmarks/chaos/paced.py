"""`python -m benchmarks.chaos.paced FORWARD BACKWARD start ...`: swarmd on a device that takes so many seconds for each
microbatch.

Nine daemons that share two cores would get faster whenever one of them dies, and no figure would mean anything. So each
daemon's compute thread sleeps until its share of a microbatch has taken as long as on a device of a set speed. All else
is the production code, and the numbers are computed for real.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from swarmd.cli import run_command_line
from swarmd.stage.worker import Worker


def paced(call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """The call, taking at least so long."""

    def slowed(*arguments: Any, **keywords: Any) -> Any:
        due = time.monotonic() + seconds
        result = call(*arguments, **keywords)
        time.sleep(max(0.0, due - time.monotonic()))
        return result

    return slowed


def set_pace(forward_s: float, backward_s: float) -> None:
    """From now on every stage that is opened takes so long."""
    make = Worker._make_engine  # noqa: SLF001 - the one place where a device can be put into a daemon from outside

    def make_paced(worker: Worker) -> Any:
        engine: Any = make(worker)
        engine.forward = paced(engine.forward, forward_s)
        engine.backward = paced(engine.backward, backward_s)
        engine.tail = paced(engine.tail, forward_s + backward_s)
        return engine

    setattr(Worker, "_make_engine", make_paced)  # noqa: B010


if __name__ == "__main__":
    set_pace(float(sys.argv[1]), float(sys.argv[2]))
    sys.exit(run_command_line(sys.argv[3:]))
