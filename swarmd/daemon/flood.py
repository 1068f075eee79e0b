"""Keeps a log from being flooded: of each kind of record so many a minute, and a word on how many more there were.

A kind is a logger, a level and the template that the message is made of, whatever is filled into it: so nothing that a
peer does a thousand times a second writes more than a few lines a minute. One object serves all handlers, and decides
once for each record. What is left out is counted by the next of its kind, or by whatever is logged a minute later.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
RECORDS_PER_WINDOW = 20  # of a kind: enough to see what goes on, and some 150 kB an hour at most
KINDS_LIMIT = 512  # counted at once; there are about 150 templates in this code

Kind = tuple[str, int, str]


@dataclass
class _Count:
    """The records of one kind in the present window."""

    until: float
    passed: int = 0
    left_out: int = 0
    last: str = ""  # the newest that was left out


class Flood(logging.Filter):
    """Lets records through, or not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._counts: OrderedDict[Kind, _Count] = OrderedDict()
        self._lock = threading.Lock()
        self._look_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """True if a record is written; the first handler that asks decides."""
        passes = getattr(record, "passes", None)
        if passes is None:
            passes, due = self._decide(record)
            record.__dict__["passes"] = passes  # as `extra` does
            for (name, level, _), count in due:
                more = "%d more like this within a minute: %s"
                logging.getLogger(name).log(level, more, count.left_out, count.last, extra={"passes": True})
        return bool(passes)

    def _decide(self, record: logging.LogRecord) -> tuple[bool, list[tuple[Kind, _Count]]]:
        """Counts a record. Also gives the kinds of which something was left out in a window that is over."""
        now, kind = self._clock(), (record.name, record.levelno, str(record.msg)[:200])
        with self._lock:
            count = self._counts.get(kind)
            due = self._over(now)
            if count is None or now >= count.until:
                count = self._counts[kind] = _Count(now + WINDOW_SECONDS)
                self._counts.move_to_end(kind)
                if len(self._counts) > KINDS_LIMIT:
                    self._counts.popitem(last=False)
            count.passed += 1
            if count.passed <= RECORDS_PER_WINDOW:
                return True, due
            count.left_out += 1
            count.last = record.getMessage()[:200]
            return False, due

    def _over(self, now: float) -> list[tuple[Kind, _Count]]:
        """Takes out the windows that are over; gives those of which something was left out."""
        if now < self._look_at:
            return []
        self._look_at = now + 1.0  # a look at all of them a second is enough
        over = [(kind, count) for kind, count in self._counts.items() if now >= count.until]
        for kind, _ in over:
            del self._counts[kind]
        return [(kind, count) for kind, count in over if count.left_out]
