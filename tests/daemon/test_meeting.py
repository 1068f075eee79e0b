"""Peers that a home knows are greeted until each is met, in virtual time."""

import asyncio
import random
from typing import Any

from swarmd.daemon.candidates import LONGEST_PAUSE_S
from swarmd.daemon.known_peers import KnownPeer
from swarmd.daemon.meeting import meet_others
from swarmd.errors import Mismatch, PeerUnreachable
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.own_card import OwnCard, first_card


def test_it_goes_on_looking_for_those_it_has_not_met() -> None:
    membership = Membership(OwnCard(first_card("a", 1, (), "cpu", ())))
    greeted: list[str] = []

    class Greeting:
        async def greet(self, peer: str) -> None:
            now = asyncio.get_running_loop().time()
            greeted.append(peer)
            if peer == "b" and now < 500:
                raise PeerUnreachable("dead")
            if peer == "c":
                raise Mismatch("another run")
            membership.hear(first_card(peer, 1, (), "cpu", ()), now)

    async def meet() -> float:
        links: Any = Greeting()
        await meet_others([KnownPeer(peer, ()) for peer in "bcd"], membership, links, random.Random(0))
        return asyncio.get_running_loop().time()

    seconds = run_virtual(meet())
    assert greeted.count("c") == greeted.count("d") == 1
    assert 500 <= seconds < 500 + 3 * LONGEST_PAUSE_S
    assert len(greeted) < 25
