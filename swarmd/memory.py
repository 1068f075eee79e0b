"""Memory that was freed goes back to the system, and what nobody needs any more is freed.

glibc keeps freed memory that lies below memory in use, separately for many threads. A daemon's buffers come and go in
bursts, most when peers come and go, so over days of faults its resident memory would creep up although it holds no
more than at first. Other C libraries have neither of these functions; then both do nothing.

And Python collects cycles among old objects only when there are a quarter more of these than at the last time. With
torch and libp2p loaded these are 240,000: a daemon could hold some 60,000 objects of garbage before it is looked for.
"""

import ctypes
import gc
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
    """Lets few threads have freed memory of their own. To be called before any are started."""
    if _trim is not None and _set is not None:  # musl has the second in name only
        _set(_M_ARENA_MAX, ARENAS)


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
