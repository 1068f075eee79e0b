"""A device's failures, told apart by the messages of torch, or by asking the device: a lack of memory, and a device
that is lost.
"""

import errno
from collections.abc import Callable

from swarmd.errors import DeviceLost, SwarmError

OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "size calculation overflowed",  # more than there can be
    "_alloc_failed",  # of cuBLAS, cuDNN, cuSPARSE, ..: CUBLAS_STATUS_ALLOC_FAILED
    "_allocation_failed",  # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
)  # in messages of CUDA's and the CPU's allocators and of what works on them
DEVICE_LOST = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "illegal address",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable",
    "unknown error",
    "busy or unavailable",
    "context is destroyed",
    "driver shutting down",
    "fallen off the bus",
    "gpu is lost",
)  # in messages that say CUDA: from then on every call fails, until the process is started anew


def as_ours(error: Exception) -> Exception:
    """torch reports a lack of memory, and a device that is lost, as RuntimeError; the port promises MemoryError and
    DeviceLost.
    """
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return MemoryError(str(error))
    if isinstance(error, SwarmError) or not isinstance(error, RuntimeError):
        return error
    said = str(error).casefold()
    if any(words in said for words in OUT_OF_MEMORY):
        return MemoryError(str(error).splitlines()[0])
    if "cuda" in said and any(words in said for words in DEVICE_LOST):
        return DeviceLost(f"the device is lost: {str(error).splitlines()[0]}; start the daemon again")
    return error


def judged(error: Exception, probe: Callable[[], None]) -> Exception:
    """The same for a failure of work on a device. After one that the messages don't explain the device is asked by
    `probe`, which raises RuntimeError if it is lost: its errors are reported late, and by any call.
    """
    ours = as_ours(error)
    if ours is not error or isinstance(error, SwarmError) or not isinstance(error, RuntimeError):
        return ours
    try:
        probe()
    except RuntimeError as lost:
        said, then = str(error).partition("\n")[0], str(lost).partition("\n")[0]
        return DeviceLost(f"the device is lost: {then}, after {said!r}; start the daemon again")
    return error
