"""`python -m tests.e2e.dying N start ...` is swarmd, except that its compute thread dies at its Nth microbatch."""

import sys

from swarmd.__main__ import main
from swarmd.stage import worker


def die_at(count: int) -> None:
    """From now on the thread ends as it would if a library ended it: with something that is no Exception."""
    run, left = worker.Worker._run, count

    def counted(it: worker.Worker, task: worker.Task) -> None:
        nonlocal left
        left -= task.hop is not None
        if left == 0:
            raise SystemExit(1)
        run(it, task)

    worker.Worker._run = counted  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    die_at(int(sys.argv.pop(1)))
    main()
