"""A stage's state as bytes: version, parameters and optimizer in one safetensors buffer, which others may have made."""

import safetensors
import safetensors.torch
from torch import Tensor

from swarmd.values import Buffer

PARAMETER_PREFIX = "parameter."  # of the tensors of an exported state that are the model; the rest is the optimizer's
OPTIMIZER_PREFIX = "optimizer."


def read_state(state: Buffer, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state, on the host. Raises ValueError unless they have the expected ones' names, shapes and
    dtypes, and a version.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(bytes(state))
    except safetensors.SafetensorError as error:
        raise ValueError(f"the state is not a safetensors buffer: {error}") from error
    if tensors.keys() != expected.keys():
        strange = sorted(tensors.keys() ^ expected.keys())
        raise ValueError(f"the state has other tensors than this stage: {', '.join(strange[:3])}")
    for name, value in expected.items():
        if tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)} and {tensors[name].dtype} in the state")
    if int(tensors["version"]) < 0:
        raise ValueError(f"the state is of version {int(tensors['version'])}")
    return tensors
