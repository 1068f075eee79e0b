"""Sizes of messages: each kind has a largest one, and what honest peers build is within it."""

import dataclasses
import typing
from typing import Any

import pytest

from swarmd.config import STAGES_LIMIT
from swarmd.net import frames
from swarmd.swarm.balance.outlook import MOVING_LIMIT
from swarmd.swarm.balance.places import CARDS_BYTES
from swarmd.swarm.membership.gossip import SUMMARY_CARDS
from swarmd.swarm.membership.shown import SHOWN_BYTES, shown
from swarmd.swarm.wire.bounds import Ascending, AtMost, Between, Bytes, Text, Together, Tree
from swarmd.swarm.wire.framing import KINDS, SIZES, packed_bytes, to_frame
from swarmd.swarm.wire.messages.fields import (
    ADDRESSES_CHARACTERS,
    ADDRESSES_LIMIT,
    PARTS_LIMIT,
    PEERS_LIMIT,
    STAGE_LIMIT,
    SUMMARY_BYTES,
)
from swarmd.swarm.wire.messages.presence import Card, Place, Summary
from swarmd.swarm.wire.messages.round import AveragedPart, Holdings, Part, Plan, Standing
from swarmd.swarm.wire.own_card import bounded
from swarmd.values import Encoded
from tests.sim.faults.test_outsider import PARTS
from tests.swarm.cards import card
from tests.swarm.wire.samples import sample

PEER = "12D3KooWGzBqXFsMTtqvEn4dLpUu3ApMoZ2nMk4gpYKpJkRGjz6S"
HASH = "3f1c0a9be7d24f6685c2d3b1f0e9a7c4"
SETTLED = ("Snapshot", "Holdings", "Plan", "Summary", "Place")
"""Kinds of which the whole is less than all fields at once may be: what honest peers build is tried below."""


