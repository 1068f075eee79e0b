"""Streams and gossip as they come from a peer, down to the messages in them.

A case is [bytes per read, [item of a stream]] or {"gossip": bytes, or [kind, body]}.
"""

from collections.abc import Iterator
from typing import Any

import msgpack

from swarmd.errors import OutOfRange, PeerFault, UnknownKind
from swarmd.net import frames
from swarmd.net.frames import Decoder
from swarmd.swarm.wire.framing import SIZES, from_frame, to_frame
from swarmd.values import Frame
from tests.fuzz.parts import check_sentence, message_items, reads, stream_bytes
from tests.fuzz.target import Finding, Target

MESSAGE_BYTES = 1 << 22


class Frames(Target):
    """Decoders, and the schema behind them."""

    def seeds(self) -> Iterator[Any]:
        items = list(message_items())
        yield from ([1000, [item]] for item in items)
        yield [7, items[:3]]
        yield [1 << 20, [[2, item[1], item[2]] for item in items[3:6]]]
        yield [50, [[1, [frames.REFUSAL, 1, "no", "outvoted", [4, 12]], []], [1, [frames.BUSY, 2], []], b"\0\0\0\0"]]
        yield from ({"gossip": item[1][2:4]} for item in items if item[1][2] in ("Card", "Summary", "Beat"))

    def play(self, case: Any) -> None:
        match case:
            case {"gossip": said}:
                self._hear(said)
            case [int(size), list(items)]:
                self._read(size, b"".join(map(stream_bytes, items)))

    def _hear(self, said: Any) -> None:
        data = said if isinstance(said, bytes) else msgpack.packb(said, unicode_errors="surrogatepass")
        try:
            frame = frames.decode_gossip(data, SIZES)
        except (PeerFault, OutOfRange) as trouble:
            check_sentence(trouble)
            return
        self._lift(frame)

    def _read(self, size: int, data: bytes) -> None:
        decoder, size = Decoder(("hop", "bulk"), MESSAGE_BYTES, SIZES), reads(data, size)
        try:
            for at in range(0, len(data), size):
                for envelope in decoder.feed(data[at : at + size]):
                    if envelope.excess is not None:
                        check_sentence(envelope.excess)
                    elif envelope.frame is not None:
                        self._lift(envelope.frame)
                if decoder.partial_bytes > len(data):
                    raise Finding("more is held than came")
        except PeerFault as fault:
            check_sentence(fault)

    def _lift(self, frame: Frame) -> None:
        """What one peer takes another must take, too: it is relayed."""
        try:
            message = from_frame(frame)
        except (PeerFault, OutOfRange, UnknownKind) as trouble:
            check_sentence(trouble)
            return
        again = to_frame(message)
        sent = b"".join(frames.encode(frames.REQUEST, 1, again).chunks("bulk"))
        [envelope] = Decoder(("bulk",), 2 * MESSAGE_BYTES).feed(sent)
        assert envelope.frame is not None
        if from_frame(envelope.frame) != message:
            raise Finding(f"a {frame.kind} that is another one once it is passed on")


TARGET = Frames
