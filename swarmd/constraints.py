"""Constraints of single settings, declared beside them: `steps: Annotated[int, Range(ge=1, le=COUNT_LIMIT)]`.

Each of these becomes a constraint of pydantic's where `settings.py` has a type read, and brings the words for a value
that breaks it. Nothing is imported here but the standard library: pydantic is loaded only where settings are read. What
several settings must be together is checked in `settings.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
"""A schema of pydantic's core: plain data."""

OUT_OF_RANGE = "out_of_range"
"""The type of pydantic's error about a value that breaks one of these. Its message goes on from "must be"."""

BOUNDS = {"ge": "at least", "gt": "over", "le": "at most", "lt": "under"}
"""pydantic's names of a number's bounds, and what a user reads."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number between two bounds, one of which is `ge` or `gt`, the other `le` or `lt`. NaN is in no range."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    hint: str = ""  # it ends the sentence

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Schema]) -> Schema:
        bounds = {name: bound for name in BOUNDS if (bound := getattr(self, name)) is not None}
        kind = "a whole number" if source is int else "a number"
        words = f"{kind}, {' and '.join(f'{BOUNDS[name]} {bound}' for name, bound in bounds.items())}"
        return _worded({**handler(source), **bounds}, f"{words}; {self.hint}" if self.hint else words)


@dataclass(frozen=True)
class Items:
    """A list of so many items at most."""

    most: int
    words: str  # for the items

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Schema]) -> Schema:
        return _worded({**handler(source), "max_length": self.most}, f"a list of at most {self.most} {self.words}")


@dataclass(frozen=True)
class Text:
    """Text of so many characters that a predicate is true of."""

    least: int
    most: int
    fits: Callable[[str], bool]
    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Schema]) -> Schema:
        def check(text: str) -> str:
            if not self.fits(text):
                raise ValueError
            return text

        sized = {**handler(source), "min_length": self.least, "max_length": self.most}
        function = {"type": "no-info", "function": check}
        return _worded({"type": "function-after", "function": function, "schema": sized}, self.words)


def _worded(schema: Schema, words: str) -> Schema:
    """The schema, whose error has these words."""
    return {
        "type": "custom-error",
        "schema": schema,
        "custom_error_type": OUT_OF_RANGE,
        "custom_error_message": words,
    }
