"""To whom a simulated peer passes gossip on: the mesh of each topic, as gossipsub would make it.

Links of a mesh are mutual: a peer's mesh are those whom it chose, by lot, and those who chose it. So nobody is deaf,
however many there are. Where few are connected, all of them are the mesh.
"""

import asyncio
from heapq import nsmallest
from typing import TYPE_CHECKING

from swarmd.values import PeerId

if TYPE_CHECKING:
    from swarmd.sim.world.transport import End, SimTransport

GOSSIP_DEGREE = 6  # `degree` of swarmd/net/limits.py: peers to whom each passes a gossip message on, about
GOSSIP_GRAFTS = 5  # of them, whom it chose itself; with those who chose it they are six on average
MESH_SECONDS = 1.0  # `heartbeat_interval` there: between two looks at a mesh of many

State = tuple[int, int, float]
"""How many connections had been opened, how often listeners had changed, and when that was."""


class Meshes:
    """One peer's meshes."""

    def __init__(self, transport: "SimTransport") -> None:
        self._transport = transport
        self._opened = 0  # connections so far
        self._meshes: dict[str, tuple[State, list[tuple[PeerId, End]]]] = {}
        self._chosen: dict[str, tuple[State, frozenset[PeerId]]] = {}

    def opened(self) -> None:
        """There is one more connection."""
        self._opened += 1

    def closed(self) -> None:
        """There is one less: nothing may be passed on to it."""
        self._meshes.clear()
        self._chosen.clear()

    def of(self, topic: str) -> "list[tuple[PeerId, End]]":
        """Who gets a message of a topic, and by which connection."""
        known = self._meshes.get(topic)
        if known is None or not self._stands(known[0], topic):
            mine, me = self.chosen(topic), self._transport.peer_id
            ends = ((peer, ends[0]) for peer, ends in self._transport.ends.items())
            hear = [(peer, end) for peer, end in ends if topic in end.other.transport.listeners]
            mesh = [(peer, end) for peer, end in hear if peer in mine or me in end.other.transport.meshes.chosen(topic)]
            known = self._meshes[topic] = (self._state(topic), mesh)
        return known[1]

    def chosen(self, topic: str) -> frozenset[PeerId]:
        """Whom this peer chose; they learn of it."""
        known = self._chosen.get(topic)
        if known is None or not self._stands(known[0], topic):
            ends = [ends[0] for ends in self._transport.ends.values() if topic in ends[0].other.transport.listeners]
            if len(ends) > GOSSIP_DEGREE:
                ends = nsmallest(GOSSIP_GRAFTS, ends, key=lambda end: end.lot)
            known = self._chosen[topic] = (self._state(topic), frozenset(end.peer for end in ends))
            for end in ends:
                end.other.transport.meshes.forget(topic)
        return known[1]

    def forget(self, topic: str) -> None:
        """Someone chose this peer: its mesh is made anew."""
        self._meshes.pop(topic, None)

    def _state(self, topic: str) -> State:
        return self._opened, self._transport.network.subscriptions[topic], asyncio.get_running_loop().time()

    def _stands(self, state: State, topic: str) -> bool:
        """Whether what was chosen then still holds."""
        opened, changes, now = self._state(topic)
        if len(self._transport.ends) > GOSSIP_DEGREE and now - state[2] < MESH_SECONDS:
            return True
        return (opened, changes) == state[:2]
