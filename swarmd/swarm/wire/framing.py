"""Messages to frames and back.

The fields' types and bounds are the schema: `from_frame` checks every one, so that what comes out of it can be used
without further ado. A wrong type is a `PeerFault`, which no honest peer commits; a value out of bounds, or a kind that
is not known here, is refused, since another release may have meant it well. Within a protocol a field that has a
default may be missing, and one that is not known is passed over. `to_frame` holds this peer to the same bounds: a
message that breaks them is a bug of ours, and isn't sent. Buffers are referred to, never copied. What a field needs is
worked out once per class, as a swarm converts thousands of messages a second.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from swarmd.errors import OutOfRange, PeerFault, UnknownKind
from swarmd.printable import printable
from swarmd.swarm.wire.bounds import Ascending, AtMost, Between, Bound, Bytes, Text, is_text
from swarmd.swarm.wire.messages import commit, common, disks, drain, hop, move, presence, state, step
from swarmd.swarm.wire.messages import round as round_messages
from swarmd.swarm.wire.messages.common import Message
from swarmd.values import Buffer, Encoded, Frame, Size


def payload_bytes(cls: type[Any]) -> int:
    """The largest payload of a class of messages: what its buffers may have together."""
    hints = typing.get_type_hints(cls, include_extras=True).values()
    return sum(it.most for hint in hints for it in getattr(hint, "__metadata__", ()) if isinstance(it, Bytes))


KINDS: dict[str, type[Any]] = {
    name: cls
    for module in (common, presence, hop, step, commit, round_messages, state, disks, move, drain)
    for name, cls in vars(module).items()
    if isinstance(cls, type) and cls.__module__ == module.__name__ and dataclasses.is_dataclass(cls)
}
"""Every message class by its name, which is its kind on the wire."""

SIZES: dict[str, Size] = {
    name: Size(cls.header_bytes, payload_bytes(cls)) for name, cls in KINDS.items() if hasattr(cls, "header_bytes")
}
"""The largest message of each kind. Parts of messages, which are kinds, too, have none."""

PLAIN = (int, str, bool, float)
"""Types that msgpack has, too."""

TENSOR_BUFFERS = 8  # of an encoded tensor, and its dimensions; there are two, and three
TENSOR_DIMENSION = 1 << 40
CODEC_CHARACTERS = 32

INTEGER_LIMIT = 1 << 64  # of msgpack's; a larger one may be no float

SPARSE = ("Card",)
"""Messages whose fields are left out where they have their default: many copies of each are gossiped."""

MISSING = dataclasses.MISSING

Lower = Callable[[Any, list[Buffer]], Any]
"""Makes msgpack's own types of a field's value, and sets its buffers aside. Raises OutOfRange."""

Lift = Callable[[Any, Iterator[Buffer]], Any]
"""Makes a field's value of msgpack's own types and the buffers that come next. Raises PeerFault, OutOfRange."""

Check = Callable[[Any], None]
"""Compares a value of the right type with its bounds. Raises OutOfRange."""


class Shape(NamedTuple):
    """The way of a type of fields onto the wire and back."""

    lower: Lower
    lift: Lift
    plain: type[Any] | None = None  # a value of this type from `least` to `most`, or a text so long, is the same on
    # both sides: most fields of most messages need no more than that look
    least: float = 0
    most: float = 0


class Field(NamedTuple):
    """A field of a message."""

    name: str
    shape: Shape
    default: Any  # MISSING: it must be there
    sparse: bool  # it is left out where it has its default


def to_frame(message: Message) -> Frame:
    """The message as a frame; its buffers are referred to, not copied. Raises ValueError if it breaks its own bounds:
    a bug of this peer.
    """
    buffers: list[Buffer] = []
    try:
        body = _lower_fields(message, buffers)
    except OutOfRange as trouble:
        raise ValueError(f"a {type(message).__name__} that no peer would take: {trouble}") from None
    return Frame(type(message).__name__, body, tuple(buffers))


def from_frame(frame: Frame) -> Message:
    """The message in a frame. Raises PeerFault if no honest peer sends it; OutOfRange, UnknownKind if a release other
    than this one may.
    """
    cls = KINDS.get(frame.kind)
    if cls is None:
        raise UnknownKind(f"this release doesn't know messages of kind {printable(frame.kind)!r}")
    buffers = iter(frame.buffers)
    message = _lift_fields(cls, frame.body, buffers)
    if next(buffers, None) is not None:
        raise PeerFault(f"{frame.kind} came with more buffers than it has")
    return message


# -------------------------------------------------------------------------------------------------- messages

_FIELDS: dict[type[Any], list[Field]] = {}


def fields_of(cls: type[Any]) -> list[Field]:
    """The fields of a message class, in order, worked out once."""
    if cls not in _FIELDS:
        hints, sparse = typing.get_type_hints(cls, include_extras=True), cls.__name__ in SPARSE
        _FIELDS[cls] = [
            Field(it.name, _shape(hints[it.name], f"{cls.__name__}.{it.name}"), it.default, sparse)
            for it in dataclasses.fields(cls)
        ]
    return _FIELDS[cls]


def _lower_fields(message: Message, buffers: list[Buffer]) -> dict[str, Any]:
    body = {}
    for name, (lower, _, plain, least, most), default, sparse in fields_of(type(message)):
        value = getattr(message, name)
        if sparse and value == default:
            continue
        if type(value) is plain and (least <= value <= most if plain is not str else is_text(value, most)):
            body[name] = value
        else:
            body[name] = lower(value, buffers)
    return body


def _lift_fields(cls: type[Any], body: Any, buffers: Iterator[Buffer]) -> Any:
    if not isinstance(body, dict):
        raise PeerFault(f"{cls.__name__} with wrong fields")
    values = []
    for name, (_, lift, plain, least, most), default, _ in fields_of(cls):
        value = body.get(name, MISSING)
        if type(value) is plain and (least <= value <= most if plain is not str else is_text(value, most)):
            values.append(value)
        elif value is not MISSING:
            values.append(lift(value, buffers))
        elif default is not MISSING:
            values.append(default)
        else:
            raise PeerFault(f"{cls.__name__} without its field {name}")
    return cls(*values)


def packed_bytes(plain: Any) -> int:
    """The bytes that plain data of a message takes on the wire: a few more than it does."""
    if isinstance(plain, str):
        return 5 + len(plain.encode(errors="replace"))
    if isinstance(plain, dict):
        return 5 + sum(packed_bytes(name) + packed_bytes(value) for name, value in plain.items())
    if isinstance(plain, list):
        return 5 + sum(map(packed_bytes, plain))
    return 9


# -------------------------------------------------------------------------------------------------- types of fields


def _shape(hint: Any, where: str) -> Shape:
    """The shape of a declared type; complaints name `where`."""
    bounds: tuple[Bound, ...] = getattr(hint, "__metadata__", ())
    hint = hint.__origin__ if bounds else hint
    check = _checker(bounds, where)
    if hint is bool:
        return Shape(_checked(check), _plain(bool, check, where), bool, False, True)
    if dataclasses.is_dataclass(hint) and hint is not Encoded and isinstance(hint, type):
        return Shape(_lower_fields, lambda value, buffers: _lift_fields(hint, value, buffers))
    if not bounds and typing.get_origin(hint) is not tuple:
        raise TypeError(f"{where} has no bounds")
    if hint in (int, float):
        [between] = bounds
        assert isinstance(between, Between), where
        lift = _number(check, where) if hint is float else _plain(int, check, where)
        return Shape(_checked(check), lift, hint, between.least, between.most)
    if hint is str:
        [text] = bounds
        assert isinstance(text, Text), where
        return Shape(_checked(check), _plain(str, check, where), str, 0, text.most)
    if hint == Buffer:
        return _buffer_shape(check, where)
    if hint is Encoded:
        return _tensor_shape(check, where)
    if typing.get_origin(hint) is dict:
        return Shape(_checked(check), _tree(check, where))
    return _tuple_shape(typing.get_args(hint), bounds, where)


def _checker(bounds: tuple[Bound, ...], where: str) -> Check:
    objections = [bound.objection for bound in bounds]

    def check(value: Any) -> None:
        for objection in objections:
            if why := objection(value):
                raise OutOfRange(f"{where} {why}")

    return check


def _checked(check: Check) -> Lower:
    """The lowering of what stays as it is."""

    def lower(value: Any, buffers: list[Buffer]) -> Any:
        check(value)
        return value

    return lower


def _number(check: Check, where: str) -> Lift:
    """No honest peer sends an infinity or NaN: what came of one would spread."""

    def lift(value: Any, buffers: Iterator[Buffer]) -> Any:
        if type(value) is int and abs(value) <= INTEGER_LIMIT:
            value = float(value)
        if type(value) is not float or not math.isfinite(value):
            raise PeerFault(f"{where} must be a finite number")
        check(value)
        return value

    return lift


def _plain(kind: type[Any], check: Check, where: str) -> Lift:
    def lift(value: Any, buffers: Iterator[Buffer]) -> Any:
        if type(value) is not kind:
            raise PeerFault(f"{where} must be {kind.__name__}")
        check(value)
        return value

    return lift


def _tree(check: Check, where: str) -> Lift:
    def lift(value: Any, buffers: Iterator[Buffer]) -> Any:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise PeerFault(f"{where} has the wrong type")
        check(value)
        return value

    return lift


# -------------------------------------------------------------------------------------------------- buffers


def _buffer_shape(check: Check, where: str) -> Shape:
    def lower(value: Buffer, buffers: list[Buffer]) -> None:
        check(value)
        buffers.append(value)

    def lift(value: Any, buffers: Iterator[Buffer]) -> Buffer:
        buffer = _next(buffers, where)
        check(buffer)
        return buffer

    return Shape(lower, lift)


def _tensor_shape(check: Check, where: str) -> Shape:
    def lower(value: Encoded, buffers: list[Buffer]) -> Any:
        check(value)
        buffers.extend(value.data)
        return [value.codec, list(value.shape), len(value.data)]

    def lift(value: Any, buffers: Iterator[Buffer]) -> Encoded:
        match value:
            case [str(codec), list(shape), int(count)] if all(type(n) is int and n >= 0 for n in shape) and count >= 0:
                pass
            case _:
                raise PeerFault(f"{where} isn't an encoded tensor")
        if max(count, len(shape)) > TENSOR_BUFFERS or any(size > TENSOR_DIMENSION for size in shape):
            raise OutOfRange(f"{where} is a tensor of {len(shape)} dimensions in {count} buffers, or too large")
        if not is_text(codec, CODEC_CHARACTERS):
            raise OutOfRange(f"{where} is in a codec whose name is {len(codec)} characters, or can't be shown")
        tensor = Encoded(codec, tuple(shape), tuple([_next(buffers, where) for _ in range(count)]))
        check(tensor)
        return tensor

    return Shape(lower, lift)


def _next(buffers: Iterator[Buffer], where: str) -> Buffer:
    buffer = next(buffers, None)
    if buffer is None:
        raise PeerFault(f"{where} came without its buffer")
    return buffer


# -------------------------------------------------------------------------------------------------- lists


def _tuple_shape(items: tuple[Any, ...], bounds: tuple[Bound, ...], where: str) -> Shape:
    if items[-1] is not Ellipsis:
        return _fixed([_shape(item, where) for item in items], where)
    counts = tuple(bound for bound in bounds if isinstance(bound, AtMost))
    if not counts:
        raise TypeError(f"{where} has no bounds")
    count, check = _checker(counts, where), _checker(tuple(it for it in bounds if it not in counts), where)
    if any(isinstance(bound, Ascending) for bound in bounds):
        return _ranges(count, check, where)
    return _items(_shape(items[0], where), count, check, where)


def _items(one: Shape, count: Check, check: Check, where: str) -> Shape:
    lower_one, lift_one, *_ = one

    def lower(value: tuple[Any, ...], buffers: list[Buffer]) -> list[Any]:
        count(value)
        check(value)
        return [lower_one(item, buffers) for item in value]

    def lift(value: Any, buffers: Iterator[Buffer]) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise PeerFault(f"{where} has the wrong type")
        count(value)  # before anything is made of them
        lifted = tuple([lift_one(item, buffers) for item in value])
        check(lifted)
        return lifted

    return Shape(lower, lift)


def _ranges(count: Check, check: Check, where: str) -> Shape:
    """Pairs of numbers, which are many, all at once."""

    def lower(value: tuple[tuple[int, int], ...], buffers: list[Buffer]) -> list[list[int]]:
        count(value)
        check(value)
        return [[start, stop] for start, stop in value]

    def lift(value: Any, buffers: Iterator[Buffer]) -> tuple[tuple[int, int], ...]:
        if not isinstance(value, list):
            raise PeerFault(f"{where} has the wrong type")
        count(value)
        ranges = []
        for pair in value:
            if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not int or type(pair[1]) is not int:
                raise PeerFault(f"{where} has the wrong type")
            ranges.append((pair[0], pair[1]))
        lifted = tuple(ranges)
        check(lifted)
        return lifted

    return Shape(lower, lift)


def _fixed(shapes: list[Shape], where: str) -> Shape:
    def lower(value: tuple[Any, ...], buffers: list[Buffer]) -> list[Any]:
        return [shape.lower(item, buffers) for shape, item in zip(shapes, value, strict=True)]

    def lift(value: Any, buffers: Iterator[Buffer]) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(shapes):
            raise PeerFault(f"{where} has the wrong type")
        return tuple([shape.lift(item, buffers) for shape, item in zip(shapes, value, strict=True)])

    return Shape(lower, lift)
