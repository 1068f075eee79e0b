"""A condition that coroutines wait for: state changes, someone notifies, waiters look again. Knows only asyncio."""

import asyncio
from collections.abc import Callable


def _set(waiter: asyncio.Future[bool], there_was_one: bool) -> None:
    if not waiter.done():
        waiter.set_result(there_was_one)


class Signal:
    """Wakes everyone who waits, each time something changed."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[bool]] = []

    def notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _set(waiter, True)

    async def wait(self, seconds: float | None = None) -> bool:
        """Waits for the next change, at most so long. True if there was one."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters.append(waiter)
        timer = None if seconds is None else loop.call_later(seconds, _set, waiter, False)
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def until(self, predicate: Callable[[], bool], seconds: float | None = None) -> bool:
        """Waits until the predicate holds, at most so long. True if it does."""
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        while not predicate():
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                return False
            await self.wait(left)
        return True
