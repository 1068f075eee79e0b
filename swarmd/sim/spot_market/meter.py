"""The throughput of a swarm over time, beside that of the best placement of the peers that were alive."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Flow:
    """The result. Throughput in percent of the best placement of the peers alive at each moment."""

    overall: float
    first_hour: float
    last_hour: float
    moves: int
    moves_per_hour: float
    peers: float  # mean
    curve: tuple[float, ...]  # percent in each tenth of an hour


class Meter:
    """Adds up what was done and what could have been."""

    STEP = 360.0  # seconds of a point of the curve

    def __init__(self, hours: float) -> None:
        self._hours = hours
        points = math.ceil(hours * 3600 / self.STEP)
        self._done, self._best, self._peers = [0.0] * points, [0.0] * points, 0.0

    def add(self, start: float, stop: float, rate: float, best: float, peers: float) -> None:
        """So it was from `start` to `stop`."""
        self._peers += peers * (stop - start)
        while start < stop:
            point = int(start / self.STEP)
            if point >= len(self._done):
                return
            until = min(stop, (point + 1) * self.STEP)
            self._done[point] += rate * (until - start)
            self._best[point] += best * (until - start)
            start = until if until > start else stop

    def flow(self, moves: int) -> Flow:
        hour = int(3600 / self.STEP)
        return Flow(
            overall=self._percent(slice(None)),
            first_hour=self._percent(slice(hour)),
            last_hour=self._percent(slice(len(self._done) - hour, None)),
            moves=moves,
            moves_per_hour=moves / self._hours,
            peers=self._peers / (self._hours * 3600),
            curve=tuple(self._percent(slice(at, at + 1)) for at in range(len(self._done))),
        )

    def _percent(self, part: slice) -> float:
        return 100 * sum(self._done[part]) / max(1e-9, sum(self._best[part]))
