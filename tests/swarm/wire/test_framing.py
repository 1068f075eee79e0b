"""Messages: each goes through a frame unchanged; what isn't exactly one of ours is its sender's fault."""

import dataclasses
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import PeerFault
from swarmd.swarm.wire.framing import ITEMS, KINDS, TEXT_CHARACTERS, from_frame, to_frame
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.hop import Hop
from swarmd.swarm.wire.messages.presence import Card, Place, Summary
from swarmd.swarm.wire.messages.round import Plan
from swarmd.swarm.wire.messages.state import Chunk
from swarmd.swarm.wire.messages.step import AskLease
from swarmd.values import Buffer, Encoded, Frame
from tests.swarm.cards import card

ENCODED = Encoded("int8", (2, 3), (b"codes", b"scales"))


def filled(hint: Any) -> Any:
    """Some value of a field's type."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and hint is not Encoded:
        return hint(**{name: filled(it) for name, it in typing.get_type_hints(hint).items()})
    values = {int: 7, str: "text", bool: True, float: 0.5, Buffer: b"bytes", Encoded: ENCODED}
    if hint in values:
        return values[hint]
    if typing.get_origin(hint) is dict:
        return {"key": [1, "two", None]}
    items = typing.get_args(hint)
    if items[-1] is Ellipsis:
        return (filled(items[0]), filled(items[0]))
    return tuple(filled(item) for item in items)


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
    "an unknown kind": Frame("Dance", {}),
    "a kind that is something else": Frame("Any", {}),
    "no fields": Frame("Hop", {}),
    "a field too many": body(Ack(), more=1),
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
    "a tensor of too many buffers": body(HOP, activation=["fp32", [1], 9]),
    "a tensor of fewer than no buffers": body(HOP, activation=["fp32", [1], -1]),
    "a tensor with more buffers than came": body(HOP, activation=["fp32", [1], 3]),
    "a tensor with fewer buffers than came": body(HOP, activation=["fp32", [1], 1]),
    "a pair of three": body(filled(AskLease), leased=[[1, 2, 3]]),
    "a pair of texts": body(filled(AskLease), leased=[["a", "b"]]),
    "a part that is a list": body(filled(Plan), parts=[[0, 1, "a"]]),
    "a part with a field too few": body(filled(Plan), parts=[{"start": 0, "stop": 1}]),
    "a record that is a list": body(filled(KINDS["Commit"]), record=[]),
    "a record with numbers for names": body(filled(KINDS["Commit"]), record={1: 2}),
    "a text without end": body(HOP, record_hash="r" * (TEXT_CHARACTERS + 1)),
    "a text without end among others": body(CARD, codecs=["fp32", "c" * (TEXT_CHARACTERS + 1)]),
    "addresses without end": body(CARD, addresses=["a"] * (ITEMS["Card.addresses"] + 1)),
    "a summary of a crowd": body(Summary(0, (), 1), cards=[to_frame(CARD).body] * (ITEMS["Summary.cards"] + 1)),
    "a buffer missing": Frame("Chunk", to_frame(Chunk(b"")).body),
    "a buffer too many": Frame("Ack", {}, (b"extra",)),
}


@pytest.mark.parametrize("frame", WRONG.values(), ids=WRONG.keys())
def test_what_is_not_exactly_a_message_is_its_senders_fault(frame: Frame) -> None:
    with pytest.raises(PeerFault):
        from_frame(frame)


def test_every_bound_on_items_is_of_a_field() -> None:
    for where in ITEMS:
        kind, _, name = where.partition(".")
        assert typing.get_origin(typing.get_type_hints(KINDS[kind])[name]) is tuple


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
    """Some fields right, some anything, with any buffers: nothing but a PeerFault or a usable message comes out."""
    frame = to_frame(filled(KINDS[kind]))
    names = sorted(frame.body)
    changes = {name: data.draw(ANYTHING) for name in names if data.draw(st.booleans())}
    buffers = tuple(data.draw(st.lists(st.binary(max_size=4), max_size=4)))
    try:
        message = from_frame(Frame(kind, {**frame.body, **changes}, buffers))
    except PeerFault:
        return
    assert type(message) is KINDS[kind]
    assert len(to_frame(message).buffers) == len(buffers)
