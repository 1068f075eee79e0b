"""Incarnations: a new life of a peer goes above the lives that others know, within bounds."""

import asyncio

import pytest

from swarmd.errors import Refused
from swarmd.swarm.wire.incarnation import REACH, RISES, RISES_SECONDS, Incarnation
from swarmd.swarm.wire.messages.common import INCARNATION_STEP, Ack
from swarmd.swarm.wire.messages.fields import INCARNATION_LIMIT
from swarmd.swarm.wire.messages.hop import Room
from tests.swarm.cards import card
from tests.swarm.wire.nodes import Node, meet


@pytest.mark.parametrize("who", ["the restarted one", "who knew it before"])
def test_a_life_that_others_take_for_a_former_one_goes_above_that(who: str) -> None:
    async def test(one: Node, other: Node) -> None:
        one.membership.hear(card("b", incarnation=9, addresses=("/old",)), 0.0)
        asker, answerer = (other, one) if who == "the restarted one" else (one, other)
        await asker.links.greet(answerer.links.transport.peer_id)
        assert other.membership.own.incarnation == 9 + INCARNATION_STEP
        assert one.cards[-1] == other.membership.own, "it was heard in its present life"
        assert await asker.links.ask(answerer.links.transport.peer_id, Room(1), deadline_s=1) == Ack()

    meet(test)


def test_whoever_cannot_go_above_is_refused_with_a_sentence() -> None:
    async def test(one: Node, other: Node) -> None:
        one.membership.hear(card("b", incarnation=INCARNATION_LIMIT), 0.0)
        with pytest.raises(Refused, match="don't agree on which of their lives"):
            await other.links.greet("a")
        assert other.membership.own.incarnation == 1
        one.membership.sweep(1000.0)  # once its peer has been silent long enough, the lie is forgotten
        await other.links.greet("a")

    meet(test)


def test_a_liar_raises_an_incarnation_a_few_times_a_minute() -> None:
    async def test(one: Node, other: Node) -> None:
        kept: list[int] = []

        async def keep(incarnation: int) -> None:
            kept.append(incarnation)

        own = Incarnation(one.links.own, keep)
        for _ in range(100):
            await own.rise_above(one.membership.own.incarnation)
        assert kept == [1 + (number + 1) * INCARNATION_STEP for number in range(RISES)]
        assert one.membership.own.incarnation == kept[-1]
        await asyncio.sleep(RISES_SECONDS)
        assert await own.rise_above(kept[-1])
        assert kept[-1] == one.membership.own.incarnation == 1 + (RISES + 1) * INCARNATION_STEP

    meet(test)


def test_an_incarnation_that_cannot_be_written_down_is_not_used() -> None:
    async def full(_incarnation: int) -> None:
        raise OSError(28, "No space left on device")

    async def test(one: Node, other: Node) -> None:
        assert not await Incarnation(one.links.own, full).rise_above(7)
        assert one.membership.own.incarnation == 1

    meet(test)


def test_nobody_s_word_brings_a_life_near_the_end_of_the_numbers() -> None:
    async def test(one: Node, other: Node) -> None:
        own = Incarnation(one.links.own)
        assert not await own.rise_above(1 + REACH)
        assert one.membership.own.incarnation == 1
        assert await own.rise_above(REACH)
        assert not await own.rise_above(one.membership.own.incarnation)

    meet(test)
