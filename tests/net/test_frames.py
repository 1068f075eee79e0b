"""Frames survive any tearing, and no bytes raise anything but PeerFault or take memory they did not send."""

import itertools
import resource
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.errors import OutOfRange, PeerFault
from swarmd.net import frames
from swarmd.net.frames import ANSWER, BUSY, REFUSAL, REQUEST, Decoder, Envelope, Message
from swarmd.values import Frame, Size, Urgency

LIMIT = 1 << 20

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
kinds = st.text(min_size=1, max_size=16)
buffers = st.lists(st.binary(max_size=200) | st.integers(1, 300_000).map(bytes), max_size=5)
some_frames = st.builds(
    Frame, kind=kinds, body=st.dictionaries(st.text(max_size=8), plain, max_size=4), buffers=buffers.map(tuple)
)


def wire(message: Message, urgency: Urgency = "hop") -> bytes:
    return b"".join(message.chunks(urgency))


def decoder(limit: int = LIMIT) -> Decoder:
    return Decoder(("hop", "bulk"), limit)


def chunk(payload: bytes, lane: int = 1) -> bytes:
    return struct.pack("!I", lane << 24 | len(payload)) + payload


def message_of(header: Any, payload: bytes = b"") -> bytes:
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    return chunk(struct.pack("!I", len(packed)) + packed + payload)


def torn(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:stop] for start, stop in itertools.pairwise(borders)]


@settings(deadline=None, max_examples=80)
@given(st.lists(some_frames, min_size=1, max_size=3), st.lists(st.integers(0, 1 << 30), max_size=6))
def test_frames_come_back_however_the_stream_is_torn(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(wire(frames.encode(REQUEST, index + 1, frame)) for index, frame in enumerate(sent))
    reader = decoder(4 << 20)
    got = [envelope for piece in torn(data, cuts) for envelope in reader.feed(piece)]
    assert [(envelope.type, envelope.id, envelope.urgency) for envelope in got] == [
        (REQUEST, index + 1, "hop") for index in range(len(sent))
    ]
    for envelope, frame in zip(got, sent, strict=True):
        assert envelope.frame is not None
        assert (envelope.frame.kind, envelope.frame.body) == (frame.kind, frame.body)
        assert [bytes(part) for part in envelope.frame.buffers] == list(frame.buffers)
    assert reader.partial_bytes == 0


def test_an_urgent_message_passes_another_between_chunks() -> None:
    slow = list(frames.encode(ANSWER, 1, Frame("state", {}, (bytes(range(256)) * 1024,))).chunks("bulk"))
    fast = list(frames.encode(ANSWER, 2, Frame("hop", {}, (b"x" * 100_000,))).chunks("hop"))
    assert len(slow) > 3
    assert len(fast) == 2
    reader = decoder()
    mixed = [slow[0], slow[1], *fast, *slow[2:]]
    got = [envelope.id for piece in mixed for envelope in reader.feed(piece)]
    assert got == [2, 1]


def test_refusals_and_busy_come_back() -> None:
    reader = Decoder(("control",), frames.WHOLE_BYTES)
    assert reader.feed(wire(frames.encode_refusal(7, "no room" * 1000), "control")) == [
        Envelope(REFUSAL, 7, "control", sentence=("no room" * 1000)[:1000])
    ]
    assert reader.feed(wire(frames.encode_refusal(7, "no room", "full", (4, 12)), "control")) == [
        Envelope(REFUSAL, 7, "control", sentence="no room", code="full", numbers=(4, 12))
    ]
    assert reader.feed(wire(frames.encode_busy(8), "control")) == [Envelope(BUSY, 8, "control")]


def test_payload_is_not_copied_through_the_header() -> None:
    payload = bytes(3 << 20)
    message = frames.encode(REQUEST, 1, Frame("hop", {"a": 1}, (payload, memoryview(payload).cast("H"))))
    assert message.nbytes < 2 * len(payload) + 100
    assert max(len(each) for each in message.chunks("hop")) <= 64 << 10


def test_a_received_buffer_is_writable_and_of_its_own() -> None:
    reader = decoder(8 << 20)
    (envelope,) = reader.feed(wire(frames.encode(REQUEST, 1, Frame("hop", {}, (bytes(3 << 20), b"ab")))))
    assert envelope.frame is not None
    first, second = envelope.frame.buffers
    assert isinstance(first, memoryview)
    first[0] = 9
    assert (first[0], first[1], bytes(second)) == (9, 0, b"ab")


@settings(deadline=None, max_examples=150)
@given(some_frames, st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), min_size=1, max_size=8))
def test_corrupted_bytes_raise_nothing_but_peer_fault(frame: Frame, changes: list[tuple[int, int]]) -> None:
    data = bytearray(wire(frames.encode(REQUEST, 1, frame)))
    for at, value in changes:
        # Mostly in the chunk's head and the header, where decisions are taken.
        data[at % min(len(data), 64 if at % 3 else len(data))] = value
    reader = decoder()
    try:
        for _ in range(2):
            reader.feed(data)
    except PeerFault:
        pass


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_peer_fault(data: bytes) -> None:
    for piece in (data, chunk(data) if data else b"", message_of(data)):
        try:
            decoder().feed(piece)
        except PeerFault:
            pass
    try:
        frames.decode_gossip(data)
    except PeerFault:
        pass


