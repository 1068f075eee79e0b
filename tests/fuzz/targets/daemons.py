"""A real transport at a real socket, as a bare host attacks it: streams of ours, of the library's, and its gossip.

A case is [[stream]]: a stream is [number of a protocol, [item of a stream]], and opened one after the other. Another
peer, which is honest, must go on being answered over the connection that it had all along.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio
from libp2p.pubsub.pb.rpc_pb2 import RPC, Message
from libp2p.utils import encode_varint_prefixed

from swarmd.net import frames
from swarmd.net.libp2p import PROTOCOLS
from swarmd.net.limits import TransportLimits
from swarmd.swarm.wire.framing import to_frame
from swarmd.values import Frame
from tests.fuzz.parts import message_item, message_items, stream_bytes
from tests.fuzz.target import Finding, Target
from tests.net.peers import Peer, attack, open_stream
from tests.swarm.wire.samples import sample

NAMES = (*PROTOCOLS.values(), "/meshsub/1.1.0", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", "")  # "": none is agreed upon
CONTROL, BULK, GOSSIP, IDENTIFY, PING, RAW = range(len(NAMES))
LIMITS = TransportLimits(message_bytes=1 << 20, buffered_per_connection=1 << 20, connection_setup_s=5.0)
STREAMS = 6  # of a case, at most
ANSWER_SECONDS = 0.05  # for the victim to say something to a stream
TOPIC = "beats"


class Daemons(Target):
    """A victim and an honest peer, each on its own thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory()
        self._loop.run_until_complete(self._start(Path(self._folder.name)))

    async def _start(self, folder: Path) -> None:
        self._victim = await Peer.start(folder / "victim.key", limits=LIMITS)
        self._honest = await Peer.start(folder / "honest.key")
        await self._victim.subscribe(TOPIC)
        await self._honest.subscribe(TOPIC)
        await self._honest.connect(self._victim)
        await self._honest.do(self._honest.transport.publish(TOPIC, to_frame(sample("Summary"))))

    def seeds(self) -> Iterator[Any]:
        yield [[CONTROL, []], [BULK, list(message_items())[:6]]]
        yield [[CONTROL, [message_item(0, Frame("x", {}))]], [BULK, [message_item(1, Frame("x", {}, (b"123",)))]]]
        yield [[CONTROL, []], [CONTROL, []]]
        yield [[CONTROL, []], [BULK, [b"\xff" * 9]]]
        data = frames.encode_gossip(to_frame(sample("Summary")))
        message = Message(from_id=b"someone", seqno=b"1", data=data, topicIDs=[f"/swarmd/1/{TOPIC}"])
        wanted = [RPC.SubOpts(subscribe=True, topicid=f"/swarmd/1/{TOPIC}")]
        for rpc in (RPC(publish=[message]), RPC(subscriptions=wanted)):
            yield [[GOSSIP, [encode_varint_prefixed(rpc.SerializeToString())]], [CONTROL, []], [BULK, []]]
        yield [[IDENTIFY, []], [PING, [bytes(32)]], [RAW, [encode_varint_prefixed(b"/multistream/1.0.0\n")]]]
        yield [[RAW, [encode_varint_prefixed(b"\xff\xfe\xfd\n")]], [GOSSIP, [b"\xff\xff\xff\x7f"]]]

    def play(self, case: Any) -> None:
        streams = []
        for stream in (case if isinstance(case, list) else [])[:STREAMS]:
            match stream:
                case [int(number), list(items)]:
                    streams.append((NAMES[number % len(NAMES)], b"".join(map(stream_bytes, items))))
        if streams:
            self._loop.run_until_complete(self._play(streams))

    async def _play(self, streams: list[tuple[str, bytes]]) -> None:
        async def work(host: Any, conn: Any) -> None:
            with contextlib.suppress(Exception):  # the victim cuts the connection, in whichever way the library says it
                for name, data in streams:
                    stream = await (open_stream(host, conn, name) if name else conn.new_stream())
                    if data:
                        await stream.write(data)
                    with trio.move_on_after(ANSWER_SECONDS):
                        await stream.read(100)

        await attack(self._victim.address, work)
        answer = await self._honest.request(self._victim, Frame("x", {}, (b"payload",)))
        if answer.kind != "echo" or self._honest.gone or self._victim.transport.failed.done():
            raise Finding("an honest peer was cut off")

    def close(self) -> None:
        self._loop.run_until_complete(self._stop())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        self._folder.cleanup()

    async def _stop(self) -> None:
        await self._honest.stop()
        await self._victim.stop()


TARGET = Daemons
