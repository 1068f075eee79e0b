"""The sequences of each microbatch: a pure function of the run's seed, the step and the index.

The tokens are cut into slots of one sequence each. A seeded permutation sets some aside for validation; in every
epoch another one orders the rest, so each is trained once per epoch, and nothing is stored or remembered.

A stream is taken only as far as the run's steps need it. When the run is prolonged, more of it is taken: the slots that
were there keep their order, and the first epoch goes on with the new ones. So what committed steps trained on doesn't
change, and nothing of it is trained a second time in the epoch.

Knows no peers; implements the Data port over a memory-mapped token file.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy

from swarmd.config import RunConfig
from swarmd.errors import ConfigError
from swarmd.text.reading import Reading
from swarmd.text.tokenizer import Ids, tokenizer_digest
from swarmd.text.tokens import NO_LIMIT_BYTES, is_streamed, load_tokens
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
    """Implements `ports.Data` over one token file. `counts`: tokens that a stream was taken to for each of the run's
    totals, growing; none for data that is taken whole.
    """

    def __init__(self, run: RunConfig, ids: Ids, digest: str, counts: Sequence[int] = ()) -> None:
        self.run, self._ids, self._digest = run, ids, digest
        ends = [_slots_in(min(count, len(ids)), run) for count in (*counts[:-1], len(ids))]
        self.slots = ends[-1]
        self._first = ends[0]  # slots that the run was founded with: some of these are held out
        self._added = [(start, stop) for start, stop in itertools.pairwise(ends) if start < stop]
        self.held = max(round(self._first * run.data.held_out), 1) if run.data.held_out else 0
        self.trained = self.slots - self.held
        if self.trained < run.sequences_per_step:
            need = (run.sequences_per_step + self.held + 1) * run.model.sequence_length
            raise ConfigError(
                f"the data has {len(ids)} tokens, too few for one step of {run.sequences_per_step} sequences; "
                f"give at least {need} or a smaller sequences_per_step."
            )
        self._split = Permutation(self._first, f"{run.seed}/held out")
        self._epoch = (0, self._order(0))

    @property
    def digest(self) -> str:
        """The digest of the tokens, and of how they were added to; peers with another one hold other data."""
        if not self._added:
            return self._digest
        return hashlib.blake2b(f"{self._digest}/{self._added}".encode(), digest_size=16).hexdigest()

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
            self._epoch = (epoch, self._order(epoch))
        place = self._epoch[1](place)
        return place if place >= self._first else self._split(place)

    def _order(self, epoch: int) -> Callable[[int], int]:
        """The order of an epoch: from the places 0 .. trained-1 to slots that were added, or to places from `held` on
        in what `_split` makes of the first slots. The first epoch has all that was there before what was added.
        """
        held, seed = self.held, self.run.seed
        if epoch or not self._added:
            mixed = Permutation(self.trained, f"{seed}/epoch {epoch}")
            return lambda place: held + mixed(place)
        spans = [(held, self._first), *self._added]
        names = [f"{seed}/epoch 0", *(f"{seed}/from {start}" for start, _ in self._added)]
        orders = [Permutation(stop - start, name) for (start, stop), name in zip(spans, names, strict=True)]

        def go(place: int) -> int:
            place += held
            for (start, stop), order in zip(spans, orders, strict=True):
                if place < stop:
                    return start + order(place - start)
            raise AssertionError("a place beyond the epoch")

        return go

    def _tokens(self, slots: Iterable[int]) -> Buffer:
        length = self.run.model.sequence_length
        rows = [self._ids[slot * length : slot * length + length + 1] for slot in slots]
        return numpy.stack(rows).astype("<i4").tobytes()


def load_data(
    run: RunConfig,
    override: str | None = None,
    tokenizer: str | None = None,
    *,
    cache_directory: Path,
    begun: bool = False,
    progress: Callable[[Reading], None] | None = None,
    limit_bytes: int = NO_LIMIT_BYTES,
) -> RunData:
    """This node's copy of the run's data, tokenised into `cache_directory` if it isn't yet. May take minutes; blocks.

    `override` and `tokenizer`: where this node has them, when that is elsewhere; whether the run's own may be followed
    is the caller's to know. `begun`: the run has trained on what is in the cache. `limit_bytes`: of a stream's tokens.
    What `progress` raises ends it. Raises ConfigError, also where it isn't what the run's digests name.
    """
    data = dataclasses.replace(run.data, source=override or run.data.source, tokenizer=tokenizer or run.data.tokenizer)
    if run.data.tokenizer_digest not in ("", tokenizer_digest(data.tokenizer)):
        raise ConfigError(f"{data.tokenizer} is not the run's tokenizer; give --tokenizer the founder's file.")
    counts = list(itertools.accumulate((_needed(run, data.held_out, steps) for steps in run.totals), max))
    tokens = load_tokens(
        data,
        run.model.vocabulary,
        cache_directory,
        needed=counts[-1],
        before=counts[:-1],
        begun=begun,
        progress=progress,
        limit_bytes=limit_bytes,
    )
    if run.data.tokens_digest not in ("", tokens.digest):
        raise ConfigError(
            f"the text of {data.source} is not the run's (its tokens are {tokens.digest}, the run's "
            f"{run.data.tokens_digest}); give --data the same files as where the run was founded, to the same release."
        )
    return RunData(run, tokens.ids, tokens.digest, counts if is_streamed(data) else ())


def _slots_in(count: int, run: RunConfig) -> int:
    """Sequences in so many tokens; neighbours share a token, one's last target."""
    return max(count - 1, 0) // run.model.sequence_length


def _needed(run: RunConfig, held_out: float, steps: int) -> int:
    """Tokens of a stream for so many steps, each sequence once."""
    sequences = steps * run.sequences_per_step / (1 - held_out) + 2
    return int(sequences * run.model.sequence_length) + 1
