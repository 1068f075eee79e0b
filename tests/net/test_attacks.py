"""Attacks of a hostile peer with libp2p itself: they cost that peer its connection and nobody else anything.

Each attack is made with a bare libp2p host; the victim must go on answering an honest peer. Where libp2p alone would
freeze, crash or bloat, the guard is named.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
import trio
from libp2p.crypto.rsa import create_new_key_pair as create_rsa_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb.rpc_pb2 import RPC, Message
from libp2p.utils import encode_varint_prefixed

from swarmd.errors import PeerFault, PeerUnreachable
from swarmd.net import frames
from swarmd.net.channel import StreamName
from swarmd.net.frames import REQUEST
from swarmd.net.libp2p import PROTOCOLS
from swarmd.net.limits import TransportLimits
from swarmd.net.yamux import socket_of
from swarmd.values import Frame
from tests.net.peers import PATIENCE_S, Peer, attack, open_stream, until

GOSSIP = "/meshsub/1.1.0"


UNREAD = "/test/unread"
"""A protocol whose handler, at the victim, never reads."""


class Scene(NamedTuple):
    victim: Peer
    honest: Peer

    async def goes_on(self) -> None:
        """The victim lives, and the honest peer's connection is the one it had all along."""
        assert (await self.honest.request(self.victim, Frame("x", {}, (b"payload",)))).kind == "echo"
        assert self.honest.gone == []
        assert not self.victim.transport.failed.done()


LIMITS = TransportLimits(
    message_bytes=1 << 20,
    buffered_per_connection=4 << 20,
    connection_setup_s=1.0,
    connections=20,
    streams_per_connection=12,
    serving_per_peer=4,
    unsent_messages=8,
)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    victim = await Peer.start(tmp_path / "victim.key", limits=LIMITS)
    honest = await Peer.start(tmp_path / "honest.key")
    await honest.connect(victim)
    yield Scene(victim, honest)
    await honest.stop()
    await victim.stop()


async def cut_off(conn: Any) -> None:
    """Waits until the victim has closed the connection."""
    with trio.fail_after(PATIENCE_S):
        await conn.muxed_conn.event_closed.wait()


async def join(host: Any, conn: Any) -> dict[StreamName, Any]:
    """Opens our streams, so that the connection is taken for a peer's."""
    return {name: await open_stream(host, conn, protocol) for name, protocol in PROTOCOLS.items()}


async def never_read(victim: Peer) -> None:
    async def handler(stream: Any) -> None:
        await stream.muxed_conn.event_closed.wait()

    await victim.now(victim.transport._host.set_stream_handler, UNREAD, handler)


async def still_there(host: Any, conn: Any) -> None:
    """The connection lives: a new stream can be agreed upon."""
    await (await open_stream(host, conn, "/ipfs/ping/1.0.0")).reset()


# Streams of libp2p's own


async def test_text_that_is_no_utf8_where_protocols_are_agreed(scene: Scene) -> None:
    """Guarded stream handler: without it, the exception ends the victim's host."""

    async def work(host: Any, conn: Any) -> None:
        for junk in (b"\xff\xfe\xfd\n", b"/multistream/1.0.0\xff\n", b"\n"):
            stream = await conn.new_stream()
            await stream.write(encode_varint_prefixed(junk))
            with pytest.raises(Exception):  # noqa: B017  # reset, whichever way the library says it
                while True:
                    await stream.read(100)
        await still_there(host, conn)

    await attack(scene.victim.address, work)
    await scene.goes_on()


async def test_bytes_that_are_no_gossip(scene: Scene) -> None:
    """Guarded stream handler: garbage where a protobuf is expected ends the host too."""

    async def work(host: Any, conn: Any) -> None:
        for junk in (encode_varint_prefixed(b"\xff" * 50), encode_varint_prefixed(b"\x0a\xff\xff"), b"\xff" * 20):
            stream = await open_stream(host, conn, GOSSIP)
            await stream.write(junk)
        await still_there(host, conn)

    await attack(scene.victim.address, work)
    await scene.goes_on()


