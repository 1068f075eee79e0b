"""Failures of a device, told apart by their messages."""

import errno

import pytest

from swarmd.errors import ConfigError, DeviceLost
from swarmd.stage.device_errors import as_ours


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError),
        (OSError(errno.ENOSPC, "No space left"), OSError),
        (ConfigError("choose another device."), ConfigError),
        (ValueError("CUDA out of memory"), ValueError),
        (RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"), MemoryError),
        (RuntimeError("CUDA error: unspecified launch failure\nmore"), DeviceLost),
        (RuntimeError("unspecified launch failure"), RuntimeError),
    ],
)
def test_an_error_of_the_device_gets_the_kind_that_the_port_promises(error: Exception, kind: type[Exception]) -> None:
    assert type(as_ours(error)) is kind


def test_a_lost_device_is_one_sentence() -> None:
    lost = as_ours(RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be late"))
    assert str(lost) == "the device is lost: CUDA error: device-side assert triggered; start the daemon again"
