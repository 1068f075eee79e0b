"""Lines over a number, as text for the terminal. Relies on plotext and rich; knows nothing of what is drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

TICKS = 4  # about, above zero
LONG = 1000.0  # from here on a number has no fraction
PLOT_COLUMNS, PLOT_ROWS = 80, 20  # characters


@dataclass(frozen=True)
class Line:
    """One series of a plot."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    marker: str = "hd"  # plotext's finest; or one character
    joined: bool = True


def draw(title: str, lines: Sequence[Line], columns: int = PLOT_COLUMNS) -> str:
    """The plot, so many columns wide, without colours; its vertical axis begins at zero."""
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.plot_size(columns, PLOT_ROWS)
    figure.title(title)
    figure.draw(figure.signal([lines[0].xs[0]], [0.0], marker=" "))  # pulls the axis down to zero
    marks = ticks(max(y for line in lines for y in line.ys))
    figure.ruler("y").ticks(marks, [f"{mark:,g}" if mark < LONG else f"{mark:,.0f}" for mark in marks])
    for line in lines:
        figure.draw(
            figure.signal(list(line.xs), list(line.ys), marker=line.marker).lines(line.joined).label(line.label)
        )
    return str(plotext.uncolorize(str(figure.build())))


class Plot:
    """Lines drawn as wide as the page, up to PLOT_COLUMNS."""

    def __init__(self, title: str, lines: Sequence[Line]) -> None:
        self._title, self._lines = title, lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(draw(self._title, self._lines, min(PLOT_COLUMNS, options.max_width)))


def ticks(highest: float) -> list[float]:
    """Round numbers from zero to the first that is not below the highest value, a few of them."""
    if highest <= 0:
        return [0.0]
    least = highest / TICKS
    decade = 10.0 ** math.floor(math.log10(least))
    step = next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= least * (1 - 1e-9))
    return [number * step for number in range(math.ceil(highest / step - 1e-9) + 1)]
