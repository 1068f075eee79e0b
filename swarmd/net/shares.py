"""Shares of something that is scarce, one for each key: so much at once, and then so much a second."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass
class _Share:
    room: float
    looked: float


class Shares:
    """The shares of the keys that were used last. Plain data; the caller passes the time."""

    def __init__(self, burst: float, per_s: float, kept: int) -> None:
        self._burst, self._per_s, self._kept = burst, per_s, kept
        self._shares: OrderedDict[str, _Share] = OrderedDict()

    def has_room(self, key: str, now: float) -> bool:
        """Tells if one more could be taken now."""
        return self._grown(key, now).room >= 1.0

    def take(self, key: str, now: float, amount: float = 1.0) -> bool:
        """Takes some, if there is room for one now; what is more than that is missing from the next."""
        share = self._grown(key, now)
        if share.room < 1.0:
            return False
        share.room -= amount
        return True

    def _grown(self, key: str, now: float) -> _Share:
        share = self._shares.setdefault(key, _Share(self._burst, now))
        self._shares.move_to_end(key)
        while len(self._shares) > self._kept:
            self._shares.popitem(last=False)
        share.room = min(self._burst, share.room + (now - share.looked) * self._per_s)
        share.looked = now
        return share
