"""Running a typer app as a command: exit codes, a mistake in the arguments as one sentence on stderr, and the options
that all commands have.

`swarmd` and `swarmctl` share it. Relies on typer and on nothing heavy, so that both answer at once.
"""

import re
import sys
from itertools import pairwise
from typing import Annotated, Any

import typer

from swarmd import __version__, completion, exits
from swarmd.printable import printable

SETTINGS = {"help_option_names": ["-h", "--help"]}
"""For the app's `context_settings`: the commands below take them over."""

WITHOUT_VALUE = re.compile("--[a-z-]+=")


def run(app: typer.Typer, program: str, arguments: list[str]) -> int:
    """Parses the arguments and runs the command; returns the exit code."""
    if place := _empty_value(arguments):
        say(
            program,
            f"nothing is given after {place}, as where a shell's variable isn't set; give it, or leave that out.",
        )
        return exits.MISTAKE
    try:
        result: Any = app(arguments, prog_name=program, standalone_mode=False)
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return exits.MISTAKE
        sentence = " ".join(error.format_message().split()).replace(": Value error, ", ": ")  # pydantic's own words
        say(program, f"{sentence.rstrip('.')}; see `{program} --help`.")
        return exits.MISTAKE
    except typer.Abort:
        say(program, "interrupted.")
        return exits.FAILED
    except SystemExit as end:  # a shell asked what could come next, and got it, or is to ask from now on
        if completion.INSTALL in arguments:
            completion.mend_zsh(program)
        return end.code if isinstance(end.code, int) else exits.DONE
    return result if isinstance(result, int) else exits.DONE


def _empty_value(arguments: list[str]) -> str:
    """The argument before the first empty one, "" if there is none. Nothing takes one: a path would be the working
    directory.
    """
    for before, argument in pairwise(["the command", *arguments]):
        if not argument:
            return before
        if WITHOUT_VALUE.fullmatch(argument):
            return argument
    return ""


def say(program: str, sentence: str) -> None:
    """Prints one line on stderr, under the program's name."""
    print(f"{program}: {printable(sentence)}", file=sys.stderr, flush=True)


def debugging(context: typer.Context) -> bool:
    """True if --debug was given, before the command or after it."""
    return bool(context.meta.get("debug"))


def remember_debug(context: typer.Context, given: bool) -> bool:
    """Callback of --debug: it counts wherever it stands."""
    context.meta["debug"] = given or debugging(context)
    return debugging(context)


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:  # a shell that completes what follows wants no version
        print(f"{context.find_root().info_name} {__version__}")
        raise typer.Exit


Debug = Annotated[bool, typer.Option("--debug", callback=remember_debug, help="Show tracebacks.")]

Version = Annotated[
    bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Show the version and exit.")
]
