"""Memory that was freed goes back to the system.

glibc keeps freed memory that lies below memory in use, separately for many threads. A daemon's buffers come and go in
bursts, most when peers come and go, so over days of faults its resident memory would creep up although it holds no
more than at first. Other C libraries have neither of these functions; then both do nothing.
"""

import ctypes
from collections.abc import Callable

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
    """From now on few threads have freed memory of their own. To be called before any are started."""
    if _trim is not None and _set is not None:  # musl has the second in name only
        _set(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Hands the whole pages that no allocation uses to the system. Takes about 1 ms for 400 MB; without the GIL."""
    if _trim is not None:
        _trim(0)
