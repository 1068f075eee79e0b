"""The simulated network: walls between peers, and the sums of what they sent."""

import asyncio

import pytest

from swarmd.errors import PeerUnreachable
from swarmd.sim.world.network import DIAL_SECONDS, SimNetwork
from swarmd.sim.world.uplinks import HEADER_BYTES
from tests.sim.nodes import Node, forever, now, play


def test_a_block_is_silent_one_way_and_what_was_held_comes_when_it_ends() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        network.block("a", "b")
        with pytest.raises(TimeoutError):
            await a.ask("b", "held", deadline_s=5)
        b.handler = None
        with pytest.raises(TimeoutError):
            await b.ask("a", "heard", deadline_s=5)  # the question gets through, the answer doesn't
        assert [word for *_, word in a.asked] == ["heard"]
        assert b.asked == []
        assert network.held() == 2
        network.unblock("a", "b")
        assert await a.ask("b", "after") == "after"
        assert [word for *_, word in b.asked] == ["held", "after"]
        assert network.held() == 0
        assert (a.lost, b.lost) == ([], [])

    play(test)


def test_a_partition_is_silence_first_then_both_sides_notice() -> None:
    async def test(network: SimNetwork, a: Node, b: Node, c: Node) -> None:
        b.handler = forever
        question = a.begin("b")
        await asyncio.sleep(1)
        began = now()
        network.partition(["a", "bc"])
        assert network.are_connected("a", "b")
        with pytest.raises(PeerUnreachable, match="nothing got through for 60 s"):
            await question
        assert now() - began == 60
        await asyncio.sleep(1)
        assert a.lost == [(began + 60, "b"), (began + 60, "c")]
        assert b.lost == c.lost == [(began + 60, "a")]
        assert network.are_connected("b", "c")
        assert b.machine.tasks() == [], "the handler was cancelled"

    play(test, "abc", break_seconds=60)


def test_a_partition_that_ends_in_time_breaks_nothing() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        network.partition(["a", "b"])
        question = a.begin("b", "late")
        await asyncio.sleep(59)
        network.heal()
        assert await question == "late"
        network.partition(["a", "b"])
        await asyncio.sleep(59)
        network.heal()
        await asyncio.sleep(59)
        assert (a.lost, b.lost) == ([], [])

    play(test, break_seconds=60)


def test_dials_across_a_partition_time_out() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        network.cut("a", "b")
        network.partition(["a"])
        began = now()
        with pytest.raises(PeerUnreachable, match="no answer within"):
            await a.ask("b")
        assert now() - began == DIAL_SECONDS
        network.heal()
        assert await a.ask("b", "healed") == "healed"

    play(test)


def test_an_end_that_was_dropped_behind_a_wall_is_gone_for_the_other_when_the_wall_is() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        network.partition(["a", "b"])
        await a.transport.drop("b")
        await asyncio.sleep(5)
        assert b.transport.connected() == ("a",), "nobody could tell it"
        question = b.begin("a")
        network.heal()
        with pytest.raises(PeerUnreachable):
            await question
        assert b.transport.connected() == ()

    play(test)


def test_a_clog_holds_frames_and_lets_them_go_in_order() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        began = now()
        network.clog("a", "b", 5)
        questions = [a.begin("b", word) for word in range(5)]
        await asyncio.gather(*questions)
        assert [word for *_, word in b.asked] == list(range(5))
        assert [time for time, *_ in b.asked] == pytest.approx([began + 5.002] * 5, abs=1e-5)
        assert not network.walled

    play(test)


def test_power_that_is_lost_is_silence_until_the_connection_breaks() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        question = a.begin("b")
        began = now()
        network.kill("b", power=True)
        b.machine.crash()
        with pytest.raises(PeerUnreachable, match="nothing got through"):
            await question
        assert now() - began == 60
        assert b.asked == []
        with pytest.raises(PeerUnreachable, match="no answer within"):
            await a.ask("b")
        assert now() - began == 70

    play(test, break_seconds=60)


def test_a_machine_that_boots_again_resets_what_its_life_before_had() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        question = a.begin("b")
        network.kill("b", power=True)
        b.machine.crash()
        await asyncio.sleep(5)
        again = Node(network, "b")
        with pytest.raises(PeerUnreachable, match="the other side ended it"):
            await question
        assert await a.ask("b", "again") == "again"
        assert [word for *_, word in again.asked] == ["again"], "it doesn't get what was meant for the life before"

    play(test)


def test_a_broken_connection_takes_its_held_frames_along() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        network.block("a", "b")
        a.begin("b", "never")
        await asyncio.sleep(1)
        assert network.held() == 1
        network.cut("a", "b")
        assert network.held() == 0
        network.heal()
        await asyncio.sleep(1)
        assert b.asked == []

    play(test)


def test_everything_is_counted_by_peer_and_by_kind() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        for _ in range(3):
            await a.ask("b", "", 100, "hop")
        b.follow()
        await a.publish("news")
        counts, total = a.transport.counts, network.count()
        assert (counts.requests, counts.gossip, b.transport.counts.requests) == (3, 1, 0)
        assert counts.frames == {"Word": 3, "News": 1}
        assert b.transport.counts.frames == {"Echo": 3}
        assert total.frames == {"Word": 3, "News": 1, "Echo": 3}
        assert total.bytes["Word"] == 3 * (100 + HEADER_BYTES)
        network.kill("b")
        assert network.count() == total, "the dead count, too"
        sent, received = a.transport.traffic()
        assert (sent, received) == (total.bytes["Word"] + total.bytes["News"], total.bytes["Echo"])

    play(test)
