"""Keeps a failure that nobody foresaw from ending the peer: what failed has failed, and the rest goes on.

Foreseen trouble has its own treatment where it happens (errors.py). All else is a bug, here or below, and mostly of one
message, hop or file. It is logged, with its traceback where it is new, and counted; what runs as long as the peer does
begins again after a pause that grows. `DeviceLost` is passed over: the peer ends with its device, and says so itself.
"""

import asyncio
import logging
import traceback
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from swarmd.errors import DeviceLost
from swarmd.printable import counted

log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0  # until what should run for ever begins again; doubles with each failure
AGAIN_CEILING_SECONDS = 60.0
CALM_SECONDS = 120.0  # of work without a failure, after which the pause is short again
PLACES_KEPT = 64  # places of failures that are told apart
RECENT_SECONDS = 600.0  # for so long a failure is worth a warning


class Fence:
    """The unforeseen failures of one peer."""

    def __init__(self) -> None:
        self.count = 0
        self.heard: Callable[[BaseException], None] = lambda trouble: None  # of every failure
        self._last: tuple[str, float] = "", 0.0  # a sentence, and loop time
        self._places: OrderedDict[str, int] = OrderedDict()  # where it came from -> how often

    def note(self, what: str, trouble: BaseException) -> None:
        """Counts a failure. It is logged at the 1st, 2nd, 4th, 8th, ... time that it does so at the same place."""
        place = _place(trouble)
        times = self._places.pop(place, 0) + 1
        self._places[place] = times
        if len(self._places) > PLACES_KEPT:
            self._places.popitem(last=False)
        if times & (times - 1) == 0:
            shown = trouble if times == 1 else None
            log.error("%s failed, for the %d. time at this place: %r", what, times, trouble, exc_info=shown)
        self.count += 1
        self._last = f"{what} failed: {type(trouble).__name__}: {trouble}", asyncio.get_running_loop().time()
        self.heard(trouble)

    def warning(self, now: float) -> str:
        """A sentence on the last failure, if it is recent; else ""."""
        sentence, when = self._last
        if not sentence or now - when > RECENT_SECONDS:
            return ""
        return f"{sentence} ({counted(self.count, 'unforeseen failure')} so far; swarmd.log says where)"

    def call(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Calls a listener; its failure is noted, and isn't the caller's."""
        try:
            callback(*arguments)
        except Exception as trouble:  # noqa: BLE001 - one listener's failure is kept from the others
            self.note(f"a callback, {getattr(callback, '__qualname__', callback)},", trouble)

    async def once(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs something that nobody waits for."""
        await self._ends_well(work)

    async def _ends_well(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Runs it to its end. False if it failed in an unforeseen way, which is noted."""
        try:
            await work
        except Exception as trouble:  # noqa: BLE001 - a task's failure becomes a word in the log
            if not is_of_device(trouble):
                self.note(getattr(work, "__qualname__", "a task"), trouble)
                return False
        return True

    async def again(self, begin: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Runs something until it ends by itself; begins it anew when it fails."""
        loop, pause = asyncio.get_running_loop(), AGAIN_SECONDS
        while True:
            began = loop.time()
            if await self._ends_well(begin()):
                return
            if loop.time() - began > CALM_SECONDS:
                pause = AGAIN_SECONDS
            await asyncio.sleep(pause)
            pause = min(AGAIN_CEILING_SECONDS, 2 * pause)


def is_of_device(trouble: BaseException) -> bool:
    """Tells if this is, or includes, the loss of the device."""
    if isinstance(trouble, BaseExceptionGroup):
        return any(is_of_device(each) for each in trouble.exceptions)
    return isinstance(trouble, DeviceLost)


def _place(trouble: BaseException) -> str:
    """The exception's class and the place where it was raised."""
    while isinstance(trouble, BaseExceptionGroup):
        trouble = trouble.exceptions[0]
    frames = traceback.extract_tb(trouble.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
    return f"{type(trouble).__name__} at {where}"
