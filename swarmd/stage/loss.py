"""The tail's loss and its gradients, a chunk of tokens at a time, so that a microbatch's logits never exist together.

The loss is a sum over tokens: nothing comes from behind it, so a chunk's gradients are formed as soon as its logits
are, and no product is computed twice (as in Liger's fused linear cross-entropy, Hsu et al. 2024). Doesn't know hops
or stages. Shapes: N tokens, C of them in a chunk, D hidden width, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1024
"""Tokens whose logits exist at a time: 0.3 GB of them with a vocabulary of 50,304, and enough that the addition to the
weight's gradient costs little beside the product. It is the same throughout a run, whatever memory there is: the last
bits of gradients depend on it, and what is taken out of a sum must be what was added.
"""


class Loss(NamedTuple):
    """Cross entropy in nats, summed over target tokens, and its gradients in fp32 unless they weren't asked for."""

    nats: Tensor  # [], fp64
    hidden: Tensor | None  # [N, D]
    weight: Tensor | None  # [V, D]


@torch.no_grad()
def chunked_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    gradients: bool = True,
    chunk: int = CHUNK,
    scale: float = 1.0,
) -> Loss:
    """Cross entropy of the logits `hidden @ weight.T` [N, V] with targets [N].

    Products are in the dtype of the weight; the softmax and all sums are in fp32. The gradient of the logits is
    multiplied by `scale` before it is cast, and what comes of it divided again: for dtypes in which it would vanish.
    """
    inputs = hidden.to(weight.dtype)
    nats = torch.zeros((), dtype=torch.float64, device=hidden.device)
    d_hidden = torch.empty(hidden.shape, device=hidden.device) if gradients else None
    d_weight = torch.zeros(weight.shape, device=hidden.device) if gradients else None
    for start in range(0, len(inputs), chunk):
        piece, words = inputs[start : start + chunk], targets[start : start + chunk]
        slopes = _slopes(piece, weight, words, nats, scale if gradients else None)
        if slopes is not None and d_hidden is not None and d_weight is not None:
            d_hidden[start : start + chunk] = slopes @ weight
            _add_product(d_weight, slopes.T, piece)
        del slopes  # before the next ones are made
    if scale != 1.0 and d_hidden is not None and d_weight is not None:
        d_hidden.div_(scale)
        d_weight.div_(scale)
    return Loss(nats, d_hidden, d_weight)


def _slopes(piece: Tensor, weight: Tensor, words: Tensor, nats: Tensor, scale: float | None) -> Tensor | None:
    """Adds a chunk's loss to `nats`. The gradient of its logits [C, V], times a scale, unless that is None."""
    logits = (piece @ weight.T).float()
    chosen = words[:, None]
    picked = logits.gather(1, chosen)
    largest = logits.amax(1, keepdim=True)
    totals = logits.sub_(largest).exp_().sum(1, keepdim=True)
    nats += (totals.log() + largest - picked).sum(dtype=torch.float64)
    if scale is None:
        return None
    logits.mul_(scale / totals).scatter_add_(1, chosen, torch.full_like(totals, -scale))
    return logits.to(weight.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to an fp32 total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
