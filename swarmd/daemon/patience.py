"""Says what a piece of work that blocks is at, once it takes long: for commands without an event loop, and for the time
before a daemon has one (`waits.py` is for the time after).
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from swarmd.printable import duration

SAID_AFTER_SECONDS = 2.0  # what takes no longer isn't worth a line
AGAIN_SECONDS = 60.0  # until it is said a second time; twice as long from time to time


@contextmanager
def said_if_long(
    what: str, tell: Callable[[str], None], *, after_s: float = SAID_AFTER_SECONDS, again_s: float = AGAIN_SECONDS
) -> Iterator[None]:
    """Has `tell` hear, in a thread of its own, what the block is at and for how long, as long as it takes."""
    over = threading.Event()
    began = time.monotonic()

    def say() -> None:
        pause = after_s
        while not over.wait(pause):
            tell(f"{what} (for {duration(time.monotonic() - began)})")
            pause = again_s if pause == after_s else 2 * pause

    thread = threading.Thread(target=say, name="says what takes long", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
