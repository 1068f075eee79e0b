"""Messages to frames and back.

The fields' types are the schema: `from_frame` checks every one, so that what comes out of it can be used without
further ado; anything else is a `PeerFault`. Buffers are referred to, never copied.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from swarmd.errors import PeerFault
from swarmd.swarm import messages
from swarmd.swarm.messages import Message
from swarmd.values import Buffer, Encoded, Frame

KINDS: dict[str, type[Any]] = {
    name: cls
    for name, cls in vars(messages).items()
    if isinstance(cls, type) and cls.__module__ == messages.__name__ and dataclasses.is_dataclass(cls)
}
"""Every message class by its name, which is its kind on the wire."""


_HINTS: dict[type[Any], dict[str, Any]] = {}


def _hints(cls: type[Any]) -> dict[str, Any]:
    """The fields of a message class and their types, worked out once."""
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def to_frame(message: Message) -> Frame:
    """The message as a frame; its buffers are referred to, not copied."""
    buffers: list[Buffer] = []
    body = {name: _lower(getattr(message, name), buffers) for name in _hints(type(message))}
    return Frame(type(message).__name__, body, tuple(buffers))


def _lower(value: Any, buffers: list[Buffer]) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        buffers.append(value)
        return None
    if isinstance(value, Encoded):
        buffers.extend(value.data)
        return [value.codec, list(value.shape), len(value.data)]
    if isinstance(value, tuple):
        return [_lower(item, buffers) for item in value]
    if dataclasses.is_dataclass(value):
        return {name: _lower(getattr(value, name), buffers) for name in _hints(type(value))}
    return value


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


def expect(answer: Message, *kinds: type[Any]) -> Message:
    """The answer, if it is of one of these kinds; else the peer is at fault."""
    if not isinstance(answer, kinds):
        raise PeerFault(f"answered with {type(answer).__name__}")
    return answer


def _raise_fields(cls: type[Any], body: Any, buffers: Iterator[Buffer]) -> Any:
    hints = _hints(cls)
    if not isinstance(body, dict) or body.keys() != hints.keys():
        raise PeerFault(f"{cls.__name__} with wrong fields")
    return cls(**{name: _lift(hint, body[name], buffers, cls.__name__, name) for name, hint in hints.items()})


def _lift(hint: Any, value: Any, buffers: Iterator[Buffer], kind: str, name: str) -> Any:
    """The value as the hint wants it. Raises PeerFault otherwise."""
    if hint in (int, str, bool, float):
        return _plain(hint, value, kind, name)
    if hint == Buffer:
        return _buffer(buffers, kind, name)
    if hint is Encoded:
        return _encoded(value, buffers, kind, name)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _raise_fields(hint, value, buffers)
    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, list):
        items = typing.get_args(hint)
        if items[-1] is Ellipsis:
            return tuple(_lift(items[0], item, buffers, kind, name) for item in value)
        if len(items) == len(value):
            return tuple(_lift(item, one, buffers, kind, name) for item, one in zip(items, value, strict=True))
    elif origin is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    assert not isinstance(origin, types.UnionType), "messages have no optional fields"
    raise PeerFault(f"{kind}.{name} has the wrong type")


def _plain(hint: type[Any], value: Any, kind: str, name: str) -> Any:
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise PeerFault(f"{kind}.{name} must be {hint.__name__}")
    return value


def _buffer(buffers: Iterator[Buffer], kind: str, name: str) -> Buffer:
    buffer = next(buffers, None)
    if buffer is None:
        raise PeerFault(f"{kind}.{name} came without its buffer")
    return buffer


def _encoded(value: Any, buffers: Iterator[Buffer], kind: str, name: str) -> Encoded:
    match value:
        case [str(codec), list(shape), int(count)] if 0 <= count <= 8 and all(type(n) is int and n >= 0 for n in shape):
            return Encoded(codec, tuple(shape), tuple(_buffer(buffers, kind, name) for _ in range(count)))
    raise PeerFault(f"{kind}.{name} isn't an encoded tensor")
