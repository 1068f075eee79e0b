"""`swarmctl`, and `python -m swarmctl`. Signals are seen to before anything that takes time is imported."""

import sys

from swarmd import exits


def main() -> None:
    """Entry point of the `swarmctl` command."""
    exits.begin("swarmctl", exits.DONE if "--watch" in sys.argv else exits.FAILED)
    from swarmctl.app import run_command_line

    exits.end(run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
