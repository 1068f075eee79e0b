"""Messages of a valid schema with hostile values: drawn from the declared types and bounds of their fields, and from
what was heard.

Everything here comes from one generator. A message that is drawn can always be sent: `framing.py` finds no fault with
it, and neither does that of a peer. So what it meets there are the handlers.
"""

import dataclasses
import math
import random
import typing
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from swarmd.swarm.wire.bounds import Ascending, AtMost, Between, Bound, Bytes, Text
from swarmd.swarm.wire.messages.common import Message
from swarmd.values import Buffer, Encoded, PeerId

KEPT = 32  # of each kind of message, and of each field's values: the newest
ITEMS_KEPT = 8  # of a list that was heard
HEARD_SHARE = 0.65  # of values that were heard, where something was
ALTERED_SHARE = 0.5  # of messages that are a true one with a field or two drawn anew, where one was heard
DEFAULT_SHARE = 0.4  # of fields that have a default
FULL_SHARE = 0.03  # of lists, texts and buffers that are as long as they may be, or nearly
ITEMS = (0, 1, 1, 2, 3)
FULL_ITEMS = 128  # of a list that may be longer: larger ones only cost time
NUDGES = (0, 0, 0, 0, 1, 1, -1, 2)  # from a number that was heard to the one that is said
SMALL = 8
BUFFER_BYTES = (0, 1, 8, 64, 4096)
FULL_BYTES = 1 << 16
NEAR_ZERO = 1e-9
WORDS = ("joining", "waiting", "serving", "paused", "draining", "finished", "left", "fp32", "int8", "number", "loss")
"""Words that mean something where they are said."""

Shape = tuple[Any, tuple[Bound, ...]]
"""A declared type without its bounds, and these."""


@lru_cache(None)
def hints_of(cls: Any) -> dict[str, Any]:
    """The declared types of a message's fields, with their bounds, by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {it.name: hints[it.name] for it in dataclasses.fields(cls)}


@lru_cache(None)
def shape_of(hint: Any) -> Shape:
    """A declared type, split."""
    bounds = getattr(hint, "__metadata__", ())
    return (hint.__origin__ if bounds else hint), bounds


def is_message(kind: Any) -> bool:
    """True for a class of messages, or of parts of them; a tensor is a value."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind is not Encoded


class Heard:
    """The messages that were heard, and the values in them."""

    def __init__(self) -> None:
        self._messages: dict[type[Any], deque[Message]] = {}
        self._values: dict[Any, deque[Any]] = {}  # by declared type, and by that with the field's name

    def take(self, message: Message) -> None:
        """Remembers a message, and everything in it."""
        cls: Any = type(message)
        self._keep(self._messages, cls, message)
        for name, hint in hints_of(cls).items():
            self._take_value(name, hint, getattr(message, name))

    def _take_value(self, name: str, hint: Any, value: Any) -> None:
        kind, _ = shape_of(hint)
        if is_message(kind):
            self.take(value)
        self._keep(self._values, hint, value)
        self._keep(self._values, (name, hint), value)
        items = typing.get_args(kind)
        if isinstance(value, tuple) and items and items[-1] is Ellipsis:
            for item in value[:ITEMS_KEPT]:
                self._take_value(name, items[0], item)

    @staticmethod
    def _keep(store: dict[Any, deque[Any]], key: Any, value: Any) -> None:
        store.setdefault(key, deque(maxlen=KEPT)).append(value)

    def messages(self, cls: type[Any]) -> deque[Any]:
        """The newest messages of a class, oldest first; it may be a part of others."""
        return self._messages.get(cls, deque())

    def values(self, name: str, hint: Any) -> list[deque[Any]]:
        """The values of a field of this name and type, and those of any field of this type, where there are some."""
        return [pool for pool in (self._values.get((name, hint)), self._values.get(hint)) if pool]


Draw = Callable[[random.Random], Any]
"""Draws what its declared type says too little of: a run's settings, a record."""


