"""Who is asked in a round, for how long, and who is left out of it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from swarmd.errors import Overruled, PeerUnreachable, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.handouts import Handouts
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.rounds.round import (
    HASTY_SECONDS,
    PATIENCE_CEILING_SECONDS,
    PATIENCE_FLOOR_SECONDS,
    SILENCES,
    Round,
)
from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Ballot
from swarmd.swarm.wire.messages.hop import NOBODY, Blame
from swarmd.swarm.wire.messages.round import AskHoldings, Close, Freeze, Holdings
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card

FROZEN = Holdings((), (), 0.0, 0, True)
BLAME = Blame("loss", 1, "b", 3)


class Members:
    """Links to peers that answer, refuse, can't be reached, or are silent."""

    def __init__(self, **troubles: Exception | None) -> None:
        self.troubles = troubles
        self.silent: set[str] = set()
        self.heard: Callable[[str], None] = lambda peer: None
        self.asked: list[str] = []

    async def ask(self, peer: str, question: Any, **options: Any) -> Holdings:
        self.asked.append(peer)
        if peer in self.silent:
            await asyncio.get_running_loop().create_future()
        self.heard(peer)
        if (trouble := self.troubles.get(peer)) is not None:
            raise trouble
        return FROZEN


def lead(members: Members, test: Callable[[Round, Membership], Awaitable[None]], **own: Any) -> None:
    """Runs a test with the round of stage 1 that peer `a` leads, of whose stage `b` and `c` are, too."""

    async def main() -> None:
        membership = Membership(OwnCard(card("a", stage=1, **own)))
        for peer in ("b", "c"):
            membership.hear(card(peer, stage=1), asyncio.get_running_loop().time())
        members.heard = lambda peer: membership.touch(peer, asyncio.get_running_loop().time())
        close = Close(3, "record", Ballot(2, "d"))  # a conductor may leave the stage out
        await test(Round(cast("Links", members), membership, Signal(), close, 1, Handouts()), membership)

    run_virtual(main())


def test_who_answers_is_a_member() -> None:
    async def test(it: Round, membership: Membership) -> None:
        assert await it.ask_members(it.freeze()) == {"a": FROZEN, "c": FROZEN}
        assert (it.asked, it.left_out) == ({"a", "b", "c"}, set())

    lead(Members(b=PeerUnreachable("gone")), test)


def test_who_stays_silent_twice_is_left_out() -> None:
    members = Members()
    members.silent = {"b"}

    async def test(it: Round, membership: Membership) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(SILENCES):
            assert it.left_out == set()
            began = loop.time()
            assert set(await it.ask_members(it.freeze())) == {"a", "c"}
            assert loop.time() - began == pytest.approx(it.patience(), abs=0.1)
        assert it.left_out == {"b"}
        members.asked.clear()
        await it.ask_members(it.freeze())
        assert members.asked == ["a", "c"]

    lead(members, test)


def test_an_answer_in_between_makes_a_silence_good() -> None:
    members = Members()

    async def test(it: Round, membership: Membership) -> None:
        for silent in ({"b"}, set[str](), {"b"}, set[str]()):
            members.silent = silent
            await it.ask_members(it.freeze())
        assert it.left_out == set()

    lead(members, test)


def test_nobody_waits_long_for_one_that_was_not_heard_of_and_it_is_asked_once() -> None:
    members = Members()
    members.silent = {"b"}

    async def test(it: Round, membership: Membership) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(1000)
        for peer in ("a", "c"):
            membership.hear(card(peer, stage=1, sequence=2), loop.time())
        assert membership.is_silent("b", loop.time()) and not membership.is_silent("c", loop.time())
        began = loop.time()
        assert set(await it.ask_members(it.freeze())) == {"a", "c"}
        assert loop.time() - began == pytest.approx(HASTY_SECONDS, abs=0.1)
        members.asked.clear()
        await it.ask_members(it.freeze())
        assert members.asked == ["a", "c"]

    lead(members, test)


def test_a_leader_whose_own_device_is_silent_does_not_go_on() -> None:
    members = Members()
    members.silent = {"a"}

    async def test(it: Round, membership: Membership) -> None:
        await it.ask_members(it.freeze())
        with pytest.raises(Refused, match="device of this peer"):
            await it.ask_members(it.freeze())

    lead(members, test)


def test_a_leader_that_is_not_at_work_does_not_go_on() -> None:
    async def test(it: Round, membership: Membership) -> None:
        with pytest.raises(Refused, match="isn't at work"):
            await it.ask_members(it.freeze())

    lead(Members(), test, state="joining")


def test_another_leader_ends_the_round_at_once() -> None:
    members = Members(b=Overruled("later"))
    members.silent = {"c"}

    async def test(it: Round, membership: Membership) -> None:
        began = asyncio.get_running_loop().time()
        with pytest.raises(Overruled, match="later"):
            await it.ask_members(it.freeze())
        assert asyncio.get_running_loop().time() == began

    lead(members, test)


@pytest.mark.parametrize(
    ("service_s", "patience_s"),
    [(0.01, PATIENCE_FLOOR_SECONDS), (2.0, 20.0), (1000.0, PATIENCE_CEILING_SECONDS), (float("nan"), 5.0)],
)
def test_patience_follows_the_slowest_of_the_stage(service_s: float, patience_s: float) -> None:
    async def test(it: Round, membership: Membership) -> None:
        membership.hear(card("d", stage=1, service_seconds=service_s), 0.0)
        membership.hear(card("e", stage=2, service_seconds=5.0), 0.0)
        assert it.patience() == patience_s

    lead(Members(), test)


def test_the_first_blame_is_the_one_that_is_told() -> None:
    async def test(it: Round, membership: Membership) -> None:
        assert it.thaw([2, 3]) == AskHoldings(3, "record", Ballot(2, "d"), 1, it.thaw([2, 3]).spared, NOBODY)
        it.skip(BLAME)
        it.skip(Blame("gradient", 2, "x", 1))
        assert it.blame == BLAME
        assert it.thaw(blame=it.blame).blame == BLAME
        assert it.freeze(watch=True) == Freeze(3, "record", Ballot(2, "d"), 1, watch=True)

    lead(Members(), test)
