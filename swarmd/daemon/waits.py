"""The waits of a daemon: since when each lasts, and when it is logged.

Others give the waits as they are now; this remembers since when each is there. One that lasts longer than two seconds
is logged, which the terminal shows, too, and again after one minute, two, four and so on, so that a long wait neither
is silent nor fills a log.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from swarmd.daemon.logs import NOTICE
from swarmd.printable import duration
from swarmd.status import Wait
from swarmd.swarm.peer.peer import Peer
from swarmd.swarm.peer.status_view import StatusView

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # between two looks
SAID_AFTER_SECONDS = 2.0  # what takes no longer isn't worth a line
AGAIN_SECONDS = 60.0  # until it is said a second time; twice as long from time to time
AGAIN_LIMIT_SECONDS = 3600.0
STANDSTILL_SECONDS = 60.0  # detection of a lost or silent peer, and its repair, take no longer
STANDSTILL_STEPS = 2.0  # times a usual step: a slow device, or averaging over a thin line, moves nothing for long
WAITS_LIMIT = 16  # at once; there are never half as many


@dataclasses.dataclass
class _Known:
    """One wait, as long as it lasts."""

    wait: Wait
    since: float
    pause: float = AGAIN_SECONDS  # until it is said again
    due: float = 0.0  # when it is to be said
    said: bool = False


class Standstill:
    """Notices that a step doesn't go on, though nothing is known to be missing: nothing has moved for longer than
    usual steps take.
    """

    def __init__(self) -> None:
        self._seen: object = None
        self._since = 0.0

    def waits(self, now: float, peer: Peer, view: StatusView, usual_s: float) -> list[Wait]:
        """The wait for a step to go on, if it stands still. `usual_s`: a usual step takes so long."""
        version, queues = peer.history.version, view.queues()
        seen = peer.state, version, view.progress(), peer.figures.microbatches_done(), queues.idle_because == ""
        seconds = self.seconds(now, seen, usual_s)
        if not seconds or peer.state != "serving" or peer.history.finished or not queues.idle_because:
            return []
        done = f"{view.progress():.0%} of its microbatches are done; {queues.idle_because}"
        advice = "`swarmctl peers` and `swarmctl queues` show who is silent"
        return [Wait(f"step {version + 1} to go on", seconds, done, advice=advice)]

    def seconds(self, now: float, seen: object, usual_s: float) -> float:
        """Seconds for which `seen` has been the same; 0 while that is nothing to speak of."""
        if seen != self._seen:
            self._seen, self._since = seen, now
        lasts = now - self._since
        return lasts if lasts > max(STANDSTILL_SECONDS, STANDSTILL_STEPS * usual_s) else 0.0


class Waits:
    """The waits of one daemon. `look` gives those at the moment, with the `seconds` of those that were long under way
    when they could first be seen.
    """

    def __init__(self, look: Callable[[], Sequence[Wait]], clock: Callable[[], float] = time.monotonic) -> None:
        self._look, self._clock = look, clock
        self._known: dict[str, _Known] = {}
        self._over: list[tuple[str, float]] = []  # what was said and is over, and how long it took: to be said
        self._beside: list[Callable[[], Wait]] = []

    @contextmanager
    def during(self, what: str, progress: Callable[[], str] = lambda: "") -> Iterator[None]:
        """Counts something as waited for as long as the block takes."""

        def look() -> Wait:
            return Wait(what, progress=progress())

        self._beside.append(look)
        try:
            yield
        finally:
            self._beside.remove(look)

    def now(self) -> tuple[Wait, ...]:
        """The present waits, and for how long they last."""
        now = self._renew()
        return tuple(dataclasses.replace(it.wait, seconds=round(now - it.since, 1)) for it in self._known.values())

    def _renew(self) -> float:
        """Takes in what is waited for now. Returns the time."""
        now, before = self._clock(), self._known
        self._known = {}
        for wait in [*self._look(), *(look() for look in self._beside)][:WAITS_LIMIT]:
            since = now - wait.seconds
            known = before.pop(wait.what, None) or _Known(wait, since, due=since + SAID_AFTER_SECONDS)
            known.wait = wait
            self._known[wait.what] = known
        self._over += [(it.wait.what, now - it.since) for it in before.values() if it.said]
        del self._over[:-WAITS_LIMIT]
        return now

    def say_due(self) -> None:
        """Logs what has lasted long enough, or is over after it was logged."""
        now = self._renew()
        for what, seconds in self._over:
            log.log(NOTICE, "over after %s: waiting for %s", duration(seconds), what)
        self._over.clear()
        for it in self._known.values():
            if now >= it.due:
                it.said, it.due, it.pause = True, now + it.pause, min(2 * it.pause, AGAIN_LIMIT_SECONDS)
                sentence = dataclasses.replace(it.wait, seconds=now - it.since).sentence()
                log.log(logging.WARNING if it.wait.advice else NOTICE, "waiting for %s", sentence)

    async def say(self) -> None:
        """Goes on saying what lasts; until cancelled."""
        while True:
            self.say_due()
            await asyncio.sleep(LOOK_SECONDS)
