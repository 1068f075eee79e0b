"""A look at whether the service's user may run this swarmd. It owns nothing, and home directories are hidden from it.

Looked at are the files that a start needs, each directory on the way, and each link. Access lists are not known here.
"""

import importlib.util
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from swarmd.printable import printable

HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))  # by ProtectHome=yes of the unit
LINKS_LIMIT = 40  # on the way to one file, as the kernel has it


def needed_to_start() -> list[Path]:
    """The files that a start of this swarmd reads: its program, its Python, packages of ours and of others."""
    beside = Path(sys.executable).parent / "swarmd"
    packages = (importlib.util.find_spec(name) for name in ("swarmd", "torch", "libp2p"))
    origins = (Path(spec.origin) for spec in packages if spec is not None and spec.origin is not None)
    return [*([beside] if beside.exists() else []), Path(sys.executable), Path(os.__file__), *origins]


def obstacle(paths: Iterable[Path], hidden: Iterable[Path] = HIDDEN) -> str:
    """The reason why the service's user can't use these files; "" if nothing is in the way."""
    hidden = tuple(hidden)
    for path in paths:
        for place in visited(path):
            if place in hidden:
                return f"{printable(path)} leads through {place}, and home directories are hidden from it"
            mode = place.stat().st_mode
            wanted = stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
            if not mode & wanted:
                return f"{printable(place)} is closed to it"
    return ""


def visited(path: Path) -> Iterator[Path]:
    """Each directory and file that the kernel passes on its way along an absolute path, links followed."""
    ahead, place, links = list(path.parts[1:]), Path("/"), 0
    while ahead:
        part = ahead.pop(0)
        if part == "..":
            place = place.parent
            continue
        step = place / part
        if step.is_symlink():
            target, links = step.readlink(), links + 1
            if links > LINKS_LIMIT:
                return
            ahead = [*(target.parts[1:] if target.is_absolute() else target.parts), *ahead]
            place = Path("/") if target.is_absolute() else place
            continue
        if not step.exists():
            return
        yield step
        place = step
