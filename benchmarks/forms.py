"""The forms in which a benchmark gives its figures: JSON for programs, tables of any width for a person."""

import argparse
from collections.abc import Sequence

from swarmd.layout import Column, FittedTable, Sentence
from swarmd.printable import SENTENCE_LIMIT
from swarmd.screen import MORE, cells, words


def add_forms(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks have."""
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of tables")
    parser.add_argument("--wide", action="store_true", help="all columns, whatever the terminal's width")


def table(columns: Sequence[Column], rows: Sequence[Sequence[object]], title: str = "") -> FittedTable:
    """A table of plain values."""
    return FittedTable(columns, [cells(*row) for row in rows], MORE, title)


def sentence(said: str) -> Sentence:
    """A line below the tables."""
    return Sentence(words(said, limit=SENTENCE_LIMIT))


_STEP_COLUMNS = (Column("steps", right=False), Column("count", 2), Column("median"), Column("longest", 1))


def step_table(spans: dict[str, dict[str, float]]) -> FittedTable:
    """The seconds of steps before something, during it and after it."""
    rows = [(name, row["count"], seconds(row["median_s"]), seconds(row["longest_s"])) for name, row in spans.items()]
    return table(_STEP_COLUMNS, rows)


def seconds(value: float | None) -> str:
    """A time in a column of times, which are compared; "-" for none."""
    return "-" if value is None else f"{value:.1f} s"
