"""The rhythm in which a peer is heard, and the silence from which on it may be gone."""

from dataclasses import dataclass, field

from swarmd.swarm.wire.messages.hop import BEAT_SECONDS

RHYTHM_SMOOTHING = 0.2  # weight of the newest interval


@dataclass
class Rhythm:
    """Moving mean and deviation of the time between signs of life."""

    mean: float = 0.0
    deviation: float = 0.0

    def observe(self, seconds: float) -> None:
        if self.mean == 0.0:
            self.mean, self.deviation = seconds, seconds / 2
            return
        self.deviation += RHYTHM_SMOOTHING * (abs(seconds - self.mean) - self.deviation)
        self.mean += RHYTHM_SMOOTHING * (seconds - self.mean)

    def limit(self, deviations: float, floor: float, ceiling: float) -> float:
        """Silence longer than this is not rhythm any more."""
        return min(ceiling, max(floor, 2 * self.mean + deviations * self.deviation))


SILENCE_DEVIATIONS = 8.0
SILENCE_FLOOR_SECONDS = 6.0  # a loaded machine may stall a beat for seconds
LATE_BEAT_SECONDS = SILENCE_FLOOR_SECONDS - BEAT_SECONDS  # by which a beat may come later than announced
SILENCE_CEILING_SECONDS = 30.0


@dataclass
class Pulse:
    """Signs of life at a steady rhythm."""

    rhythm: Rhythm = field(default_factory=Rhythm)
    last_beat: float | None = None  # loop time

    def beat(self, now: float) -> None:
        if self.last_beat is not None:
            self.rhythm.observe(now - self.last_beat)
        self.last_beat = now

    def patience(self) -> float:
        """Seconds of silence that still belong to the rhythm."""
        return self.rhythm.limit(SILENCE_DEVIATIONS, SILENCE_FLOOR_SECONDS, SILENCE_CEILING_SECONDS)

    def silent(self, now: float) -> bool:
        return self.last_beat is not None and now - self.last_beat > self.patience()
