"""Bounds of a message's fields, declared beside them: `step: Annotated[int, Between(0, STEP_LIMIT)]`.

A bound says what is wrong with a value in words that go on from the field's name, or "". Pure: no clock, no state.
`framing.py` checks every one, when a message is read and when it is made. What depends on the run, or on what is known
here, is checked where that is: by the handlers.
"""

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, Protocol

from swarmd.values import Buffer, Encoded


class Bound(Protocol):
    """A bound of a field."""

    def objection(self, value: Any) -> str:
        """Says what is wrong with a value of the field's type, "" if nothing is."""


@dataclass(frozen=True)
class Between:
    """A number, both ends included."""

    least: float
    most: float

    def objection(self, value: float) -> str:
        return "" if self.least <= value <= self.most else f"is {value}, and not from {self.least} to {self.most}"


def is_text(value: str, most: float) -> bool:
    """True if it keeps to `Text(most)`."""
    return len(value) <= most and value.isprintable()


@dataclass(frozen=True)
class Text:
    """Printable characters, so that it can be shown as it is."""

    most: int

    def objection(self, value: str) -> str:
        if is_text(value, self.most):
            return ""
        if len(value) > self.most:
            return f"has {len(value)} characters, and not up to {self.most}"
        return "has characters that can't be shown"


@dataclass(frozen=True)
class AtMost:
    """So many items; it is checked before they are looked at."""

    most: int

    def objection(self, value: Sized) -> str:
        return "" if len(value) <= self.most else f"has {len(value)} items, and not up to {self.most}"


@dataclass(frozen=True)
class Together:
    """So many characters in all texts of a list."""

    most: int

    def objection(self, value: tuple[str, ...]) -> str:
        count = sum(map(len, value))
        return "" if count <= self.most else f"has {count} characters in all, and not up to {self.most}"


@dataclass(frozen=True)
class Ascending:
    """Half-open ranges of numbers from 0 to a limit, none of them empty, in order and without overlap."""

    limit: int

    def objection(self, value: tuple[tuple[int, int], ...]) -> str:
        floor = 0
        for start, stop in value:
            if not floor <= start < stop <= self.limit:
                return f"has {start}..{stop} out of order, or not within 0..{self.limit}"
            floor = stop
        return ""


@dataclass(frozen=True)
class Bytes:
    """The size of a buffer, or of a tensor's buffers together."""

    most: int

    def objection(self, value: Buffer | Encoded) -> str:
        nbytes = value.nbytes if isinstance(value, Encoded | memoryview) else len(value)
        return "" if nbytes <= self.most else f"has {nbytes} bytes, and not up to {self.most}"


@dataclass(frozen=True)
class Tree:
    """Plain data: how deep it is nested, and how many values, and characters of text, are in it."""

    depth: int
    values: int
    characters: int

    def objection(self, value: dict[str, Any]) -> str:
        level, values, characters = [value], 0, 0
        for _ in range(self.depth):
            below: list[Any] = []
            for node in level:
                values += len(node)
                for it in (*node, *node.values()) if isinstance(node, dict) else node:
                    if isinstance(it, str):
                        characters += len(it)
                    elif isinstance(it, dict | list):
                        below.append(it)
            if values > self.values or characters > self.characters:
                return f"has over {self.values} values, or over {self.characters} characters"
            if not below:
                return ""
            level = below
        return f"is nested more than {self.depth} times"
