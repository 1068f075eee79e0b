"""Frames damaged on purpose, in ways that no release's frame is.

Each way must be a `PeerFault`: where the frame is read (`framing.py`), by its form, or where its buffer is used, if
bytes of that are missing.
"""

import dataclasses
import random
from collections.abc import Callable

from swarmd.swarm.wire.framing import KINDS
from swarmd.values import Frame


def _missing_field(frame: Frame, rng: random.Random) -> Frame:
    """One that every release sends: the others have a default."""
    needed = [it.name for it in dataclasses.fields(KINDS[frame.kind]) if it.default is dataclasses.MISSING]
    if not needed:
        return _missing_buffer(frame, rng)
    gone = rng.choice(needed)
    return dataclasses.replace(frame, body={name: value for name, value in frame.body.items() if name != gone})


def _wrong_type(frame: Frame, rng: random.Random) -> Frame:
    names = [name for name, value in frame.body.items() if value is not None]  # a buffer's place is None, unread
    if not names:
        return _missing_buffer(frame, rng)
    name = rng.choice(names)
    wrong: object = [["wrong"]] if isinstance(frame.body[name], dict) else {"wrong": 1}
    return dataclasses.replace(frame, body={**frame.body, name: wrong})


def _missing_buffer(frame: Frame, rng: random.Random) -> Frame:
    if not frame.buffers:
        return dataclasses.replace(frame, buffers=(b"surplus",))
    return dataclasses.replace(frame, buffers=frame.buffers[:-1])


def _cut_buffer(frame: Frame, rng: random.Random) -> Frame:
    """The last buffer ends early."""
    if not frame.buffers or not (nbytes := memoryview(frame.buffers[-1]).nbytes):
        return _missing_buffer(frame, rng)
    short = memoryview(frame.buffers[-1]).cast("B")[: rng.randrange(nbytes)]
    return dataclasses.replace(frame, buffers=(*frame.buffers[:-1], bytes(short)))


WAYS: tuple[Callable[[Frame, random.Random], Frame], ...] = (
    _missing_field,
    _wrong_type,
    _missing_buffer,
    _cut_buffer,
)


def damaged(frame: Frame, rng: random.Random) -> Frame:
    """The frame, spoiled in one of the ways."""
    return rng.choice(WAYS)(frame, rng)
