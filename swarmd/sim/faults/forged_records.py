"""Records that nobody decided: the next step's, a return, or a true one with a field altered.

They are made with the functions that a conductor makes records with, so that most of them are what a peer's first
looks ask for: their numbers go together and they follow a record that the peer has.
"""

import dataclasses
import random
import sys
from collections.abc import Callable
from typing import Any

from swarmd.config import RunConfig
from swarmd.sim.faults.drawn_messages import Drawing, Heard
from swarmd.swarm.history.record import Record, build_record, build_return, genesis_hash
from swarmd.swarm.history.record_codec import UNREADABLE, record_from_raw
from swarmd.swarm.history.record_format import read_record, write_record
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.messages.round import StageReport
from swarmd.values import PeerId

LEAF_NUMBERS = (0, 1, -1, 2, 1 << 40)  # that are added to a number in a true record
LEAF_FACTORS = (0.0, 0.5, 2.0, 1e300)


class Forger:
    """Makes records of one run, from what was heard of it."""

    def __init__(self, run: RunConfig, heard: Heard, me: PeerId) -> None:
        self._run, self._heard, self._me = run, heard, me

    def record(self, rng: random.Random) -> bytes:
        """A record; none at times, as an acceptor says that has accepted none."""
        ways: tuple[Callable[[random.Random], bytes], ...] = (
            self._next,
            self._next,
            self._return,
            self._altered,
            self._spoiled,
            lambda rng: b"",
        )
        return rng.choice(ways)(rng)

    def _newest(self) -> tuple[int, str]:
        """Version and record hash of the most advanced peer that is known."""
        cards = [(card.version, card.record_hash) for card in self._heard.messages(Card) if card.peer != self._me]
        version, record_hash = max(cards, default=(0, ""))
        return (version, record_hash) if version and record_hash else (0, genesis_hash(self._run))

    def _true(self, rng: random.Random) -> Record | None:
        """A record that was heard in a commit, and holds together."""
        commits = [commit.record for commit in self._heard.messages(Commit)]
        try:
            return record_from_raw(self._run, rng.choice(commits)) if commits else None
        except UNREADABLE:
            return None

    def _next(self, rng: random.Random) -> bytes:
        """The record of the next step, of reports that nobody made."""
        version, record_hash = self._newest()
        draw, finite = Drawing(rng, self._heard, self._me, {}), rng.random() < 0.5
        drawn = [draw.message(StageReport) for _ in range(self._run.model.stages)]
        reports = [dataclasses.replace(it, stage=stage, finite=finite) for stage, it in enumerate(drawn)]
        record = build_record(
            self._run,
            record_hash,
            min(version + 1, self._run.steps),
            reports,
            conductor=self._me,
            seconds=1.0,
            validation_loss=None,
            before=self._true(rng),
        )
        return record.raw

    def _return(self, rng: random.Random) -> bytes:
        """A return to a true version, or the end of the run there."""
        record = self._true(rng)
        if record is None:
            return self._next(rng)
        lives = {card.peer: card.incarnation for card in self._heard.messages(Card)}
        version, record_hash = self._newest()
        members = [tuple(peer for peer in entry.members if peer in lives) for entry in record.stages]
        made = build_return(
            record, members, lives, after=record_hash, after_version=version, conductor=self._me, why="so it goes"
        )
        return dataclasses.replace(made, ends=rng.random() < 0.3).raw

    def _altered(self, rng: random.Random) -> bytes:
        """A true record of which one value is another."""
        record = self._true(rng)
        plain = read_record(record.raw if record is not None else self._next(rng))
        place: Any = rng.choice((plain, plain, *plain["stages"]))
        name = rng.choice(list(place))
        place[name] = self._other(rng, place[name])
        return write_record(plain)

    def _spoiled(self, rng: random.Random) -> bytes:
        """A record of another format, written otherwise, or no record at all."""
        raw = self._next(rng)
        at = rng.randrange(len(raw))
        spaced = raw.replace(b",", b", ")
        return rng.choice((b"2" + raw, spaced, raw[:at], raw[:at] + rng.randbytes(1) + raw[at + 1 :]))

    def _other(self, rng: random.Random, value: Any) -> Any:
        if type(value) is bool:
            return not value
        if type(value) is int:
            return value + rng.choice(LEAF_NUMBERS)
        if type(value) is float:
            return min(value * rng.choice(LEAF_FACTORS), sys.float_info.max)
        if isinstance(value, str):
            return rng.choice((self._me, "", *(card.record_hash for card in self._heard.messages(Card))))
        if isinstance(value, list):
            return rng.choice((value[1:], [*value, *value], [self._me]))
        return value
