"""The measured figures of README.md and docs/, listed in docs/measured.toml, and the rule by which one is too old.

The rule. A figure is *fresh* while at most FRESH_SHARE of the code that it measures has changed since its commit: lines
added and removed in its paths, moved files followed, over the lines that are there now. A figure that isn't fresh must
say so where it stands: its date and commit are written beside it, as in "2026-11-28, 5fa975b". And none may be older
than AGE_DAYS, counted up to the date of the newest commit, so that the same checkout gives the same answer on any day:
then it is measured again, or taken out.

`python -m tests.measured` prints the list. Where the history isn't complete, as in a shallow clone, ages are not known.
"""

import datetime
import functools
import re
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.house import ROOT

LIST = ROOT / "docs/measured.toml"
FRESH_SHARE = 0.25  # a figure rarely moves by more than it would from day to day while less than that has changed
AGE_DAYS = 90


@dataclass(frozen=True)
class Figure:
    """One entry of the list: figures that one command printed."""

    document: str
    words: str  # that stand in the row or paragraph of the figures
    command: str
    date: datetime.date
    commit: str
    paths: tuple[str, ...]  # the code that is measured

    @property
    def mark(self) -> str:
        """The words that tell a reader how old it is."""
        return f"{self.date.isoformat()}, {self.commit}"


def read_list(path: Path = LIST) -> list[Figure]:
    """The entries of docs/measured.toml."""
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["figure"]
    return [Figure(**{**row, "paths": tuple(row["paths"])}) for row in rows]


def blocks(text: str) -> Iterator[str]:
    """The paragraphs of a document, and the rows of its tables one by one."""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        if paragraph.lstrip().startswith("|"):
            yield from paragraph.splitlines()
        else:
            yield " ".join(paragraph.split())


def places(figure: Figure, text: str) -> list[str]:
    """The paragraphs and rows in which its words stand."""
    return [block for block in blocks(text) if figure.words in block]


def is_marked(figure: Figure, text: str) -> bool:
    """Tells if its date and commit stand beside it wherever it stands."""
    found = places(figure, text)
    return bool(found) and all(figure.mark in block for block in found)


def tables(text: str) -> Iterator[tuple[str, list[str]]]:
    """The tables of a document, each with the paragraph before it."""
    before = ""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        if paragraph.lstrip().startswith("|"):
            yield before, paragraph.splitlines()
        else:
            before = " ".join(paragraph.split())


def has_figures(rows: list[str]) -> bool:
    """Tells if most cells of a table, its first column aside, hold digits. A table that names sources is not ours."""
    cells = [cell for row in rows[2:] for cell in row.strip().strip("|").split("|")[1:]]
    return "source" not in rows[0] and 2 * sum(any(it.isdigit() for it in cell) for cell in cells) > len(cells)


# ------------------------------------------------------------------------------------------------- history


def git(*arguments: str) -> str:
    """What git says in this checkout. Raises CalledProcessError, FileNotFoundError."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def why_no_history() -> str:
    """The reason why ages can't be told here; "" if they can."""
    try:
        shallow = git("rev-parse", "--is-shallow-repository").strip()
    except (OSError, subprocess.CalledProcessError):
        return "this is no git checkout"
    return "this clone is shallow: its history is not here" if shallow == "true" else ""


def today() -> datetime.date:
    """The date of the newest commit."""
    return datetime.date.fromisoformat(git("log", "-1", "--format=%cs").strip())


def is_ancestor(commit: str) -> bool:
    """Tells if a commit is one of this history."""
    try:
        git("merge-base", "--is-ancestor", commit, "HEAD")
    except subprocess.CalledProcessError:
        return False
    return True


@functools.cache
def changes(commit: str) -> dict[str, int]:
    """Lines added and removed since a commit, by the file's present path, or its last one."""
    counts: dict[str, int] = {}
    words = iter(git("diff", "-M", "-z", "--numstat", commit, "HEAD").split("\0"))
    for word in words:
        if not word:
            continue
        added, removed, path = word.split("\t")
        if not path:  # moved: the old and the new path follow
            next(words)
            path = next(words)
        counts[path] = sum(int(number) for number in (added, removed) if number.isdecimal())
    return counts


def changed_share(figure: Figure) -> float:
    """The lines that have changed in the code that it measures, over those that are there now."""
    files = git("ls-files", "-z", "--", *figure.paths).split("\0")
    lines = sum((ROOT / path).read_bytes().count(b"\n") for path in files if path and (ROOT / path).is_file())
    inside = tuple(f"{path.rstrip('/')}/" for path in figure.paths)
    changed = sum(n for path, n in changes(figure.commit).items() if path in figure.paths or path.startswith(inside))
    return changed / max(1, lines)


def trouble(figure: Figure, text: str, share: float, at: datetime.date) -> str:
    """The reason why a figure may not stand as it does; "" if it may."""
    if not places(figure, text):
        return f"{figure.document} doesn't say {figure.words!r}"
    if (at - figure.date).days > AGE_DAYS:
        return f"{figure.words!r} is of {figure.date}: measure it again with `{figure.command}`, or take it out"
    if share > FRESH_SHARE and not is_marked(figure, text):
        return (
            f"{share:.0%} of what {figure.words!r} measures has changed since: run `{figure.command}` again, or write "
            f'"{figure.mark}" beside it'
        )
    return ""


def main() -> None:
    """Prints the list."""
    why = why_no_history()
    for figure in read_list():
        text = (ROOT / figure.document).read_text(encoding="utf-8")
        changed = f"not known ({why})" if why else f"{changed_share(figure):.0%}"
        says = "says so" if is_marked(figure, text) else "says nothing of it"
        print(f"{figure.mark}  {figure.document}: {figure.words}")
        print(f"    {figure.command}; changed since: {changed}, {says}")


if __name__ == "__main__":
    main()
