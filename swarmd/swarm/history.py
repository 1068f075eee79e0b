"""Where this peer is in the run's history: its version, the chain of records, and how it goes one version further.

A record is applied when it follows the present one; what is missing in between is asked for. Only the gradient that the
record names is applied: the one at hand, or one fetched from a holder. Relies on `Rounds` for gradients and on
`Compute` to step.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from swarmd.config import RunConfig, fingerprint
from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.swarm.commit import (
    Record,
    genesis_hash,
    ledger_line,
    record_from_plain,
    record_to_plain,
)
from swarmd.swarm.links import Links
from swarmd.swarm.messages import Ack, AskRecord, Commit
from swarmd.swarm.ports import Compute, Store
from swarmd.swarm.signals import Signal
from swarmd.values import PeerId

log = logging.getLogger(__name__)

RECORDS_KEPT = 256  # for those who missed some; a record is about a kilobyte per stage
RECORD_SECONDS = 10.0  # to answer with a record

Gather = Callable[[Record], Awaitable[bool]]
"""Makes sure that `Compute` has assembled the gradient a record names. False: nobody has it any more."""


class History:
    """This peer's version and the records that led there."""

    def __init__(self, run: RunConfig, links: Links, store: Store) -> None:
        self._run, self._links, self._store = run, links, store
        self.version = 0
        self.record_hash = genesis_hash(fingerprint(run))
        self.record: Record | None = None
        self.digest = ""  # of the parameters at this version
        self.totals = {"resent": 0, "subtracted": 0, "lost": 0, "duplicated": 0}
        self.ready = False  # the parameters are those of `version`: records may be applied
        self.behind = False  # nobody has the gradients any more: the whole state must be fetched
        self.changed = Signal()
        self._records: OrderedDict[int, Record] = OrderedDict()
        self.lock = asyncio.Lock()  # held while the version changes
        self._applying: set[asyncio.Task[None]] = set()
        self._compute: Compute | None = None
        self._stage = -1
        self._gather: Gather | None = None
        self._on_commit: list[Callable[[Record], None]] = []
        links.answers(Commit, self._answer_commit)
        links.answers(AskRecord, self._answer_record)

    def attach(self, stage: int, compute: Compute, gather: Gather) -> None:
        """Names the stage whose parameters this history steps."""
        self._stage, self._compute, self._gather = stage, compute, gather

    def on_commit(self, callback: Callable[[Record], None]) -> None:
        """Calls back after a record was applied."""
        self._on_commit.append(callback)

    @property
    def finished(self) -> bool:
        return self.version >= self._run.steps

    def restore(self, record: Record | None, digest: str) -> None:
        """The parameters are now those after this record (None: the untrained ones)."""
        if record is not None:
            self.version, self.record, self.record_hash = record.step, record, record.hash
            self._records[record.step] = record
        self.digest, self.behind, self.ready = digest, False, True
        self.changed.notify()

    def members(self) -> tuple[PeerId, ...]:
        """Who took part in the newest step."""
        return self.record.members() if self.record else ()

    @property
    def total_tokens(self) -> int:
        """Target tokens trained up to this version."""
        return self.record.total_tokens if self.record else 0

    async def reached(self, version: int) -> None:
        """Returns when this peer is at the version, or beyond."""
        await self.changed.until(lambda: self.version >= version)

    async def await_version(self, version: int, record_hash: str, peer: PeerId, seconds: float) -> None:
        """Waits until this peer is at a version that `peer` is at, asking it for what is missing.

        Raises Refused when that version is over, belongs to another history, or doesn't come in time.
        """
        if self.version < version and not self.lock.locked():
            await self.catch_up(peer, version)
        if not await self.changed.until(lambda: self.version >= version, seconds):
            raise Refused(f"this peer is still at version {self.version}")
        if self.version > version:
            raise Refused(f"step {version + 1} is over")
        if record_hash != self.record_hash:
            raise Refused(f"another history: its version {version} is not ours")

    # ---------------------------------------------------------------------------------------------- records

    async def _answer_record(self, peer: PeerId, ask: AskRecord) -> Commit:
        record = self._records.get(ask.step)
        if record is None:
            raise Refused(f"no record of step {ask.step} here")
        return Commit(record_to_plain(record))

    async def _answer_commit(self, peer: PeerId, commit: Commit) -> Ack:
        await self.adopt(record_from_plain(self._run, commit.record), peer)
        return Ack()

    async def adopt(self, record: Record, source: PeerId) -> None:
        """Applies a record that someone decided, and those before it that are missing here."""
        if record.step > self.version + 1:
            await self.catch_up(source, record.step - 1)
        await self._advance(record, source)

    async def catch_up(self, source: PeerId, version: int) -> None:
        """Fetches and applies records up to a version, as far as the source gives them."""
        while self.version < version and not self.behind and self.ready:
            before = self.version
            try:
                commit = await self._links.ask(source, AskRecord(before + 1), Commit, deadline_s=RECORD_SECONDS)
                record = record_from_plain(self._run, commit.record)
            except (PeerUnreachable, TimeoutError, Refused, PeerFault) as trouble:
                log.info("no record of step %d from %s: %s", before + 1, source[-8:], trouble)
                return
            await self._advance(record, source)
            if self.version == before:
                return

    async def _advance(self, record: Record, source: PeerId) -> None:
        """Applies a record if it is the next one, to the end even if whoever brought it is lost meanwhile: the device
        can't be called back halfway.
        """

        async def work() -> None:
            async with self.lock:
                if record.step == self.version + 1 and self.ready:
                    await self._apply(record, source)

        task = asyncio.create_task(work(), name=f"apply {record.step}")
        self._applying.add(task)
        task.add_done_callback(self._applying.discard)
        await asyncio.shield(task)

    def close(self) -> None:
        """Ends what is under way: this peer leaves."""
        for task in self._applying:
            task.cancel()

    async def _apply(self, record: Record, source: PeerId) -> None:
        """Goes one version further. The lock is held."""
        assert self._compute is not None and self._gather is not None
        if record.parent != self.record_hash:
            log.warning("record of step %d from %s belongs to another history", record.step, source[-8:])
            return
        if record.skipped:
            digest = await self._compute.skip(record.step)
        elif await self._gather(record):
            digest = await self._compute.apply(
                record.step, learning_rate=record.learning_rate, clip_factor=record.clip_factor
            )
        else:
            log.warning("nobody has the gradient of step %d any more: fetching the whole state", record.step)
            self.behind = True
            self.changed.notify()
            return
        self._enter(record, digest)

    def _enter(self, record: Record, digest: str) -> None:
        self.version, self.record, self.record_hash, self.digest = record.step, record, record.hash, digest
        self._records[record.step] = record
        while len(self._records) > RECORDS_KEPT:
            self._records.popitem(last=False)
        line = ledger_line(record, self._stage, digest)
        for name in self.totals:
            self.totals[name] += line[name]
        self._store.append_ledger(line)
        for callback in self._on_commit:
            callback(record)
        self.changed.notify()

    def plain_record(self) -> dict[str, Any]:
        """The newest record, for those who start from this version; empty at version 0."""
        return record_to_plain(self.record) if self.record else {}
