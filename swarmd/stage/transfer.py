"""The ways between host and device, and the only places where the compute thread waits for its device.

On a CPU nothing moves: both ways give the memory that they got.
"""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from swarmd.values import Buffer


class _Readable:
    """Read-only bytes shown to numpy as writable, because torch has no read-only tensors and warns. Nothing writes to
    it.
    """

    def __init__(self, data: Buffer) -> None:
        self._bytes = numpy.frombuffer(data, dtype=numpy.uint8)  # keeps the memory alive, and this object keeps it
        self.__array_interface__ = {**self._bytes.__array_interface__, "data": (self._bytes.ctypes.data, False)}


NUMBERS = {
    torch.float64: numpy.float64,
    torch.float32: numpy.float32,
    torch.int64: numpy.int64,
    torch.uint8: numpy.uint8,
}


def upload(data: Buffer, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The bytes as a flat tensor on the device, not to be written to. Waits for nothing: the bytes go by way of pinned
    memory, which PyTorch gives to nobody else before the device has read it.
    """
    raw = torch.from_numpy(numpy.asarray(_Readable(data)))
    if device.type == "cuda":
        return raw.pin_memory().to(device, non_blocking=True).view(dtype)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype)


def download(tensors: Sequence[Tensor]) -> tuple[Buffer, ...]:
    """The bytes of contiguous tensors of one device, waited for once. Those of a CPU's tensors are their own memory."""
    if tensors and tensors[0].is_cuda:
        tensors = _pinned(tensors)
    return tuple(memoryview(tensor.view(-1).view(torch.uint8).numpy()) for tensor in tensors)  # type: ignore[arg-type]  # numpy's stubs lack the protocol


def read(tensor: Tensor) -> "numpy.ndarray[Any, Any]":
    """The numbers of a tensor, in its shape."""
    (data,) = download((tensor.contiguous(),))
    return numpy.frombuffer(data, NUMBERS[tensor.dtype]).reshape(tensor.shape)


def _pinned(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in pinned memory of the host, which the driver fills without a copy of its own."""
    host = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for target, tensor in zip(host, tensors, strict=True):
        target.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return host