async def test_gossip_too_large_to_take(scene: Scene) -> None:
    async def work(host: Any, conn: Any) -> None:
        stream = await open_stream(host, conn, GOSSIP)
        await stream.write(b"\xff\xff\xff\x7f")  # a length of 256 MiB
        with pytest.raises(Exception):  # noqa: B017
            while True:
                await stream.read(100)

    await attack(scene.victim.address, work)
    await scene.goes_on()


async def test_gossip_signed_with_a_key_that_is_none(scene: Scene) -> None:
    """Guarded push_msg: the key is decoded outside every try of the library's."""
    await scene.victim.subscribe("t")
    author = ID.from_pubkey(create_rsa_key_pair().public_key)  # an id that does not contain its key
    dropped = scene.victim.transport.gossip_dropped

    async def work(host: Any, conn: Any) -> None:
        stream = await open_stream(host, conn, GOSSIP)
        message = Message(from_id=author.to_bytes(), seqno=b"1", data=b"x", topicIDs=["/swarmd/1/t"])
        message.key, message.signature = b"\xff\xff", b"x"
        await stream.write(encode_varint_prefixed(RPC(publish=[message]).SerializeToString()))
        with trio.fail_after(PATIENCE_S):
            while scene.victim.transport.gossip_dropped == dropped:
                await trio.sleep(0.005)

    await attack(scene.victim.address, work)
    assert scene.victim.heard == []
    await scene.goes_on()


async def test_gossip_in_another_peers_name(scene: Scene) -> None:
    await scene.victim.subscribe("t")
    data = frames.encode_gossip(Frame("beat", {}))

    async def work(host: Any, conn: Any) -> None:
        stream = await open_stream(host, conn, GOSSIP)
        author = ID.from_base58(scene.honest.id).to_bytes()
        message = Message(from_id=author, seqno=b"1", data=data, topicIDs=["/swarmd/1/t"])
        message.signature = host.get_private_key().sign(b"libp2p-pubsub:" + message.SerializeToString())
        await stream.write(encode_varint_prefixed(RPC(publish=[message]).SerializeToString()))
        await still_there(host, conn)

    await attack(scene.victim.address, work)
    await scene.goes_on()
    assert scene.victim.heard == []


async def test_topics_without_end_are_not_remembered(scene: Scene) -> None:
    async def work(host: Any, conn: Any) -> None:
        stream = await open_stream(host, conn, GOSSIP)
        topics = [f"junk/{n}" for n in range(2000)] + [f"/swarmd/1/{n}" for n in range(2000)]
        wanted = [RPC.SubOpts(subscribe=True, topicid=topic) for topic in topics]
        await stream.write(encode_varint_prefixed(RPC(subscriptions=wanted).SerializeToString()))
        with trio.fail_after(PATIENCE_S):
            pubsub = scene.victim.transport._gossip.inner
            while not any(topic.startswith("/swarmd/1/") for topic in list(pubsub.peer_topics)):
                await trio.sleep(0.005)
        remembered = list(pubsub.peer_topics)
        assert len(remembered) <= 100
        assert not [topic for topic in remembered if topic.startswith("junk")]

    await attack(scene.victim.address, work)
    await scene.goes_on()


# Connections


async def test_connections_of_the_past_take_no_room(scene: Scene) -> None:
    """The library holds a slot and a task for each until it stops; with 20 allowed, 40 slots would soon be taken."""
    limiter = scene.victim.transport._host.get_network()._inbound_limiter

    async def work(host: Any, conn: Any) -> None:
        for _ in range(2):
            await still_there(host, conn)

    for number in range(60):
        await attack(scene.victim.address, work, seed=bytes([number]) * 32)
    await until(lambda: limiter.borrowed_tokens == 1)  # the honest peer's
    await until(lambda: len(scene.victim.transport._by_muxed) == 1)
    await scene.goes_on()


