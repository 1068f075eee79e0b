"""The channel over one connection: our requests and their answers, the peer's requests and who serves them.

asyncio only; knows no libp2p. The transport hands it received bytes (`received`) and writes what its outboxes give.
It decides what is asked, answered, forgotten, refused and what is a fault; cutting the connection is the transport's
business, through `on_fault`.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

from swarmd.errors import PeerFault, PeerUnreachable, Refused, refusal_of
from swarmd.net import frames
from swarmd.net.frames import Decoder, Envelope, Message
from swarmd.net.limits import TransportLimits
from swarmd.net.outbox import Outbox
from swarmd.printable import printable
from swarmd.values import Buffer, Frame, PeerId, Urgency

log = logging.getLogger(__name__)

StreamName = Literal["control", "bulk"]
"""The two streams of a connection: whole small words, and everything else in chunks."""

STREAMS: tuple[StreamName, ...] = ("control", "bulk")

Serve = Callable[[PeerId, Frame], Awaitable[Frame]]


class Channel:
    """The requests and answers over one connection to one peer. Dead after `fail`."""

    def __init__(
        self,
        peer: PeerId,
        limits: TransportLimits,
        *,
        serve: Serve,
        on_fault: Callable[[PeerFault], None],
        wake: Callable[[StreamName], None],
    ) -> None:
        self.peer = peer
        self.failed = ""  # the reason, once the connection is over
        self.outboxes: dict[StreamName, Outbox] = {
            "control": Outbox(
                ("control",),
                limit_bytes=limits.unsent_control_bytes,
                limit_messages=limits.unsent_messages,
                wake=lambda: wake("control"),
            ),
            "bulk": Outbox(
                ("hop", "bulk"),
                limit_bytes=limits.unsent_bytes,
                limit_messages=limits.unsent_messages,
                wake=lambda: wake("bulk"),
            ),
        }
        self._decoders: dict[StreamName, Decoder] = {
            "control": Decoder(("control",), frames.WHOLE_BYTES, limits.sizes),
            "bulk": Decoder(("hop", "bulk"), limits.message_bytes, limits.sizes),
        }
        self._limits = limits
        self._serve_with = serve
        self._on_fault = on_fault
        self._last_id = 0
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # handlers must not inherit the context of Trio's tasks

    @property
    def partial_bytes(self) -> int:
        return sum(decoder.partial_bytes for decoder in self._decoders.values())

    async def request(self, frame: Frame, urgency: Urgency) -> Frame:
        """Asks and waits. Cancelled, it forgets the answer. Raises PeerUnreachable, Refused, PeerFault."""
        if self.failed:
            raise PeerUnreachable(self.failed)
        self._last_id += 1
        request_id = self._last_id
        message = frames.encode(frames.REQUEST, request_id, frame, self._limits.sizes)
        if message.nbytes > self._limits.message_bytes:
            raise ValueError(f"a {frame.kind!r} of {message.nbytes} bytes is larger than a message may be")
        answer: asyncio.Future[Frame] = self._loop.create_future()
        self._waiting[request_id] = answer
        stream, lane = route(message, urgency)
        try:
            await self.outboxes[stream].put(message, lane)
            return await answer
        finally:
            self._waiting.pop(request_id, None)
            self.outboxes[stream].discard(message, lane)
            if answer.done() and not answer.cancelled():
                answer.exception()  # the connection broke while the message waited for room; that was raised instead

    def received(self, stream: StreamName, data: Buffer) -> None:
        """Takes bytes as they came; those that were read when the connection was over already are nobody's any more.
        Raises PeerFault.
        """
        if self.failed:
            return
        for envelope in self._decoders[stream].feed(data):
            if envelope.type == frames.REQUEST:
                self._begin_serving(envelope)
            else:
                self._take_answer(envelope)

    def fail(self, reason: str) -> None:
        """The connection is over: our requests raise PeerUnreachable, those we serve are cancelled."""
        if self.failed:
            return
        self.failed = reason
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PeerUnreachable(reason))
        for outbox in self.outboxes.values():
            outbox.close(reason)
        for task in self._serving.values():
            task.cancel()

    def _take_answer(self, envelope: Envelope) -> None:
        if envelope.id > self._last_id:
            raise PeerFault("an answer to a question we never asked")
        answer = self._waiting.pop(envelope.id, None)
        if answer is None or answer.done():
            return  # we forgot the question
        if envelope.excess:
            answer.set_exception(envelope.excess)
        elif envelope.type == frames.ANSWER:
            assert envelope.frame is not None
            answer.set_result(envelope.frame)
        elif envelope.type == frames.REFUSAL:
            answer.set_exception(refusal_of(envelope.code, printable(envelope.sentence), envelope.numbers))
        else:
            answer.set_exception(Refused("the peer is answering as many of our requests as it allows"))

    def _begin_serving(self, envelope: Envelope) -> None:
        if envelope.id in self._serving:
            raise PeerFault("two requests with one id")
        refusal: Message | None = None
        if (excess := envelope.excess) is not None:
            refusal = frames.encode_refusal(envelope.id, str(excess), excess.code)
        elif len(self._serving) >= self._limits.serving_per_peer:
            refusal = frames.encode_busy(envelope.id)
        if refusal is not None:
            if not self.outboxes["control"].offer(refusal, "control"):
                raise PeerFault("requests without end while the answers are not read")
            return
        task = self._loop.create_task(self._serve(envelope), context=self._context)
        self._serving[envelope.id] = task
        task.add_done_callback(lambda _: self._serving.pop(envelope.id, None))

    async def _serve(self, envelope: Envelope) -> None:
        assert envelope.frame is not None
        try:
            frame = await self._serve_with(self.peer, envelope.frame)
            message = frames.encode(frames.ANSWER, envelope.id, frame, self._limits.sizes)
        except Refused as refusal:
            message = frames.encode_refusal(envelope.id, str(refusal), refusal.code, refusal.numbers)
        except PeerFault as fault:
            self._on_fault(fault)
            return
        except Exception:  # a failure of ours while serving one request must not end the daemon, nor the connection
            log.exception("serving %r for %s failed", envelope.frame.kind, self.peer)
            message = frames.encode_refusal(envelope.id, "internal error")
        await self._answer(message, envelope.urgency)

    async def _answer(self, message: Message, urgency: Urgency) -> None:
        """Answers are as urgent as their requests."""
        stream, lane = route(message, urgency)
        try:
            await self.outboxes[stream].put(message, lane)
        except PeerUnreachable:
            pass  # who asked is gone and knows it


def route(message: Message, urgency: Urgency) -> tuple[StreamName, Urgency]:
    """The stream and lane of a message; a large word of control travels like an activation."""
    if urgency != "control":
        return "bulk", urgency
    return ("control", "control") if message.nbytes <= frames.WHOLE_BYTES else ("bulk", "hop")
