"""The bytes of a symbolic run: stamps that say what they are, numbers of gradients, its data."""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache

from swarmd.config import RunConfig
from swarmd.errors import PeerFault
from swarmd.sim.engines.reference import Symbols
from swarmd.values import Buffer, Encoded, HopId

FP32_LARGEST = 3.4028234663852886e38
STAMP = struct.Struct("<4s7q")


def stamped(kind: bytes, size: int, *fields: int) -> bytes:
    """`size` bytes that say what they are."""
    raw = STAMP.pack(kind, *fields, *([0] * (7 - len(fields))))
    return (raw + zlib.crc32(raw).to_bytes(4, "little")).ljust(size, b"\0")


def read_stamp(kind: bytes, size: int, data: Buffer) -> tuple[int, ...]:
    """The fields. Raises PeerFault for anything that `stamped` doesn't give."""
    view = memoryview(data)
    if view.nbytes != size:
        raise PeerFault(f"{view.nbytes} bytes came where {kind.decode()} has {size}")
    raw = bytes(view[: STAMP.size])
    if int.from_bytes(view[STAMP.size : STAMP.size + 4], "little") != zlib.crc32(raw) or raw[:4] != kind:
        raise PeerFault(f"bytes came that are no {kind.decode()}")
    return tuple(STAMP.unpack(raw)[1:])


@lru_cache(64)
def filling(name: str, size: int) -> bytes:
    """`size` bytes that belong to a name."""
    return hashlib.shake_128(name.encode()).digest(size)


def tokens_of(run: RunConfig, symbols: Symbols, hop: HopId) -> bytes:
    """The tokens of a microbatch; of held-out ones for step 0."""
    return stamped(b"TOKS", symbols.token_bytes, run.seed, hop.step, hop.index)


class SymbolicData:
    """The Data port."""

    digest = "symbols"

    def __init__(self, run: RunConfig, symbols: Symbols | None = None) -> None:
        self._run, self._symbols = run, symbols or Symbols()

    async def microbatch(self, step: int, index: int) -> Buffer:
        return tokens_of(self._run, self._symbols, HopId(step, index))

    async def held_out(self, index: int) -> Buffer:
        return tokens_of(self._run, self._symbols, HopId(0, index))


def pack(values: Sequence[float], codec: str) -> Encoded:
    """Numbers as they travel."""
    return Encoded(codec, (len(values),), (struct.pack(f"<{len(values)}d", *values),))


def unpack(encoded: Encoded) -> tuple[float, ...]:
    """The numbers. Raises PeerFault."""
    if len(encoded.shape) != 1 or len(encoded.data) != 1 or memoryview(encoded.data[0]).nbytes != 8 * encoded.shape[0]:
        raise PeerFault(f"bytes that don't fit {encoded.shape} came for a part of a gradient")
    return struct.unpack(f"<{encoded.shape[0]}d", encoded.data[0])


def finite(values: Sequence[float]) -> bool:
    """True if the fp32 of a real engine could hold all of these; a stranger may send any eight bytes as a number."""
    return all(abs(value) <= FP32_LARGEST for value in values)
