"""Connections between simulated machines: how one is dialled, and what is asked and answered through its two ends.

A request is delivered at most once; it runs in a task of the machine that answers, which is cancelled when the
connection breaks; its answer travels on the same connection.
"""

import asyncio
import json
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from swarmd.errors import PeerFault, PeerUnreachable, Refused, refusal_of
from swarmd.sim.world.mesh import Meshes
from swarmd.sim.world.points import step_of
from swarmd.sim.world.uplinks import LANES, Node
from swarmd.swarm.wire.framing import KINDS
from swarmd.values import Frame, PeerId, Urgency

SERVING_PER_PEER = 256  # `serving_per_peer` of swarmd/net/limits.py: requests being answered at once for a connection
REFUSAL = "(refusal)"  # travels as no message's kind


class Gossip:
    """A message on its way through the swarm."""

    __slots__ = ("author", "coming", "frame", "heard", "nbytes", "topic")

    def __init__(self, topic: str, author: PeerId, frame: Frame) -> None:
        self.topic, self.author, self.frame = topic, author, frame
        self.nbytes = len(json.dumps(frame.body, separators=(",", ":")))  # a little more than as msgpack
        self.heard: set[PeerId] = {author}
        self.coming: set[PeerId] = {author}  # peers with a copy on the way


class Carrier(Protocol):
    """The network, as connections see it."""

    corrupted: dict[PeerId, float]

    def corrupt_some(self, sender: PeerId, frame: Frame) -> Frame: ...

    def post(
        self,
        source: Node,
        target: Node,
        nbytes: int,
        lane: int,
        deliver: Callable[..., None],
        *args: Any,
        connection: "Connection | None" = None,
    ) -> None: ...

    def forget(self, connection: "Connection") -> None: ...


class Side(Node, Protocol):
    """The machine's transport, as its end of a connection sees it."""

    meshes: Meshes

    @property
    def network(self) -> Carrier: ...

    def opened(self, end: "End") -> None: ...

    def closed(self, end: "End") -> None: ...

    async def answer(self, peer: PeerId, frame: Frame) -> Frame: ...

    def fault(self, peer: PeerId, fault: PeerFault) -> None: ...

    def failed(self, frame: Frame, trouble: Exception) -> None: ...

    def count_sent(self, kind: str, nbytes: int) -> None: ...

    def count_received(self, source: PeerId, frame: Frame, nbytes: int, about: Frame) -> None: ...

    def hear(self, gossip: Gossip, source: PeerId) -> None: ...


class Dial:
    """An attempt to reach a peer, shared by all tasks of this machine that want it."""

    def __init__(self, dials: "dict[PeerId, Dial]", peer: PeerId) -> None:
        self._dials, self._peer = dials, peer  # all of this machine, this one among them until it is over
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def over(self) -> bool:
        return self.done.done()

    def succeed(self) -> None:
        self._dials.pop(self._peer, None)
        self.done.set_result(None)

    def fail(self, problem: str) -> None:
        """Ends it, unless it has ended."""
        if not self.over:
            self._dials.pop(self._peer, None)
            self.done.set_exception(PeerUnreachable(f"{self._peer} can't be reached: {problem}"))
            self.done.exception()  # retrieved, also when every task that waited for it was cancelled


