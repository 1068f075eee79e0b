"""Pages drawn at a width, and the check that no word of them is cut there."""

import io
import re
from unittest.mock import patch

from rich.console import Console, RenderableType

from swarmd.screen import UNBOUNDED

WIDTHS = (200, 120, 80, 40)


def drawn(shown: RenderableType, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(shown, crop=False)
    return file.getvalue()


def left_out(text: str) -> list[str]:
    """The lines about columns that are left out, each in one piece."""
    flat = " ".join(text.split())
    return re.findall(r"\d+ columns? left out \([^)]*\): [a-z -]* shows? them", flat)


def cut_words(narrow: str, wide: str) -> set[str]:
    """Words that are shown where the page is narrow and are none where it is wide."""
    said = {word for note in left_out(narrow) for word in note.split()}
    return set(narrow.split()) - set(wide.split()) - said


def check_width(shown: RenderableType, width: int) -> None:
    """Fails if a word is cut at this width, or a line is longer than it needs to be."""
    with patch("swarmd.sim.measure.plots.draw", return_value=""):  # a plot is made anew for each width
        narrow, wide = drawn(shown, width), drawn(shown, UNBOUNDED)
    assert not cut_words(narrow, wide)
    assert not left_out(wide)
    for line in narrow.splitlines():
        assert len(line) <= width or len(line.split()[-1]) > width - 14, "only a word too long for a line stands out"
