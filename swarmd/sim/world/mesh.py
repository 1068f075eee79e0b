"""The mesh of each gossip topic, as gossipsub would make it: the peers to whom a simulated peer passes messages on.

Links of a mesh are mutual: a peer's mesh consists of the peers that it chose, by lot, and of those that chose it. So
nobody is deaf, however many there are. Where few are connected, all of them are the mesh.
"""

import asyncio
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from heapq import nsmallest
from typing import Protocol

from swarmd.values import PeerId

GOSSIP_DEGREE = 6  # `degree` of swarmd/net/limits.py: peers to which each passes a gossip message on, about
GOSSIP_GRAFTS = 5  # of them, chosen by itself; with those that chose it they are six on average
MESH_SECONDS = 1.0  # `heartbeat_interval` there: between two looks at a mesh of many

State = tuple[int, int, float]
"""Number of connections opened, number of changes of listeners, and the time of both."""


class Neighbour(Protocol):
    """A connection to a peer that may be of a mesh."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def lot(self) -> tuple[int, int]: ...  # drawn for the connection, the same at both ends

    @property
    def meshes(self) -> "Meshes": ...  # those of that peer


class Meshes:
    """One peer's meshes.

    neighbours: its open connections; topics: those that it hears; subscriptions: number
    of times that any peer began or ceased to hear a topic.
    """

    def __init__(
        self,
        me: PeerId,
        neighbours: Mapping[PeerId, Sequence[Neighbour]],
        topics: Container[str],
        subscriptions: Counter[str],
    ) -> None:
        self.topics = topics
        self._me, self._neighbours, self._subscriptions = me, neighbours, subscriptions
        self._opened = 0  # connections so far
        self._meshes: dict[str, tuple[State, list[PeerId]]] = {}
        self._chosen: dict[str, tuple[State, frozenset[PeerId]]] = {}

    def opened(self) -> None:
        """Takes note of a connection that opened."""
        self._opened += 1

    def closed(self) -> None:
        """Takes note of a connection that closed: nothing may be passed on to it."""
        self._meshes.clear()
        self._chosen.clear()

    def of(self, topic: str) -> list[PeerId]:
        """The peers to whom a message of a topic is passed on."""
        known = self._meshes.get(topic)
        if known is None or not self._stands(known[0], topic):
            mine = self.chosen(topic)
            mesh = [it.peer for it in self._hearing(topic) if it.peer in mine or self._me in it.meshes.chosen(topic)]
            known = self._meshes[topic] = (self._state(topic), mesh)
        return known[1]

    def chosen(self, topic: str) -> frozenset[PeerId]:
        """Chooses peers for a topic's mesh, unless those chosen before still stand; they learn of it."""
        known = self._chosen.get(topic)
        if known is None or not self._stands(known[0], topic):
            hearing = self._hearing(topic)
            if len(hearing) > GOSSIP_DEGREE:
                hearing = nsmallest(GOSSIP_GRAFTS, hearing, key=lambda it: it.lot)
            known = self._chosen[topic] = (self._state(topic), frozenset(it.peer for it in hearing))
            for it in hearing:
                it.meshes.forget(topic)
        return known[1]

    def forget(self, topic: str) -> None:
        """Takes note that a peer chose this one: the mesh is made anew."""
        self._meshes.pop(topic, None)

    def _hearing(self, topic: str) -> list[Neighbour]:
        """A connection to each peer that hears a topic."""
        return [ends[0] for ends in self._neighbours.values() if topic in ends[0].meshes.topics]

    def _state(self, topic: str) -> State:
        return self._opened, self._subscriptions[topic], asyncio.get_running_loop().time()

    def _stands(self, state: State, topic: str) -> bool:
        """True if a choice made at that state still holds."""
        opened, changes, now = self._state(topic)
        if len(self._neighbours) > GOSSIP_DEGREE and now - state[2] < MESH_SECONDS:
            return True
        return (opened, changes) == state[:2]
