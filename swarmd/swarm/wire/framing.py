"""Messages to frames and back.

The fields' types are the schema: `from_frame` checks every one, so that what comes out of it can be used without
further ado; anything else is a `PeerFault`. Buffers are referred to, never copied. What a field needs is worked out
once per class, as a swarm converts thousands of messages a second.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any

from swarmd.errors import PeerFault
from swarmd.swarm.wire.messages import commit, common, disks, drain, hop, move, presence, state, step
from swarmd.swarm.wire.messages import round as round_messages
from swarmd.swarm.wire.messages.common import Message
from swarmd.values import Buffer, Encoded, Frame

KINDS: dict[str, type[Any]] = {
    name: cls
    for module in (common, presence, hop, step, commit, round_messages, state, disks, move, drain)
    for name, cls in vars(module).items()
    if isinstance(cls, type) and cls.__module__ == module.__name__ and dataclasses.is_dataclass(cls)
}
"""Every message class by its name, which is its kind on the wire."""


PLAIN = (int, str, bool, float)
"""Types that msgpack has, too."""

TEXT_CHARACTERS = 512  # of a text in a message; an address may have some 400, everything else is shorter by far
ITEMS = {"Card.addresses": 256, "Card.codecs": 64, "Card.final": 256, "Summary.cards": 64, "Summary.moving": 4096}
"""How many items some fields may have, of what is kept of every peer or stage; all others a frame's size bounds."""

INTEGER_LIMIT = 1 << 64  # of msgpack's; a larger one may be no float

SPARSE = ("Card",)
"""Messages whose fields are left out where they have their default: many copies of each are gossiped."""

Lower = Callable[[Any, list[Buffer]], Any]
"""Makes msgpack's own types of a field's value, and sets its buffers aside."""

Lift = Callable[[Any, Iterator[Buffer]], Any]
"""Makes a field's value of msgpack's own types and the buffers that come next. Raises PeerFault."""


def to_frame(message: Message) -> Frame:
    """The message as a frame; its buffers are referred to, not copied."""
    buffers: list[Buffer] = []
    return Frame(type(message).__name__, _lower_fields(message, buffers), tuple(buffers))


_LOWERS: dict[type[Any], list[tuple[str, Lower | None, Any]]] = {}
_LIFTS: dict[type[Any], list[tuple[str, type[Any] | None, Lift, Any]]] = {}


def _lowers(cls: type[Any]) -> list[tuple[str, Lower | None, Any]]:
    """For each field of a message class its lowering, None where the value stays as it is, and the value with which it
    is left out.
    """
    if cls not in _LOWERS:
        hints, sparse = typing.get_type_hints(cls), cls.__name__ in SPARSE
        _LOWERS[cls] = [
            (it.name, _lower(hints[it.name]), it.default if sparse else dataclasses.MISSING)
            for it in dataclasses.fields(cls)
        ]
    return _LOWERS[cls]


def _lower_fields(message: Message, buffers: list[Buffer]) -> dict[str, Any]:
    body = {}
    for name, lower, default in _lowers(type(message)):
        value = getattr(message, name)
        if default is dataclasses.MISSING or value != default:
            body[name] = value if lower is None else lower(value, buffers)
    return body


def _lower(hint: Any) -> Lower | None:
    if hint == Buffer:
        return lambda value, buffers: buffers.append(value)
    if hint is Encoded:
        return _lower_encoded
    if dataclasses.is_dataclass(hint):
        return _lower_fields
    if typing.get_origin(hint) is tuple:
        one = _lower(typing.get_args(hint)[0])
        if one is None:
            return lambda value, buffers: _as_lists(value)
        return lambda value, buffers: [one(item, buffers) for item in value]
    return None


def _lower_encoded(value: Encoded, buffers: list[Buffer]) -> Any:
    buffers.extend(value.data)
    return [value.codec, list(value.shape), len(value.data)]


def _as_lists(value: tuple[Any, ...]) -> list[Any]:
    return [_as_lists(item) if isinstance(item, tuple) else item for item in value]


def from_frame(frame: Frame) -> Message:
    """The message in a frame. Raises PeerFault if it isn't exactly one we know."""
    cls = KINDS.get(frame.kind)
    if cls is None:
        raise PeerFault(f"unknown kind of message {frame.kind[:40]!r}")
    buffers = iter(frame.buffers)
    message = _raise_fields(cls, frame.body, buffers)
    if next(buffers, None) is not None:
        raise PeerFault(f"{frame.kind} came with more buffers than it has")
    return message


