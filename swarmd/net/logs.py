"""Routes a noisy library's log records into ours, no louder than a warning and no more than a few a second.

The library calls expected events (a refused dial, a peer that left) errors. Its records go to a logger under
`swarmd.net`, whose level and handlers the daemon chooses; the root logger is not touched.
"""

import logging
import time

BURST_RECORDS = 20
"""Records let through at once; a peer that provokes one per byte must not fill the disk."""

RECORDS_PER_SECOND = 2.0


class CappedRelay(logging.Handler):
    """Passes records on to `target`, capped in level and rate; says how many it left out."""

    def __init__(self, target: logging.Logger) -> None:
        super().__init__(logging.INFO)
        self._target = target
        self._tokens = float(BURST_RECORDS)
        self._at = time.monotonic()
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno, logging.WARNING)
        if not self._target.isEnabledFor(level):
            return
        now = time.monotonic()
        self._tokens = min(float(BURST_RECORDS), self._tokens + (now - self._at) * RECORDS_PER_SECOND)
        self._at = now
        if self._tokens < 1.0:
            self._left_out += 1
            return
        self._tokens -= 1.0
        text = record.getMessage().split("\n", 1)[0]
        more = f" ({self._left_out} records left out before)" if self._left_out else ""
        self._left_out = 0
        self._target.log(level, "%s: %s%s", record.name, text[:500], more)


def route(library: str, target: str) -> None:
    """Makes `target` the only place where `library`'s records go."""
    logger = logging.getLogger(library)
    if not any(isinstance(handler, CappedRelay) for handler in logger.handlers):
        logger.handlers[:] = [CappedRelay(logging.getLogger(target))]
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    for name, child in list(logger.manager.loggerDict.items()):
        if name.startswith(f"{library}.") and isinstance(child, logging.Logger):
            child.handlers.clear()
            child.propagate = True
            child.setLevel(logging.NOTSET)
