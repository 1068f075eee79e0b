"""The contents of this peer's sum of each open step, index by index, and its state: open, frozen, settled.

Device and peer must agree on both: what changes or reads them across an await of the device holds `StepSums.lock`.
Knows neither the network nor the device.
"""

import asyncio
from dataclasses import dataclass, field

from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.messages.fields import LOSS_LIMIT, TALLY_LIMIT
from swarmd.swarm.wire.messages.hop import NOBODY, SOMEONE, Blame
from swarmd.values import PeerId


@dataclass
class StepSum:
    """The contents of one step's sum."""

    accumulated: set[int] = field(default_factory=set)
    spoiled: set[int] = field(default_factory=set)  # answered with NotFinite
    blame: Blame = NOBODY  # for the first of these, or whatever else makes the step a skipped one
    loss_sum: float = 0.0
    resent: int = 0  # journeys begun here of hops that were sent before
    subtracted: int = 0
    sources: dict[int, PeerId] = field(default_factory=dict)  # who sent what is accumulated
    frozen: bool = False  # takes in nothing more at present: hops wait
    settled: bool = False  # frozen, and its round has a whole result here

    @property
    def done(self) -> set[int]:
        """The indices that are done with here."""
        return self.accumulated | self.spoiled

    @property
    def empty(self) -> bool:
        """True if no index is done with here."""
        return not (self.accumulated or self.spoiled)

    def has(self, index: int) -> bool:
        """True if an index is done with here."""
        return index in self.accumulated or index in self.spoiled

    def add(self, index: int, loss_sum: float, source: PeerId) -> None:
        """The device has added an index to the sum; computing it once more changes nothing."""
        if index not in self.accumulated:
            self.accumulated.add(index)
            self.loss_sum += loss_sum
            self.sources[index] = source

    def spoil(self, index: int, blame: Blame) -> None:
        """An index is done with, but its numbers are not finite."""
        self.spoiled.add(index)
        self.blame = self.blame or blame or SOMEONE

    def take_out(self, index: int, loss_sum: float) -> None:
        """The device has taken an index out of the sum."""
        if index in self.accumulated:
            self.accumulated.discard(index)
            self.loss_sum = max(0.0, self.loss_sum - loss_sum)  # what rounding leaves may be below 0
            self.subtracted += 1
            self.sources.pop(index, None)

    def inherit(self, indices: list[int], spoiled: list[int], loss_sum: float, resent: int, subtracted: int) -> None:
        """The device has added another peer's whole sum to this one. Its figures are that peer's word: what becomes of
        them here can still be said to others.
        """
        assert not self.accumulated & set(indices), "an index counts once"
        self.accumulated.update(indices)
        for index in spoiled:
            self.spoil(index, SOMEONE)
        self.loss_sum = min(self.loss_sum + loss_sum, LOSS_LIMIT)
        self.resent = min(self.resent + resent, TALLY_LIMIT)
        self.subtracted = min(self.subtracted + subtracted, TALLY_LIMIT)


class StepSums:
    """The sums of the steps that have not committed."""

    def __init__(self) -> None:
        self.changed = Signal()  # an index came or went, a sum was frozen or thawed, or a hop moved on
        self.lock = asyncio.Lock()  # so that the device and this peer always agree on whether a sum is frozen
        self.thaws = 0  # how often a frozen sum took in hops again: what was planned before is for another sum
        self._sums: dict[int, StepSum] = {}

    @property
    def open_steps(self) -> tuple[int, ...]:
        """The steps that have a sum here."""
        return tuple(self._sums)

    def of(self, step: int) -> StepSum:
        """A step's sum; an empty one if nothing is known of it."""
        return self._sums.setdefault(step, StepSum())

    def has(self, step: int, index: int) -> bool:
        """True if an index is done with here; opens no sum for a stranger's question."""
        known = self._sums.get(step)
        return known is not None and known.has(index)

    def is_frozen(self, step: int) -> bool:
        """True while a step's sum takes in nothing more."""
        known = self._sums.get(step)
        return known is not None and known.frozen

    def freeze(self, step: int) -> None:
        """The step's sum takes in nothing more."""
        if not self.is_frozen(step):
            self.of(step).frozen = True
            self.changed.notify()

    def settle(self, step: int) -> None:
        """The round of a frozen sum has a whole result here."""
        self.of(step).settled = True
        self.changed.notify()

    def thaw(self, step: int) -> None:
        """The sum takes in hops again."""
        known = self.of(step)
        known.frozen = known.settled = False
        self.changed.notify()

    def forget(self, step: int) -> None:
        """Another peer has this sum now, and answers for it."""
        self._sums.pop(step, None)
        self.changed.notify()

    def end_step(self, step: int) -> None:
        """The step has committed, and so have those before it."""
        for old in [known for known in self._sums if known <= step]:
            del self._sums[old]
