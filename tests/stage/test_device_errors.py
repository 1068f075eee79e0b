"""Failures of a device, told apart by their messages."""

import errno

import pytest

from swarmd.errors import ConfigError, DeviceLost, NonFinite
from swarmd.stage.device_errors import as_ours, judged


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError),
        (OSError(errno.ENOSPC, "No space left"), OSError),
        (ConfigError("choose another device."), ConfigError),
        (ValueError("CUDA out of memory"), ValueError),
        (RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"), MemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), MemoryError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), MemoryError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), MemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), RuntimeError),
        (RuntimeError("CUDA error: unspecified launch failure\nmore"), DeviceLost),
        (RuntimeError("unspecified launch failure"), RuntimeError),
    ],
)
def test_an_error_of_the_device_gets_the_kind_that_the_port_promises(error: Exception, kind: type[Exception]) -> None:
    assert type(as_ours(error)) is kind


def test_a_lost_device_is_one_sentence() -> None:
    lost = as_ours(RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be late"))
    assert str(lost) == "the device is lost: CUDA error: device-side assert triggered; start the daemon again"


def lost() -> None:
    raise RuntimeError("CUDA error: ECC is off\nCUDA kernel errors might be asynchronously reported")


def test_a_failure_that_nobody_foresaw_has_the_device_asked() -> None:
    found = judged(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED\nmore"), lost)
    assert type(found) is DeviceLost
    assert str(found) == (
        "the device is lost: CUDA error: ECC is off, after 'CUDA error: CUBLAS_STATUS_EXECUTION_FAILED'; "
        "start the daemon again"
    )


@pytest.mark.parametrize(
    "error", [ConfigError("choose."), NonFinite("no", "sum"), ValueError("no"), MemoryError("no"), KeyError("no")]
)
def test_a_failure_that_was_foreseen_asks_nothing(error: Exception) -> None:
    assert judged(error, lost) is error


def test_a_lack_of_memory_asks_nothing() -> None:
    assert type(judged(RuntimeError("CUDA out of memory"), lost)) is MemoryError


def test_a_device_that_answers_is_not_lost() -> None:
    error = RuntimeError("a bug of ours")
    assert judged(error, lambda: None) is error
