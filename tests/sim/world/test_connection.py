"""Connections of the simulated network, as those at their ends see them: requests, refusals, faults, dials."""

import asyncio
from typing import Any

import pytest

from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.connection import SERVING_PER_PEER
from swarmd.sim.world.network import DIAL_SECONDS, LinkSpec, SimNetwork
from swarmd.values import Frame
from tests.sim.nodes import Node, forever, now, play


def test_a_connection_takes_a_round_trip_and_is_then_kept() -> None:
    async def main() -> None:
        network = SimNetwork(LinkSpec(delay_s=1))
        a, b = Node(network, "a"), Node(network, "b")
        a.transport.learn("b", ())
        await asyncio.gather(a.ask("b"), a.ask("b"))
        assert now() == pytest.approx(4, abs=0.001), "two to connect, two to ask"
        assert network._made == 1, "those who want the same peer share a dial"
        await a.ask("b")
        assert now() == pytest.approx(6, abs=0.001)
        assert (a.transport.connected(), b.transport.connected()) == (("b",), ("a",))
        assert await b.ask("a", "back") == "back", "either side may ask"

    run_virtual(main())


def test_both_dialling_makes_two_and_losing_one_is_no_loss() -> None:
    async def main() -> None:
        network = SimNetwork()
        a, b = Node(network, "a"), Node(network, "b")
        a.transport.learn("b", ())
        b.transport.learn("a", ())
        await asyncio.gather(a.ask("b"), b.ask("a"))
        assert network._made == 2
        a.transport.ends["b"][0].close("test", tell=True)
        await asyncio.sleep(1)
        assert (a.lost, b.lost) == ([], [])
        assert await a.ask("b", "still") == "still"
        network.cut("a", "b")
        await asyncio.sleep(1)
        assert [peer for _, peer in a.lost + b.lost] == ["b", "a"]

    run_virtual(main())


def test_who_has_no_address_or_no_process_is_unreachable() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        with pytest.raises(PeerUnreachable, match="no address of c"):
            await a.ask("c")
        a.transport.learn("c", ())
        with pytest.raises(PeerUnreachable, match="refused"):
            await a.ask("c")
        network.kill("b")
        question = a.begin("b")
        began = now()
        with pytest.raises(PeerUnreachable):
            await question
        assert now() - began < 0.01

    play(test)


def test_a_stopped_process_that_is_killed_takes_no_connection_any_more() -> None:
    """It would be one that nobody ever ends."""

    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        network.cut("a", "b")
        b.machine.pause()
        question = a.begin("b")
        await asyncio.sleep(2)
        assert not question.done(), "a stopped process answers nothing"
        network.kill("b")
        b.machine.crash()
        with pytest.raises(PeerUnreachable, match="refused"):
            await question
        assert now() < DIAL_SECONDS
        assert a.transport.connected() == ()

    play(test, "ab", LinkSpec(delay_s=0.1))


def test_refusals_are_sentences_and_failures_of_ours_are_remembered() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        failed: list[Any] = []
        network.failed = lambda name, trouble: failed.append((name, type(trouble)))

        async def refuse(peer: str, frame: Frame) -> Frame:
            if frame.body["word"] == "bug":
                raise KeyError("bug")
            raise Refused("not now")

        b.handler = refuse
        with pytest.raises(Refused, match="not now"):
            await a.ask("b")
        with pytest.raises(Refused, match="internal error"):
            await a.ask("b", "bug")
        assert failed == [("b", KeyError)]

    play(test)


def test_no_more_than_so_many_requests_are_answered_at_once() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        b.handler = forever
        questions = [a.begin("b") for _ in range(SERVING_PER_PEER + 1)]
        with pytest.raises(Refused, match="as many"):
            await questions[-1]
        assert len(b.machine.tasks()) == SERVING_PER_PEER

    play(test)


def test_a_cancelled_question_is_forgotten_and_the_other_side_not_told() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        ended: list[str] = []

        async def slow(peer: str, frame: Frame) -> Frame:
            await asyncio.sleep(5)
            ended.append("handled")
            return frame

        b.handler = slow
        with pytest.raises(TimeoutError):
            await a.ask("b", deadline_s=1)
        await asyncio.sleep(10)
        assert ended == ["handled"]
        assert network.are_connected("a", "b")

    play(test)


def test_a_fault_costs_the_peer_its_connections() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        async def fault(peer: str, frame: Frame) -> Frame:
            raise PeerFault("nonsense")

        b.handler = fault
        with pytest.raises(PeerUnreachable):
            await a.ask("b")
        assert [peer for _, peer in a.lost + b.lost] == ["b", "a"]
        assert network._connections == {}

    play(test)


def test_dropping_tells_the_other_side() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        b.handler = forever
        question = a.begin("b")
        await asyncio.sleep(1)
        await b.transport.drop("a")
        assert [peer for _, peer in b.lost] == ["a"], "at once here"
        with pytest.raises(PeerUnreachable, match="the other side ended it"):
            await question
        assert [peer for _, peer in a.lost] == ["b"]

    play(test)
