"""A check that numbers are finite: one pass over them in the usual case, and exact whatever their size."""

from collections.abc import Sequence

import torch
from torch import Tensor


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """True if no element is infinite or NaN. Mostly one pass and one number back from the device.

    A norm over 1.8e19 overflows fp32, so tensors whose norm isn't finite are looked at once more.
    """
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(list(tensors))])  # noqa: SLF001 - documented
    finite = torch.isfinite(norms).tolist()
    return all(good or _extremes_finite(tensor) for tensor, good in zip(tensors, finite, strict=True))


def _extremes_finite(tensor: Tensor) -> bool:
    """The same from the extremes, which are NaN if anything is."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
