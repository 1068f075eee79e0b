"""`swarmd`, and `python -m swarmd`. Signals are seen to before anything that takes time is imported."""

import sys

from swarmd import exits


def main() -> None:
    """Entry point of the `swarmd` command."""
    exits.begin("swarmd", exits.DONE if sys.argv[1:2] == ["start"] else exits.FAILED)
    from swarmd.cli.main import run_command_line

    exits.end(run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
