"""Snapshots of stages, with the records and chunks in them, as donors describe them.

A case is [body of a `Snapshot`, elements of the stage's gradient], or {"record": plain}.
"""

from collections.abc import Iterator
from typing import Any

from swarmd.errors import OutOfRange, PeerFault
from swarmd.swarm.history.record import record_to_plain
from swarmd.swarm.history.record_codec import record_from_plain
from swarmd.swarm.state.manifest import read_manifest
from swarmd.swarm.wire.framing import from_frame
from swarmd.swarm.wire.messages.state import Snapshot
from swarmd.values import Frame
from tests.fuzz.parts import check_sentence
from tests.fuzz.target import Finding, Target
from tests.swarm.records import RUN, record, skipped

CHUNKS_LOOKED_AT = 100


class Manifests(Target):
    """Reading manifests and records."""

    def seeds(self) -> Iterator[Any]:
        for each in (record(), skipped()):
            plain = record_to_plain(each)
            yield {"record": plain}
            hashes = ["0" * 32, "1" * 32, "2" * 32]
            yield [{"version": 3, "record": plain, "nbytes": 9 << 20, "chunk_bytes": 4 << 20, "hashes": hashes}, 4000]
        yield [{"version": 0, "record": {}, "nbytes": 1, "chunk_bytes": 4 << 20, "hashes": ["0" * 32]}, 4000]

    def play(self, case: Any) -> None:
        try:
            match case:
                case [dict(body), int(elements)]:
                    snapshot = from_frame(Frame("Snapshot", body))
                    assert isinstance(snapshot, Snapshot)
                    self._cut(snapshot, min(abs(elements), 1 << 40))
                case {"record": dict(plain)}:
                    self._travel(plain)
        except (PeerFault, OutOfRange) as trouble:
            check_sentence(trouble)

    def _cut(self, snapshot: Snapshot, elements: int) -> None:
        manifest = read_manifest(RUN, snapshot, elements)
        hash(manifest.name)
        numbers = range(len(snapshot.hashes))
        spans = [manifest.span(number) for number in (*numbers[:CHUNKS_LOOKED_AT], numbers[-1])]
        if any(it.start >= it.stop for it in spans) or (spans[0].start, spans[-1].stop) != (0, snapshot.nbytes):
            raise Finding("chunks that don't make up the state")

    def _travel(self, plain: dict[str, Any]) -> None:
        read = record_from_plain(RUN, plain)
        again = record_from_plain(RUN, record_to_plain(read))
        if again != read or again.hash != read.hash or again.state != read.state:
            raise Finding("a record that is another one once it is passed on")


TARGET = Manifests
