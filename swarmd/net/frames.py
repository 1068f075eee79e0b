"""Messages as bytes, and back: a msgpack header, payload buffers beside it, cut into small chunks.

Pure, no I/O. A stream is a sequence of chunks; each names its *lane* and carries at most 64 KiB of one message, so
that an urgent message overtakes another between chunks. A lane carries one message at a time: what a peer can leave
unfinished is one message per lane. Everything received is hostile until checked: sizes are checked before memory is
taken, and the only exceptions that leave `Decoder` and `decode_gossip` are PeerFault and, for a size, OutOfRange.

Some kinds of messages have a largest size of their own (`Sizes`). Of a larger one, which another release may have meant
well, the body isn't unpacked and the buffers aren't kept: it comes out of the decoder as a refusal.

    chunk    u32 (lane << 24 | length), then `length` bytes
    message  u32 header length, header, buffers one after the other
    header   msgpack [type, id, kind, body, [buffer sizes]]  or  [REFUSAL, id, sentence]  or  [BUSY, id]
    A refusal that the asker acts upon has a code, and numbers: [REFUSAL, id, sentence, code, [number]]
"""

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from swarmd.errors import OutOfRange, PeerFault
from swarmd.values import Buffer, Frame, Size, Urgency

LANES: tuple[Urgency, ...] = ("control", "hop", "bulk")
"""Lane number on the wire -> urgency; also the order of sending."""

REQUEST, ANSWER, REFUSAL, BUSY = 1, 2, 3, 4

CHUNK_BYTES = 65_496
"""Payload of a chunk. With our 4 and the muxer's 12 bytes it fits one Noise message (65,519); more needs a second."""

HEADER_BYTES = 1 << 20
"""Largest header. Bodies are words and numbers; a step's index set of a million takes less."""

BUFFERS = 256
"""Most buffers in a message. An encoded tensor has two."""

WHOLE_BYTES = 32 << 10
"""Largest message that travels as a word of control, in one chunk of its own stream."""

GOSSIP_BYTES = 64 << 10
"""Largest gossip message: a heartbeat is below 2 KiB, a stage's summary grows with its replicas."""

SMALL_BYTES = 4 << 10
"""A header that is no larger is unpacked before it is asked how large one of its kind may be."""

ITEMS = 5  # of a header

KIND_BYTES = 64
SENTENCE_CHARACTERS = 1000
CODE_CHARACTERS = 32
CODE_NUMBERS = 8
LARGEST_ID = 1 << 53

LAZY_BYTES = 1 << 20
"""From this size a buffer is an anonymous mapping: memory is taken as bytes arrive, not when they are promised."""

_U32 = struct.Struct("!I")


Sizes = Mapping[str, Size]
"""The largest size of each kind of message; of a kind that isn't there only the general bounds hold."""

ANY_SIZE: Sizes = {}


@dataclass(frozen=True)
class Envelope:
    """A message as received: what it is to the wire, and the swarm's frame where there is one."""

    type: int  # REQUEST | ANSWER | REFUSAL | BUSY
    id: int
    urgency: Urgency
    frame: Frame | None = None  # of requests and answers; of one that is too large only its kind
    excess: OutOfRange | None = None  # of one that is larger than its kind may be
    sentence: str = ""  # of refusals
    code: str = ""  # of refusals that have one
    numbers: tuple[int, ...] = ()  # of refusals with a code


class Message:
    """A message to be sent: parts that are not copied until they are cut into chunks."""

    def __init__(self, header: bytes, buffers: Sequence[Buffer] = ()) -> None:
        views = [_flat(part) for part in buffers]
        self._parts = [memoryview(_U32.pack(len(header)) + header), *(view for view in views if view.nbytes)]
        self.nbytes = sum(part.nbytes for part in self._parts)
        self.begun = False  # set by the outbox with the first chunk; from then on it must be sent to its end

    def chunks(self, urgency: Urgency) -> Iterator[bytes]:
        """The message as chunks of its lane, ready to be written."""
        lane = LANES.index(urgency) << 24
        left = self.nbytes
        pieces = self._pieces()
        while left:
            size = min(left, CHUNK_BYTES)
            left -= size
            yield b"".join((_U32.pack(lane | size), *_take(pieces, size)))

    def _pieces(self) -> Iterator[memoryview]:
        """The parts, none longer than a chunk and none crossing a chunk's border."""
        room = CHUNK_BYTES
        for part in self._parts:
            start = 0
            while start < part.nbytes:
                piece = part[start : start + room]
                yield piece
                start += piece.nbytes
                room = room - piece.nbytes or CHUNK_BYTES


