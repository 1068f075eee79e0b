"""The files below a folder, and those that a glob means, links included.

A link to a folder is that folder, unless it leads back to one in which it lies. A folder that can't be read is an
error, since nobody would miss the text in it.
"""

import errno
import fnmatch
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

NO_TEXT = ("lost+found",)  # in the root of a disk, for its file system alone
NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # of links that lead nowhere


def files_below(folder: Path, *, hidden: bool = True) -> Iterator[Path]:
    """Every file below a folder. `hidden`: those whose names begin with a dot, too, and those in folders of such names.
    Raises OSError.
    """
    for each in _folders_below(folder, hidden=hidden):
        yield from (path for path in _in(each, hidden=hidden) if stat.S_ISREG(_mode(path)))


def matching_files(pattern: Path) -> list[Path]:
    """Each file that a glob means, once. Folders at its beginning that exist by their very names mean themselves.

    Raises OSError.
    """
    parts = [part for part, after in pairwise([*pattern.parts, ""]) if not part == after == "**"]
    known = Path()
    while parts and os.path.lexists(known / parts[0]):
        known /= parts.pop(0)
    return [*dict.fromkeys(path for path in _matching(known, parts) if stat.S_ISREG(_mode(path)))]


def _matching(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        yield folder
    elif parts[0] == "**" and len(parts) == 1:
        yield from files_below(folder, hidden=False)
    elif parts[0] == "**":
        for each in _folders_below(folder, hidden=False):
            yield from _matching(each, parts[1:])
    elif not glob.has_magic(parts[0]):
        if os.path.lexists(folder / parts[0]):
            yield from _matching(folder / parts[0], parts[1:])
    elif stat.S_ISDIR(_mode(folder)):
        for path in _in(folder, hidden=parts[0].startswith(".")):
            if fnmatch.fnmatchcase(path.name, parts[0]):
                yield from _matching(path, parts[1:])


def _folders_below(folder: Path, *, hidden: bool) -> Iterator[Path]:
    """The folder itself, if it is one, and all below it."""
    left = [(folder, frozenset(map(_identity, folder.resolve().parents)))]
    while left:
        each, around = left.pop()
        if stat.S_ISDIR(_mode(each)) and _identity(each) not in around:
            yield each
            around |= {_identity(each)}
            left += [(path, around) for path in _in(each, hidden=hidden) if path.name not in NO_TEXT]


def _identity(path: Path) -> tuple[int, int]:
    """The same for every name of a folder."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _in(folder: Path, *, hidden: bool) -> list[Path]:
    """Everything directly in a folder."""
    return [folder / name for name in os.listdir(folder) if hidden or not name.startswith(".")]


def _mode(path: Path) -> int:
    """The mode of what is there, links followed; 0 if nothing is."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in NOTHING:
            return 0
        raise
