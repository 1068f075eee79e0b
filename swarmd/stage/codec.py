"""Codecs: tensors to bytes on the wire, and back.

fp32 and bf16 are plain casts. fp16 scales each block by a power of two first, so that gradient sums neither overflow
nor vanish. int8 keeps one byte per element and each block's largest magnitude; `int8-bnb` does the same with
bitsandbytes' non-linear code. Decoding is exact arithmetic on the bytes, so every device gets the same numbers. The
bytes come from strangers: `decode` checks all of them and raises `PeerFault`. Relies on torch; bitsandbytes is
imported when its codec is first used (1.6 s, 118 MB).
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from swarmd.errors import NonFinite, PeerFault
from swarmd.stage import bnb, transfer
from swarmd.stage.finite import Checks
from swarmd.values import Buffer, Encoded

BLOCK = 512  # elements per scale: 0.8 % more bytes at int8, and an error 6 % below that of 1024 (benchmarks/codecs.py)
BNB_BLOCK = 4096  # elements per scale of bitsandbytes, its own default: smaller blocks barely lower its error
PIECE_BLOCKS = 512  # blocks per piece of CPU work: 1 MiB of fp32, so that the passes over it stay in the cache
DIMENSIONS_LIMIT = 8  # no tensor of ours has more than three
ELEMENTS_LIMIT = 1 << 33  # elements; twice the largest stage of today, and far from overflowing an int64
INT8_LARGEST = 127.0
INT8_SCALE_LIMIT = 2.0**120  # 128 times this is finite, and far above the scale of any number that is trained with
HALF_EXPONENT = 14  # blocks are scaled to below 2 ** 15, half of fp16's range, so that rounding never reaches infinity
LARGEST_SENT = 3.4e38  # of fp32's 3.4028e38: rounding a larger number to a code could make an infinity of it
SMALLEST_SCALE = 2.0**-110  # so that neither a scale nor its inverse is a denormal, which devices treat differently

assert sys.byteorder == "little", "tensors travel little-endian"

Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Codec:
    """Tensors that travel for a flat fp32 tensor, and the way back. `layout` gives their dtypes and elements for n
    elements.
    """

    layout: Callable[[int], tuple[tuple[torch.dtype, int], ...]]
    encode: Callable[[Tensor, Checks], Parts]
    decode: Callable[[Parts, int], Tensor]


def available_codecs() -> tuple[str, ...]:
    """Codecs this installation can encode and decode."""
    return tuple(name for name in _CODECS if name != "int8-bnb" or bnb.is_installed())


def encode(tensor: Tensor, codec: str, checks: Checks | None = None) -> Encoded:
    """The tensor as bytes. Buffers of CPU tensors may be the tensor's own memory (fp32), so it must not be changed
    later. `checks` are settled on the way.

    Raises NonFinite if the tensor has an infinity or NaN, or something that would become one.
    """
    checks = checks or Checks()
    flat = tensor.detach().contiguous().view(-1)
    if not flat.numel():
        checks.settle()
        return Encoded(codec=codec, shape=tuple(tensor.shape), data=())
    parts = _CODECS[codec].encode(flat.float(), checks)
    *data, numbers = transfer.download((*parts, checks.numbers()))
    checks.judge(numpy.frombuffer(numbers, numpy.float32).tolist())
    return Encoded(codec=codec, shape=tuple(tensor.shape), data=tuple(data))


@torch.no_grad()
def decode(encoded: Encoded, device: str | torch.device = "cpu") -> Tensor:
    """A new fp32 tensor that shares no memory with the bytes. Raises PeerFault for anything but what `encode` gives."""
    count = check(encoded)
    if count == 0:
        return torch.empty(encoded.shape, device=device)
    codec = _CODECS[encoded.codec]
    layout = codec.layout(count)
    for scales in map(_as_scales, encoded.data[1:]):
        if not 0 <= scales.min() <= scales.max() < math.inf:  # NaN is not
            raise PeerFault(f"a tensor in {encoded.codec} has scales that are not finite and non-negative")
    parts = tuple(
        transfer.upload(part, dtype, torch.device(device))
        for part, (dtype, _) in zip(encoded.data, layout, strict=True)
    )
    return codec.decode(parts, count).view(encoded.shape)


def is_surely_finite(encoded: Encoded) -> bool:
    """True if the scales alone say that no number is infinite or NaN, so that nobody waits for the device to know it.
    Of bytes that `decode` takes.
    """
    return encoded.codec == "int8" and all(_as_scales(part).max() <= INT8_SCALE_LIMIT for part in encoded.data[1:])


def _as_scales(part: Buffer) -> "numpy.ndarray[Any, numpy.dtype[numpy.float32]]":
    return numpy.frombuffer(part, numpy.float32)


def check(encoded: Encoded) -> int:
    """Checks everything that can be checked without reading the bytes; returns the number of elements. Raises
    PeerFault.
    """
    if encoded.codec not in _CODECS:
        raise PeerFault(f"a tensor came in the unknown codec {encoded.codec[:32]!r}")
    if encoded.codec not in available_codecs():
        raise PeerFault(f"a tensor came in {encoded.codec}, which this peer did not offer")
    shape = encoded.shape
    if len(shape) > DIMENSIONS_LIMIT or any(type(size) is not int or not 0 <= size <= ELEMENTS_LIMIT for size in shape):
        raise PeerFault("a tensor came with an impossible shape")
    count = math.prod(shape)
    if count > ELEMENTS_LIMIT:
        raise PeerFault(f"a tensor of {count} elements came; the limit is {ELEMENTS_LIMIT}")
    layout = _CODECS[encoded.codec].layout(count) if count else ()
    expected = tuple(size * dtype.itemsize for dtype, size in layout)
    actual = tuple(memoryview(part).nbytes for part in encoded.data)
    if expected != actual:
        raise PeerFault(f"a tensor of shape {shape} in {encoded.codec} takes {expected} bytes, but {actual} came")
    return count


# ------------------------------------------------------------------------------------------------- the codecs


def _blocks(flat: Tensor) -> Tensor:
    """[n] as [blocks, BLOCK], filled up with zeros where n is no multiple of BLOCK."""
    missing = -flat.numel() % BLOCK
    return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(-1, BLOCK)


def _scaled(flat: Tensor, dtype: torch.dtype, plan_scales: Callable[[Tensor], Tensor], checks: Checks) -> Parts:
    """Each block divided by its scale and rounded to `dtype`, and the scales. Works through the CPU's cache piece by
    piece.
    """
    blocks = _blocks(flat)
    codes = torch.empty(blocks.shape, dtype=dtype, device=flat.device)
    largest = torch.empty(blocks.shape[0], device=flat.device)
    step = blocks.shape[0] if flat.is_cuda else PIECE_BLOCKS
    work = torch.empty(min(step, blocks.shape[0]), BLOCK, device=flat.device)
    scales = torch.empty_like(largest)
    for start in range(0, blocks.shape[0], step):
        piece = blocks[start : start + step]
        room = work[: piece.shape[0]]
        torch.abs(piece, out=room)
        torch.amax(room, dim=1, out=largest[start : start + step])
        scale = plan_scales(largest[start : start + step])
        scales[start : start + step] = scale
        torch.mul(piece, scale.reciprocal()[:, None], out=room)
        if not dtype.is_floating_point:
            room.round_()
        codes[start : start + step].copy_(room)
    checks.at_most(largest.amax(), _unsendable(), LARGEST_SENT)
    return codes.view(-1)[: flat.numel()], scales


def _unsendable() -> NonFinite:
    return NonFinite("a tensor to be sent has an infinity, NaN or a number beyond 3.4e38")


def _unscaled(parts: Parts, count: int) -> Tensor:
    """Codes times their block's scale. One multiplication in fp32, so the same on every device."""
    codes, scales = parts
    values = torch.empty(scales.numel() * BLOCK, device=codes.device)
    values[:count].copy_(codes)
    values[count:].zero_()
    return values.view(-1, BLOCK).mul_(scales[:, None]).view(-1)[:count]


