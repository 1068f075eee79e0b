"""The form in which donors and joiners exchange a stage's state: the manifest, its chunks, and their names.

A donor (`donor.py`) pins the state of one version in host memory and serves it in hashed chunks. A joiner (`joiner.py`)
pulls chunks from every replica that pinned the same version (`download.py`), collects the gradients that are committed
meanwhile (`backlog.py`), loads the whole and applies them. Training never waits for it.
"""

import asyncio
import functools
from dataclasses import dataclass

from swarmd.chunks import chunk_count, chunk_hash, chunk_size, root_hash
from swarmd.config import ModelConfig, RunConfig
from swarmd.errors import PeerFault
from swarmd.swarm.history.record import Record
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.wire.messages.state import Snapshot
from swarmd.values import Buffer

CHUNKS_AT_ONCE = 4  # in flight from one donor to one joiner; keeps a 100 ms link busy at 1 Gb/s
SNAPSHOT_SECONDS = 300.0  # to export a stage's state
ELEMENT_LIMIT_BYTES = 64  # of a state, for an element of the gradient: parameter and moments take 16
SLACK_BYTES = 64 << 20  # what a state may hold besides


@dataclass(frozen=True)
class Manifest:
    """A snapshot that makes sense, and its record."""

    snapshot: Snapshot
    record: Record | None  # None: of version 0

    @property
    def version(self) -> int:
        return self.snapshot.version

    @functools.cached_property
    def root(self) -> str:
        """Names the state by its bytes: who offers the same root serves the same chunks."""
        return root_hash(self.snapshot.nbytes, self.snapshot.hashes)

    @property
    def name(self) -> str:
        """Names the state and the history that led to it. Honest replicas at one version have manifests of one name."""
        return f"{self.version}/{self.record.hash if self.record else ''}/{self.root}"

    def span(self, number: int) -> slice:
        """The place of a chunk in the state."""
        start = number * self.snapshot.chunk_bytes
        return slice(start, min(start + self.snapshot.chunk_bytes, self.snapshot.nbytes))


def model_elements(model: ModelConfig) -> int:
    """Elements of the whole model, which no stage's gradient exceeds: the size of a stage that isn't open here."""
    block = 4 * model.hidden**2 + 3 * model.hidden * model.ffn + 2 * model.hidden
    return (2 * model.vocabulary + 1) * model.hidden + model.layers * block


def read_manifest(run: RunConfig, snapshot: Snapshot, gradient_size: int) -> Manifest:
    """Raises PeerFault for a snapshot that no honest donor gives, UnknownFormat for one of a later release."""
    record = record_from_raw(run, snapshot.record) if snapshot.version else None
    if snapshot.version != (record.step if record else 0):
        raise PeerFault("a snapshot whose record is of another version")
    if snapshot.nbytes > ELEMENT_LIMIT_BYTES * gradient_size + SLACK_BYTES:
        raise PeerFault("a snapshot of impossible size")
    if snapshot.chunk_bytes != chunk_size(snapshot.nbytes):
        raise PeerFault(f"a snapshot in chunks of {snapshot.chunk_bytes} bytes, which no release makes of that size")
    if len(snapshot.hashes) != chunk_count(snapshot.nbytes, snapshot.chunk_bytes):
        raise PeerFault("a snapshot whose hashes don't match its size")
    return Manifest(snapshot, record)


async def take_snapshot(record: Record | None, state: Buffer) -> Snapshot:
    """The snapshot of a state to which a record led; None: of version 0."""
    version, raw = (record.step, record.raw) if record is not None else (0, b"")
    nbytes = memoryview(state).nbytes
    return Snapshot(version, raw, nbytes, chunk_size(nbytes), await chunk_hashes(state))


async def chunk_hashes(state: Buffer) -> tuple[str, ...]:
    """The names of a state's chunks. Others get their turn after each."""
    hashes = []
    view = memoryview(state)
    size = chunk_size(view.nbytes)
    for start in range(0, view.nbytes, size):
        hashes.append(chunk_hash(view[start : start + size]))
        await asyncio.sleep(0)
    return tuple(hashes)