@pytest.mark.parametrize(
    "data",
    [
        chunk(b"x" * 10, lane=0),  # a lane of the other stream
        chunk(b"x" * 10, lane=9),
        struct.pack("!I", 1 << 24),  # an empty chunk
        struct.pack("!I", 1 << 24 | 0xFFFFFF),  # a huge one
        chunk(struct.pack("!I", 0)),
        chunk(struct.pack("!I", (1 << 20) + 1)),  # a header over its limit
        message_of([REQUEST, 1, "a", {}, []], b"trailing"),
        message_of([REQUEST, 1, "a", {}, [LIMIT]]),  # over the message's limit, before a byte of it came
        message_of([REQUEST, 1, "a", {}, [1] * 257]),
        message_of([REQUEST, 1, "a", {}, [-1]]),
        message_of([REQUEST, 1, "a", {}, [True]]),
        message_of([REQUEST, 1, "a", {}, [1.0]]),
        message_of([REQUEST, 1, "a", {}, {}]),
        message_of([REQUEST, 1, "a", {}]),
        message_of([REQUEST, 1, "a", {}, [], 1]),
        message_of([REQUEST, 1, "", {}, []]),
        message_of([REQUEST, 1, "k" * 65, {}, []]),
        message_of([REQUEST, 1, b"a", {}, []]),
        message_of([REQUEST, 1, "a", [], []]),
        message_of([REQUEST, 1, "a", {b"b": 1}, []]),
        message_of([REQUEST, 1, "a", {1: 1}, []]),
        message_of([REQUEST, 0, "a", {}, []]),
        message_of([REQUEST, True, "a", {}, []]),
        message_of([REQUEST, 2**60, "a", {}, []]),
        message_of([REQUEST, "1", "a", {}, []]),
        message_of([True, 1, "a", {}, []]),
        message_of([5, 1, "a", {}, []]),
        message_of([[], 1]),
        message_of([]),
        message_of({}),
        message_of(None),
        message_of([REFUSAL, 1, b"no"]),
        message_of([REFUSAL, 1]),
        message_of([REFUSAL, 1, "no", "code"]),
        message_of([REFUSAL, 1, "no", b"code", []]),
        message_of([REFUSAL, 1, "no", "code", "more"]),
        message_of([REFUSAL, 1, "no", "code", [1.5]]),
        message_of([REFUSAL, 1, "no", "code", [], 1]),
        message_of([BUSY, 1, 1]),
        message_of(b"\xc1"),  # never used by msgpack
        message_of(b"\x95\x01"),  # ends too early
        message_of(msgpack.packb([BUSY, 1]) + b"\x00"),
        message_of([REQUEST, 1, "a", {"x": msgpack.ExtType(4, b"abc")}, []]),
        message_of(b"\x91" * 4000 + b"\x01"),  # deeper than any body
        message_of(b"\x92\x01\xa2\xff\xfe"),  # no UTF-8
    ],
)
def test_what_no_honest_peer_sends_is_a_fault(data: bytes) -> None:
    with pytest.raises(PeerFault):
        decoder().feed(data)


def test_a_word_of_control_is_small() -> None:
    reader = Decoder(("control",), frames.WHOLE_BYTES)
    with pytest.raises(PeerFault):
        reader.feed(message_of([REQUEST, 1, "a", {}, [40_000]]).replace(b"\x01", b"\x00", 1))


def test_the_timestamp_extension_is_only_a_number() -> None:
    stamp = msgpack.packb(msgpack.Timestamp(5, 0))
    (envelope,) = decoder().feed(message_of(b"\x95\x01\x01\xa1a\x81\xa1t" + stamp + b"\x90"))
    assert envelope.frame is not None
    assert envelope.frame.body == {"t": 5.0}


