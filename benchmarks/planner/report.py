"""The planner's predictions beside what was measured, as a table."""

import os
from typing import Any

from rich.console import Group, RenderableType

from benchmarks.forms import sentence, table
from swarmd.layout import Column
from swarmd.printable import counted

_COLUMNS = (
    Column("swarm", right=False, wraps=True),
    Column("predicted", 1),
    Column("measured", 2),
    Column("error"),
    Column("errors of each round", 3, right=False),
)


def render(rows: list[dict[str, Any]], rounds: int) -> RenderableType:
    """The predictions beside what was measured."""
    shown = [
        (
            row["case"],
            f"{row['predicted']:,.0f}",
            f"{row['measured']:,.0f}",
            f"{row['error']:+.1%}",
            ", ".join(f"{error:+.0%}" for error in row["errors"]),
        )
        for row in rows
    ]
    said = f"tokens/s, medians of {counted(rounds, 'round')}; {counted(os.cpu_count() or 1, 'core')}"
    return Group(table(_COLUMNS, shown), sentence(said))
