"""Two nodes that converse, over a simulated network."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import SimNetwork
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.hop import Room
from swarmd.swarm.wire.messages.presence import Card, Settings
from swarmd.swarm.wire.own_card import OwnCard
from swarmd.swarm.wire.roles import Needs
from tests.swarm.cards import card


class Lenient:
    """A judge to whom everyone has every role."""

    async def allows(self, peer: str, message: Any, needs: Needs) -> bool:
        return True


@dataclass
class Node:
    """One end, and what it has heard."""

    links: Links
    membership: Membership
    cards: list[Card] = field(default_factory=list)
    rooms: list[tuple[str, int]] = field(default_factory=list)

    async def answer_room(self, peer: str, room: Room) -> Ack:
        self.rooms.append((peer, room.hops))
        return Ack()


def hear(membership: Membership, card: Card) -> None:
    """Takes in the card of a peer that greets."""
    membership.hear(card, asyncio.get_running_loop().time())


def node(network: SimNetwork, name: str, run: str | None = "run") -> Node:
    own = OwnCard(card(name))
    membership = Membership(own)
    settings = None if run is None else Settings({"name": "toy"}, run)
    it = Node(Links(network.transport(name), own, membership, lambda: settings), membership)
    it.links.judge_by(Lenient())
    it.links.on_card(it.cards.append)
    it.links.on_card(lambda card: hear(membership, card))
    it.links.handle(Room, it.answer_room)
    return it


def meet(test: Callable[[Node, Node], Awaitable[None]], other_run: str | None = "run", run: str | None = "run") -> None:
    """Runs a test with two nodes, a and b, that know each other's addresses."""

    async def main() -> None:
        network = SimNetwork()
        one, other = node(network, "a", run), node(network, "b", other_run)
        one.links.transport.learn("b", ())
        other.links.transport.learn("a", ())
        await test(one, other)

    run_virtual(main())
