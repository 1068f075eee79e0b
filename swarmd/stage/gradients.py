"""A step's sum of gradients, the averaged gradient that replaces it, and how both are measured.

All parameters' gradients lie in one flat fp32 buffer, in the order of the stage's named parameters, so that a round
can cut it into parts anywhere. Knows which hops were added; not where they came from. Relies on `codec` for the
bytes.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from swarmd.errors import NonFinite, PeerFault
from swarmd.stage import transfer
from swarmd.stage.codec import check, decode, is_surely_finite
from swarmd.stage.finite import Checks, all_finite
from swarmd.stage.optimizer import one_thread
from swarmd.values import Encoded, GradientSummary, HopId

PIECE = 1 << 20  # elements handled at once where fp64 or int64 copies are needed; bounds them to 8 MiB
MASK = (1 << 64) - 1
MIXER = 0x9E3779B97F4A7C15  # 2 ** 64 over the golden ratio: spreads a small sum over all 64 bits


class GradientSum:
    """The sum of one step's gradients over target tokens, and what became of it."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.size = sum(parameter.numel() for parameter in parameters)
        self.shapes = [parameter.shape for parameter in parameters]
        self.flat = torch.zeros(self.size, device=parameters[0].device)
        self.views = self.cut(self.flat)
        self.averaged: Tensor | None = None  # set once the round is done
        self.counted: set[HopId] = set()
        self.frozen = False

    def cut(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat gradient in the parameters' shapes."""
        pieces = torch.split(flat, [shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def add(self, gradients: Sequence[Tensor], *, sign: int = 1) -> None:
        """Adds one hop's gradients, or takes them out again with sign -1."""
        torch._foreach_add_(self.views, list(gradients), alpha=sign)

    def decode(self, slices: Sequence[Encoded]) -> list[Tensor]:
        """The slices of another sum, in order. Raises PeerFault if they aren't exactly one whole, finite sum."""
        if sum(check(piece) for piece in slices) != self.size:
            raise PeerFault(f"slices of another length than this gradient's {self.size} elements came")
        pieces = [decode(piece, self.flat.device).view(-1) for piece in slices]
        if not all_finite(pieces):
            raise PeerFault("a sum came with an infinity or NaN")
        return pieces

    def absorb(self, pieces: Sequence[Tensor]) -> None:
        """Adds another sum."""
        torch._foreach_add_(list(torch.split(self.flat, [piece.numel() for piece in pieces])), list(pieces))

    def assemble(self, parts: Sequence[Encoded]) -> GradientSummary:
        """Decodes a round's results into the averaged gradient. Raises PeerFault if they aren't exactly one whole
        gradient, NonFinite if one of them isn't finite.
        """
        counts = [check(part) for part in parts]
        if sum(counts) != self.size:
            raise PeerFault(f"parts of {sum(counts)} elements came for a gradient of {self.size}")
        averaged = torch.empty_like(self.flat)
        start = 0
        for part, count in zip(parts, counts, strict=True):
            averaged[start : start + count] = decode(part, averaged.device).view(-1)
            start += count
        norm = squared_norm(averaged)
        if not math.isfinite(norm):  # fp64 holds the squares of everything finite
            pieces = torch.split(averaged, counts)
            bad = next(number for number, piece in enumerate(pieces) if not all_finite((piece,)))
            raise NonFinite("an averaged part has an infinity or NaN", "average", bad)
        self.averaged = averaged
        return GradientSummary(digest=bytes_digest(parts), squared_norm=norm)

    def restart(self) -> None:
        """Empties it for the next step."""
        self.flat.zero_()
        self.averaged = None
        self.counted.clear()
        self.frozen = False


def add_up(contributions: Sequence[Encoded], device: torch.device, checks: Checks) -> Tensor:
    """The sum of contributions to a part, added in the given order. Raises PeerFault. `checks` say later whether each
    is finite.
    """
    assert contributions, "a part has contributions"
    total: Tensor | None = None
    for number, contribution in enumerate(contributions):
        if contribution.shape != contributions[0].shape:
            raise PeerFault(
                f"contributions of shapes {contribution.shape} and {contributions[0].shape} came for one part"
            )
        piece = decode(contribution, device)
        if not is_surely_finite(contribution):
            checks.extremes(piece, NonFinite("a contribution has an infinity or NaN", "sum", number))
        total = piece if total is None else total.add_(piece)
    assert total is not None
    return total


def bytes_digest(parts: Sequence[Encoded]) -> str:
    """32 hex digits of the bytes as they came from their owners, and of how to read them."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{part.codec}{part.shape}".encode())
        for data in part.data:
            digest.update(data)
    return digest.hexdigest()


def squared_norm(flat: Tensor) -> float:
    """Sum of squares in fp64, the same whatever the number of threads."""
    with one_thread():
        squares = [piece.double().square_().sum() for piece in torch.split(flat, PIECE)]
    return sum(transfer.read(torch.stack(squares)).tolist(), 0.0)


def parameter_digest(parameters: Sequence[Tensor]) -> str:
    """16 hex digits over the raw bits of fp32 tensors: sum of bits_i * (2 i + 1) modulo 2^64, computed where they are.

    Integer addition has no order, so it is the same on every device and number of threads. Weights differ from
    element to element, so that exchanged values show; it guards against accidents, not against forgery.
    """
    total, start = 0, 0
    device = parameters[0].device
    weights = torch.arange(1, 2 * PIECE, 2, dtype=torch.int64, device=device)
    sums: list[Tensor] = []
    offsets: list[int] = []
    for parameter in parameters:
        for piece in torch.split(parameter.detach().reshape(-1).view(torch.int32), PIECE):
            bits = piece.long()
            sums.append(torch.stack((bits.sum(), bits.mul_(weights[: bits.numel()]).sum())))
            offsets.append(start)
            start += bits.numel()
    for offset, (plain, weighted) in zip(offsets, transfer.read(torch.stack(sums)).tolist(), strict=True):
        total += weighted + 2 * offset * plain
    return f"{(total * MIXER) & MASK:016x}"