def test_promised_bytes_take_no_memory_before_they_come() -> None:
    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB

    decoder(2 << 30).feed(message_of([REQUEST, 1, "a", {}, [1 << 20]]))
    before = peak()
    promising = [decoder(2 << 30) for _ in range(4)]
    for each in promising:
        each.feed(message_of([REQUEST, 1, "a", {}, [1 << 30]]))
    assert peak() - before < 64 << 10
    assert sum(each.partial_bytes for each in promising) < 1000


@given(kinds, st.dictionaries(st.text(max_size=8), plain, max_size=4))
def test_gossip_comes_back(kind: str, body: dict[str, Any]) -> None:
    assert frames.decode_gossip(frames.encode_gossip(Frame(kind, body))) == Frame(kind, body)


def test_gossip_is_small_and_has_no_buffers() -> None:
    with pytest.raises(ValueError, match="can't be published"):
        frames.encode_gossip(Frame("beat", {"x": b"y" * (64 << 10)}))
    with pytest.raises(ValueError, match="can't be published"):
        frames.encode_gossip(Frame("beat", {}, (b"x",)))
    with pytest.raises(PeerFault):
        frames.decode_gossip(msgpack.packb(["beat", {"x": b"y" * (64 << 10)}]))


# ------------------------------------------------------------------------------------------------- sizes of kinds

SIZES = {"hop": Size(5000, 100), "word": Size(5000, 0)}


@pytest.mark.parametrize(
    "frame",
    [
        Frame("word", {"x": "y" * 5000}),
        Frame("word", {}, (b"z",)),
        Frame("hop", {}, (bytes(60), bytes(50))),
        Frame("hop", {"x": "y" * 5000}, (bytes(5 << 20), b"")),
    ],
)
@pytest.mark.parametrize("kind", [REQUEST, ANSWER])
def test_of_a_message_that_is_too_large_for_its_kind_nothing_is_kept(frame: Frame, kind: int) -> None:
    with pytest.raises(ValueError, match="not up to 5000"):
        frames.encode(kind, 1, frame, SIZES)
    large, next_one = (
        wire(frames.encode(kind, 7, frame)),
        wire(frames.encode(REQUEST, 8, Frame("hop", {}, (b"a",)), SIZES)),
    )
    reader = Decoder(("hop", "bulk"), 8 << 20, SIZES)
    assert reader.feed(large[:-1]) == []
    assert reader.partial_bytes <= 4 + 5100
    first, second = reader.feed(large[-1:] + next_one)
    assert (first.type, first.id, first.frame) == (kind, 7, Frame(frame.kind, {}))
    assert "not up to 5000" in str(first.excess)
    assert second.excess is None
    assert second.frame is not None
    assert bytes(second.frame.buffers[0]) == b"a"
    assert reader.partial_bytes == 0


def test_the_body_of_a_message_that_is_too_large_is_not_unpacked() -> None:
    """A map in which a name stands twice, or is a number, would be a fault."""
    body = b"\xdf\x00\x00\x10\x00" + b"\x01\x02" * 4096
    header = b"\x95\x01\x07\xa4word" + body + b"\x90"
    [envelope] = Decoder(("hop",), LIMIT, SIZES).feed(message_of(header))
    assert envelope.excess is not None
    with pytest.raises(PeerFault):
        Decoder(("hop",), LIMIT).feed(message_of(header))


@pytest.mark.parametrize("length", [5, 4, 6, 3, 2, 0])
@pytest.mark.parametrize("start", [1, 2, 3, 4, 9, "x", None])
def test_a_large_header_is_judged_like_a_small_one(length: int, start: Any) -> None:
    """With bytes after its end, too."""
    outcomes = []
    for filler in (10, 6000):
        header = msgpack.packb([start, 7, "strange", {"x": "y" * filler}, [], "more"][:length])
        for end in (b"", b"\xc0"):
            try:
                outcomes.append(str([(it.type, it.id) for it in decoder().feed(message_of(header + end))]))
            except PeerFault as fault:
                outcomes.append("fault" if fault else "")
    assert outcomes[:2] == outcomes[2:]


def test_gossip_that_is_too_large_for_its_kind_is_refused() -> None:
    frame = Frame("word", {"x": "y" * 5000})
    with pytest.raises(ValueError, match="can't be published"):
        frames.encode_gossip(frame, SIZES)
    with pytest.raises(OutOfRange, match="not up to 5000"):
        frames.decode_gossip(frames.encode_gossip(frame), SIZES)
    assert frames.decode_gossip(frames.encode_gossip(frame)) == frame
    fits = Frame("word", {"x": "y" * 4900})
    assert frames.decode_gossip(frames.encode_gossip(fits, SIZES), SIZES) == fits
