"""Lines over a number, as text for the terminal. Relies on plotext; knows nothing of what is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    for line in lines:
        figure.draw(
            figure.signal(list(line.xs), list(line.ys), marker=line.marker).lines(line.joined).label(line.label)
        )
    return str(plotext.uncolorize(str(figure.build())))
