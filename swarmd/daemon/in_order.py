"""Calls that write to a disk, made one after the other in a thread: a disk that takes seconds holds up nobody else.

Where no event loop runs (a command, a test) each is done when `put` returns.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

PENDING_LIMIT = 10_000  # calls, of a few kilobytes each, that a disk that doesn't answer keeps waiting

log = logging.getLogger(__name__)


class InOrder:
    """A queue of calls and its thread, which is there once there is a call."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._pending: deque[Future[None]] = deque()

    def put(self, call: Callable[[], None]) -> bool:
        """Has a call made after those before it. False if too many wait already: it is left out."""
        while self._pending and self._pending[0].done():
            self._pending.popleft()
        if len(self._pending) >= PENDING_LIMIT:
            return False
        future = self._pool.submit(call)
        future.add_done_callback(_log_failure)
        self._pending.append(future)
        if not _in_loop():
            future.result()
        return True

    def pending(self) -> "list[asyncio.Future[None]]":
        """The calls that aren't made yet, to be waited for in the event loop that runs."""
        return [asyncio.wrap_future(future) for future in self._pending if not future.done()]

    def finish(self) -> None:
        """Waits until all are made; blocks."""
        for future in list(self._pending):
            future.exception()


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _log_failure(future: "Future[None]") -> None:
    """Logs a failure that the call should have treated itself."""
    if not future.cancelled() and (trouble := future.exception()) is not None:
        log.error("a write to the disk failed", exc_info=trouble)
