"""Memory that was freed goes back to the system, and what nobody needs any more is freed.

glibc keeps freed memory that lies below memory in use, separately for many threads. A daemon's buffers come and go in
bursts, most when peers come and go, so over days of faults its resident memory would creep up although it holds no
more than at first. Other C libraries have neither of these functions; then both do nothing.

torch's allocator for cards can grow a segment instead of adding another one: parts of many sizes, which come and go
with hops and steps, leave fewer holes then.

And Python collects cycles among old objects only when there are a quarter more of these than at the last time. With
torch and libp2p loaded these are 240,000: a daemon could hold some 60,000 objects of garbage before it is looked for.
"""

import ctypes
import gc
import os
from collections.abc import Callable, MutableMapping

ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Environment variables that torch reads its allocator's settings from. All releases know the first."""

_M_ARENA_MAX = -8  # malloc.h
ARENAS = 2  # one for the event loop, one for the device; the default is eight for each core


def _find(name: str) -> Callable[..., int] | None:
    """A function of the C library, if it has it."""
    try:
        return getattr(ctypes.CDLL(None), name)  # type: ignore[no-any-return]
    except (AttributeError, OSError, TypeError):
        return None


_trim, _set = _find("malloc_trim"), _find("mallopt")


def share_arenas() -> None:
    """Lets few threads have freed memory of their own. To be called before any are started."""
    if _trim is not None and _set is not None:  # musl has the second in name only
        _set(_M_ARENA_MAX, ARENAS)


def grow_segments(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets torch's allocator for cards grow its segments, unless the user has set that allocator up. To be called
    before torch is loaded.
    """
    if not any(name in environment for name in ALLOCATOR_VARIABLES):
        environment[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"


def settle() -> None:
    """Keeps all objects that are loaded at the first call: from then on the collector looks only at newer ones, which
    takes milliseconds and is done often.
    """
    if gc.get_freeze_count() == 0:
        gc.collect()  # 0.1 s
        gc.freeze()


def give_back() -> None:
    """Hands the whole pages that no allocation uses to the system. Takes about 1 ms for 400 MB; without the GIL."""
    if _trim is not None:
        _trim(0)
