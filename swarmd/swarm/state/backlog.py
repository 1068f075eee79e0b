"""The commits of the time in which a peer pulls its stage's state: records from the snapshot on, and gradients' bytes.

Holders keep a gradient for a few steps only, so it is fetched as soon as its record is known. Nothing is verified here
but the chain of records: a gradient's digest is compared with the record's when it is applied.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from swarmd.errors import NO_ANSWER, PeerFault, Refused
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Record
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.messages.commit import AskGradient, AskRecord, GradientPart
from swarmd.values import Encoded, PeerId, short

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 1.0  # between looks at the others' versions; commits are told besides
RECORD_SECONDS = 10.0  # to answer with a record
PART_SECONDS = 600.0  # to answer with a part of a gradient
OTHER_FLOOR_SECONDS = 5.0  # a holder that takes longer, and longer than usual, has another one asked, too
OTHER_TIMES = 2.0
STEPS_AT_ONCE = 2  # whose gradients are fetched
PASSES = 5  # through all sources, when some can't be reached
PASS_SECONDS = 1.0  # between them

Hold = Callable[[int, str, tuple[Encoded, ...]], None]
"""Keeps the averaged parts of (step, digest) until that step is applied: `CommittedGradients.hold`."""


class Missed(Exception):
    """Something that was committed can't be had any more: a newer snapshot is needed."""


@dataclass
class Entry:
    """One commit that this peer has yet to apply."""

    record: Record
    source: PeerId  # who told of it
    parts: tuple[Encoded, ...] | None = None  # None: not here yet; empty if the step was skipped

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts or ())


