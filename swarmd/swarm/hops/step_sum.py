"""What this peer has in its sum of a step, index by index. Knows neither the network nor the device."""

from dataclasses import dataclass, field

from swarmd.swarm.wire.messages.hop import NOBODY, SOMEONE, Blame
from swarmd.values import PeerId


@dataclass
class Book:
    """One step's."""

    accumulated: set[int] = field(default_factory=set)
    spoiled: set[int] = field(default_factory=set)  # answered with NotFinite
    blame: Blame = NOBODY  # for the first of these, or whatever else makes the step a skipped one
    loss_sum: float = 0.0
    resent: int = 0  # journeys begun here of hops that were sent before
    subtracted: int = 0
    sources: dict[int, PeerId] = field(default_factory=dict)  # who sent what is accumulated

    def has(self, index: int) -> bool:
        """Whether an index is done with here."""
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
            self.loss_sum -= loss_sum
            self.subtracted += 1
            self.sources.pop(index, None)

    def inherit(self, indices: list[int], spoiled: list[int], loss_sum: float) -> None:
        """The device has added another peer's whole sum to this one."""
        assert not self.accumulated & set(indices), "an index counts once"
        self.accumulated.update(indices)
        for index in spoiled:
            self.spoil(index, SOMEONE)
        self.loss_sum += loss_sum


class Books:
    """Those of the steps that haven't committed."""

    def __init__(self) -> None:
        self._books: dict[int, Book] = {}

    def of(self, step: int) -> Book:
        return self._books.setdefault(step, Book())

    def has(self, step: int, index: int) -> bool:
        """Whether an index is done with here; opens no book for a stranger's question."""
        book = self._books.get(step)
        return book is not None and book.has(index)

    def forget(self, step: int) -> None:
        """Another peer has this sum now."""
        self._books.pop(step, None)

    def end_step(self, step: int) -> None:
        for old in [known for known in self._books if known <= step]:
            del self._books[old]