def _take(pieces: Iterator[memoryview], size: int) -> Iterator[memoryview]:
    while size:
        piece = next(pieces)
        size -= piece.nbytes
        yield piece


def _flat(part: Buffer) -> memoryview:
    view = memoryview(part)
    if not view.nbytes:
        return memoryview(b"")
    return view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")


def excess(kind: str, header_bytes: int, payload_bytes: int, sizes: Sizes) -> OutOfRange | None:
    """The trouble with a message's size, None if it may be so large."""
    if (most := sizes.get(kind)) is None or (header_bytes <= most.header and payload_bytes <= most.payload):
        return None
    return OutOfRange(
        f"{kind} has {header_bytes} bytes, {payload_bytes} of payload, and not up to {most.header} and {most.payload}"
    )


def encode(kind_of_message: int, request_id: int, frame: Frame, sizes: Sizes = ANY_SIZE) -> Message:
    """A request or an answer. Raises ValueError or TypeError where the frame can't be sent (a bug of the caller)."""
    parts = [memoryview(part).nbytes for part in frame.buffers]
    header = _pack([kind_of_message, request_id, frame.kind, frame.body, parts])
    if len(header) > HEADER_BYTES or len(parts) > BUFFERS or not 0 < len(frame.kind.encode()) <= KIND_BYTES:
        raise ValueError(f"{frame.kind!r} with {len(header)} header bytes and {len(parts)} buffers can't be sent")
    if too_large := excess(frame.kind, len(header), sum(parts), sizes):
        raise ValueError(str(too_large))
    return Message(header, frame.buffers)


def encode_refusal(request_id: int, sentence: str, code: str = "", numbers: Sequence[int] = ()) -> Message:
    """A no with its reason, in one sentence, and the code of its kind, if it has one, with the numbers of that."""
    acted_upon = [code, list(numbers)] if code else []
    return Message(_pack([REFUSAL, request_id, sentence[:SENTENCE_CHARACTERS], *acted_upon]))


def encode_busy(request_id: int) -> Message:
    """A no because too many requests are being answered; costs the least."""
    return Message(_pack([BUSY, request_id]))


def encode_gossip(frame: Frame, sizes: Sizes = ANY_SIZE) -> bytes:
    """A gossip message. Raises ValueError if it has buffers or is too large."""
    data = _pack([frame.kind, frame.body])
    if frame.buffers or len(data) > GOSSIP_BYTES or excess(frame.kind, len(data), 0, sizes):
        raise ValueError(f"gossip {frame.kind!r} of {len(data)} bytes, {len(frame.buffers)} buffers can't be published")
    return data


def decode_gossip(data: bytes, sizes: Sizes = ANY_SIZE) -> Frame:
    """Raises PeerFault for anything that `encode_gossip` doesn't make, OutOfRange if it is larger than its kind may
    be.
    """
    if len(data) > GOSSIP_BYTES:
        raise PeerFault(f"a gossip message of {len(data)} bytes")
    fields = _unpack(data) if len(data) <= SMALL_BYTES else _outline(data, body=1)
    if type(fields) is not list or len(fields) != 2:
        raise PeerFault("a gossip message that is not [kind, body]")
    if too_large := excess(_check_kind(fields[0]), len(data), 0, sizes):
        raise too_large
    return Frame(fields[0], _check_body(fields[1] if len(data) <= SMALL_BYTES else _unpack(data)[1]))


