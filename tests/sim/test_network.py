"""The simulated network: how long frames take, what walls do, and what those at both ends get to see."""

import asyncio
import dataclasses
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.connection import SERVING_PER_PEER
from swarmd.sim.world.damage import WAYS
from swarmd.sim.world.mesh import GOSSIP_DEGREE
from swarmd.sim.world.network import DIAL_SECONDS, LinkSpec, SimNetwork
from swarmd.sim.world.uplinks import HEADER_BYTES
from swarmd.sim.world.world import World
from swarmd.swarm.wire.framing import from_frame, to_frame
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.hop import Beat, Hop, HopBeat, Locate, Room
from swarmd.swarm.wire.messages.state import Chunk
from swarmd.swarm.wire.messages.step import Lease
from swarmd.values import Encoded, Frame
from tests.sim.nodes import SLOW, Node, connect, forever, now, play
from tests.sim.toy import RUN_SECONDS, SHORT, check_agreement, everyone_at, moment, start_all

BODY = 1000 - HEADER_BYTES  # with its header a frame of this takes 1 s at 1000 bytes/s
ROOT = Path(__file__).parents[2]

# ------------------------------------------------------------------------------------------------- arithmetic


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
        asked = [a.begin("b", word, BODY, urgency) for word, urgency in
                 (("bulk1", "bulk"), ("bulk2", "bulk"), ("hop1", "hop"), ("hop2", "hop"))]  # fmt: skip
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


# ------------------------------------------------------------------------------------------------- the port


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


# ------------------------------------------------------------------------------------------------- walls


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


# ------------------------------------------------------------------------------------------------- damage

MESSAGES = [
    Ack(),
    Room(3),
    Locate(1, 2),
    Beat((HopBeat(1, 2, "waiting", 1.0),), 1, 0.5, 0.1),
    Lease(1, ((0, 3),), again=False),
    Hop(1, 2, "r", again=False, evaluate=False, codec="fp32", tokens=b"1234",
                 activation=Encoded("fp32", (1,), (b"abcd",))),
    Commit({"step": 1}),
    Chunk(b"data"),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_damage_is_a_fault_of_form_or_bytes_that_are_missing(message: Any) -> None:
    frame = to_frame(message)
    for way in WAYS:
        for seed in range(20):
            bad = way(frame, random.Random(seed))
            try:
                read = from_frame(bad)
            except PeerFault:
                continue
            assert way.__name__ == "_cut_buffer", f"{way.__name__} went unnoticed: {bad}"
            assert read != message
            assert bad.nbytes < frame.nbytes


def traced(events: Callable[[World], Awaitable[None]], *, seed: int = 0, link: LinkSpec | None = None) -> World:
    """Runs a small swarm to its end and keeps a trace."""
    run = dataclasses.replace(SHORT, steps=4)

    async def main() -> World:
        world = World(run, Text(run), seed=seed, link=link, trace=True)
        await start_all(world)
        await events(world)
        await world.until(lambda: everyone_at(world, run.steps), RUN_SECONDS)
        await world.finish(RUN_SECONDS)
        return world

    return run_virtual(main())


def test_damaged_frames_break_the_connection_and_training_goes_on() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 1))
        world.network.corrupt("middle1", 0.05)
        await moment(world, lambda: any(event.what == "fault" for event in world.trace.events))
        world.heal()

    check_agreement(traced(events))


# ------------------------------------------------------------------------------------------------- gossip


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


# ------------------------------------------------------------------------------------------------- counting, sameness


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


SCRIPT = """
import asyncio
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.faults import point_actions
from tests.sim.test_network import traced
from tests.sim.toy import everyone_at, moment

async def events(world):
    world.fail_at("*", 2, "serve.Plan", point_actions.pause_for(0.5))
    await moment(world, lambda: everyone_at(world, 1))
    world.network.partition([["head1", "middle1"]])
    await asyncio.sleep(1)
    world.heal()
    world.network.clog("head2", "tail1", 0.2)
    world.crash("middle2", power=True)
    await asyncio.sleep(0.1)
    await world.restart("middle2", disk=False)

world = traced(events, seed=5, link=LinkSpec(delay_s=0.01, jitter_s=0.02, loss=0.02))
print(world.trace.count, world.trace.hash)
"""


def test_the_same_seed_gives_the_same_trace_whatever_the_hash_seed() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    answers = [process.communicate(timeout=50) for process in runs]
    assert all(process.returncode == 0 for process in runs), answers
    assert answers[0][0] == answers[1][0]
    assert int(answers[0][0].split()[0]) > 800
