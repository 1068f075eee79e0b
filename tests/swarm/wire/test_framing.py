"""Messages: each goes through a frame unchanged; what no release sends is its sender's fault, and what another release
may send is refused, or passed over.
"""

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import OutOfRange, PeerFault, UnknownKind
from swarmd.swarm.wire.framing import KINDS, TENSOR_BUFFERS, fields_of, from_frame, to_frame
from swarmd.swarm.wire.messages.fields import (
    ADDRESSES_LIMIT,
    CHUNK_LIMIT_BYTES,
    INCARNATION_LIMIT,
    RANGES_LIMIT,
    RECORD_BYTES,
    SUMMARY_CARDS_LIMIT,
)
from swarmd.swarm.wire.messages.hop import Hop
from swarmd.swarm.wire.messages.presence import Card, Place, Summary
from swarmd.swarm.wire.messages.round import Plan
from swarmd.swarm.wire.messages.state import Chunk
from swarmd.swarm.wire.messages.step import AskLease
from swarmd.values import Encoded, Frame
from tests.swarm.cards import card
from tests.swarm.wire.samples import filled, sample


@pytest.mark.parametrize("kind", KINDS)
def test_every_message_goes_through_a_frame_unchanged(kind: str) -> None:
    message = filled(KINDS[kind])
    frame = to_frame(message)
    assert frame.kind == kind
    assert from_frame(frame) == message


def test_buffers_travel_beside_the_body_in_order_and_uncopied() -> None:
    tokens, codes, scales = b"tokens", bytearray(b"codes"), memoryview(b"scales")
    hop = Hop(1, 2, "r", False, False, "fp32", tokens, Encoded("int8", (4,), (codes, scales)))
    frame = to_frame(hop)
    assert [id(buffer) for buffer in frame.buffers] == [id(tokens), id(codes), id(scales)]
    assert frame.nbytes == 17
    assert "tokens" not in str(frame.body["tokens"])


def test_messages_within_messages_keep_their_types() -> None:
    place = Place(1, (card("a"), card("b", addresses=())))
    again = from_frame(to_frame(place))
    assert again == place
    assert all(isinstance(it, Card) for it in again.cards)


def body(message: Any, **changes: Any) -> Frame:
    frame = to_frame(message)
    return dataclasses.replace(frame, body={**frame.body, **changes})


HOP = filled(Hop)
CARD = card("a")
WRONG: dict[str, Frame] = {
    "no fields": Frame("Hop", {}),
    "text for a number": body(HOP, step="1"),
    "a truth for a number": body(HOP, step=True),
    "a number for a truth": body(HOP, again=1),
    "a fraction for a number": body(HOP, step=1.0),
    "no number for a number": body(CARD, service_seconds=float("nan")),
    "an infinity for a number": body(CARD, service_seconds=float("-inf")),
    "an infinity within a message": body(filled(Place), cards=[{**to_frame(CARD).body, "memory_bytes": float("inf")}]),
    "a number beyond all numbers": body(CARD, service_seconds=10**400),
    "a truth for a fraction": body(CARD, service_seconds=True),
    "nothing for text": body(HOP, record_hash=None),
    "bytes for text": body(HOP, record_hash=b"r"),
    "text for a list": body(CARD, addresses="abc"),
    "numbers in a list of texts": body(CARD, addresses=[1]),
    "a tensor that is a number": body(HOP, activation=3),
    "a tensor without its parts": body(HOP, activation=["fp32", [1]]),
    "a tensor of negative size": body(HOP, activation=["fp32", [-1], 1]),
    "a tensor of fractions": body(HOP, activation=["fp32", [1.5], 1]),
    "a tensor of truths": body(HOP, activation=["fp32", [True], 1]),
    "a tensor of fewer than no buffers": body(HOP, activation=["fp32", [1], -1]),
    "a tensor with more buffers than came": body(HOP, activation=["fp32", [1], 3]),
    "a tensor with fewer buffers than came": body(HOP, activation=["fp32", [1], 1]),
    "a pair of three": body(filled(AskLease), leased=[[1, 2, 3]]),
    "a pair of texts": body(filled(AskLease), leased=[["a", "b"]]),
    "a part that is a list": body(filled(Plan), parts=[[0, 1, "a"]]),
    "a part with a field too few": body(filled(Plan), parts=[{"start": 0, "stop": 1}]),
    "settings that are a list": body(filled(KINDS["Settings"]), run=[]),
    "settings with numbers for names": body(filled(KINDS["Settings"]), run={1: 2}),
    "a buffer missing": Frame("Chunk", to_frame(Chunk(b"")).body),
    "a buffer too many": Frame("Ack", {}, (b"extra",)),
}


