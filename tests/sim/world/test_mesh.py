"""Gossip on the simulated network: it reaches every subscriber once, round walls and through others."""

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.mesh import GOSSIP_DEGREE, GOSSIP_GRAFTS, Meshes
from swarmd.sim.world.network import LinkSpec, SimNetwork
from tests.sim.nodes import Node, connect, play


def test_gossip_floods_the_subscribers_and_each_hears_it_once() -> None:
    async def test(network: SimNetwork, *nodes: Node) -> None:
        for node in nodes[:-1]:
            node.follow()
        await nodes[0].publish("hello")
        await asyncio.sleep(1)
        assert [node.heard for node in nodes] == [[]] + [[("a", "hello")]] * (len(nodes) - 2) + [[]]
        copies = network.count().gossip
        listeners = len(nodes) - 1
        assert listeners - 1 <= copies <= listeners * GOSSIP_DEGREE

    play(test, "abcdefghijkl")


def test_nobody_is_deaf_in_a_large_mesh() -> None:
    async def test(network: SimNetwork, *nodes: Node) -> None:
        for node in nodes:
            node.follow()
        for node in nodes:
            await node.publish("hello")
        await asyncio.sleep(1)
        assert all(len(node.heard) == len(nodes) - 1 for node in nodes)

    play(test, "".join(map(chr, range(ord("A"), ord("A") + 50))))


def test_gossip_goes_round_a_wall_and_through_others() -> None:
    async def test(network: SimNetwork, a: Node, b: Node, c: Node) -> None:
        b.follow()
        c.follow()
        network.block("a", "b")
        await a.publish("round")
        await asyncio.sleep(1)
        assert b.heard == [("a", "round")]
        network.heal()
        network.block("a", "b")
        network.block("a", "c")
        await a.publish("held")
        await asyncio.sleep(1)
        assert c.heard == [("a", "round")]
        network.heal()
        await asyncio.sleep(1)
        assert (b.heard, c.heard) == ([("a", "round"), ("a", "held")],) * 2

    play(test, "abc")


def test_a_lost_copy_is_gone() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        b.follow()
        for word in range(100):
            await a.publish(word)
        await asyncio.sleep(100)
        assert 30 < len(b.heard) < 70
        assert network.count().gossip == 100

    play(test, link=LinkSpec(loss=0.5))


def test_a_paused_peer_passes_nothing_on_and_hears_it_later() -> None:
    async def main() -> None:
        network = SimNetwork()
        a, b, c = (Node(network, name) for name in "abc")
        await connect(a, b)
        await connect(b, c)
        b.follow()
        c.follow()
        b.machine.pause()
        await a.publish("late")
        await asyncio.sleep(1)
        assert (b.heard, c.heard) == ([], [])
        b.machine.resume()
        await asyncio.sleep(1)
        assert (b.heard, c.heard) == ([("a", "late")],) * 2

    run_virtual(main())


@dataclass
class Way:
    """A connection to a peer, drawn by lot."""

    peer: str
    lot: tuple[int, int]
    meshes: Meshes


def test_meshes_are_mutual_and_about_as_large_as_they_should_be() -> None:
    async def main() -> dict[str, list[str]]:
        draw, names = random.Random(3), [f"p{number}" for number in range(40)]
        ways: dict[str, dict[str, list[Way]]] = {name: {} for name in names}
        listening = Counter[str]()
        meshes = {name: Meshes(name, ways[name], ("news",), listening) for name in names}
        for one, other in itertools.combinations(names, 2):
            lot = (draw.randrange(1000), draw.randrange(1000))
            ways[one][other] = [Way(other, lot, meshes[other])]
            ways[other][one] = [Way(one, lot, meshes[one])]
            meshes[one].opened()
            meshes[other].opened()
        assert meshes["p0"].of("sports") == []
        for name in names:
            meshes[name].chosen("news")
        return {name: meshes[name].of("news") for name in names}

    found = run_virtual(main())
    assert all(name in found[other] for name, others in found.items() for other in others)
    sizes = [len(others) for others in found.values()]
    assert min(sizes) >= GOSSIP_GRAFTS
    assert sum(sizes) / len(sizes) == pytest.approx(GOSSIP_DEGREE, abs=1)