class End:
    """A connection as one of its two sides sees it."""

    def __init__(self, transport: Side, connection: "Connection") -> None:
        self.transport, self.connection = transport, connection
        self.other: End
        self.lot: tuple[int, int] = (0, 0)  # drawn for the connection: whether its ends are of each other's meshes
        self.is_open = False
        self.is_over = False
        self._last_id = 0
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}

    @property
    def peer(self) -> PeerId:
        return self.other.transport.peer_id

    @property
    def meshes(self) -> Meshes:
        """The other side's."""
        return self.other.transport.meshes

    def open(self) -> None:
        """Puts it to use."""
        if not self.is_open and not self.is_over:
            self.is_open = True
            self.transport.opened(self)

    def close(self, reason: str, *, tell: bool = False) -> None:
        """Ends it: what was asked through it fails, what is being answered is cancelled."""
        if self.is_over:
            return
        self.is_over, was_open, self.is_open = True, self.is_open, False
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PeerUnreachable(f"the connection to {self.peer} broke: {reason}"))
        for task in self._serving.values():
            task.cancel()
        if was_open:
            self.transport.closed(self)
        if self.other.is_over:
            self.transport.network.forget(self.connection)
        elif tell:
            network, other = self.transport.network, self.other
            network.post(self.transport, other.transport, 0, 0, other.closed_by_peer)

    def closed_by_peer(self) -> None:
        self.close("the other side ended it")

    # ---------------------------------------------------------------------------------------------- asking

    async def ask(self, frame: Frame, urgency: Urgency, *, lost: bool = False) -> Frame:
        """Asks and waits. With `lost` the question gets lost. Raises PeerUnreachable, Refused."""
        self._last_id += 1
        number = self._last_id
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if not lost:
                self._send(frame, LANES[urgency], self.other.arrive, number, urgency)
            return await answer
        finally:
            self._waiting.pop(number, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # the connection broke while the asker was cancelled

    def _send(self, frame: Frame, lane: int, deliver: Callable[..., None], *args: Any) -> None:
        """Posts a frame to the other end, whose `deliver` gets it, its size, and the rest."""
        transport, network = self.transport, self.transport.network
        if network.corrupted and frame.kind != REFUSAL:
            frame = network.corrupt_some(transport.peer_id, frame)
        nbytes = frame.nbytes
        transport.count_sent(frame.kind, nbytes)
        network.post(
            transport, self.other.transport, nbytes, lane, deliver, frame, nbytes, *args, connection=self.connection
        )

    def tell(self, gossip: Gossip) -> None:
        """Passes a copy of a gossip message on."""
        transport, other = self.transport, self.other.transport
        transport.network.post(
            transport,
            other,
            gossip.nbytes,
            LANES["control"],
            other.hear,
            gossip,
            transport.peer_id,
            connection=self.connection,
        )

    def arrive_answer(self, frame: Frame, nbytes: int, number: int, request: Frame) -> None:
        """Takes in the other side's answer, or refusal."""
        transport = self.transport
        if self.is_over or not transport.alive:
            return
        transport.count_received(self.peer, frame, nbytes, request)
        answer = self._waiting.pop(number, None)
        if answer is None or answer.done():
            return  # we forgot the question
        if frame.kind == REFUSAL:
            answer.set_exception(refusal_of(frame.body["code"], frame.body["sentence"], frame.body["numbers"]))
        else:
            answer.set_result(frame)

    # ---------------------------------------------------------------------------------------------- answering

    def arrive(self, frame: Frame, nbytes: int, number: int, urgency: Urgency) -> None:
        """Takes in a question of the other side."""
        transport = self.transport
        if self.is_over or not transport.alive:
            return
        self.open()
        transport.count_received(self.peer, frame, nbytes, frame)
        if len(self._serving) >= SERVING_PER_PEER:
            self._refuse(number, "the peer is answering as many of our requests as it allows", frame)
            return
        task = asyncio.get_running_loop().create_task(self._serve(frame, number, urgency), name=f"serve {frame.kind}")
        self._serving[number] = task
        task.add_done_callback(lambda _: self._serving.pop(number, None))

    async def _serve(self, frame: Frame, number: int, urgency: Urgency) -> None:
        machine, armed = self.transport.machine, self.transport.machine.points.armed
        known = frame.kind in KINDS  # that of a damaged frame may be none
        if armed and known and await machine.at(f"serve.{frame.kind}", step_of(frame)):
            return
        try:
            answer = await self.transport.answer(self.peer, frame)
        except Refused as refusal:
            answer = _refusal(str(refusal), refusal.code, refusal.numbers)
        except PeerFault as fault:
            self.transport.fault(self.peer, fault)
            return
        except Exception as trouble:  # noqa: BLE001 - a failure of ours: production logs it and goes on, worlds end
            self.transport.failed(frame, trouble)
            answer = _refusal("internal error")
        if armed and await machine.at(f"served.{frame.kind}", step_of(frame)):
            return
        if not self.is_over:
            self._send(answer, LANES[urgency], self.other.arrive_answer, number, frame)

    def _refuse(self, number: int, sentence: str, request: Frame) -> None:
        self._send(_refusal(sentence), LANES["control"], self.other.arrive_answer, number, request)


class Connection:
    """Two ends. Each may be over without the other's knowing."""

    def __init__(self, number: int, dialler: Side, answerer: Side) -> None:
        self.number = number
        self.names = (dialler.peer_id, answerer.peer_id)
        self.ends = (End(dialler, self), End(answerer, self))
        self.ends[0].other, self.ends[1].other = self.ends[1], self.ends[0]
        self.ends[0].lot = self.ends[1].lot = zlib.crc32("/".join(sorted(self.names)).encode()), number
        self.stuck_since: float | None = None


def _refusal(sentence: str, code: str = "", numbers: tuple[int, ...] = ()) -> Frame:
    return Frame(REFUSAL, {"sentence": sentence, "code": code, "numbers": numbers})
