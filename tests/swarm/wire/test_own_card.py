"""A peer's own card: every change is heard, and what is sent is current and newer than what was sent before."""

import asyncio
import dataclasses

from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.framing import from_frame, to_frame
from swarmd.swarm.wire.messages.fields import ADDRESSES_LIMIT
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card


def test_each_change_is_heard_with_the_card_before() -> None:
    own, before = OwnCard(card("me", stage=1, state="joining")), list[Card]()
    own.on_change(before.append)
    first = own.card
    own.become("serving")
    assert before == [first]
    assert (own.state, own.stage, own.peer) == ("serving", 1, "me")
    own.card = dataclasses.replace(own.card, stage=-1)
    assert own.stage is None
    assert [it.state for it in before] == ["joining", "serving"]


def test_what_is_sent_is_current_and_newer_each_time() -> None:
    own, told, rooms = OwnCard(card("me")), list[Card](), iter((3, 5, 8))

    def measure() -> None:
        own.card = dataclasses.replace(own.card, room=next(rooms))

    async def tell(card: Card) -> None:
        told.append(card)

    async def main() -> None:
        await own.announce()  # nobody can be told yet
        own.on_refresh(measure)
        own.on_announce(tell)
        await own.announce()
        told.append(own.next())
        await own.announce()

    before = own.card.sequence
    asyncio.run(main())
    assert [(it.room, it.sequence - before) for it in told] == [(3, 1), (5, 2), (8, 3)]


def test_the_membership_counts_this_peer_by_its_own_card_and_wakes_who_waits_for_a_change_of_place() -> None:
    async def main() -> None:
        own = OwnCard(card("me", stage=0))
        members = Membership(own)
        waiting = asyncio.create_task(members.changed.wait())
        await asyncio.sleep(0)
        own.card = dataclasses.replace(own.card, room=7, version=3)
        await asyncio.sleep(0)
        assert members.newest().version == 3
        assert members.stage(0) == [own.card]
        assert not waiting.done(), "figures change nobody's mind"
        own.card = dataclasses.replace(own.card, stage=1)
        assert await waiting
        assert (members.stage(0), members.stage(1)) == ([], [own.card])

    asyncio.run(main())


def test_of_its_addresses_a_card_has_as_many_as_others_take() -> None:
    many = tuple(f"/ip4/10.0.0.{number}/tcp/1" for number in range(100))
    own = OwnCard(card("me", addresses=many))
    assert own.card.addresses == many[:ADDRESSES_LIMIT]
    own.card = card("me", addresses=many[2:])
    assert own.card.addresses == many[2 : 2 + ADDRESSES_LIMIT]
    own.card = card("me", addresses=tuple(text * 20 for text in many))
    assert 15 < len(own.card.addresses) < 25, "of all together so many characters"
    assert from_frame(to_frame(own.card)) == own.card
