"""Whole peers over TCP on loopback: requests, connections that come and go, gossip, starting and stopping."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import libp2p.stream_muxer.yamux.yamux as yamux
import pytest
from libp2p.host.exceptions import StreamFailure

from swarmd.errors import ConfigError, PeerUnreachable, Refused, WrongPeer
from swarmd.net.limits import TransportLimits
from swarmd.swarm.wire.messages.common import INCARNATION_STEP
from swarmd.values import Frame
from tests.net.peers import PATIENCE_S, Peer, until

Make = Callable[..., Awaitable[Peer]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Starts peers by name (a name is a key); stops them at the end."""
    running: list[Peer] = []

    async def start(name: str, **options: object) -> Peer:
        running.append(await Peer.start(tmp_path / f"{name}.key", **options))  # type: ignore[arg-type]
        return running[-1]

    yield start
    await asyncio.gather(*(peer.stop() for peer in running))


@pytest.mark.parametrize("on_uvloop", [False, True])
async def test_a_request_finds_its_way_and_back(make: Make, on_uvloop: bool) -> None:
    one, two = await make("one", on_uvloop=on_uvloop), await make("two", on_uvloop=on_uvloop)
    one.transport.learn(two.id, [two.address])
    payload = os.urandom(3 << 20)
    answer = await one.request(two, Frame("hop", {"step": 1}, (payload, b"", b"scales")), urgency="hop")
    assert (answer.kind, answer.body) == ("echo", {"step": 1})
    assert [bytes(part) for part in answer.buffers] == [payload, b"", b"scales"]
    assert (await two.request(one, Frame("beat", {}))).kind == "echo"  # over the same connection
    assert one.transport.connected() == (two.id,)
    assert two.transport.connected() == (one.id,)
    sent, received = one.transport.traffic()
    assert sent > len(payload)
    assert received > len(payload)


async def test_who_cannot_be_reached_is_said_in_a_sentence(make: Make) -> None:
    one, two = await make("one"), await make("two")
    with pytest.raises(PeerUnreachable, match="no address of it"):
        await one.request(two, Frame("x", {}))
    one.transport.learn(two.id, ["/ip4/127.0.0.1/tcp/1"])
    with pytest.raises(PeerUnreachable, match=r"can't be reached at /ip4/127\.0\.0\.1/tcp/1"):
        await one.request(two, Frame("x", {}))
    with pytest.raises(WrongPeer, match="another peer than 12D3KooWLRPJ"):
        await one.do(
            one.transport.connect(two.address.replace(two.id, "12D3KooWLRPJoDwC5h3QfNnQ2ZyhMVzTQb2mMhkRLz2dHUPLhGXn"))
        )
    with pytest.raises(PeerUnreachable, match="itself"):
        await one.do(one.transport.connect(one.address))
    with pytest.raises(ConfigError):
        await one.do(one.transport.connect("/ip4/127.0.0.1/tcp/1"))
    one.transport.learn(two.id, [two.address])
    assert (await one.request(two, Frame("x", {}))).kind == "echo"  # nothing of that is held against it
    assert [str(address) for address in one.transport.book.known(two.id).worked] == [two.address]


async def test_where_a_peer_was_not_it_is_not_dialled_again_at_once(make: Make) -> None:
    one, two = await make("one"), await make("two")
    one.transport.learn(two.id, ["/ip4/127.0.0.1/tcp/1"])
    sentences, ended = set(), time.monotonic() + 2.5
    tries = 0
    while time.monotonic() < ended:
        with pytest.raises(PeerUnreachable, match="can't be reached at /ip4/127") as trouble:
            await one.request(two, Frame("x", {}))
        tries += 1
        sentences.add("again in" in str(trouble.value))
    assert sentences == {True, False}
    assert one.transport._pace._tried[two.id].failures <= 3 < tries, "at 0, 1 and 3 s"
    await two.do(two.transport.connect(one.address))
    assert (await one.request(two, Frame("x", {}))).kind == "echo"