class Drawing:
    """One message's drawing. `draws`: by field name, the values that aren't drawn from declared types."""

    def __init__(self, rng: random.Random, heard: Heard, me: PeerId, draws: dict[str, Draw]) -> None:
        self._rng, self._heard, self._me, self._draws = rng, heard, me, draws

    def message(self, cls: Any) -> Any:
        """A message of a class, or of a part of one."""
        rng, hints, known = self._rng, hints_of(cls), self._heard.messages(cls)
        if known and rng.random() < ALTERED_SHARE:
            names = rng.sample(list(hints), min(len(hints), rng.choice((1, 1, 2))))
            return dataclasses.replace(rng.choice(known), **{name: self._value(name, hints[name]) for name in names})
        defaults = {it.name for it in dataclasses.fields(cls) if it.default is not dataclasses.MISSING}
        drawn = {
            name: self._value(name, hint)
            for name, hint in hints.items()
            if name not in defaults or rng.random() >= DEFAULT_SHARE
        }
        return cls(**drawn)

    def _value(self, name: str, hint: Any) -> Any:
        kind, bounds = shape_of(hint)
        if is_message(kind):
            return self.message(kind)
        if name in self._draws:
            return self._draws[name](self._rng)
        for pool in self._heard.values(name, hint):
            if self._rng.random() < HEARD_SHARE:
                return self._near(self._rng.choice(pool), bounds)
        return self._fresh(name, kind, bounds)

    def _near(self, value: Any, bounds: tuple[Bound, ...]) -> Any:
        """A value that was heard, or one beside it."""
        if type(value) is int:
            return clamped(value + self._rng.choice(NUDGES), bounds)
        if isinstance(value, Encoded) and self._rng.random() < DEFAULT_SHARE:
            data = tuple(self._rng.randbytes(memoryview(part).nbytes) for part in value.data)
            return dataclasses.replace(value, data=data)
        return value

    def _fresh(self, name: str, kind: Any, bounds: tuple[Bound, ...]) -> Any:
        """A value that owes nothing to what was heard."""
        rng = self._rng
        if kind is bool:
            return rng.random() < 0.5
        if kind is int:
            return clamped(self._number(bounds), bounds)
        if kind is float:
            return float(clamped(rng.choice((0.0, NEAR_ZERO, 1.0, float(self._number(bounds)))), bounds))
        if kind is str:
            [text] = (it for it in bounds if isinstance(it, Text))
            full = rng.choice("xyz") * text.most
            return full if rng.random() < FULL_SHARE else rng.choice((*WORDS, self._me, "", "xyz"))[: text.most]
        if kind == Buffer:
            return self._bytes(bounds)
        if kind is Encoded:
            return self._tensor()
        return self._tuple(name, typing.get_args(kind), bounds)

    def _number(self, bounds: tuple[Bound, ...]) -> int:
        """A number, small or at the edge or of any size between."""
        rng, [between] = self._rng, [it for it in bounds if isinstance(it, Between)]
        any_size = math.exp(rng.uniform(0.0, math.log(max(2.0, between.most))))
        return int(rng.choice((between.least, between.most, rng.randrange(SMALL), rng.randrange(SMALL), any_size)))

    def _bytes(self, bounds: tuple[Bound, ...]) -> bytes:
        [limit] = (it for it in bounds if isinstance(it, Bytes))
        most = min(limit.most, FULL_BYTES)
        size = most if self._rng.random() < FULL_SHARE else self._rng.choice(BUFFER_BYTES)
        return self._rng.randbytes(min(size, most))

    def _tensor(self) -> Encoded:
        size = self._rng.choice(BUFFER_BYTES)
        shape = self._rng.choice(((size // 8,), (size,), (1, size), ()))
        return Encoded(self._rng.choice(WORDS), shape, (self._rng.randbytes(size),))

    def _tuple(self, name: str, items: tuple[Any, ...], bounds: tuple[Bound, ...]) -> tuple[Any, ...]:
        rng = self._rng
        if items[-1] is not Ellipsis:
            return tuple(self._value(name, item) for item in items)
        for bound in bounds:
            if isinstance(bound, Ascending):
                return self._ranges(bound.limit)
        [limit] = (it for it in bounds if isinstance(it, AtMost))
        if rng.random() < FULL_SHARE:
            drawn = (self._value(name, items[0]),) * min(limit.most, FULL_ITEMS)
        else:
            drawn = tuple(self._value(name, items[0]) for _ in range(min(limit.most, rng.choice(ITEMS))))
        while any(bound.objection(drawn) for bound in bounds):
            drawn = drawn[: len(drawn) // 2]
        return drawn

    def _ranges(self, limit: int) -> tuple[tuple[int, int], ...]:
        rng = self._rng
        edges = sorted(rng.sample(range(4 * SMALL), 2 * rng.choice(ITEMS)))
        some = tuple(zip(edges[::2], edges[1::2], strict=True))
        return rng.choice((some, some, ((0, rng.randint(1, 4 * SMALL)),), ((0, limit),)))


def clamped(value: float, bounds: tuple[Bound, ...]) -> Any:
    """The number within its bounds that is nearest."""
    [between] = (it for it in bounds if isinstance(it, Between))
    return type(value)(min(max(value, between.least), between.most))