class Decoder:
    """Turns one stream's bytes back into messages, fed any way they come. After a PeerFault it is of no more use."""

    def __init__(self, lanes: Sequence[Urgency], message_bytes: int, sizes: Sizes = ANY_SIZE) -> None:
        self._lanes = {LANES.index(urgency): _Assembly(urgency, message_bytes, sizes) for urgency in lanes}
        self._head = b""  # a chunk's first bytes, when they came torn
        self._lane: _Assembly | None = None  # of the chunk being read
        self._left = 0  # bytes of that chunk still to come

    @property
    def partial_bytes(self) -> int:
        """Received and kept of messages that have not ended."""
        return sum(assembly.received for assembly in self._lanes.values())

    def feed(self, data: Buffer) -> list[Envelope]:
        """The messages that these bytes complete. Raises PeerFault."""
        complete: list[Envelope] = []
        view, at = memoryview(data), 0
        while at < view.nbytes:
            if self._lane is None:
                at = self._begin(view, at)
                continue
            piece = view[at : at + self._left]
            at += piece.nbytes
            self._left -= piece.nbytes
            envelope = self._lane.take(piece, ends=self._left == 0)
            if envelope is not None:
                complete.append(envelope)
            if self._left == 0:
                self._lane = None
        return complete

    def _begin(self, view: memoryview, at: int) -> int:
        missing = 4 - len(self._head)
        self._head += bytes(view[at : at + missing])
        if len(self._head) == 4:
            (word,) = _U32.unpack(self._head)
            self._head = b""
            self._left = word & 0xFFFFFF
            self._lane = self._lanes.get(word >> 24)
            if self._lane is None or not 0 < self._left <= CHUNK_BYTES:
                raise PeerFault(f"a chunk of {self._left} bytes on lane {word >> 24}")
        return min(at + missing, view.nbytes)


class _Assembly:
    """The message that is arriving on one lane."""

    def __init__(self, urgency: Urgency, message_bytes: int, sizes: Sizes) -> None:
        self._urgency: Urgency = urgency
        self._limit = message_bytes
        self._most = sizes
        self._reset()

    def _reset(self) -> None:
        self.received = 0
        self._unwanted = 0  # bytes still to come of a message that is too large
        self._target = memoryview(bytearray(4))  # what is being filled: length, header, then buffer after buffer
        self._filled = 0
        self._stage = "length"
        self._head: Envelope | None = None
        self._sizes: list[int] = []
        self._buffers: list[memoryview] = []

    def take(self, piece: memoryview, *, ends: bool) -> Envelope | None:
        """Adds part of a chunk; `ends` says that the chunk is complete with it."""
        while piece.nbytes:
            if self._unwanted:
                size = min(piece.nbytes, self._unwanted)
                self._unwanted -= size
                complete = not self._unwanted
            else:
                size = min(piece.nbytes, self._target.nbytes - self._filled)
                self._target[self._filled : self._filled + size] = piece[:size]
                self._filled += size
                self.received += size
                complete = self._filled == self._target.nbytes and self._advance()
            piece = piece[size:]
            if complete:
                if piece.nbytes or not ends:
                    raise PeerFault("bytes after the end of a message")
                return self._finish()
        return None

    def _advance(self) -> bool:
        """Moves to what is filled next; True when the message is complete."""
        self._filled = 0
        if self._stage == "length":
            (size,) = _U32.unpack(self._target)
            if not 0 < size <= min(HEADER_BYTES, self._limit - 4):
                raise PeerFault(f"a message header of {size} bytes")
            self._stage, self._target = "header", memoryview(bytearray(size))
            return False
        if self._stage == "header":
            self._stage = "buffers"
            self._head, self._sizes = _parse_header(self._target, self._urgency, self._most)
            if self.received + sum(self._sizes) > self._limit:
                raise PeerFault(f"a message of {self.received + sum(self._sizes)} bytes; the limit is {self._limit}")
            if self._head.excess:
                self._unwanted, self._sizes = sum(self._sizes), []
                return not self._unwanted
        else:
            self._buffers.append(self._target)
        while len(self._buffers) < len(self._sizes):
            size = self._sizes[len(self._buffers)]
            self._target = _allocate(size)
            if size:
                return False
            self._buffers.append(self._target)
        return True

    def _finish(self) -> Envelope:
        head, buffers = self._head, tuple(self._buffers)
        assert head is not None
        self._reset()
        if head.frame is None or head.excess:
            return head
        frame = Frame(head.frame.kind, head.frame.body, buffers)
        return Envelope(head.type, head.id, head.urgency, frame)