def _int8_scales(largest: Tensor) -> Tensor:
    return (largest / INT8_LARGEST).clamp_min_(SMALLEST_SCALE)


def _half_scales(largest: Tensor) -> Tensor:
    """Powers of two, so that scaling itself loses nothing."""
    exponents = torch.frexp(largest).exponent.clamp_min(-100) - 1 - HALF_EXPONENT
    return torch.ldexp(torch.ones_like(largest), exponents)


def _encode_bnb(flat: Tensor, checks: Checks) -> Parts:
    checks.at_most(flat.abs().amax(), _unsendable(), LARGEST_SENT)  # its own largest magnitudes pass over NaN
    return bnb.quantise(flat, BNB_BLOCK)


def _decode_bnb(parts: Parts, count: int) -> Tensor:
    codes, scales = parts
    return bnb.dequantise(codes, scales, BNB_BLOCK)


def _cast(dtype: torch.dtype) -> _Codec:
    def encode_cast(flat: Tensor, checks: Checks) -> Parts:
        cast = flat.to(dtype)  # a finite number may become infinite
        checks.finite((cast,), NonFinite("a tensor to be sent has an infinity or NaN"))
        return (cast,)

    return _Codec(
        layout=lambda count: ((dtype, count),),
        encode=encode_cast,
        decode=lambda parts, count: torch.empty(count, device=parts[0].device).copy_(parts[0]),
    )


def _scales_layout(dtype: torch.dtype, block: int) -> Callable[[int], tuple[tuple[torch.dtype, int], ...]]:
    return lambda count: ((dtype, count), (torch.float32, -(-count // block)))


_CODECS: dict[str, _Codec] = {
    "fp32": _cast(torch.float32),
    "bf16": _cast(torch.bfloat16),
    "fp16": _Codec(
        _scales_layout(torch.float16, BLOCK),
        lambda flat, checks: _scaled(flat, torch.float16, _half_scales, checks),
        _unscaled,
    ),
    "int8": _Codec(
        _scales_layout(torch.int8, BLOCK),
        lambda flat, checks: _scaled(flat, torch.int8, _int8_scales, checks),
        _unscaled,
    ),
    "int8-bnb": _Codec(_scales_layout(torch.uint8, BNB_BLOCK), _encode_bnb, _decode_bnb),
}
