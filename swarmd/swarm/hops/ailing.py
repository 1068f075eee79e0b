"""Rests of a peer at which hops fail for no reason that anybody foresaw: it takes none for a while.

A single failure is the hop's; several in a row are this peer's, and hops are better off elsewhere. Plain data; the
caller passes the time.
"""

FAILURES = 3  # in a row, from which on this peer rests
REST_SECONDS = 5.0  # the first time; doubles each time that the first hop after a rest fails, too
REST_CEILING_SECONDS = 300.0


class Ailing:
    """The recent failures of hops at one peer."""

    def __init__(self) -> None:
        self.failures = 0  # in a row
        self._rests = 0  # since a hop went well
        self._until = 0.0  # loop time
        self.why = ""

    def failed(self, why: str, now: float) -> float:
        """A hop failed. For how many seconds no more is to be taken; 0: it may go on."""
        self.failures += 1
        self.why = why
        if self.failures < FAILURES:
            return 0.0
        if now < self._until:  # it was begun before
            return self._until - now
        seconds = min(REST_CEILING_SECONDS, REST_SECONDS * 2.0**self._rests)
        self._until, self._rests = now + seconds, self._rests + 1
        return seconds

    def succeeded(self) -> None:
        """A hop ended as it should."""
        self.failures = self._rests = 0
        self._until = 0.0

    def rests(self, now: float) -> bool:
        """True while no hop is to be taken."""
        return now < self._until

    def warning(self, now: float) -> str:
        """A sentence about the failures here; "" if there are few."""
        if self.failures < FAILURES:
            return ""
        again = f"none is taken for {self._until - now:.0f} s" if self.rests(now) else "one is tried again"
        return f"microbatches fail at this peer, {self.failures} in a row ({self.why}); {again}"