def _lifts(cls: type[Any]) -> list[tuple[str, type[Any] | None, Lift, Any]]:
    """For each field of a message class the type that needs no lifting, the lifting, and the field's default."""
    if cls not in _LIFTS:
        hints, defaults = typing.get_type_hints(cls).items(), {it.name: it.default for it in dataclasses.fields(cls)}
        _LIFTS[cls] = [
            (name, _plain_type(hint), _lift(hint, f"{cls.__name__}.{name}"), defaults[name]) for name, hint in hints
        ]
    return _LIFTS[cls]


def _plain_type(hint: Any) -> type[Any] | None:
    return hint if hint in PLAIN and hint is not float else None


def _raise_fields(cls: type[Any], body: Any, buffers: Iterator[Buffer]) -> Any:
    """A field that has a default may be missing: it came with a later release than the sender's."""
    if not isinstance(body, dict):
        raise PeerFault(f"{cls.__name__} with wrong fields")
    values, found = [], 0
    for name, plain, lift, default in _lifts(cls):
        if name in body:
            value = body[name]
            fits = type(value) is plain and (plain is not str or len(value) <= TEXT_CHARACTERS)
            values.append(value if fits else lift(value, buffers))
            found += 1
        elif default is not dataclasses.MISSING:
            values.append(default)
        else:
            raise PeerFault(f"{cls.__name__} with wrong fields")
    if found != len(body):
        raise PeerFault(f"{cls.__name__} with wrong fields")
    return cls(*values)


def _lift(hint: Any, where: str) -> Lift:
    """A function that makes a value of the hint's type; its complaints name `where`."""
    if hint is float:
        return _number(where)
    if hint in PLAIN:
        return _plain(hint, where)
    if hint == Buffer:
        return lambda value, buffers: _buffer(buffers, where)
    if hint is Encoded:
        return lambda value, buffers: _encoded(value, buffers, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return lambda value, buffers: _raise_fields(hint, value, buffers)
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return lambda value, buffers: _dict(value, where)
    assert origin is tuple, "messages have no optional fields"
    if items[-1] is Ellipsis:
        return _items(_plain_type(items[0]), _lift(items[0], where), where)
    return _fixed([_lift(item, where) for item in items], where)


def _number(where: str) -> Lift:
    """No honest peer sends an infinity or NaN: what came of one would spread."""

    def lift(value: Any, buffers: Iterator[Buffer]) -> Any:
        if type(value) is float and math.isfinite(value):
            return value
        if type(value) is int and abs(value) <= INTEGER_LIMIT:
            return float(value)
        raise PeerFault(f"{where} must be a finite number")

    return lift


def _plain(hint: type[Any], where: str) -> Lift:
    def lift(value: Any, buffers: Iterator[Buffer]) -> Any:
        if type(value) is hint:
            if hint is str and len(value) > TEXT_CHARACTERS:
                raise PeerFault(f"{where} is a text of {len(value)} characters")
            return value
        raise PeerFault(f"{where} must be {hint.__name__}")

    return lift


def _items(plain: type[Any] | None, one: Lift, where: str) -> Lift:
    most = ITEMS.get(where)
    if plain is str:
        plain = None  # each is measured

    def lift(value: Any, buffers: Iterator[Buffer]) -> Any:
        if not isinstance(value, list):
            raise PeerFault(f"{where} has the wrong type")
        if most is not None and len(value) > most:
            raise PeerFault(f"{where} has {len(value)} items")
        return tuple([item if type(item) is plain else one(item, buffers) for item in value])

    return lift


def _fixed(lifts: list[Lift], where: str) -> Lift:
    def lift(value: Any, buffers: Iterator[Buffer]) -> Any:
        if not isinstance(value, list) or len(value) != len(lifts):
            raise PeerFault(f"{where} has the wrong type")
        return tuple([one(item, buffers) for one, item in zip(lifts, value, strict=True)])

    return lift


def _dict(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    raise PeerFault(f"{where} has the wrong type")


def _buffer(buffers: Iterator[Buffer], where: str) -> Buffer:
    buffer = next(buffers, None)
    if buffer is None:
        raise PeerFault(f"{where} came without its buffer")
    return buffer


def _encoded(value: Any, buffers: Iterator[Buffer], where: str) -> Encoded:
    match value:
        case [str(codec), list(shape), int(count)] if 0 <= count <= 8 and all(type(n) is int and n >= 0 for n in shape):
            return Encoded(codec, tuple(shape), tuple([_buffer(buffers, where) for _ in range(count)]))
    raise PeerFault(f"{where} isn't an encoded tensor")
