"""The figures of the house: `python -m tests.house` prints them, test_house.py sets limits to some.

Imports are read from the source with ast, wherever they stand, those under TYPE_CHECKING included.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
OURS = ("swarmd", "swarmctl", "tests", "benchmarks")
LONG_FUNCTION = 40  # lines

RELATIVE = re.compile(
    r"(?:who(ever|m)?|what(ever)?|where(ver)?|when(ever)?|which(ever)?|how|whether|that|by what|of what|as)\b",
    re.IGNORECASE,
)
"""A docstring that opens so names its subject by a clause instead of a noun or a verb."""
KEPT = re.compile(r"# fmt: (?:skip|off)$", re.MULTILINE)
"""A comment that keeps lines from the formatter."""


def sources(*places: str) -> list[Path]:
    """Our Python files in these places, sorted."""
    found = [
        path for place in places for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
    ]
    return sorted(path for path in found if "__pycache__" not in path.parts)


@cache
def parse(path: Path) -> ast.Module:
    """The tree of a file, parsed once: nearly every rule reads nearly every file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


@cache
def imported(tree: ast.AST) -> tuple[tuple[str, int], ...]:
    """Every module that is imported, anywhere in the source, as a dotted name, with its line."""
    return tuple(_imported(tree))


def _imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide which room is meant"
            assert node.module is not None
            # `from swarmd import settings` means swarmd.settings; `from swarmd.config import X` means swarmd.config.
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from ((name if is_module(name) else node.module, node.lineno) for name in names)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


Graph = dict[str, set[str]]


def import_graph(*places: str) -> Graph:
    """The modules of these places, and those of them that each imports."""
    modules = {module_of(path): path for path in sources(*places) if path.read_text(encoding="utf-8").strip()}
    return {
        name: {other for other, _ in imported(parse(path)) if other in modules and other != name}
        for name, path in modules.items()
    }


def rooms_of(graph: Graph, place: str) -> Graph:
    """The same between rooms: the packages of a place, and its own modules."""
    depth = place.count("/") + 2

    def room(name: str) -> str:
        return ".".join(name.split(".")[:depth])

    rooms: Graph = {room(name): set() for name in graph}
    for name, others in graph.items():
        rooms[room(name)] |= {room(other) for other in others} - {room(name)}
    return rooms


def circles(graph: Graph) -> list[list[str]]:
    """Sets of modules that import each other, over however many others (strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in index:
            visit(name)
    return found


def floors(graph: Graph) -> int:
    """The number of modules in the longest chain of imports; a circle counts as one."""
    circle_of = {name: circle[0] for circle in circles(graph) for name in circle}
    merged: Graph = {}
    for name, others in graph.items():
        mine = merged.setdefault(circle_of.get(name, name), set())
        mine |= {circle_of.get(other, other) for other in others} - {circle_of.get(name, name)}
    height: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in height:
            height[name] = 1 + max((of(other) for other in merged[name]), default=0)
        return height[name]

    return max((of(name) for name in merged), default=0)


def floors_broken(place: str, order: tuple[tuple[str, ...], ...]) -> list[str]:
    """Imports within a place that don't lead to a lower floor. Files beside the rooms come below, `__main__` above."""
    level = {room: number for number, rooms in enumerate(order) for room in rooms}
    depth = place.count("/") + 1

    def level_of(name: str) -> tuple[int, str]:
        parts = name.split(".")[depth:]
        if len(parts) == 1:
            return (len(order), "") if parts[0] == "__main__" else (-1, "")
        return level[parts[0]], parts[0]

    found = []
    for name, others in import_graph(place).items():
        mine, room = level_of(name)
        for other in sorted(others):
            theirs, its = level_of(other)
            if theirs >= mine and its != room:
                found.append(f"{name} imports {other}")
    return found


class Definition(NamedTuple):
    """A class, function or parameter list that is measured."""

    path: Path
    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)} {self.name} {self.size}"


def functions(path: Path) -> Iterator[Definition]:
    """Functions with their lines."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield Definition(path, node.name, node.end_lineno - node.lineno + 1)


def is_plain_data(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def constructors(path: Path) -> Iterator[Definition]:
    """Constructors with their parameters, `self` not counted."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ClassDef) and not is_plain_data(node):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    them = method.args
                    yield Definition(path, node.name, len(them.posonlyargs + them.args + them.kwonlyargs) - 1)


def classes(path: Path) -> Iterator[Definition]:
    """Classes with their public methods and properties."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ClassDef):
            names = {
                method.name
                for method in node.body
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_")
            }
            yield Definition(path, node.name, len(names))


def relative_docstrings(tree: ast.AST) -> list[str]:
    """First lines of the docstrings that open with a relative clause."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and RELATIVE.match(text):
                found.append(text.splitlines()[0])
    return found


def idle_functions(tree: ast.AST) -> list[str]:
    """Names of functions within functions that are never mentioned there: nothing calls them."""
    found = []
    for outer in ast.walk(tree):
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef):
            used = {node.id for node in ast.walk(outer) if isinstance(node, ast.Name)}
            inner = [node for node in outer.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
            found += [node.name for node in inner if node.name not in used and not node.decorator_list]
    return found


def figures() -> dict[str, object]:
    """The figures by their names."""
    everything = sources("swarmd", "swarmctl")
    whole = import_graph("swarmd", "swarmctl")
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in everything}
    largest = max(lines, key=lambda path: lines[path])
    found: dict[str, object] = {}
    for place in ("swarmd/swarm", "swarmd/sim"):
        files = import_graph(place)
        rooms = rooms_of(files, place)
        found[f"{place}: modules, floors, arrows, circles"] = (
            f"{len(files)}, {floors(files)}, {sum(map(len, files.values()))}, {len(circles(files))}"
        )
        found[f"{place}: rooms, floors, arrows, circles"] = (
            f"{len(rooms)}, {floors(rooms)}, {sum(map(len, rooms.values()))}, {len(circles(rooms))}"
        )
    found["circles of imports anywhere"] = [" ".join(circle) for circle in circles(whole)]
    found["largest file"] = f"{largest.relative_to(ROOT)}, {lines[largest]} lines"
    found["files over 300 lines"] = sum(count > 300 for count in lines.values())
    found[f"functions over {LONG_FUNCTION} lines"] = sum(
        it.size > LONG_FUNCTION for path in everything for it in functions(path)
    )
    found["constructors of swarm/ over 6 parameters"] = [
        f"{it.name} {it.size}" for path in sources("swarmd/swarm") for it in constructors(path) if it.size > 6
    ]
    found["classes over 25 public methods"] = [
        f"{it.name} {it.size}" for path in everything for it in classes(path) if it.size > 25
    ]
    found["docstrings with a relative opening"] = sum(len(relative_docstrings(parse(path))) for path in everything)
    found["fmt: skip"] = sum(len(KEPT.findall(path.read_text(encoding="utf-8"))) for path in everything)
    return found


if __name__ == "__main__":
    for what, figure in figures().items():
        print(f"{what}: {figure}")
