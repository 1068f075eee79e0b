"""A hop's tokens and activation: checked, since they come from strangers, and brought to the device.

Shapes: B sequences of a microbatch, T tokens, D hidden width.
"""

from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from swarmd.config import RunConfig
from swarmd.errors import NonFinite, PeerFault
from swarmd.stage import transfer
from swarmd.stage.codec import decode, is_surely_finite
from swarmd.stage.finite import Checks
from swarmd.values import Buffer, Encoded, HopId


class Source(NamedTuple):
    """A hop's input as it came, from which its forward can run again."""

    tokens: Buffer
    activation: Encoded | None  # the first stage needs none


class Inputs:
    """The inputs of one stage."""

    def __init__(self, run: RunConfig, device: torch.device, *, is_head: bool) -> None:
        self._model, self._batch = run.model, run.sequences_per_microbatch
        self._device, self._is_head = device, is_head

    def check(self, hop: HopId, source: Source, checks: Checks) -> tuple[Tensor, Tensor]:
        """Loads a source that is what it must be. Raises PeerFault. `checks` say later whether it is finite."""
        nbytes, length = memoryview(source.tokens).nbytes, self._model.sequence_length
        if nbytes != 4 * self._batch * (length + 1):
            raise PeerFault(f"{nbytes} bytes of tokens came for {self._batch} sequences of {length} + 1")
        ids = self._ids(source)
        if ids.min() < 0 or ids.max() >= self._model.vocabulary:
            raise PeerFault(f"tokens came that are not in the vocabulary of {self._model.vocabulary}")
        if self._is_head:
            return self.load(source)
        expected, activation = (self._batch, length, self._model.hidden), source.activation
        if activation is None or activation.shape != expected:
            raise PeerFault(f"an activation of shape {activation and activation.shape} came for {expected}")
        inputs, targets = self.load(source)
        if not is_surely_finite(activation):
            trouble = NonFinite(f"the activation of hop {tuple(hop)} came with an infinity or NaN", "activation", 0)
            checks.finite((inputs,), trouble)
        return inputs, targets

    def load(self, source: Source) -> tuple[Tensor, Tensor]:
        """The stage's input, tokens [B, T] or an activation [B, T, D], and the target tokens [B, T], on the device."""
        ids = self._ids(source)
        both = transfer.upload(ids.astype(numpy.int64).tobytes(), torch.int64, self._device).view(ids.shape)
        inputs = both[:, :-1]
        if not self._is_head:
            assert source.activation is not None, "it was checked"
            inputs = decode(source.activation, self._device)
        return inputs, both[:, 1:]

    def _ids(self, source: Source) -> "numpy.ndarray[Any, Any]":
        """[B, T + 1]."""
        return numpy.frombuffer(memoryview(source.tokens), dtype="<i4").reshape(self._batch, -1)
