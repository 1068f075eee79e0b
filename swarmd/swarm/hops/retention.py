"""The bytes that a sender keeps of a hop until its step commits: the message it passed on, the answer it gave.

A bounded cache of encoded bytes, oldest evicted first. What waits for its answer can't be evicted: who sends bounds
that. Knows no network; `custodian.py` decides what to send again.
"""

from collections import OrderedDict
from dataclasses import dataclass

from swarmd.swarm.wire.messages.hop import Gradient, Hop, NotFinite
from swarmd.values import HopId, PeerId

Answer = Gradient | NotFinite


@dataclass
class Retained:
    """One hop as its custodian keeps it."""

    hop: Hop  # the same bytes go to another replica when the holder is lost
    holder: PeerId = ""  # who has it, or answered it
    answered: bool = False
    sending: bool = False  # someone waits for its answer


class Retention:
    """Messages passed on and answers given, of steps that haven't committed, within `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self.evicted = 0
        self._passed: OrderedDict[HopId, Retained] = OrderedDict()
        self._answers: OrderedDict[HopId, Answer] = OrderedDict()

    def keep(self, key: HopId, hop: Hop) -> Retained:
        """Keeps a message before it is first sent."""
        assert key not in self._passed, f"hop {key} is passed on once"
        retained = Retained(hop)
        self._passed[key] = retained
        self.nbytes += hop.activation.nbytes
        self._evict()
        return retained

    def retained(self, key: HopId) -> Retained | None:
        return self._passed.get(key)

    def mark_answered(self, retained: Retained) -> None:
        """The answer came: from now on the message may be evicted."""
        retained.answered = True
        self._evict()

    def drop_answer(self, key: HopId) -> None:
        """The hop doesn't count here any more: when it comes again it isn't answered from the record."""
        if (answer := self._answers.pop(key, None)) is not None:
            self.nbytes -= _size(answer)

    def drop(self, key: HopId) -> None:
        """The hop was cancelled here: its custodian sends it elsewhere."""
        if (retained := self._passed.pop(key, None)) is not None:
            self.nbytes -= retained.hop.activation.nbytes
        self.drop_answer(key)

    def keep_answer(self, key: HopId, answer: Answer) -> None:
        if key not in self._answers:
            self._answers[key] = answer
            self.nbytes += _size(answer)
            self._evict()

    def answer(self, key: HopId) -> Answer | None:
        return self._answers.get(key)

    def answered_by(self, holder: PeerId) -> list[tuple[HopId, Retained]]:
        """Hops whose answer came from a peer: lost with it, they must be sent again."""
        return [(key, it) for key, it in self._passed.items() if it.holder == holder and it.answered]

    def end_step(self, step: int) -> None:
        """The step has committed: nothing of it, or of an earlier one, will be asked for again."""
        for key in [key for key in (*self._passed, *self._answers) if key.step <= step]:
            self.drop(key)

    def _evict(self) -> None:
        """Answers go first: they can be computed again from a message, not the other way round."""
        while self.nbytes > self.limit_bytes and (self._answers or self._answered()):
            self.evicted += 1
            if self._answers:
                self.nbytes -= _size(self._answers.popitem(last=False)[1])
            else:
                self.drop(self._answered()[0])

    def _answered(self) -> list[HopId]:
        return [key for key, it in self._passed.items() if it.answered]


def _size(answer: Answer) -> int:
    return answer.gradient.nbytes if isinstance(answer, Gradient) else 0
