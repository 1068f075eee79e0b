"""A stage's state as bytes: version, parameters and optimizer in one safetensors buffer, which others may have made.

Both ways go piece by piece between the tensors and the one buffer: beside them there is never another copy of the
whole, on the device or on the host. The bytes are those that the safetensors library writes, since peers compare them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from swarmd.files import parse_json
from swarmd.values import Buffer

PARAMETER_PREFIX = "parameter."  # of the tensors of an exported state that are the model; the rest is the optimizer's
OPTIMIZER_PREFIX = "optimizer."
VERSION, UPDATES = "version", OPTIMIZER_PREFIX + "updates"  # integers; all else are numbers of the stage

DTYPES = {
    "U8": torch.uint8,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I64": torch.int64,
}
"""By the format's names. Tensors of later ones come first in a buffer, so that each is aligned."""
LENGTH_BYTES = 8  # of the header's length, before it
HEADER_LIMIT_BYTES = 16 << 20  # a line for each tensor
PIECE_BYTES = 16 << 20  # copied at once; through memory of that size where the device isn't the host
METADATA = "__metadata__"  # a header's entry that is no tensor


@dataclass(frozen=True)
class Entry:
    """The place of a tensor in the buffer, behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def write_state(tensors: Mapping[str, Tensor]) -> Buffer:
    """A safetensors buffer of these tensors. Raises MemoryError, before anything is copied."""
    entries, total = lay_out(tensors), 0
    plain: dict[str, Any] = {}
    for name, it in entries.items():
        offsets = [it.start, it.stop]
        plain[name] = {"dtype": _name(it.dtype), "shape": list(it.shape), "data_offsets": offsets}
        total = it.stop
    header = json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % LENGTH_BYTES)
    whole = numpy.empty(LENGTH_BYTES + len(header) + total, dtype=numpy.uint8)
    whole[: LENGTH_BYTES + len(header)] = numpy.frombuffer(
        len(header).to_bytes(LENGTH_BYTES, "little") + header, dtype=numpy.uint8
    )
    data = torch.from_numpy(whole[LENGTH_BYTES + len(header) :])
    for name, it in entries.items():
        source = _flat(tensors[name])
        for start in range(0, source.numel(), PIECE_BYTES):
            piece = source[start : start + PIECE_BYTES]
            data[it.start + start : it.start + start + piece.numel()].copy_(piece)
    return whole.data


def lay_out(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """The tensors' places, in the order in which they lie in a buffer."""
    ranks = list(DTYPES.values())
    entries, start = dict[str, Entry](), 0
    for name in sorted(tensors, key=lambda name: (-ranks.index(tensors[name].dtype), name)):
        tensor = tensors[name]
        stop = start + tensor.numel() * tensor.element_size()
        entries[name] = Entry(tensor.dtype, tuple(tensor.shape), start, stop)
        start = stop
    return entries


class StateReader:
    """The tensors in a buffer that somebody made of a stage with such tensors.

    Raises ValueError unless they have the same names, shapes and dtypes, and a version.
    """

    def __init__(self, state: Buffer, expected: Mapping[str, Tensor]) -> None:
        self._entries, self._data = _parse(state)
        if self._entries.keys() != expected.keys():
            strange = sorted(self._entries.keys() ^ expected.keys())
            raise ValueError(f"the state has other tensors than this stage: {', '.join(strange[:3])}")
        for name, value in expected.items():
            it = self._entries[name]
            if it.shape != tuple(value.shape) or it.dtype != value.dtype:
                raise ValueError(f"{name} has shape {it.shape} and {it.dtype} in the state")
        self.version = self.integer(VERSION)
        if self.version < 0:
            raise ValueError(f"the state is of version {self.version}")

    def integer(self, name: str) -> int:
        """A tensor of one integer."""
        it = self._entries[name]
        return int.from_bytes(self._data[it.start : it.stop].tobytes(), "little", signed=True)

    def load(self, name: str, target: Tensor) -> None:
        """Copies a tensor into another one of its shape and dtype, wherever that is."""
        it, flat = self._entries[name], _flat(target)
        staging = torch.empty(min(PIECE_BYTES, flat.numel()), dtype=torch.uint8)
        for start in range(0, flat.numel(), PIECE_BYTES):
            piece = flat[start : start + PIECE_BYTES]
            staged = staging[: piece.numel()]
            staged.numpy()[:] = self._data[it.start + start : it.start + start + piece.numel()]
            piece.copy_(staged)


def _parse(state: Buffer) -> tuple[dict[str, Entry], NDArray[numpy.uint8]]:
    """The entries of a safetensors buffer, and what lies behind its header. Raises ValueError."""
    whole = numpy.frombuffer(state, dtype=numpy.uint8)
    length = int.from_bytes(whole[:LENGTH_BYTES].tobytes(), "little")
    if len(whole) < LENGTH_BYTES + length or length > HEADER_LIMIT_BYTES:
        raise ValueError("the state is not a safetensors buffer: its header is not in it")
    data = whole[LENGTH_BYTES + length :]
    try:
        plain = parse_json(whole[LENGTH_BYTES : LENGTH_BYTES + length].tobytes())
        entries = {name: _entry(found) for name, found in plain.items() if name != METADATA}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the state is not a safetensors buffer: its header is damaged ({error})") from None
    end = 0
    for it in sorted(entries.values(), key=lambda it: (it.start, it.stop)):
        if it.start != end:
            raise ValueError("the state is not a safetensors buffer: its tensors don't follow each other")
        end = it.stop
    if end != len(data):
        raise ValueError("the state is not a safetensors buffer: it has another length than its header says")
    return entries, data


def _entry(plain: dict[str, Any]) -> Entry:
    """Raises ValueError, TypeError, KeyError, AttributeError."""
    dtype, shape, (start, stop) = DTYPES[plain["dtype"]], tuple(plain["shape"]), plain["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop)):
        raise ValueError("a shape or a place is no count")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor is not as long as its shape")
    return Entry(dtype, shape, start, stop)


def _name(dtype: torch.dtype) -> str:
    return next(name for name, one in DTYPES.items() if one is dtype)


def _flat(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, in place."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