@pytest.mark.parametrize("frame", WRONG.values(), ids=WRONG.keys())
def test_what_no_release_sends_is_its_senders_fault(frame: Frame) -> None:
    with pytest.raises(PeerFault):
        from_frame(frame)


CARDS = [to_frame(CARD).body]
OUT_OF_RANGE: dict[str, tuple[Frame, str]] = {
    "a step before the first": (body(HOP, step=-1), "Hop.step is -1"),
    "a step beyond all": (body(HOP, step=1 << 62), "Hop.step is"),
    "a stage below all": (body(HOP, stage=-2), "Hop.stage is -2"),
    "a number that must not be negative": (body(CARD, service_seconds=-0.5), "Card.service_seconds is -0.5"),
    "a whole number for one that is too large": (body(CARD, service_seconds=1 << 63), "Card.service_seconds is"),
    "a text without end": (body(HOP, record_hash="r" * 65), "Hop.record_hash has 65 characters"),
    "a text that can't be shown": (body(HOP, record_hash="a\x1b[2J"), "that can't be shown"),
    "a text without end among others": (body(CARD, codecs=["fp32", "c" * 65]), "Card.codecs has 65 characters"),
    "too many addresses": (body(CARD, addresses=["a"] * (ADDRESSES_LIMIT + 1)), "Card.addresses has 65 items"),
    "too much of addresses": (body(CARD, addresses=["a" * 512] * 17), "Card.addresses has 8704 characters in all"),
    "an incarnation that none can top": (body(CARD, incarnation=INCARNATION_LIMIT + 1), "Card.incarnation is"),
    "a summary of a crowd": (body(Summary(0, (), 1), cards=CARDS * (SUMMARY_CARDS_LIMIT + 1)), "has 65 items"),
    "more peers than there can be": (body(Summary(0, (), 1), peers=1 << 13), "Summary.peers is 8192"),
    "ranges out of order": (body(filled(AskLease), leased=[[3, 5], [1, 2]]), "AskLease.leased has 1..2 out of order"),
    "an empty range": (body(filled(AskLease), leased=[[3, 3]]), "AskLease.leased has 3..3 out of order"),
    "a range without end": (body(filled(AskLease), leased=[[0, 1 << 40]]), "AskLease.leased has 0..1099511627776"),
    "too many ranges": (body(filled(AskLease), leased=[[0, 1]] * (RANGES_LIMIT + 1)), "AskLease.leased has 16385"),
    "a bad number within a message": (body(sample("Place"), cards=[{**CARDS[0], "room": -1}]), "Card.room is -1"),
    "a tensor of too many buffers": (body(HOP, activation=["fp32", [1], TENSOR_BUFFERS + 1]), "in 9 buffers"),
    "a tensor of too many dimensions": (body(HOP, activation=["fp32", [1] * 9, 1]), "of 9 dimensions"),
    "a tensor in a codec without end": (body(HOP, activation=["f" * 33, [1], 1]), "whose name is 33 characters"),
    "a tensor in a codec that can't be shown": (body(HOP, activation=["f\x07", [1], 1]), "or can't be shown"),
    "settings that are too deep": (body(sample("Settings"), run={"a": [[[[[]]]]]}), "nested more than 4 times"),
    "settings without end": (body(sample("Settings"), run={"a": [0] * (1 << 17)}), "values"),
    "settings of long words": (body(sample("Settings"), run={"a": ["b" * (1 << 20)]}), "characters"),
    "a record without end": (
        dataclasses.replace(to_frame(sample("Commit")), buffers=(bytes(RECORD_BYTES + 1),)),
        f"not up to {RECORD_BYTES}",
    ),
    "a buffer without end": (Frame("Chunk", {"data": None}, (bytes(CHUNK_LIMIT_BYTES + 1),)), "Chunk.data has"),
}


