"""Running a typer app as a command: exit codes, and a mistake in the arguments as one sentence on stderr.

`swarmd` and `swarmctl` share it. Relies on typer and on nothing heavy, so that both answer at once.
"""

import sys
from typing import Any

import typer

from swarmd import exits
from swarmd.printable import printable


def run(app: typer.Typer, program: str, arguments: list[str]) -> int:
    """Parses the arguments and runs the command; returns the exit code."""
    try:
        result: Any = app(arguments, prog_name=program, standalone_mode=False)
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return exits.MISTAKE
        sentence = " ".join(error.format_message().split())
        say(program, f"{sentence.rstrip('.')}; see `{program} --help`.")
        return exits.MISTAKE
    except typer.Abort:
        say(program, "interrupted.")
        return exits.FAILED
    return result if isinstance(result, int) else exits.DONE


def say(program: str, sentence: str) -> None:
    """Prints one line on stderr, under the program's name."""
    print(f"{program}: {printable(sentence)}", file=sys.stderr, flush=True)