def largest(hint: Any) -> Any:
    """The largest value of a field that its bounds allow, of plain letters; of a tensor two bytes."""
    bounds: dict[type, Any] = {type(bound): bound for bound in getattr(hint, "__metadata__", ())}
    kind = hint.__origin__ if bounds else hint
    if Ascending in bounds:  # every second one of the highest
        last = bounds[Ascending].limit
        return tuple((at, at + 1) for at in range(last - 2 * bounds[AtMost].most, last, 2))
    if Tree in bounds:
        return {str(n): "x" * 4000 for n in range(bounds[Tree].characters // 4010)}
    if Together in bounds:
        return ("/" + "x" * (bounds[Together].most // bounds[AtMost].most - 1),) * bounds[AtMost].most
    if Between in bounds:
        return kind(bounds[Between].most)
    if Text in bounds:
        return "x" * bounds[Text].most
    if Bytes in bounds:
        return Encoded("x" * 32, (1 << 40,) * 8, (b"a", b"b")) if kind is Encoded else b"a"
    if dataclasses.is_dataclass(kind):
        return largest_of(kind)
    if kind is bool:
        return True
    items = typing.get_args(kind)
    if items[-1] is Ellipsis:
        return (largest(items[0]),) * bounds[AtMost].most
    return tuple(map(largest, items))


def largest_of(cls: Any) -> Any:
    """A message all of whose fields are as large as they may be."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return cls(**{it.name: largest(hints[it.name]) for it in dataclasses.fields(cls)})


def header_bytes(message: Any) -> int:
    """The bytes of a message's header. Raises ValueError if it is too large."""
    frame = to_frame(message)
    payload = sum(memoryview(part).nbytes for part in frame.buffers)
    return frames.encode(frames.REQUEST, 1 << 52, frame, SIZES).nbytes - payload


def test_every_kind_has_a_largest_size_but_parts_of_others() -> None:
    assert set(SIZES) == set(KINDS) - (PARTS - {"SayHello"})
    assert all(frames.SMALL_BYTES <= size.header <= frames.HEADER_BYTES for size in SIZES.values())
    assert SUMMARY_BYTES <= frames.GOSSIP_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_message_with_buffers_has_a_payload(kind: str) -> None:
    if kind in SIZES:
        assert bool(to_frame(sample(kind)).buffers) == bool(SIZES[kind].payload)


@pytest.mark.parametrize("kind", [kind for kind in SIZES if kind not in SETTLED])
def test_a_message_whose_fields_are_as_large_as_they_may_be_is_not_too_large(kind: str) -> None:
    assert header_bytes(largest_of(KINDS[kind])) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_is_counted_as_no_smaller_than_it_is(kind: str) -> None:
    body = to_frame(sample(kind)).body
    assert len(frames._pack(body)) <= packed_bytes(body)


def test_a_card_is_counted_as_little_larger_than_it_is() -> None:
    body = to_frame(honest(1)).body
    assert packed_bytes(body) < 1.2 * len(frames._pack(body))


# ------------------------------------------------------------------------------------------------- what peers build


def honest(number: int, **changes: Any) -> Card:
    """A card that has everything, of a machine with as many addresses as a card takes."""
    addresses = tuple(f"/ip4/172.{number % 256}.{it}.1/tcp/4001/p2p/{PEER}" for it in range(ADDRESSES_LIMIT))
    full: Card = largest_of(Card)
    return dataclasses.replace(
        full,
        peer=f"{PEER[:-5]}{number:05d}",
        addresses=addresses,
        record_hash=HASH,
        data_digest=HASH,
        state="serving",
        device="cuda:0",
        codecs=("int8", "int8-bnb", "fp16", "bf16", "fp32"),
        software="0.1.0",
        torch="2.13.0+cu130",
        final=tuple(range(10)),
        **changes,
    )


def test_an_own_card_fits_whatever_its_machine_has() -> None:
    many = bounded(dataclasses.replace(largest_of(Card), addresses=("/dns4/" + "x" * 400,) * 500))
    assert sum(map(len, many.addresses)) > ADDRESSES_CHARACTERS - 407
    assert header_bytes(many) > 8000


def test_the_summary_of_a_stage_whose_peers_have_all_addresses_fits() -> None:
    cards = tuple(honest(number) for number in range(SUMMARY_CARDS))
    with pytest.raises(ValueError, match="can't be published"):
        frames.encode_gossip(to_frame(Summary(0, cards, PEERS_LIMIT)), SIZES)
    told = shown(cards, SUMMARY_CARDS * SHOWN_BYTES)
    assert [it.peer for it in told] == [it.peer for it in cards]
    assert all(len(it.addresses) >= 16 for it in told)
    assert all(
        small.addresses == whole.addresses[: len(small.addresses)] for small, whole in zip(told, cards, strict=True)
    )
    moving = ((STAGE_LIMIT, 1e300),) * MOVING_LIMIT
    data = frames.encode_gossip(to_frame(Summary(STAGES_LIMIT, told, PEERS_LIMIT, 1.0, PEERS_LIMIT, moving)), SIZES)
    assert len(data) > SUMMARY_BYTES // 2


def test_no_card_keeps_others_out_of_a_summary() -> None:
    """One whose words alone are as large as they may be is left out."""
    cards = (card("a"), dataclasses.replace(largest_of(Card), codecs=("x" * 64,) * 64), card("b"))
    assert shown(cards, SUMMARY_CARDS * SHOWN_BYTES) == (cards[0], cards[2])


def test_cards_of_usual_size_are_shown_as_they_are() -> None:
    cards = tuple(card(f"p{number}") for number in range(48))
    told = shown(cards, CARDS_BYTES)
    assert all(one is other for one, other in zip(told, cards, strict=True))


def test_a_place_shows_as_many_cards_as_fit() -> None:
    cards = tuple(honest(number) for number in range(PEERS_LIMIT))
    told = shown(cards, CARDS_BYTES)
    assert 250 < len(told) < PEERS_LIMIT
    assert header_bytes(Place(1, told, PEER, True, 7)) > SIZES["Place"].header * 3 // 4


def test_the_plan_of_a_large_stage_fits() -> None:
    members = tuple(f"{PEER[:-5]}{number:05d}" for number in range(PEERS_LIMIT))
    parts = tuple(Part(1 << 40, 1 << 41, members[number], HASH) for number in range(PARTS_LIMIT))
    plan = Plan(1 << 40, "x" * 80, members, parts, 1 << 60, "int8-bnb", (1 << 20,) * PEERS_LIMIT)
    assert header_bytes(plan) > SIZES["Plan"].header // 2


def test_the_holdings_of_a_member_of_a_large_stage_fit() -> None:
    gaps = tuple((at, at + 1) for at in range(0, 1 << 15, 2))
    parts = tuple(AveragedPart(1 << 40, 1 << 41, HASH) for _ in range(PARTS_LIMIT))
    holdings = Holdings(gaps, gaps, 1.0, 7, True, 7, parts, standing=Standing("x" * 80, gaps[: PARTS_LIMIT // 2]))
    assert header_bytes(holdings) > SIZES["Holdings"].header // 2