async def test_whom_an_earlier_life_knew_is_dialled_where_it_was_and_spared_only_for_a_while(make: Make) -> None:
    one, two = await make("one"), await make("two")
    limits = one.transport.limits
    one.transport.recall(two.id, [two.address], [two.address], "an/earlier boot")
    for failures in range(10):
        one.transport._pace.failed(two.id, one.transport.book.addresses(two.id), "dead", failures)
    assert one.transport._pace._tried[two.id].next_at == 9 + limits.dial_pause_met_s
    one.transport.recall(two.id, [], [], None)
    assert (await one.request(two, Frame("x", {}))).kind == "echo"
    one.transport.recall(one.id, [one.address], [], None)
    assert one.transport.book.addresses(one.id) == ()


async def test_an_address_of_another_machine_alone_is_not_dialled(make: Make) -> None:
    one, two = await make("one"), await make("two")
    one.transport.learn(two.id, [two.address], "another/machine")
    with pytest.raises(PeerUnreachable, match=r"none of its addresses can be dialled from here: /ip4/127\.0\.0\.1"):
        await one.request(two, Frame("x", {}))
    one.transport.learn(two.id, [two.address], two.transport.machine)
    assert (await one.request(two, Frame("x", {}))).kind == "echo"


async def test_a_deadline_passes_and_the_connection_lives(make: Make) -> None:
    one, two = await make("one"), await make("two")
    started = asyncio.Event()

    async def never(peer: str, frame: Frame) -> Frame:
        if frame.kind == "never":
            started.set()
            await asyncio.Event().wait()
        return frame

    two.transport.serve(never)
    await one.connect(two)
    with pytest.raises(TimeoutError):
        await one.request(two, Frame("never", {}), deadline_s=0.1)
    assert (await one.request(two, Frame("x", {}))).kind == "x"
    assert one.gone == []


async def test_both_sides_dial_at_once_and_lose_nothing(make: Make) -> None:
    one, two = await make("one"), await make("two")
    one.transport.learn(two.id, [two.address])
    two.transport.learn(one.id, [one.address])
    questions = [
        asker.request(other, Frame("x", {"n": n})) for n in range(20) for asker, other in ((one, two), (two, one))
    ]
    assert [answer.body["n"] for answer in await asyncio.gather(*questions)] == [n for n in range(20) for _ in range(2)]
    assert one.transport.connected() == (two.id,)
    await two.stop()
    await until(lambda: one.gone == [two.id])
    with pytest.raises(PeerUnreachable):
        await one.request(two, Frame("x", {}))


async def test_a_peer_that_leaves_is_noticed_by_all_who_wait(make: Make) -> None:
    one, two = await make("one"), await make("two")
    serving, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(peer: str, frame: Frame) -> Frame:
        serving.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    one.transport.serve(hang)
    two.transport.serve(hang)
    await one.connect(two)
    questions = [asyncio.ensure_future(one.request(two, Frame("x", {}))) for _ in range(3)]
    back = asyncio.ensure_future(two.request(one, Frame("x", {})))
    await until(serving.is_set)
    await one.do(one.transport.drop(two.id))
    for question in (*questions, back):
        with pytest.raises(PeerUnreachable):
            await question
    await until(cancelled.is_set)
    await until(lambda: one.gone == [two.id] and two.gone == [one.id])
    assert one.transport.connected() == ()


async def test_a_dropped_peer_may_come_back_but_is_not_fetched(make: Make) -> None:
    one, two = await make("one"), await make("two")
    await one.connect(two)
    await one.do(one.transport.drop(two.id))
    await until(lambda: two.gone == [one.id])
    swarm = one.transport._host.get_network()

    async def tempt() -> None:
        """The library dials every ten seconds while it has few connections, and when a stream is wanted."""
        await swarm.auto_connector.maybe_connect()
        with pytest.raises(Exception, match="no connection"):
            await swarm.dial_peer(None)

    done = asyncio.Event()
    await one.now(one.transport._nursery.start_soon, _then(tempt, done))
    await until(done.is_set)
    assert one.transport.connected() == ()
    two.transport.learn(one.id, [one.address])
    assert (await two.request(one, Frame("x", {}))).kind == "echo"
    assert one.transport.connected() == (two.id,)