class Backlog:
    """The commits after one version, from their records to their gradients."""

    def __init__(self, context: PeerContext, stage: int, start: Record, sources: Callable[[], list[PeerId]]) -> None:
        self._run, self._links, self._stage = context.run, context.links, stage
        self._limit_bytes, self._membership = context.limits.backlog_bytes, context.membership
        self._sources = sources
        self.version, self._record_hash = start.step, start.hash  # of the newest record here
        self._entries: dict[int, Entry] = {}
        self._told: tuple[int, PeerId] = (0, "")  # a version that someone is at
        self._missed = ""  # why the rest can't be had
        self._hold: Hold | None = None
        self._usual: float | None = None  # seconds for a part
        self._slow: set[PeerId] = set()  # holders that were
        self._pace = asyncio.Semaphore(STEPS_AT_ONCE)
        self._changed = Signal()

    @property
    def missed(self) -> bool:
        """Tells if a newer snapshot is needed."""
        return bool(self._missed)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def hear(self, record: Record, source: PeerId) -> None:
        """Someone told of a commit."""
        if record.step > self._told[0]:
            self._told = (record.step, source)
            self._changed.notify()

    async def follow(self) -> None:
        """Collects what is committed until it is cancelled, or something can't be had (Missed)."""
        try:
            async with asyncio.TaskGroup() as group:
                while not self._missed:
                    if not await self._look(group):
                        await self._changed.wait(FOLLOW_SECONDS)
                raise Missed(self._missed)
        except* Missed:
            pass  # the group has ended what was under way
        finally:
            self._fail("it isn't followed any more")
        raise Missed(self._missed)

    async def next(self, step: int) -> Entry | None:
        """A step's commit, once it is whole; None if it isn't known here. Raises Missed."""
        await self._changed.until(
            lambda: bool(self._missed) or step not in self._entries or self._entries[step].parts is not None
        )
        if self._missed:
            raise Missed(self._missed)
        return self._entries.get(step)

    async def reach(self, step: int) -> Entry:
        """A step's commit, once it is known here and whole. Raises Missed."""
        await self._changed.until(lambda: bool(self._missed) or step in self._entries)
        entry = await self.next(step)
        assert entry is not None, f"step {step} is known"
        return entry

    def hand_over(self, hold: Hold) -> None:
        """From now on gradients are given to `hold`, those that are here at once."""
        self._hold = hold
        for entry in self._entries.values():
            self._give(entry)

    def drop(self, version: int) -> None:
        """Up to here everything is applied."""
        for step in [step for step in self._entries if step <= version]:
            del self._entries[step]

    # ---------------------------------------------------------------------------------------------- fetching

    async def _look(self, group: asyncio.TaskGroup) -> bool:
        """Fetches the records that are new. Says whether there were any."""
        newest, told, before = self._membership.newest(), self._told, self.version
        goal = max(newest.version, told[0])
        if goal <= self.version:
            return False
        own = self._links.transport.peer_id
        for source in dict.fromkeys([told[1], newest.peer, *self._sources()]):
            while source not in ("", own) and self.version < goal and await self._fetch_record(source, group):
                pass
        if self._told == told:
            self._told = (0, "")  # whether or not that was true
        return self.version > before

    async def _fetch_record(self, source: PeerId, group: asyncio.TaskGroup) -> bool:
        try:
            question = AskRecord(self.version + 1)
            commit = await self._links.ask(source, question, deadline_s=RECORD_SECONDS)
            record = record_from_raw(self._run, commit.record)
        except NO_ANSWER as trouble:
            log.info("no record of step %d from %s: %s", self.version + 1, short(source), trouble)
            return False
        if record.step != self.version + 1 or record.parent != self._record_hash:
            log.warning("record of step %d from %s belongs to another history", record.step, short(source))
            return False
        self.version, self._record_hash = record.step, record.hash
        entry = self._entries[record.step] = Entry(record, source)
        if record.skipped:
            entry.parts = ()
        else:
            group.create_task(self._fill(entry), name=f"backlog {record.step}")
        self._changed.notify()
        return True

    async def _fill(self, entry: Entry) -> None:
        """Fetches a commit's gradient."""
        async with self._pace:
            if self._missed:
                return
            try:
                entry.parts = await self._gradient(entry.record)
            except Missed as missed:
                self._fail(str(missed))
                return
        if self.nbytes > self._limit_bytes:
            self._fail(f"{self.nbytes} bytes of gradients wait, more than limits.backlog_bytes")
        self._give(entry)
        self._changed.notify()

    def _give(self, entry: Entry) -> None:
        if self._hold is not None and entry.parts:
            self._hold(entry.record.step, entry.record.stages[self._stage].digest, entry.parts)

    def _fail(self, why: str) -> None:
        self._missed = self._missed or why
        self._entries.clear()
        self._changed.notify()

    async def _gradient(self, record: Record) -> tuple[Encoded, ...]:
        """All parts of a committed gradient, each from a holder that gives it. Raises Missed."""
        first = await self._part(record, 0)
        parts = [first.data]
        while len(parts) < first.parts:
            parts.append((await self._part(record, len(parts))).data)
        return tuple(parts)

    async def _part(self, record: Record, number: int) -> GradientPart:
        question = AskGradient(record.step, record.stages[self._stage].digest, number)
        for _ in range(PASSES):
            answer, unreachable = await self._race(record, question)
            if answer is not None:
                return answer
            if not unreachable:
                break
            await asyncio.sleep(PASS_SECONDS)
        raise Missed(f"nobody has the gradient of step {record.step} any more")

    def _holders(self, record: Record) -> list[PeerId]:
        """The peers that may have a gradient, a different one first at each step, to share the load; slow ones last."""
        own = self._links.transport.peer_id
        holders = [peer for peer in record.stages[self._stage].holders if peer != own]
        turn = record.step % max(1, len(holders))
        sources = dict.fromkeys([*holders[turn:], *holders[:turn], *self._sources()])
        return sorted(sources, key=lambda peer: peer in self._slow)

    async def _race(self, record: Record, question: AskGradient) -> tuple[GradientPart | None, bool]:
        """A part from the first holder that gives it: the next one is asked when this one says no or is slow. Also says
        whether some holder couldn't be reached that isn't given up: those who wait for the dead let the living leave.
        """
        sources, unreachable = self._holders(record), False
        loop = asyncio.get_running_loop()
        asked: dict[asyncio.Task[GradientPart], tuple[PeerId, float]] = {}
        try:
            while sources or asked:
                if sources:
                    source = sources.pop(0)
                    asked[asyncio.create_task(self._ask(source, question))] = (source, loop.time())
                patience = max(OTHER_FLOOR_SECONDS, OTHER_TIMES * (self._usual or 0.0)) if sources else None
                done, waiting = await asyncio.wait(asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    self._slow.update(asked[task][0] for task in waiting)
                for task in done:
                    source, began = asked.pop(task)
                    if (trouble := task.exception()) is None:
                        self._usual = loop.time() - began
                        self._slow.discard(source)
                        return task.result(), False
                    known = self._membership.get(source) is not None
                    unreachable |= known and not isinstance(trouble, Refused | PeerFault)
            return None, unreachable
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _ask(self, source: PeerId, question: AskGradient) -> GradientPart:
        try:
            return await self._links.ask(source, question, deadline_s=PART_SECONDS, urgency="bulk")
        except NO_ANSWER as trouble:
            log.info("no gradient of step %d from %s: %s", question.step, short(source), trouble)
            raise