async def test_a_connection_without_our_streams_is_not_kept(scene: Scene) -> None:
    async def work(host: Any, conn: Any) -> None:
        await open_stream(host, conn, PROTOCOLS["control"])
        await cut_off(conn)

    await attack(scene.victim.address, work)
    await scene.goes_on()


async def test_streams_without_end_cost_the_connection(scene: Scene) -> None:
    async def work(host: Any, conn: Any) -> None:
        with pytest.raises(Exception):  # noqa: B017
            for _ in range(40):
                await conn.new_stream()
                await trio.sleep(0.001)
            await cut_off(conn)
            raise ConnectionError

    await attack(scene.victim.address, work)
    await scene.goes_on()


async def test_a_sender_that_ignores_the_receive_window(scene: Scene) -> None:
    """SafeYamux: the library keeps whatever comes, until memory is full."""
    held: list[int] = []

    async def work(host: Any, conn: Any) -> None:
        await join(host, conn)
        stream = await open_stream(host, conn, UNREAD)
        piece = bytes(60_000)
        head = struct.pack("!BBHII", 0, 0, 0, stream.muxed_stream.stream_id, len(piece))
        (mine,) = [each for each in scene.victim.transport._by_muxed if each.peer_id == host.get_id()]
        with contextlib.suppress(Exception):  # cut off
            while len(held) < 300:
                await conn.muxed_conn._write_frame(head + piece)
                held.append(sum(len(buffer) for buffer in list(mine.stream_buffers.values())))
        await cut_off(conn)

    await never_read(scene.victim)
    await attack(scene.victim.address, work)
    assert LIMITS.buffered_per_connection / 2 < max(held) <= LIMITS.buffered_per_connection
    await scene.goes_on()


async def test_a_flood_of_pings_whose_answers_are_not_read(scene: Scene) -> None:
    """SafeYamux answers beside its reading task, with a bound on what waits."""

    async def work(host: Any, conn: Any) -> None:
        await join(host, conn)
        deaf = trio.Event()
        conn.muxed_conn.secured_conn.read = lambda n=None: deaf.wait()
        pings = b"".join(struct.pack("!BBHII", 0, 2, 1, 0, number) for number in range(4000))
        (mine,) = [each for each in scene.victim.transport._by_muxed if each.peer_id == host.get_id()]
        with contextlib.suppress(Exception):  # cut off
            for _ in range(20):
                await conn.muxed_conn._write_frame(pings)
        with trio.fail_after(PATIENCE_S):  # the attacker itself is deaf for it
            await mine.event_closed.wait()

    await attack(scene.victim.address, work)
    await scene.goes_on()


async def test_cancelled_writes_do_not_break_the_encryption(scene: Scene) -> None:
    """SafeYamux: the library spends a nonce and then sends half a frame. What cancels is its own timeouts, and ours."""

    async def work(host: Any, conn: Any) -> None:
        await join(host, conn)
        socket_of(conn.muxed_conn).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        pongs = b"".join(struct.pack("!BBHII", 0, 2, 2, 0, number) for number in range(4000))
        cancelled = 0
        for _ in range(60):
            with trio.move_on_after(0.0005) as scope:
                await conn.muxed_conn._write_frame(pongs)
            cancelled += scope.cancelled_caught
        assert cancelled
        await still_there(host, conn)

    await attack(scene.victim.address, work)
    await scene.goes_on()


# Our own streams


def request(frame: Frame, number: int = 1) -> bytes:
    return b"".join(frames.encode(REQUEST, number, frame).chunks("control"))


def header(fields: Any, lane: int, after: bytes = b"") -> bytes:
    packed: bytes = msgpack.packb(fields)
    return struct.pack("!II", lane << 24 | len(packed + after) + 4, len(packed)) + packed + after


