"""Parts of cases that several targets share: messages as trees, and sentences as they must be."""

import struct
from collections.abc import Iterator
from typing import Any

import msgpack

from swarmd.net.frames import CHUNK_BYTES, REQUEST
from swarmd.printable import printable
from swarmd.swarm.history.record_format import write_record
from swarmd.swarm.wire.framing import KINDS, to_frame
from swarmd.values import Frame
from tests.fuzz.target import Finding
from tests.swarm.wire.samples import sample

READS = 300  # of a case, at most


def message_items() -> Iterator[list[Any]]:
    """A message of every kind, as `stream_bytes` takes it."""
    for kind in KINDS:
        yield message_item(1, to_frame(sample(kind)))


def message_item(lane: int, frame: Frame, kind: int = REQUEST, number: int = 1) -> list[Any]:
    """A message on a lane."""
    buffers = [bytes(each) for each in frame.buffers]
    return [lane, [kind, number, frame.kind, frame.body, [len(each) for each in buffers]], buffers]


def stream_bytes(item: Any) -> bytes:
    """The bytes of an item: its own if it is bytes, else those of a message [lane, header, [buffer]] in chunks."""
    match item:
        case bytes():
            return item
        case [int(lane), header, list(buffers)]:
            packed = msgpack.packb(header, unicode_errors="surrogatepass")
            payload = struct.pack("!I", len(packed)) + packed + b"".join(it for it in buffers if isinstance(it, bytes))
            return b"".join(
                struct.pack("!I", (lane & 0xFF) << 24 | len(payload[at : at + CHUNK_BYTES]))
                + payload[at : at + CHUNK_BYTES]
                for at in range(0, len(payload), CHUNK_BYTES)
            )
    return b""


def reads(data: bytes, size: int) -> int:
    """The bytes per read: those of a case, but for too many reads, each of which would be a turn of an event loop."""
    return max(1, size, len(data) // READS)


def record_bytes(record: dict[str, Any] | bytes) -> bytes:
    """The bytes of a record in a case: its own, or those that this release writes. What JSON doesn't have is none."""
    try:
        return record if isinstance(record, bytes) else write_record(record) if record else b""
    except (ValueError, TypeError, RecursionError):
        return b""


def check_sentence(trouble: BaseException) -> None:
    """Raises Finding unless an error says something, in words that can be made fit to be shown."""
    if not printable(str(trouble)).strip():
        raise Finding(f"a {type(trouble).__name__} that says nothing")
