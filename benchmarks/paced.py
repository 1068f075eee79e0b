"""`python -m benchmarks.paced FORWARD BACKWARD start ...`: swarmd on a device that takes so many seconds for each
microbatch; `python -m benchmarks.paced xTIMES start ...`: on one that takes so many times what this one does.

Many daemons that share few cores would get faster whenever one of them dies or waits, and no figure would mean
anything. So each daemon's compute thread sleeps until its task has taken as long as on a device of its own. All else is
the production code, and the numbers are computed for real.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

from swarmd.cli.main import run_command_line
from swarmd.stage.engine import StageEngine
from swarmd.stage.worker import Task, Worker


def paced(call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """The call, taking at least so long."""

    def slowed(*arguments: Any, **keywords: Any) -> Any:
        due = time.monotonic() + seconds
        result = call(*arguments, **keywords)
        time.sleep(max(0.0, due - time.monotonic()))
        return result

    return slowed


def set_pace(forward_s: float, backward_s: float) -> None:
    """From now on every stage that is opened takes so long for a microbatch."""
    make = Worker._make_engine  # noqa: SLF001 - the one place where a device can be put into a daemon from outside

    def make_paced(worker: Worker) -> Any:
        engine: Any = make(worker)
        engine.forward = paced(engine.forward, forward_s)
        engine.backward = paced(engine.backward, backward_s)
        engine.tail = paced(engine.tail, forward_s + backward_s)
        return engine

    setattr(Worker, "_make_engine", make_paced)  # noqa: B010


def slow_down(times: float) -> None:
    """From now on every task of the device takes so many times the CPU time that it uses, rounds included. Time during
    which other processes have the core counts as sleep, so daemons don't disturb each other while a core is free.
    """
    run = Worker._run  # noqa: SLF001 - as above

    def run_slowly(worker: Worker, task: Task) -> None:
        def call(stage: StageEngine) -> Any:
            began, used = time.monotonic(), time.thread_time()
            try:
                return task.call(stage)
            finally:
                due = began + times * (time.thread_time() - used)
                time.sleep(max(0.0, due - time.monotonic()))

        run(worker, dataclasses.replace(task, call=call))

    setattr(Worker, "_run", run_slowly)  # noqa: B010


if __name__ == "__main__":
    if sys.argv[1].startswith("x"):
        slow_down(float(sys.argv[1][1:]))
        sys.exit(run_command_line(sys.argv[2:]))
    set_pace(float(sys.argv[1]), float(sys.argv[2]))
    sys.exit(run_command_line(sys.argv[3:]))
