"""How a stage's state goes from a donor to a peer that comes late.

The donor pins the state of one version in host memory and serves it in hashed chunks; the joiner verifies each, loads
the whole, and then catches up record by record with the gradients that were committed meanwhile (`history.py`).
Training never waits for it.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from swarmd.config import RunConfig
from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.swarm.commit import Record, record_from_plain
from swarmd.swarm.history import History
from swarmd.swarm.links import Links
from swarmd.swarm.messages import AskChunk, AskSnapshot, Chunk, Snapshot
from swarmd.swarm.ports import Compute
from swarmd.values import Buffer, PeerId

log = logging.getLogger(__name__)

CHUNK_BYTES = 4 << 20  # hashed in about 4 ms, so that the event loop never stalls
CHUNKS_AT_ONCE = 4  # in flight; keeps a 100 ms link busy at 1 Gb/s
SNAPSHOT_SECONDS = 300.0  # to export a stage's state
CHUNK_SECONDS = 120.0
PINNED_SECONDS = 600.0  # a snapshot nobody asks for is let go after this
STATE_LIMIT_BYTES = 1 << 40  # a manifest that promises more is a lie


@dataclass
class Pinned:
    """A donor's snapshot."""

    snapshot: Snapshot
    state: Buffer
    used: float  # loop time


class Donor:
    """Serves this peer's stage to joiners."""

    def __init__(self, links: Links, history: History, compute: Compute, stage: int) -> None:
        self._history, self._compute, self._stage = history, compute, stage
        self._pinned: Pinned | None = None
        self._pinning = asyncio.Lock()
        links.answers(AskSnapshot, self._answer_snapshot)
        links.answers(AskChunk, self._answer_chunk)

    async def _answer_snapshot(self, peer: PeerId, ask: AskSnapshot) -> Snapshot:
        if ask.stage != self._stage:
            raise Refused(f"this peer holds stage {self._stage}")
        if self._history.behind:
            raise Refused("this peer is behind itself")
        async with self._pinning:
            if self._pinned is None or self._pinned.snapshot.version != self._history.version:
                self._pinned = await self._pin()
        log.info("%s pulls stage %d at version %d from here", peer[-8:], self._stage, self._pinned.snapshot.version)
        return self._pinned.snapshot

    async def _pin(self) -> Pinned:
        async with self._history.lock:  # no commit in between
            state = await self._compute.export_state()
            version, record = self._history.version, self._history.plain_record()
        hashes = []
        view = memoryview(state)
        for start in range(0, view.nbytes, CHUNK_BYTES):
            hashes.append(chunk_hash(view[start : start + CHUNK_BYTES]))
            await asyncio.sleep(0)
        snapshot = Snapshot(version, record, view.nbytes, CHUNK_BYTES, tuple(hashes))
        return Pinned(snapshot, state, asyncio.get_running_loop().time())

    async def _answer_chunk(self, peer: PeerId, ask: AskChunk) -> Chunk:
        pinned = self._pinned
        if pinned is None or pinned.snapshot.version != ask.version:
            raise Refused(f"version {ask.version} is not pinned here any more")
        if not 0 <= ask.number < len(pinned.snapshot.hashes):
            raise PeerFault("no such chunk")
        pinned.used = asyncio.get_running_loop().time()
        start = ask.number * CHUNK_BYTES
        return Chunk(memoryview(pinned.state)[start : start + CHUNK_BYTES])

    def sweep(self, now: float) -> None:
        """Lets go of a snapshot that nobody has asked for in a while."""
        if self._pinned is not None and now - self._pinned.used > PINNED_SECONDS:
            self._pinned = None


def chunk_hash(chunk: Buffer) -> str:
    """Names a chunk by its content."""
    return hashlib.blake2b(chunk, digest_size=16).hexdigest()


class Joiner:
    """Pulls a stage's state from a donor."""

    def __init__(self, run: RunConfig, links: Links, history: History, compute: Compute, stage: int) -> None:
        self._run, self._links, self._history, self._compute, self._stage = run, links, history, compute, stage

    async def pull(self, donors: Callable[[], list[PeerId]]) -> bool:
        """Loads the state from the first donor that gives it whole. False if none does."""
        for donor in donors():
            try:
                record, state = await self._download(donor)
                async with self._history.lock:
                    digest = await self._compute.import_state(state)
                    self._history.restore(record, digest)
            except (PeerUnreachable, TimeoutError, Refused, PeerFault, ValueError) as trouble:
                log.warning("no state of stage %d from %s: %s", self._stage, donor[-8:], trouble)
                continue
            log.info("stage %d at version %d came from %s", self._stage, self._history.version, donor[-8:])
            return True
        return False

    async def _download(self, donor: PeerId) -> tuple[Record | None, Buffer]:
        """Raises what `Links.ask` does, and PeerFault for chunks that aren't what their hashes say."""
        question = AskSnapshot(self._stage)
        snapshot = await self._links.ask(donor, question, Snapshot, deadline_s=SNAPSHOT_SECONDS)
        record = record_from_plain(self._run, snapshot.record) if snapshot.version else None
        if snapshot.version != (record.step if record else 0):
            raise PeerFault("a snapshot whose record is of another version")
        _check_manifest(snapshot)
        state = bytearray(snapshot.nbytes)
        pace = asyncio.Semaphore(CHUNKS_AT_ONCE)

        async def fetch(number: int) -> None:
            async with pace:
                ask = AskChunk(snapshot.version, number)
                chunk = await self._links.ask(donor, ask, Chunk, deadline_s=CHUNK_SECONDS, urgency="bulk")
                start = number * snapshot.chunk_bytes
                expected = min(snapshot.chunk_bytes, snapshot.nbytes - start)
                if memoryview(chunk.data).nbytes != expected or chunk_hash(chunk.data) != snapshot.hashes[number]:
                    raise PeerFault(f"chunk {number} is not what its hash says")
                state[start : start + expected] = chunk.data

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(len(snapshot.hashes)):
                    group.create_task(fetch(number))
        except ExceptionGroup as troubles:
            raise troubles.exceptions[0] from None
        return record, state


def _check_manifest(snapshot: Snapshot) -> None:
    if not 0 < snapshot.chunk_bytes <= 64 << 20 or not 0 < snapshot.nbytes <= STATE_LIMIT_BYTES:
        raise PeerFault("a snapshot of impossible size")
    if len(snapshot.hashes) != -(-snapshot.nbytes // snapshot.chunk_bytes):
        raise PeerFault("a snapshot whose hashes don't match its size")
