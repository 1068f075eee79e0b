"""The width of a page: that of the terminal, of $COLUMNS, or none."""

import io

import pytest

from swarmd.screen import UNBOUNDED, console


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_terminal_is_as_wide_as_it_says_and_wide_is_wider(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "40")
    assert console(Screen()).width == 40
    assert console(Screen(), wide=True).width == UNBOUNDED
    assert console(io.StringIO()).width == 40, "`watch` tells the width so"
    monkeypatch.delenv("COLUMNS")
    assert console(io.StringIO()).width == UNBOUNDED, "a pipe has none"
