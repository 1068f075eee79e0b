"""The time that frames take: bytes, delays, lines that are shared, urgent frames that overtake."""

import asyncio
from typing import Any

import pytest

from swarmd.sim.world.network import LinkSpec, SimNetwork
from swarmd.sim.world.uplinks import HEADER_BYTES
from tests.sim.nodes import SLOW, Node, now, play

BODY = 1000 - HEADER_BYTES  # with its header a frame of this takes 1 s at 1000 bytes/s


def test_a_frame_takes_its_bytes_and_the_delay() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        began = now()
        assert await a.ask("b", "x", BODY, "hop") == "x"
        arrived = b.asked[0][0] - began
        assert arrived == pytest.approx(1.0 + 1.0), "its bytes leave in 1 s, and take 1 s each"
        assert now() - began == pytest.approx(arrived + 0.2 + 1.0), "the answer is a header"

    play(test, link=SLOW)


def test_all_connections_share_a_nodes_uplink() -> None:
    async def test(network: SimNetwork, a: Node, b: Node, c: Node) -> None:
        began = now()
        await asyncio.gather(*(a.ask(peer, "", BODY, "bulk") for peer in "bcb"))
        assert sorted(time - began for time, *_ in b.asked + c.asked) == pytest.approx([2.0, 3.0, 4.0])

    play(test, "abc", SLOW)


def test_all_connections_share_a_nodes_downlink() -> None:
    async def test(network: SimNetwork, a: Node, b: Node, c: Node) -> None:
        began = now()
        await asyncio.gather(b.ask("a", "", BODY, "bulk"), c.ask("a", "", BODY, "bulk"))
        assert [time - began for time, *_ in a.asked] == pytest.approx([2.0, 3.0])

    play(test, "abc", SLOW)


def test_the_slower_end_decides() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        began = now()
        await a.ask("b", "", BODY, "bulk")
        assert b.asked[0][0] - began == pytest.approx(1 + 2), "2 s through the downlink, from the first byte on"

    play(test, link=SLOW, rates={"b": {"downlink": 500.0}})


@pytest.mark.parametrize("urgency", ["hop", "bulk"])
def test_words_do_not_wait_behind_what_is_bulky(urgency: Any) -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        began = now()
        bulky = a.begin("b", "bulky", 10_000 - HEADER_BYTES, urgency)
        await asyncio.sleep(0.5)
        await a.ask("b", "word")
        await bulky
        assert [word for *_, word in b.asked] == ["word", "bulky"]
        word, bulk = (time - began for time, *_ in b.asked)
        assert word == pytest.approx(0.5 + 0.2 + 1)
        assert bulk == pytest.approx(10 + 1 + 0.2), "the word took its time from it"

    play(test, link=SLOW)


def test_activations_overtake_averaging() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        began = now()
        asked = [
            a.begin("b", word, BODY, urgency)
            for word, urgency in (("bulk1", "bulk"), ("bulk2", "bulk"), ("hop1", "hop"), ("hop2", "hop"))
        ]
        await asyncio.gather(*asked)
        assert [word for *_, word in b.asked] == ["hop1", "hop2", "bulk1", "bulk2"]
        assert [time - began for time, *_ in b.asked] == pytest.approx([2, 3, 4, 5])

    play(test, link=SLOW)


def test_jitter_lets_requests_overtake_each_other() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        began = now()
        await asyncio.gather(*(a.ask("b", word) for word in range(50)))
        words = [word for *_, word in b.asked]
        assert sorted(words) == list(range(50))
        assert words != list(range(50))
        assert all(0.01 <= time - began <= 0.111 for time, *_ in b.asked)

    play(test, link=LinkSpec(delay_s=0.01, jitter_s=0.1))


def test_a_lost_frame_of_a_request_comes_again_and_is_handled_once() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        began = now()
        await asyncio.gather(*(a.ask("b", word) for word in range(100)))
        assert sorted(word for *_, word in b.asked) == list(range(100))
        late = [time - began for time, *_ in b.asked]
        assert 30 < sum(seconds < 0.1 for seconds in late) < 70, "about half come at once"
        assert max(late) > 1, "and the patience grows"

    play(test, link=LinkSpec(loss=0.5))


def test_a_way_may_have_a_link_of_its_own() -> None:
    async def test(network: SimNetwork, a: Node, b: Node) -> None:
        network.set_link("a", "b", LinkSpec(delay_s=3))
        began = now()
        await a.ask("b")
        assert now() - began == pytest.approx(3 + 0.002, abs=0.001)

    play(test)
