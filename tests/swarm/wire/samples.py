"""A made-up message of every kind, the same on every day."""

import dataclasses
import typing
from typing import Any

from swarmd.swarm.wire.bounds import Ascending
from swarmd.swarm.wire.framing import KINDS
from swarmd.values import Buffer, Encoded

ENCODED = Encoded("int8", (2, 3), (b"codes", b"scales"))


def filled(hint: Any) -> Any:
    """Some value of a field's type, within its bounds."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and hint is not Encoded:
        hints = typing.get_type_hints(hint, include_extras=True)
        return hint(**{it.name: filled(hints[it.name]) for it in dataclasses.fields(hint)})
    if any(isinstance(bound, Ascending) for bound in getattr(hint, "__metadata__", ())):
        return ((0, 3), (5, 6))
    if hasattr(hint, "__metadata__"):
        return filled(hint.__origin__)
    values = {int: 7, str: "text", bool: True, float: 0.5, Buffer: b"bytes", Encoded: ENCODED}
    if hint in values:
        return values[hint]
    if typing.get_origin(hint) is dict:
        return {"key": [1, "two", None]}
    items = typing.get_args(hint)
    if items[-1] is Ellipsis:
        return (filled(items[0]), filled(items[0]))
    return tuple(filled(item) for item in items)


def sample(kind: str) -> Any:
    """The message of a kind."""
    return filled(KINDS[kind])
