"""The chain of records that led to a peer's version, as far back as it is kept. Pure: it takes records, and gives them.

Each record names the hash of the one before (`parent`). A *return* decides an earlier version anew: its record stands
at the version that it leads to, in place of the one that first led there.
"""

from swarmd.swarm.history.record import Record
from swarmd.values import PeerId

RECORDS_KEPT = 256  # for those who missed some; a record is about a kilobyte per stage


class Chain:
    """The newest records of one history, in the order of their steps. `genesis`: the hash of version 0."""

    def __init__(self, genesis: str) -> None:
        self._genesis = genesis
        self._records: dict[int, Record] = {}
        self.version = 0
        self.newest: Record | None = None  # None at version 0
        self.newest_hash = genesis
        self._workers: frozenset[PeerId] | None = None  # members of any record that is kept; None: not known

    def __len__(self) -> int:
        return len(self._records)

    def at(self, version: int) -> Record | None:
        """The record that led to a version, if it is kept."""
        return self._records.get(version)

    def hash_at(self, version: int) -> str:
        """The hash of a version's record; "" when it is not known (any more)."""
        if version == 0:
            return self._genesis
        record = self._records.get(version)
        return record.hash if record is not None else ""

    def has(self, record_hash: str) -> bool:
        """True for the hash of a record that is kept, the newest first."""
        return record_hash == self.newest_hash or any(it.hash == record_hash for it in self._records.values())

    def contradicts(self, record: Record) -> bool:
        """True if another record is known of its step."""
        return self.hash_at(record.step) not in ("", record.hash)

    def is_new_return(self, record: Record) -> bool:
        """True for a return that is not the one that led to its version in this chain."""
        return bool(record.after) and record.hash != self.hash_at(record.step)

    def members(self, stage: int | None = None) -> tuple[PeerId, ...]:
        """Everyone who took part in the newest step, at every stage or at one."""
        if self.newest is None:
            return ()
        return self.newest.members() if stage is None else self.newest.stages[stage].members

    def took_part(self, peer: PeerId) -> bool:
        """Tells if a peer is a member of any record that is kept."""
        if self._workers is None:
            self._workers = frozenset(peer for record in self._records.values() for peer in record.members())
        return peer in self._workers

    def is_newcomer(self, peer: PeerId) -> bool:
        """Tells if a peer has yet to be named by a record. Before the first one nobody is a newcomer."""
        return self.newest is not None and not self.took_part(peer)

    @property
    def total_tokens(self) -> int:
        """Target tokens trained up to the newest version."""
        return self.newest.total_tokens if self.newest is not None else 0

    def append(self, record: Record) -> None:
        """Goes one version further."""
        assert (record.step, record.parent) == (self.version + 1, self.newest_hash), "it follows the newest"
        self._put(record)

    def move(self, record: Record | None, ancestor: int) -> None:
        """Goes on from another record (None: from version 0), whose history is this one up to version `ancestor`."""
        if record is None:
            self._records.clear()
            self._workers = None
            self.version, self.newest, self.newest_hash = 0, None, self._genesis
            return
        last = min(ancestor, record.step - 1)
        self._records = {step: it for step, it in self._records.items() if step <= last}
        self._put(record)

    def _put(self, record: Record) -> None:
        self._records[record.step] = record
        self.version, self.newest, self.newest_hash = record.step, record, record.hash
        self._forget()

    def learn(self, records: dict[int, Record]) -> None:
        """Takes in earlier records, by step, as far back as they are a chain: `hash_at` can tell a late peer from one
        of another history then.
        """
        step = self.version
        while (record := self._records.get(step)) is not None:
            step -= 1
            before = self._records.get(step) or records.get(step)
            if before is None or before.hash != record.parent:
                break
            self._records[step] = before
        self._records = dict(sorted(self._records.items()))
        self._forget()

    def _forget(self) -> None:
        self._workers = None
        while len(self._records) > RECORDS_KEPT:
            del self._records[next(iter(self._records))]
