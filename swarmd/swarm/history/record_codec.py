"""Records as peers and disks give them, checked: here alone are their bytes parsed, once.

All values are checked here, their bounds too: a format's bounds are fixed with it, so what breaks one is no honest
release's. Relies on `record_format.py` for where the fields are.
"""

import math
from collections.abc import Sequence
from sys import intern
from typing import Any

from swarmd.config import RunConfig
from swarmd.errors import PeerFault, UnknownFormat
from swarmd.schedule import learning_rate_at
from swarmd.swarm.history.record import COUNTS, WHY_LIMIT, Move, Record, StageEntry, clip_factor
from swarmd.swarm.history.record_format import read_record
from swarmd.swarm.wire.bounds import is_text
from swarmd.swarm.wire.messages.fields import (
    BALLOT_LIMIT,
    COUNT_LIMIT,
    HASH_CHARACTERS,
    INCARNATION_LIMIT,
    PEER_CHARACTERS,
    PEERS_LIMIT,
)
from swarmd.values import Buffer, PeerId

UNREADABLE = (PeerFault, UnknownFormat)
"""Errors that `record_from_raw` raises."""


def record_from_raw(run: RunConfig, raw: Buffer) -> Record:
    """A record as a peer or a disk gave it. Raises PeerFault if it isn't one of this run; UnknownFormat if it is of a
    later release's format.
    """
    plain = read_record(raw)
    try:
        stages = tuple(
            StageEntry(**{**entry, "members": _peers(entry["members"]), "holders": _peers(entry["holders"])})
            for entry in plain["stages"]
        )
        moves = tuple(Move(**move) for move in plain["moves"])
        number, peer = plain["ballot"]
        lives = tuple(plain["lives"])
        record = Record(**{**plain, "stages": stages, "moves": moves, "ballot": (number, intern(peer)), "lives": lives})
        _check_record(run, record)
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as trouble:
        raise PeerFault(f"not a commit record: {trouble}") from None
    return record.came_as(bytes(raw))


def _peers(names: Sequence[str]) -> tuple[PeerId, ...]:
    """Names of peers, each kept once: the same few are in hundreds of records. Raises TypeError."""
    return tuple(map(intern, names))


def _check_record(run: RunConfig, record: Record) -> None:
    """Checks what every record of the run satisfies. Raises ValueError or TypeError."""
    _check_types(run, record)
    if not all(0 <= move.target < run.model.stages and 0 <= move.source < run.model.stages for move in record.moves):
        raise ValueError("a move to a stage that the run doesn't have")
    if [entry.stage for entry in record.stages] != list(range(run.model.stages)):
        raise ValueError("its stages are not the run's")
    if record.total_steps not in (0, *run.totals[1:]):
        raise ValueError(f"the run never had a total of {record.total_steps} steps")
    steps = record.total_steps or run.totals[0]
    if not 1 <= record.step <= steps:
        raise ValueError(f"there is no step {record.step}")
    if record.after and record.after_version < record.step:
        raise ValueError("a return to a version that hadn't come")
    if len(record.lives) != (len(record.members()) if record.after else 0):
        raise ValueError("its members are not its lives")
    if record.continues and not record.after:
        raise ValueError("it continues a run and is no return")
    if record.learning_rate != learning_rate_at(run.optimizer, record.step, steps):
        raise ValueError("its learning rate is not the schedule's")
    _check_numbers(run, record)


def _check_types(run: RunConfig, record: Record) -> None:
    """Checks that each field, which came from a stranger, is what it is declared as, and within the bounds of the
    messages in which it goes on. Raises TypeError or ValueError.
    """
    numbers = [record.loss, record.grad_norm, record.clip_factor, record.seconds, record.learning_rate]
    numbers += [entry.squared_norm for entry in record.stages]
    numbers += [] if record.validation_loss is None else [record.validation_loss]
    if not all(type(number) in (int, float) and math.isfinite(number) and number >= 0 for number in numbers):
        raise TypeError("a number in it is none, or not finite")
    for limit, counts in _counts(run, record):
        if not all(type(count) is int and 0 <= count <= limit for count in counts):
            raise TypeError(f"a count in it is none, or above {limit}")
    for limit, names in _names(record):
        if not all(isinstance(name, str) and is_text(name, limit) for name in names):
            raise TypeError(f"a name in it is not text of up to {limit} characters")
    if any(len(peers) > PEERS_LIMIT for entry in record.stages for peers in (entry.members, entry.holders)):
        raise ValueError(f"a stage in it has more than {PEERS_LIMIT} peers")
    if type(record.skipped) is not bool or type(record.forked) is not bool or type(record.ends) is not bool:
        raise TypeError("what is true or false in it is neither")
    if not isinstance(record.why, str) or not is_text(record.why, WHY_LIMIT):
        raise TypeError("its reason is not a line of text")


def _counts(run: RunConfig, record: Record) -> list[tuple[int, list[Any]]]:
    """The whole numbers in a record, by the most that they may be: what is said of it in other messages is within the
    bounds of these, and so is the step after it.
    """
    entries, moves = record.stages, record.moves
    return [
        (max(run.totals), [record.step, record.after_version, record.total_steps, record.skips, record.broke_at]),
        (COUNT_LIMIT, [record.tokens, record.total_tokens, *(getattr(it, name) for it in entries for name in COUNTS)]),
        (run.model.stages, [stage for move in moves for stage in (move.source, move.target)]),
        (BALLOT_LIMIT, [record.ballot[0]]),
        (INCARNATION_LIMIT, list(record.lives)),
    ]


def _names(record: Record) -> list[tuple[int, list[Any]]]:
    """The names in a record, by the most characters that they may have."""
    entries = record.stages
    peers = [record.conductor, record.ballot[1], *(move.peer for move in record.moves)]
    return [
        (HASH_CHARACTERS, [record.parent, record.after, record.continues, *(entry.digest for entry in entries)]),
        (PEER_CHARACTERS, [*peers, *(peer for it in entries for peer in (*it.members, *it.holders))]),
    ]


def _check_numbers(run: RunConfig, record: Record) -> None:
    """Checks that a record's norms, and what it counts, go together. Raises ValueError."""
    norms = [entry.squared_norm for entry in record.stages]
    norm, factor = clip_factor(norms, run.optimizer.clip_norm) if not record.skipped else (0.0, 0.0)
    if (norm, factor) != (record.grad_norm, record.clip_factor):
        raise ValueError("its clipping factor doesn't follow from its norms")
    if record.skipped and (record.loss or any(norms)):
        raise ValueError("it is skipped, and yet has a loss or a norm")
    if record.skips and not record.skipped:
        raise ValueError("it counts itself as skipped, and isn't")
    if (record.broke_at and record.broke_at < record.step) or (record.ends and not record.after):
        raise ValueError("it returns for a step that it is past, or ends a run and is no return")