@pytest.mark.parametrize(("frame", "why"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE.keys())
def test_what_another_release_may_have_meant_well_is_refused(frame: Frame, why: str) -> None:
    with pytest.raises(OutOfRange, match=re.escape(why)):
        from_frame(frame)


@pytest.mark.parametrize("kind", ["Dance", "Any", "PeerId"])
def test_an_unknown_kind_is_refused_with_a_sentence(kind: str) -> None:
    with pytest.raises(UnknownKind, match=f"this release doesn't know messages of kind '{kind}'"):
        from_frame(Frame(kind, {"more": 1}, (b"buffer",)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_field_is_passed_over(kind: str) -> None:
    """Also within other messages."""
    assert from_frame(body(sample(kind), more={"of": [1, 2]})) == sample(kind)
    place = body(sample("Place"), cards=[{**CARDS[0], "more": 1}])
    assert from_frame(place).cards == (CARD,)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_bounds(kind: str) -> None:
    """`fields_of` raises TypeError otherwise."""
    assert [it.name for it in fields_of(KINDS[kind])] == [it.name for it in dataclasses.fields(KINDS[kind])]


def test_a_message_of_ours_that_breaks_its_bounds_is_a_bug_and_not_sent() -> None:
    broken: list[tuple[Any, str]] = [
        (dataclasses.replace(HOP, step=-1), "a Hop that no peer would take: Hop.step is -1"),
        (dataclasses.replace(CARD, service_seconds=float("nan")), "Card.service_seconds is nan"),
        (dataclasses.replace(CARD, addresses=("a",) * (ADDRESSES_LIMIT + 1)), "Card.addresses has 65 items"),
        (dataclasses.replace(filled(AskLease), leased=((3, 2),)), "AskLease.leased has 3..2 out of order"),
        (Place(1, (dataclasses.replace(CARD, room=-1),)), "Card.room is -1"),
    ]
    for message, why in broken:
        with pytest.raises(ValueError, match=re.escape(why)):
            to_frame(message)


def test_a_card_is_short() -> None:
    """Fields that have their default are not gossiped."""
    defaults: dict[str, Any] = {it.name: it.default for it in dataclasses.fields(CARD) if has_default(it)}
    usual = dataclasses.replace(CARD, **defaults)
    body = to_frame(usual).body
    assert not [it.name for it in dataclasses.fields(CARD) if has_default(it) and it.name in body]
    assert from_frame(to_frame(usual)) == usual
    assert to_frame(dataclasses.replace(usual, spare=False)).body["spare"] is False


def has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING


def test_a_body_that_is_no_map_is_its_senders_fault() -> None:
    bodies: tuple[Any, ...] = (None, 3, [], "text")
    for wrong in bodies:
        with pytest.raises(PeerFault):
            from_frame(Frame("Ack", wrong))


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_earlier_release_does_not_send_has_its_default(kind: str) -> None:
    later = {it.name: it.default for it in dataclasses.fields(KINDS[kind]) if it.default is not dataclasses.MISSING}
    frame = to_frame(dataclasses.replace(filled(KINDS[kind]), **later))
    old = dataclasses.replace(frame, body={name: it for name, it in frame.body.items() if name not in later})
    assert from_frame(old) == from_frame(frame)


def test_whole_numbers_are_taken_for_fractions() -> None:
    """msgpack of other languages writes 2.0 as 2."""
    assert from_frame(body(CARD, service_seconds=2)).service_seconds == 2.0


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_arbitrary_bodies_give_a_message_or_a_fault(kind: str, data: st.DataObject) -> None:
    """Some fields right, some anything, with any buffers: a fault, a refusal or a usable message comes out."""
    frame = to_frame(filled(KINDS[kind]))
    names = sorted(frame.body)
    changes = {name: data.draw(ANYTHING) for name in names if data.draw(st.booleans())}
    buffers = tuple(data.draw(st.lists(st.binary(max_size=4), max_size=4)))
    try:
        message = from_frame(Frame(kind, {**frame.body, **changes}, buffers))
    except (PeerFault, OutOfRange):
        return
    assert type(message) is KINDS[kind]
    assert len(to_frame(message).buffers) == len(buffers)