def _allocate(size: int) -> memoryview:
    if size < LAZY_BYTES:
        return memoryview(bytearray(size))
    try:
        return memoryview(mmap.mmap(-1, size))
    except (OSError, ValueError) as error:
        raise PeerFault(f"no room for a buffer of {size} bytes: {error}") from error


def _parse_header(data: memoryview, urgency: Urgency, sizes: Sizes) -> tuple[Envelope, list[int]]:
    small = data.nbytes <= SMALL_BYTES
    fields = _unpack(data) if small else _outline(data, body=3)
    if type(fields) is not list or len(fields) < 2 or type(fields[0]) is not int:
        raise PeerFault("a message header that is not a list with a type and an id")
    message_type, request_id = fields[0], fields[1]
    if type(request_id) is not int or not 0 < request_id <= LARGEST_ID:
        raise PeerFault("a message without a usable id")
    if message_type in (REQUEST, ANSWER) and len(fields) == 5:
        kind, parts = _check_kind(fields[2]), _check_sizes(fields[4])
        if too_large := excess(kind, data.nbytes, sum(parts), sizes):
            return Envelope(message_type, request_id, urgency, Frame(kind, {}), too_large), parts
        frame = Frame(kind, _check_body(fields[3] if small else _unpack(data)[3]))
        return Envelope(message_type, request_id, urgency, frame), parts
    if not small:
        fields = _unpack(data)
    if message_type == REFUSAL and len(fields) in (3, 5) and type(fields[2]) is str:
        code, numbers = _check_code(*fields[3:]) if len(fields) == 5 else ("", ())
        sentence = fields[2][:SENTENCE_CHARACTERS]
        return Envelope(REFUSAL, request_id, urgency, sentence=sentence, code=code, numbers=numbers), []
    if message_type == BUSY and len(fields) == 2:
        return Envelope(BUSY, request_id, urgency), []
    raise PeerFault(f"a message of type {message_type} with {len(fields)} fields")


def _check_code(code: Any, numbers: Any) -> tuple[str, tuple[int, ...]]:
    if type(code) is not str or type(numbers) is not list or not all(type(number) is int for number in numbers):
        raise PeerFault("a refusal with a code that is no text, or with numbers that are none")
    return code[:CODE_CHARACTERS], tuple(numbers[:CODE_NUMBERS])


def _check_kind(kind: Any) -> str:
    if type(kind) is not str or not 0 < len(kind.encode()) <= KIND_BYTES:
        raise PeerFault("a frame whose kind is not a short string")
    return kind


def _check_body(body: Any) -> dict[str, Any]:
    if type(body) is not dict or not all(type(key) is str for key in body):
        raise PeerFault("a frame whose body is not a map with strings as keys")
    return body


def _check_sizes(sizes: Any) -> list[int]:
    if type(sizes) is not list or len(sizes) > BUFFERS:
        raise PeerFault("a frame without a short list of buffer sizes")
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise PeerFault("a frame with a buffer size that is no size")
    return sizes


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unpack(data: Buffer) -> Any:
    """msgpack's own types only. `timestamp=1` turns its one built-in extension into a plain float."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, timestamp=1, ext_hook=_refuse_extension)
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        raise PeerFault(f"bytes that are not plain msgpack ({type(error).__name__})") from error


def _outline(data: Buffer, *, body: int) -> list[Any]:
    """The few items of a large list, with an empty map in the place of the body, of which nothing is made."""
    unpacker = msgpack.Unpacker(
        raw=False, strict_map_key=True, timestamp=1, ext_hook=_refuse_extension, max_buffer_size=len(data)
    )
    unpacker.feed(data)
    items: list[Any] = []
    try:
        for place in range(min(unpacker.read_array_header(), ITEMS)):
            items.append({} if place == body else unpacker.unpack())
            if place == body:
                unpacker.skip()
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        raise PeerFault(f"bytes that are not plain msgpack ({type(error).__name__})") from error
    if unpacker.tell() != len(data):
        raise PeerFault("bytes after the end of a header")
    return items


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"msgpack extension {code}")
