"""Completion for shells: values of options that they offer, and what typer's script for zsh lacks.

Relies on nothing heavy, so that a shell is answered at once.
"""

from collections.abc import Callable
from pathlib import Path

INSTALL = "--install-completion"


def one_of(*names: str) -> Callable[[str], list[str]]:
    """For an option's `autocompletion`: these names. Where none fits, the shell offers files."""

    def offer(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return offer


def preset(incomplete: str) -> list[str]:
    """For the `autocompletion` of an option that takes a preset or a file."""
    from swarmd.settings import preset_names  # only a shell that completes needs it

    return one_of(*preset_names())(incomplete)


def mend_zsh(program: str) -> None:
    """Mends the script that typer has installed. zsh loads it when it is first asked, and as typer writes it, it then
    only says who completes: the first Tab in every shell would do nothing. And apostrophes would be lost.
    """
    path, complete = Path.home() / ".zfunc" / f"_{program}", f"_{program}_completion"
    if path.is_file() and (text := path.read_text(encoding="utf-8")).endswith(f"compdef {complete} {program}"):
        text = text.replace(f"{complete}() {{\n", f"{complete}() {{\n  setopt localoptions rcquotes\n")
        path.write_text(f'{text}\n(( ${{+compstate}} )) && {complete} "$@"\n', encoding="utf-8")
