"""A stage's state as bytes: version, parameters and optimizer in one safetensors buffer, which others may have made."""

import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from swarmd.stage import transfer
from swarmd.values import Buffer

PARAMETER_PREFIX = "parameter."  # of the tensors of an exported state that are the model; the rest is the optimizer's
OPTIMIZER_PREFIX = "optimizer."
VERSION = "version"

DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}
"""The dtypes of a state, by the names that safetensors gives them."""


def write_state(tensors: dict[str, Tensor]) -> Buffer:
    """A state of these tensors."""
    return safetensors.numpy.save({name: transfer.read(tensor) for name, tensor in tensors.items()})


def read_state(state: Buffer, expected: dict[str, Tensor]) -> tuple[int, dict[str, Buffer]]:
    """The version of a state, and the bytes of its tensors. Raises ValueError unless they have the expected ones'
    names, shapes and dtypes.
    """
    try:
        tensors = dict(safetensors.deserialize(bytes(state)))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise ValueError(f"the state is not a safetensors buffer: {error}") from error
    if tensors.keys() != expected.keys():
        strange = sorted(tensors.keys() ^ expected.keys())
        raise ValueError(f"the state has other tensors than this stage: {', '.join(strange[:3])}")
    for name, value in expected.items():
        shape, dtype = tensors[name]["shape"], tensors[name]["dtype"]
        if list(shape) != list(value.shape) or dtype != DTYPES[value.dtype]:
            raise ValueError(f"{name} has shape {tuple(shape)} and dtype {dtype} in the state")
    version = read_count(tensors[VERSION]["data"])
    if version < 0:
        raise ValueError(f"the state is of version {version}")
    return version, {name: tensor["data"] for name, tensor in tensors.items()}


def read_count(data: Buffer) -> int:
    """A single whole number of a state."""
    return int.from_bytes(data, "little", signed=True)
