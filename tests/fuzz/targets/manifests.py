"""Snapshots of stages, with the records and chunks in them, as donors describe them.

A case is [body of a `Snapshot`, elements of the stage's gradient, the record], or {"record": the record}. A record is
bytes, or plain data, which are written as this release writes them.
"""

from collections.abc import Iterator
from typing import Any

from swarmd.errors import OutOfRange, PeerFault, UnknownFormat
from swarmd.swarm.history.record import record_to_plain
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.history.record_format import write_record
from swarmd.swarm.state.manifest import read_manifest
from swarmd.swarm.wire.framing import from_frame
from swarmd.swarm.wire.messages.state import Snapshot
from swarmd.values import Frame
from tests.fuzz.parts import check_sentence, record_bytes
from tests.fuzz.target import Finding, Target
from tests.swarm.records import RUN, record, skipped

CHUNKS_LOOKED_AT = 100


class Manifests(Target):
    """Reading manifests and records."""

    def seeds(self) -> Iterator[Any]:
        for each in (record(), skipped()):
            plain = record_to_plain(each)
            yield {"record": plain}
            yield {"record": each.raw}
            hashes = ["0" * 32, "1" * 32, "2" * 32]
            yield [{"version": 3, "nbytes": 9 << 20, "chunk_bytes": 4 << 20, "hashes": hashes}, 4000, plain]
        yield [{"version": 0, "nbytes": 1, "chunk_bytes": 4 << 20, "hashes": ["0" * 32]}, 4000, b""]

    def play(self, case: Any) -> None:
        try:
            match case:
                case [dict(body), int(elements), dict() | bytes() as record]:
                    snapshot = from_frame(Frame("Snapshot", {**body, "record": None}, (record_bytes(record),)))
                    assert isinstance(snapshot, Snapshot)
                    self._cut(snapshot, min(abs(elements), 1 << 40))
                case {"record": dict() | bytes() as record}:
                    self._travel(record_bytes(record))
        except (PeerFault, OutOfRange, UnknownFormat) as trouble:
            check_sentence(trouble)

    def _cut(self, snapshot: Snapshot, elements: int) -> None:
        manifest = read_manifest(RUN, snapshot, elements)
        hash(manifest.name)
        numbers = range(len(snapshot.hashes))
        spans = [manifest.span(number) for number in (*numbers[:CHUNKS_LOOKED_AT], numbers[-1])]
        if any(it.start >= it.stop for it in spans) or (spans[0].start, spans[-1].stop) != (0, snapshot.nbytes):
            raise Finding("chunks that don't make up the state")

    def _travel(self, raw: bytes) -> None:
        read = record_from_raw(RUN, raw)
        again = record_from_raw(RUN, read.raw)
        written = record_from_raw(RUN, write_record(record_to_plain(read)))
        if again != read or again.hash != read.hash or written != read or written.state != read.state:
            raise Finding("a record that is another one once it is passed on")


TARGET = Manifests
