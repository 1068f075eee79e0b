"""The transport of a daemon, but for libp2p: what comes over the streams of several connections, and as gossip.

A case is [[step]]: ["got", connection, stream, [item]], ["ask", connection, bytes], ["gossip", bytes], ["over",
connection], ["drop", connection] or ["learn", [address], machine].
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from swarmd.errors import ConfigError, PeerFault, PeerUnreachable, Refused
from swarmd.net import frames
from swarmd.net.addresses import Address, parse_announced, parse_dialled, parse_listened
from swarmd.net.channel import STREAMS, StreamName
from swarmd.net.limits import TransportLimits
from swarmd.net.transport import Connection, WireTransport
from swarmd.swarm.wire.framing import to_frame
from swarmd.values import Frame
from tests.fuzz.parts import check_sentence, message_item, message_items, stream_bytes
from tests.fuzz.target import Finding, Target
from tests.swarm.wire.samples import sample

PEERS = ("12D3KooWNdo5kjPXU4ToRMdjC2siQYJQWhyavChcEvp8m1pB1Jbo", "12D3KooWLRPJoDwC5h3QfNnQ2ZyhMVzTQb2mMhkRLz2dHUPLhGXn")
OWN = "12D3KooWAnExampleOfAPeerIdThatIsLongEnough"
CONNECTIONS = 3  # of two peers: the first has two
LIMITS = TransportLimits(
    message_bytes=1 << 20,
    partial_bytes_per_peer=1 << 19,
    partial_bytes=3 << 18,
    serving_per_peer=4,
    unsent_control_bytes=1 << 14,
    unsent_bytes=1 << 16,
    unsent_messages=8,
    known_peers=2,
)
TURNS = 6  # of the loop after each step: enough for a request to be answered
TOPIC = "beats"
Step = list[Any]


class Wired(Connection):
    """A connection that is a place for bytes."""

    @property
    def host(self) -> str:
        return ""

    def wake(self, stream: StreamName) -> None:
        pass

    def cut(self, *, abort: bool) -> None:
        pass


class Wire(WireTransport):
    """A transport whose network is the case."""

    def __init__(self) -> None:
        super().__init__(OWN, LIMITS)
        self.heard: list[Frame] = []
        self.asked: list[asyncio.Task[Frame]] = []
        self.serve(self._answer_request)
        self.subscribe(TOPIC, lambda peer, frame: self.heard.append(frame))
        self.wired = [Wired(PEERS[number // 2], self) for number in range(CONNECTIONS)]
        self._connections.extend(self.wired)
        for each in self.wired:
            self._set_ready(each)

    def _begin(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._loop.create_task(work(*args))  # type: ignore[arg-type]

    async def _dial(self, peer: str, addresses: Sequence[Address], done: asyncio.Future[None]) -> None:
        self._dialled(peer, addresses, done, "nobody answers")

    async def _publish(self, topic: str, data: bytes) -> None:
        self._publishing -= 1

    async def _hear(self, topic: str) -> None:
        self._hearing.discard(topic)

    async def _answer_request(self, peer: str, frame: Frame) -> Frame:
        match frame.kind:
            case "AskLease":
                raise Refused("there is none")
            case "Beat":
                raise PeerFault("a beat that nobody wants")
            case "Hop":
                await asyncio.get_running_loop().create_future()
        return Frame("Answer", {}, frame.buffers)

    def step(self, step: Step) -> None:
        match step:
            case ["got", int(number), int(stream), list(items)]:
                self._got(self.wired[number % CONNECTIONS], STREAMS[stream % 2], b"".join(map(stream_bytes, items)))
            case ["ask", int(number), bytes(data)]:
                peer = self.wired[number % CONNECTIONS].peer
                urgency = "control" if len(data) % 2 else "bulk"
                self.asked.append(
                    self._loop.create_task(self.request(peer, Frame("Ask", {}, (data,)), urgency=urgency))  # type: ignore[arg-type]
                )
            case ["gossip", bytes(data)]:
                self._deliver(TOPIC, PEERS[0], data)
            case ["over", int(number)]:
                self._end(self.wired[number % CONNECTIONS], "it is over", abort=False)
            case ["drop", int(number)]:
                self._loop.create_task(self.drop(PEERS[number % 2]))
            case ["learn", list(texts), machine]:
                self._learn([it for it in texts if isinstance(it, str)], machine if isinstance(machine, str) else None)

    def _got(self, connection: Wired, stream: StreamName, data: bytes) -> None:
        try:
            self._take(connection, stream, data)
        except PeerFault as fault:
            check_sentence(fault)
            self.fault(connection, fault)

    def _learn(self, texts: list[str], machine: str | None) -> None:
        for parse in (parse_dialled, parse_listened, parse_announced):
            for text in texts:
                try:
                    parse(text)
                except ConfigError as trouble:
                    check_sentence(trouble)
        self.learn(PEERS[0], texts, machine)
        self.recall(PEERS[1], texts, texts[:1], machine)
        for address in (*self.book.addresses(PEERS[0]), *self.book.addresses(PEERS[1])):
            parse_listened(address.transport) if address.family.startswith("ip") else None

    def write(self) -> None:
        """Takes what is to be written."""
        for each in self.wired:
            for outbox in each.channel.outboxes.values():
                while outbox.next_chunk() is not None:
                    pass

    def check(self) -> None:
        held = sum(each.channel.partial_bytes for each in self.wired if not each.channel.failed)
        if held != self._partial_bytes or held > LIMITS.partial_bytes:
            raise Finding(f"{held} bytes are held, and {self._partial_bytes} counted")
        for task in self.asked:
            if task.done() and not task.cancelled() and (trouble := task.exception()) is not None:
                if not isinstance(trouble, PeerUnreachable | Refused | PeerFault):
                    raise trouble
                check_sentence(trouble)


class Channels(Target):
    """One daemon's transport for each case, on a loop that lasts."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self._failed.append(context))
        self._failed: list[dict[str, Any]] = []

    def seeds(self) -> Iterator[Any]:
        items = list(message_items())
        for number, item in enumerate(items):
            yield [["ask", 0, b"question"], ["got", number, 1, [item]], ["over", number]]
        answers = [message_item(0, to_frame(sample("Busy")), frames.ANSWER, number) for number in (1, 2)]
        yield [["ask", 0, b"q"], ["ask", 0, b"q2"], ["got", 0, 0, answers], ["got", 0, 0, answers]]
        for said in ([frames.REFUSAL, 1, "no"], [frames.REFUSAL, 1, "no", "outvoted", [4, 12]], [frames.BUSY, 1]):
            yield [["ask", 0, b"q"], ["got", 0, 0, [[0, said, []]]]]
        hops = [message_item(1, to_frame(sample("Hop")), number=number) for number in range(1, 9)]
        yield [["got", 0, 1, hops], ["got", 1, 1, hops], ["drop", 0]]
        yield [["got", 0, 0, [b"\0\0\0\x05"]], ["got", 1, 1, [b"\x01\0\0\x09\0\0"]], ["over", 0]]
        yield [["gossip", frames.encode_gossip(to_frame(sample("Summary")))]]
        texts = ["/ip4/192.0.2.1/tcp/4001", f"/ip6/2001:db8::1/tcp/1/p2p/{PEERS[0]}", "/dns4/a.example/tcp/65535"]
        yield [["learn", [*texts, "/ip6/::ffff:10.0.0.1/tcp/7", "/ip4/0.0.0.0/tcp/1", "junk"], "aaaa/1111"]]

    def play(self, case: Any) -> None:
        steps = [it for it in case if isinstance(it, list)] if isinstance(case, list) else []
        self._loop.run_until_complete(self._play(steps))
        if self._failed:
            raise self._failed.pop().get("exception") or Finding("the loop heard of trouble")

    async def _play(self, steps: list[Step]) -> None:
        wire = Wire()
        for step in steps:
            wire.step(step)
            for _ in range(TURNS):
                await asyncio.sleep(0)
            wire.write()
            wire.check()
        for each in wire.wired:
            wire._end(each, "the case is over", abort=False)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.gather(*wire.asked, return_exceptions=True)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if wire._partial_bytes or len(asyncio.all_tasks()) > 1:
            raise Finding("something is left of connections that are over")

    def close(self) -> None:
        self._loop.close()


TARGET = Channels
