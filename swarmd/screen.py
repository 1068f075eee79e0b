"""The terminal that tables and sentences are shown on, or the pipe in its place, and words fit for it.

Relies on rich; knows nothing of what is shown.
"""

import os
import shutil
import sys
from typing import TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from swarmd.printable import CELL_LIMIT, printable

UNBOUNDED = 100_000  # columns where the output is no terminal, or the terminal is to wrap by itself
MORE = "--wide or --json shows them"  # columns that are left out, at commands that have both options


def console(stream: TextIO | None = None, *, wide: bool = False) -> Console:
    """The terminal (stdout unless another stream is given). A page is as wide as what it shows if the output goes
    elsewhere, or `wide` is asked for; $COLUMNS bounds it in a pipe. Nothing is taken as markup, and what the stream's
    encoding lacks is shown as its escape.
    """
    stream = stream or sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    plain = Console(file=stream, highlight=False, markup=False, emoji=False)
    here = shutil.get_terminal_size()
    if wide or not (plain.is_terminal or os.environ.get("COLUMNS", "").isdecimal()):
        columns = UNBOUNDED
    elif plain.is_dumb_terminal:  # rich takes every one for 80 columns wide
        columns = here.columns
    else:
        return plain
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=columns, height=here.lines)


def show(shown: RenderableType, *, wide: bool = False, stream: TextIO | None = None) -> None:
    """Prints it, on stdout unless another stream is given. A line that is too long is left to the terminal."""
    console(stream, wide=wide).print(shown, crop=False)


def words(value: object, style: str = "", limit: int = CELL_LIMIT) -> Text:
    """A cell, or a line, of words that may come from anyone."""
    return Text(printable(value, limit), style=style)


def cells(*values: object) -> tuple[Text, ...]:
    """A row of a table."""
    return tuple(map(words, values))
