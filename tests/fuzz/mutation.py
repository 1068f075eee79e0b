"""Changes of cases: trees of what msgpack has, from which a target makes what it plays.

A change is made at one place of a tree that was valid, so that most of it still is: what checks the outermost layer
alone would throw bytes away that were changed anywhere. Pure; the caller brings chance.
"""

import random
from collections.abc import Callable
from typing import Any

import msgpack

CASE_BYTES = 64 << 10  # of a case: what the fuzzer and the corpus keep
CHANGES = 4  # of one case, at most
GROWN_ITEMS = 300  # of a list that is repeated: over the bounds of most

INTEGERS = (0, 1, -1, 2, 7, 255, 256, 65_535, 1 << 20, 1 << 31, 1 << 32, (1 << 53) - 1, 1 << 53, 1 << 60, -(1 << 63))
EDGES = (*INTEGERS, (1 << 63) - 1, (1 << 64) - 1)
FLOATS = (0.0, -0.0, 0.5, 1e-320, -1.0, 1e18, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "0", "a", "é", "\0", "\n", "\x1b[2J", "\u202e", "\ud800", "0" * 64, "x" * 5000, "serving", "local", "..")
VALUES: tuple[Any, ...] = (None, True, False, *EDGES, *FLOATS, *TEXTS, b"", b"\xff" * 9, [], {}, [[]], {"": None})

Place = tuple[Any, Any]
"""A list or map of a tree, and the index or key in it."""


def read_case(data: bytes) -> Any:
    """The tree in some bytes. Raises ValueError."""
    try:
        return msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogatepass")
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as trouble:
        raise ValueError("no case") from trouble


def is_case(data: bytes) -> bool:
    """True if there is a tree in some bytes."""
    try:
        read_case(data)
    except ValueError:
        return False
    return True


def write_case(tree: Any) -> bytes:
    """The bytes of a tree. Raises ValueError for what msgpack doesn't have."""
    try:
        packed: bytes = msgpack.packb(tree, unicode_errors="surrogatepass")
    except (ValueError, TypeError, OverflowError, RecursionError) as trouble:
        raise ValueError("no case") from trouble
    return packed


def mutated(data: bytes, most: int, rng: random.Random, bend: Callable[[bytes], bytes]) -> bytes:
    """Another case, no larger than `most`; the same one if nothing came of it. `bend`: changes plain bytes."""
    try:
        root = [read_case(data)]
        for _ in range(rng.randint(1, CHANGES)):
            _change(root, rng, bend)
        changed = write_case(root[0])
    except (ValueError, RecursionError):  # RecursionError: lists in lists in lists, which a case may be
        return data
    return changed if len(changed) <= most else data


def _places(tree: Any, found: list[Place]) -> None:
    if isinstance(tree, dict):
        entries: Any = tree.items()
    elif isinstance(tree, list):
        entries = enumerate(tree)
    else:
        return
    for key, value in entries:
        found.append((tree, key))
        _places(value, found)


def _change(root: list[Any], rng: random.Random, bend: Callable[[bytes], bytes]) -> None:
    places: list[Place] = []
    _places(root, places)
    if not places:
        root.append(None)
        return
    parent, key = rng.choice(places)
    value = parent[key]
    kind = rng.randrange(10)
    if kind < 5:
        parent[key] = _another(value, rng, bend)
    elif kind == 5:
        parent[key] = rng.choice(VALUES)
    elif kind == 6 and parent is not root:
        del parent[key]
    elif kind == 7:
        other, there = rng.choice(places)
        parent[key] = _copy(other[there])
    elif kind == 8:
        _grow(parent, key, rng)
    else:
        parent[key] = [value] if rng.random() < 0.5 else {"key": value}


def _another(value: Any, rng: random.Random, bend: Callable[[bytes], bytes]) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        near = value + rng.choice((-1, 1, -256, 256, value, -2 * value))
        return min(max(near, -(1 << 63)), (1 << 64) - 1) if rng.random() < 0.5 else rng.choice(EDGES)
    if isinstance(value, float):
        return value * rng.choice((-1.0, 0.5, 2.0, 1e6)) if rng.random() < 0.5 else rng.choice(FLOATS)
    if isinstance(value, str):
        if rng.random() < 0.5:
            return rng.choice(TEXTS)
        return bend(value.encode(errors="surrogatepass")).decode(errors="surrogateescape")
    if isinstance(value, bytes):
        return bend(value)
    if isinstance(value, list):
        items = value[:]
        rng.shuffle(items)
        return items
    if isinstance(value, dict):
        return {key: value[key] for key in rng.sample(list(value), len(value) // 2)}
    return rng.choice(VALUES)


def _grow(parent: Any, key: Any, rng: random.Random) -> None:
    """Puts one more thing beside a place, or many of the same."""
    if isinstance(parent, dict):
        parent[rng.choice(TEXTS)] = _copy(parent[key])
    elif rng.random() < 0.8:
        parent.insert(key, _copy(parent[key]))
    else:
        parent.extend([parent[key]] * rng.randint(2, GROWN_ITEMS))


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree
