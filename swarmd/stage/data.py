"""Which sequences a microbatch holds: a pure function of the run's seed, the step and the index.

The tokens are cut into slots of one sequence each. A seeded permutation sets some aside for validation; in every
epoch another one orders the rest, so each is trained once per epoch, and nothing is stored or remembered. Knows no
peers; implements the Data port over a memory-mapped token file.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy

from swarmd.config import RunConfig
from swarmd.errors import ConfigError
from swarmd.stage.sources import Reading
from swarmd.stage.tokens import Ids, load_tokens
from swarmd.values import Buffer

ROUNDS = 6  # of the Feistel network: four make a pseudorandom permutation, two more for domains of a few bits
MASK = (1 << 64) - 1


class Permutation:
    """A seeded permutation of 0 .. count-1 that computes each place by itself: no list, whatever the count.

    A Feistel network over the next even number of bits; places beyond `count` are walked on until they fall inside
    (Black and Rogaway 2002), fewer than four times on average.
    """

    def __init__(self, count: int, key: str) -> None:
        assert count > 0, "nothing to permute"
        self.count = count
        self.half = max(((count - 1).bit_length() + 1) // 2, 1)
        digest = hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest()
        self.keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS)]

    def __call__(self, place: int) -> int:
        assert 0 <= place < self.count, f"place {place} of {self.count}"
        while True:
            place = self._mix(place)
            if place < self.count:
                return place

    def _mix(self, place: int) -> int:
        mask = (1 << self.half) - 1
        left, right = place >> self.half, place & mask
        for key in self.keys:
            left, right = right, left ^ (_scramble(right ^ key) & mask)
        return left << self.half | right


def _scramble(value: int) -> int:
    """Finalizer of splitmix64 (Steele et al. 2014): every bit of the result depends on every bit of the value."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


class RunData:
    """Implements `ports.Data` over one token file."""

    def __init__(self, run: RunConfig, ids: Ids, digest: str) -> None:
        self.run, self._ids, self._digest = run, ids, digest
        self.slots = max(len(ids) - 1, 0) // run.model.sequence_length  # neighbours share a token: one's last target
        self.held = max(round(self.slots * run.data.held_out), 1) if run.data.held_out else 0
        self.trained = self.slots - self.held
        if self.trained < run.sequences_per_step:
            need = (run.sequences_per_step + self.held + 1) * run.model.sequence_length
            raise ConfigError(
                f"the data has {len(ids)} tokens, too few for one step of {run.sequences_per_step} sequences; "
                f"give at least {need} or a smaller sequences_per_step."
            )
        self._split = Permutation(self.slots, f"{run.seed}/held out")
        self._epoch = (0, Permutation(self.trained, f"{run.seed}/epoch 0"))

    @property
    def digest(self) -> str:
        """Of the tokens; peers with another one hold other data."""
        return self._digest

    async def microbatch(self, step: int, index: int) -> Buffer:
        """Tokens of a microbatch, int32 little-endian [B, T + 1]."""
        return self._tokens(self.training_slots(step, index))

    async def held_out(self, index: int) -> Buffer:
        """Tokens of a validation microbatch; begins again when there are no more held-out sequences."""
        if not self.held:
            raise ConfigError(
                "the run holds no data out for validation; set data.held_out above 0 or validate_every to 0."
            )
        batch = self.run.sequences_per_microbatch
        return self._tokens(self._split((index * batch + row) % self.held) for row in range(batch))

    def training_slots(self, step: int, index: int) -> list[int]:
        """The slots of a microbatch, in order. Steps count from 1."""
        assert step >= 1 and 0 <= index < self.run.microbatches, f"microbatch {index} of step {step}"
        batch = self.run.sequences_per_microbatch
        first = (step - 1) * self.run.sequences_per_step + index * batch
        return [self._slot(number) for number in range(first, first + batch)]

    def _slot(self, number: int) -> int:
        """The slot of the run's sequence `number`, counted over all epochs."""
        epoch, place = divmod(number, self.trained)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, Permutation(self.trained, f"{self.run.seed}/epoch {epoch}"))
        return self._split(self.held + self._epoch[1](place))

    def _tokens(self, slots: Iterable[int]) -> Buffer:
        length = self.run.model.sequence_length
        rows = [self._ids[slot * length : slot * length + length + 1] for slot in slots]
        return numpy.stack(rows).astype("<i4").tobytes()


def load_data(
    run: RunConfig,
    override: str | None = None,
    *,
    cache_directory: Path,
    progress: Callable[[Reading], None] | None = None,
) -> RunData:
    """This node's copy of the run's data, tokenised into `cache_directory` if it isn't yet. May take minutes; blocks.

    `override` is where this node has it, when that is elsewhere. What `progress` raises ends it. Raises ConfigError.
    """
    data = run.data if override is None else dataclasses.replace(run.data, source=override)
    sequences = run.steps * run.sequences_per_step / (1 - data.held_out) + 2
    needed = int(sequences * run.model.sequence_length) + 1
    tokens = load_tokens(data, run.model.vocabulary, cache_directory, needed=needed, progress=progress)
    return RunData(run, tokens.ids, tokens.digest)