def _then(work: Callable[[], Awaitable[None]], done: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def both() -> None:
        await work()
        done.set()

    return both


async def test_a_word_does_not_wait_behind_a_transfer(make: Make) -> None:
    one, two = await make("one"), await make("two")

    async def sink(peer: str, frame: Frame) -> Frame:
        return Frame("ok", {"bytes": frame.nbytes})

    two.transport.serve(sink)
    await one.connect(two)
    begun = time.monotonic()
    transfer = asyncio.ensure_future(one.request(two, Frame("state", {}, (bytes(32 << 20),)), urgency="bulk"))
    word_s, hop_s = [], []
    await until(lambda: one.transport.traffic()[0] > 1 << 20)
    while not transfer.done():
        word_s.append(await _seconds(one.request(two, Frame("beat", {}))))
        hop_s.append(await _seconds(one.request(two, Frame("hop", {}, (bytes(100_000),)), urgency="hop")))
    assert (await transfer).body == {"bytes": 32 << 20}
    whole_s = time.monotonic() - begun
    assert len(word_s) >= 3
    assert sorted(word_s)[len(word_s) // 2] < whole_s / 5
    assert sorted(hop_s)[len(hop_s) // 2] < whole_s / 3


async def _seconds(work: Awaitable[object]) -> float:
    begun = time.monotonic()
    await work
    return time.monotonic() - begun


async def test_both_ways_full_with_cancelled_requests_neither_freezes_nor_breaks(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without SafeYamux it freezes for good within a second: pings come while both sockets are full."""
    monkeypatch.setattr(yamux, "RTT_MEASURE_INTERVAL", 0.005)
    one, two = await make("one"), await make("two")
    await one.connect(two)
    blob = bytes(1 << 20)
    until_s = time.monotonic() + 2.0
    answers: dict[str, int] = {one.id: 0, two.id: 0}

    async def keep_busy(asker: Peer, other: Peer, deadline_s: float) -> None:
        while time.monotonic() < until_s:
            with contextlib.suppress(TimeoutError):
                await asker.request(other, Frame("hop", {}, (blob,)), deadline_s=deadline_s, urgency="hop")
                answers[asker.id] += 1

    pairs = ((one, two), (two, one))
    await asyncio.gather(
        *(keep_busy(asker, other, deadline_s) for asker, other in pairs for deadline_s in (5, 5, 5, 0.02, 0.1))
    )
    assert min(answers.values()) > 1
    assert [(await asker.request(other, Frame("x", {}), deadline_s=5)).kind for asker, other in pairs] == ["echo"] * 2
    assert one.gone == two.gone == []


async def test_senders_wait_for_room(make: Make) -> None:
    one = await make("one", limits=TransportLimits(unsent_bytes=1 << 20))
    two = await make("two")
    await one.connect(two)
    blob = bytes(1 << 20)
    answers = await asyncio.gather(
        *(one.request(two, Frame("x", {"n": n}, (blob,)), urgency="bulk") for n in range(12))
    )
    assert [answer.body["n"] for answer in answers] == list(range(12))


async def test_a_peer_that_answers_nothing_yet_says_so(make: Make) -> None:
    one, two = await make("one"), await make("two")
    two.transport._handler = None
    await one.connect(two)
    with pytest.raises(Refused, match="starting"):
        await one.request(two, Frame("x", {}))


# Starting and stopping


async def test_a_busy_port_and_bad_addresses_are_the_users_to_mend(make: Make, tmp_path: Path) -> None:
    one = await make("one")
    taken = one.address.partition("/p2p/")[0]
    with pytest.raises(ConfigError, match=r"is in use .*--listen"):
        await make("two", listen=taken)
    for bad in ("nonsense", "/ip4/127.0.0.1/udp/0/quic-v1", "/dns4/localhost/tcp/0", "/ip4/203.0.113.7/tcp/0"):
        with pytest.raises(ConfigError, match="can't listen"):
            await make("two", listen=bad)
    (tmp_path / "broken.key").write_text("nonsense")
    with pytest.raises(ConfigError, match="damaged"):
        await make("broken")


async def test_a_port_can_be_used_again_at_once(make: Make, tmp_path: Path) -> None:
    one = await make("one")
    first = await Peer.start(tmp_path / "two.key")
    address = first.address
    await one.connect(first)
    await first.stop()
    again = await make("two", listen=address.partition("/p2p/")[0])
    assert again.address == address
    await until(lambda: one.gone == [again.id])
    assert (await one.request(again, Frame("x", {}))).kind == "echo"


async def test_addresses_can_be_dialled_when_listening_everywhere(make: Make) -> None:
    one, two = await make("one", listen="/ip4/0.0.0.0/tcp/0"), await make("two")
    assert one.transport.addresses()
    assert all("0.0.0.0" not in address and address.endswith(one.id) for address in one.transport.addresses())
    await two.connect(one)


async def test_others_are_told_the_announced_address(make: Make) -> None:
    """Behind NAT or a proxy it listens at one port and is known by another."""
    one = await make("one", announce=("/ip4/192.0.2.1/tcp/4001",))
    assert one.transport.addresses() == (f"/ip4/192.0.2.1/tcp/4001/p2p/{one.id}",)


async def test_a_crash_of_the_network_is_known(make: Make) -> None:
    one, two = await make("one"), await make("two")
    await one.connect(two)

    async def hang(peer: str, frame: Frame) -> Frame:
        await asyncio.Event().wait()
        return frame

    async def crash() -> None:
        raise RuntimeError("made to fail")

    two.transport.serve(hang)
    asked = asyncio.ensure_future(one.request(two, Frame("x", {})))
    await until(lambda: two.transport.traffic()[1] > 0)
    await one.now(one.transport._nursery.start_soon, crash)
    await until(one.transport.failed.done)
    assert "made to fail" in repr(one.transport.failed.result().__dict__ or one.transport.failed.result())
    with pytest.raises(PeerUnreachable):
        await asked
    with pytest.raises(PeerUnreachable):
        await one.request(two, Frame("x", {}))
    await one.stop()


STALLING = """
import asyncio, logging, sys
from pathlib import Path
from swarmd.net.libp2p import Libp2pTransport
from swarmd.values import Frame

async def main():
    transport = await Libp2pTransport.start(Path(sys.argv[1]), ["/ip4/127.0.0.1/tcp/0"])
    async def answer(peer, frame):
        return Frame("ok", {})
    transport.serve(answer)
    print(transport.addresses()[0], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await transport.close()
    print(logging.getLogger().handlers, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", STALLING, str(tmp_path / "stalling.key")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


async def _address_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


async def test_a_stopped_peer_can_be_dropped_and_left(make: Make, other_process: "subprocess.Popen[str]") -> None:
    """A polite goodbye would wait for its full socket, forever."""
    address = await _address_of(other_process)
    stalled = address.rpartition("/")[2]
    one, two = await make("one"), await make("two")
    peers = (one, two)
    for peer in peers:
        await peer.do(peer.transport.connect(address))
    other_process.send_signal(signal.SIGSTOP)
    big = Frame("x", {}, (bytes(80 << 20),))
    stuck = [asyncio.ensure_future(peer.request(stalled, big, deadline_s=None, urgency="bulk")) for peer in peers]
    for peer in peers:
        await _no_more_fits(peer)
    assert await _seconds(one.do(one.transport.drop(stalled))) < 1.0
    assert await _seconds(two.stop()) < 4.0
    for request in stuck:
        with pytest.raises(PeerUnreachable):
            await request
    assert one.gone == [stalled]


async def _no_more_fits(peer: Peer) -> None:
    """Until its socket is full: some bytes left, and for a while none more."""
    sent, since = 0, time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while sent < 1 << 17 or time.monotonic() - since < 0.3:
            if peer.transport.traffic()[0] != sent:
                sent, since = peer.transport.traffic()[0], time.monotonic()
            await asyncio.sleep(0.01)


async def test_another_process_and_its_root_logger(make: Make, other_process: "subprocess.Popen[str]") -> None:
    one = await make("one")
    peer = await one.do(one.transport.connect(await _address_of(other_process)))
    assert (await one.request(peer, Frame("x", {}))).kind == "ok"
    rest, _ = await asyncio.to_thread(other_process.communicate, "\n", PATIENCE_S)
    assert rest.strip() == "[]"  # the library installed no handler there
    assert other_process.returncode == 0
    await until(lambda: one.gone == [peer])


# Gossip


async def test_gossip_reaches_others_with_its_author_and_not_oneself(make: Make) -> None:
    one, two, three = [await make(name) for name in ("one", "two", "three")]
    await one.connect(two)
    await two.connect(three)  # one and three are not connected: two passes it on
    for peer in (one, two, three):
        await peer.subscribe("stage/1")
    await _publish_until(one, "stage/1", lambda: two.heard and three.heard)
    assert {author for author, _ in two.heard + three.heard} == {one.id}
    assert one.heard == []
    assert three.heard[0][1].kind == "beat"


async def test_who_says_more_than_anyone_has_to_say_is_heard_at_a_pace(make: Make) -> None:
    one, two, three = [await make(name) for name in ("one", "two", "three")]
    await one.connect(two)
    await two.connect(three)
    for peer in (one, two, three):
        await peer.subscribe("stage/1")
    await _publish_until(one, "stage/1", lambda: two.heard and three.heard)
    dropped = two.transport.gossip_dropped
    limits = two.transport.limits
    many = 8 * limits.gossip_burst
    for number in range(many):
        await one.do(one.transport.publish("stage/1", Frame("flood", {"number": number})))
        await asyncio.sleep(0.005)
    await until(lambda: two.transport.gossip_dropped > dropped)
    assert sum(frame.kind == "flood" for _, frame in two.heard) < many
    await _publish_until(two, "stage/1", lambda: any(author == two.id for author, _ in three.heard))  # others are heard


async def test_who_gossips_without_end_is_cut_off(make: Make) -> None:
    one, two = [await make(name) for name in ("one", "two")]
    await one.connect(two)
    for peer in (one, two):
        await peer.subscribe("stage/1")
    await _publish_until(one, "stage/1", lambda: two.heard)
    for number in range(20 * two.transport.limits.gossip_burst):
        await one.do(one.transport.publish("stage/1", Frame("flood", {"number": number})))
        await asyncio.sleep(0.005)
        if one.id in two.gone:
            break
    await until(lambda: one.id in two.gone)


async def _publish_until(peer: Peer, topic: str, happened: Callable[[], object], most: int = 200) -> None:
    for number in range(most):
        if happened():
            return
        await peer.do(peer.transport.publish(topic, Frame("beat", {"number": number})))
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{most} messages were not enough")


async def test_leaving_a_topic_and_coming_back(make: Make) -> None:
    one, two = await make("one"), await make("two")
    await one.connect(two)
    await one.subscribe("t")
    await two.subscribe("t")
    await _publish_until(one, "t", lambda: two.heard)
    await two.now(two.transport.unsubscribe, "t")
    seen = len(two.heard)
    await _publish_until(one, "t", lambda: "t" not in two.transport._hearing)
    assert len(two.heard) == seen
    await two.subscribe("t")
    await _publish_until(one, "t", lambda: len(two.heard) > seen)


@pytest.mark.parametrize("clock", ["right", "at 1970"])
async def test_a_restarted_peer_is_not_mute(make: Make, tmp_path: Path, clock: str) -> None:
    """With the library's numbers, which count seconds, the second life repeats those of the first for minutes."""
    one = await make("one")
    await one.subscribe("t")
    for life in (1, 2):
        incarnation = None if clock == "right" else life * INCARNATION_STEP
        two = await Peer.start(tmp_path / "two.key", incarnation=incarnation)
        await two.connect(one)
        await two.subscribe("t")
        before = len(one.heard)
        await _publish_until(two, "t", lambda before=before: len(one.heard) > before, most=20)  # type: ignore[misc]
        for _ in range(15 if life == 1 else 0):
            for number in range(20):
                await two.do(two.transport.publish("t", Frame("beat", {"number": number})))
            await until(lambda two=two: two.transport._publishing == 0)  # type: ignore[misc]
        await two.stop()
        await until(lambda life=life: len(one.gone) == life)  # type: ignore[misc]


async def test_gossip_goes_on_over_a_new_connection_at_once(make: Make) -> None:
    """The library alone keeps its dead stream, when the new connection comes before it noticed."""
    one, two = await make("one"), await make("two")
    await one.connect(two)
    for peer in (one, two):
        await peer.subscribe("t")
    await _publish_until(one, "t", lambda: two.heard)
    for _ in range(3):
        await one.do(one.transport.drop(two.id))
        await one.connect(two)
        seen = len(one.heard), len(two.heard)
        await _publish_until(two, "t", lambda seen=seen: len(one.heard) > seen[0])  # type: ignore[misc]
        await _publish_until(one, "t", lambda seen=seen: len(two.heard) > seen[1])  # type: ignore[misc]


async def test_a_dead_gossip_stream_takes_nothing_else_along(make: Make) -> None:
    """Pubsub would forget what the peer told it once, over a stream of its own that goes on."""
    one, two = await make("one"), await make("two")
    await one.connect(two)
    for peer in (one, two):
        await peer.subscribe("t")
    await _publish_until(one, "t", lambda: two.heard)
    ((other, stream),) = one.transport._gossip.inner.peers.items()
    await one.now(one.transport._begin, one.transport._renew_gossip, one.transport._connections[0])
    await until(lambda: one.transport._gossip.inner.peers.get(other) is not stream)
    seen = len(one.heard), len(two.heard)
    await _publish_until(one, "t", lambda: len(two.heard) > seen[1])
    await _publish_until(two, "t", lambda: len(one.heard) > seen[0])


async def test_gossip_tries_again_when_its_stream_could_not_be_opened(make: Make) -> None:
    one, two = await make("one"), await make("two")
    host = one.transport._host
    opened, tries = host.new_stream, []

    async def fails_at_first(peer: object, protocols: Sequence[str]) -> object:
        if "/meshsub/1.1.0" in protocols:
            tries.append(peer)
            if len(tries) == 1:
                raise StreamFailure("made to fail")
        return await opened(peer, protocols)

    host.new_stream = fails_at_first
    for peer in (one, two):
        await peer.subscribe("t")
    await one.connect(two)
    await _publish_until(one, "t", lambda: two.heard, most=60)
    assert len(tries) > 1


async def test_malformed_gossip_is_dropped_and_counted(make: Make) -> None:
    one, two = await make("one"), await make("two")
    await one.connect(two)
    await one.subscribe("t")
    await two.subscribe("t")
    await _publish_until(one, "t", lambda: two.heard)
    seen, dropped = len(two.heard), two.transport.gossip_dropped

    async def publish_junk() -> None:
        await one.transport._gossip.inner.publish("/swarmd/1/t", b"\xc1 no msgpack")

    await one.now(one.transport._nursery.start_soon, publish_junk)
    await until(lambda: two.transport.gossip_dropped > dropped)
    await _publish_until(one, "t", lambda: len(two.heard) > seen)
