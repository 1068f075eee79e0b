"""A state's bytes: those of safetensors, and what others send is looked at before it is believed."""

import pytest
import safetensors.torch
import torch
from torch import Tensor

from swarmd.stage.state import read_state, write_state


def tensors(**changes: Tensor) -> dict[str, Tensor]:
    plain = {"version": torch.tensor(3), "a": torch.arange(6.0).view(2, 3), "b": torch.arange(4, dtype=torch.uint8)}
    return {**plain, **changes}


def test_a_state_has_the_bytes_of_safetensors_and_is_read_again() -> None:
    state = write_state(tensors())
    assert state == safetensors.torch.save(tensors())
    version, found = read_state(state, tensors())
    assert version == 3
    assert bytes(found["a"]) == tensors()["a"].numpy().tobytes()


@pytest.mark.parametrize(
    "strange",
    [
        {"version": torch.tensor(-1)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"a": torch.zeros(2, 3, dtype=torch.int64)},
        {"c": torch.zeros(1)},
    ],
)
def test_a_state_of_other_tensors_is_refused(strange: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="state"):
        read_state(safetensors.torch.save(tensors(**strange)), tensors())