MALFORMED: dict[str, tuple[str, bytes]] = {
    "no chunk at all": ("control", b"GET / HTTP/1.1\r\n\r\n"),
    "a lane of the other stream": ("control", header([REQUEST, 1, "x", {}, []], lane=2)),
    "a word of control that is too large": ("control", header([REQUEST, 1, "x", {}, [60_000]], lane=0)),
    "a message over the limit": ("bulk", header([REQUEST, 1, "x", {}, [2 << 20]], lane=1)),
    "a type that is none": ("control", header([9, 1, "x", {}, []], lane=0)),
    "a body that is no map": ("control", header([REQUEST, 1, "x", [], []], lane=0)),
    "an extension": ("control", header([REQUEST, 1, "x", {"a": msgpack.ExtType(1, b"")}, []], lane=0)),
    "bytes after the end": ("bulk", header([REQUEST, 1, "x", {}, []], lane=1, after=b"more")),
    "an answer to nothing": ("control", header([2, 5, "x", {}, []], lane=0)),
    "one id twice": ("control", request(Frame("hang", {})) * 2),
    "requests without end": ("control", b"".join(request(Frame("hang", {}), number) for number in range(1, 400))),
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_frames_cost_their_sender_the_connection(scene: Scene, what: str) -> None:
    async def hang(peer: str, frame: Frame) -> Frame:
        if frame.kind == "hang":
            await asyncio.Event().wait()
        if frame.kind == "slow":
            await attacked.wait()
        return Frame("echo", {})

    attacked = asyncio.Event()
    scene.victim.transport.serve(hang)
    name, data = MALFORMED[what]

    async def work(host: Any, conn: Any) -> None:
        streams = await join(host, conn)
        await streams[name].write(data)  # type: ignore[index]
        await cut_off(conn)

    waiting = asyncio.ensure_future(scene.honest.request(scene.victim, Frame("slow", {})))
    await attack(scene.victim.address, work)
    await scene.victim.now(attacked.set)
    assert (await waiting).kind == "echo"
    await scene.goes_on()


async def test_a_second_stream_of_ours_is_a_fault(scene: Scene) -> None:
    async def work(host: Any, conn: Any) -> None:
        with contextlib.suppress(Exception):  # the second may be cut off before it is agreed upon
            for _ in range(2):
                await open_stream(host, conn, PROTOCOLS["control"])
        with trio.fail_after(LIMITS.connection_setup_s / 2):  # not for want of the other stream
            await conn.muxed_conn.event_closed.wait()

    await attack(scene.victim.address, work)
    await scene.goes_on()


async def test_what_the_handler_calls_a_fault_costs_the_connection_too(scene: Scene) -> None:
    async def judge(peer: str, frame: Frame) -> Frame:
        if frame.kind == "foreign":
            raise PeerFault("unknown kind")
        return Frame("echo", {})

    scene.victim.transport.serve(judge)
    with pytest.raises(PeerUnreachable):
        await scene.honest.request(scene.victim, Frame("foreign", {}))
    await until(lambda: scene.honest.gone == [scene.victim.id])
    assert (await scene.honest.request(scene.victim, Frame("x", {}))).kind == "echo"  # it may come again


async def test_unfinished_messages_are_bounded_over_all_peers(tmp_path: Path) -> None:
    """The one that holds most is cut, not the one that happened to come last."""
    limits = TransportLimits(partial_bytes=3 << 20, message_bytes=4 << 20)
    victim = await Peer.start(tmp_path / "victim.key", limits=limits)
    honest = await Peer.start(tmp_path / "honest.key")
    await honest.connect(victim)

    async def hoard(host: Any, conn: Any) -> None:
        streams = await join(host, conn)
        chunks = list(frames.encode(REQUEST, 1, Frame("x", {}, (bytes(4_000_000),))).chunks("bulk"))
        try:
            for chunk in chunks[:-1]:
                await streams["bulk"].write(chunk)
        except Exception:  # noqa: BLE001  # cut off
            return
        await cut_off(conn)

    await attack(victim.address, hoard)
    assert (await honest.request(victim, Frame("x", {}, (bytes(2 << 20),)), urgency="hop")).kind == "echo"
    assert honest.gone == []
    await until(lambda: victim.transport._partial_bytes == 0)
    await honest.stop()
    await victim.stop()
