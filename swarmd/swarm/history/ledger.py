"""This peer's lines in ledger.jsonl, one for each step that it has taken, and the counts of all of them together.

Lines are only appended. Those of steps that a history has given up are voided by a further line (`Store.void_ledger`),
and no longer counted.
"""

from collections import Counter
from typing import Any

from swarmd.swarm.history.record import Record
from swarmd.swarm.ports import Store

COUNTED = ("resent", "subtracted", "lost", "duplicated")
LINES_KEPT = 256  # whose counts can be taken back; further back no history is given up


class Ledger:
    """This peer's ledger, and what it counts since the peer began."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.totals = dict.fromkeys(COUNTED, 0)
        self._counts: dict[int, Counter[str]] = {}  # by step, the newest lines

    def append(self, record: Record, stage: int, digest: str) -> None:
        """Writes the line of a step that this peer has taken."""
        line = ledger_line(record, stage, digest)
        self._counts[record.step] = Counter({name: line[name] for name in COUNTED})
        while len(self._counts) > LINES_KEPT:
            del self._counts[next(iter(self._counts))]
        for name in COUNTED:
            self.totals[name] += line[name]
        self._store.append_ledger(line)

    def void(self, version: int) -> None:
        """Voids the lines of all steps after a version, also those of an earlier life of this peer."""
        for step in [step for step in self._counts if step > version]:
            for name, count in self._counts.pop(step).items():
                self.totals[name] -= count
        self._store.void_ledger(version)


def ledger_line(record: Record, stage: int, digest: str) -> dict[str, Any]:
    """A stage's line for a record; `digest`: of the parameters that it led to. The loss and tokens are the swarm's."""
    entry = record.stages[stage]
    return {
        "step": record.step,
        "record": record.hash,
        "parent": record.parent,
        "stage": stage,
        "microbatches": entry.microbatches,
        "tokens": record.tokens,
        "loss": None if record.skipped else record.loss,
        "validation_loss": record.validation_loss,
        "grad_norm": record.grad_norm,
        "lr": record.learning_rate,
        "skipped": record.skipped,
        "forked": record.forked,
        "members": list(entry.members),
        "resent": entry.resent,
        "subtracted": entry.subtracted,
        "lost": entry.lost,
        "duplicated": entry.duplicated,
        "grad_digest": entry.digest,
        "digest": digest,
        "seconds": record.seconds,
        **({"continues": record.continues} if record.continues else {}),
        **({"why": record.why} if record.why else {}),
    }
