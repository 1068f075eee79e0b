"""Messages that wait to go out on one stream: the most urgent first, chunk by chunk, and no more than a bound.

Pure queueing on asyncio futures; knows no stream. The stream's writer asks `next_chunk` and waits for `wake`
when there is none. Chunks of two messages of the same urgency are never mixed (frames.py: one message at a time in a
lane).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from swarmd.errors import PeerUnreachable
from swarmd.net.frames import Message
from swarmd.values import Urgency


class _Lane:
    def __init__(self, urgency: Urgency) -> None:
        self.urgency: Urgency = urgency
        self.queue: deque[Message] = deque()
        self.sending: Iterator[bytes] | None = None
        self.unsent = 0  # bytes of queued messages and of the rest of the one being sent
        self.waiting: deque[tuple[asyncio.Future[None], Message]] = deque()


class Outbox:
    """One stream's queues. Not thread safe; everything happens on the event loop's thread."""

    def __init__(
        self, lanes: Sequence[Urgency], *, limit_bytes: int, limit_messages: int, wake: Callable[[], None]
    ) -> None:
        self._lanes = {urgency: _Lane(urgency) for urgency in lanes}  # in the order of sending
        self._limit_bytes = limit_bytes
        self._limit_messages = limit_messages
        self._wake = wake
        self._closed = ""
        self.empty = asyncio.Event()
        self.empty.set()

    async def put(self, message: Message, urgency: Urgency) -> None:
        """Queues a message, waiting for room. A message larger than the bound goes when its lane is empty.

        Cancelled, it takes the message back if nothing of it was sent. Raises PeerUnreachable when the outbox closes.
        """
        if self._closed:
            raise PeerUnreachable(self._closed)
        if self.offer(message, urgency):
            return
        lane = self._lanes[urgency]
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.waiting.append((room, message))
        try:
            await room
        except asyncio.CancelledError:
            if room.done() and not room.cancelled():
                room.exception()  # the outbox closed at the same moment; nobody else will look
            self.discard(message, urgency)
            raise

    def offer(self, message: Message, urgency: Urgency) -> bool:
        """Queues a message if there is room now; says whether it did."""
        lane = self._lanes[urgency]
        if self._closed or lane.waiting or not self._fits(lane, message):
            return False
        self._admit(lane, message)
        return True

    def next_chunk(self) -> bytes | None:
        """The bytes to write next, None when there is nothing to send."""
        for lane in self._lanes.values():
            if lane.sending is None:
                if not lane.queue:
                    continue
                message = lane.queue.popleft()
                message.begun = True
                lane.sending = message.chunks(lane.urgency)
            chunk = next(lane.sending, None)
            if chunk is None:
                lane.sending = None
                return self.next_chunk()
            lane.unsent -= len(chunk) - 4
            self._grant(lane)
            return chunk
        self.empty.set()
        return None

    def discard(self, message: Message, urgency: Urgency) -> None:
        """Takes a message back of which nothing was sent; a begun one goes on to its end."""
        lane = self._lanes[urgency]
        if message.begun or self._closed:
            return
        if message in lane.queue:
            lane.queue.remove(message)
            lane.unsent -= message.nbytes
        lane.waiting = deque(entry for entry in lane.waiting if entry[1] is not message)
        self._grant(lane)

    def close(self, reason: str) -> None:
        """Forgets everything; those who wait for room get PeerUnreachable with `reason`."""
        if self._closed:
            return
        self._closed = reason
        for lane in self._lanes.values():
            for room, _ in lane.waiting:
                if not room.done():
                    room.set_exception(PeerUnreachable(reason))
            lane.waiting.clear()
            lane.queue.clear()
            lane.sending = None
            lane.unsent = 0
        self.empty.set()
        self._wake()

    @property
    def unsent_bytes(self) -> int:
        return sum(lane.unsent for lane in self._lanes.values())

    def _fits(self, lane: _Lane, message: Message) -> bool:
        if not lane.unsent:
            return True
        return lane.unsent + message.nbytes <= self._limit_bytes and len(lane.queue) < self._limit_messages

    def _admit(self, lane: _Lane, message: Message) -> None:
        lane.queue.append(message)
        lane.unsent += message.nbytes
        self.empty.clear()
        self._wake()

    def _grant(self, lane: _Lane) -> None:
        while lane.waiting and self._fits(lane, lane.waiting[0][1]):
            room, message = lane.waiting.popleft()
            if not room.done():
                self._admit(lane, message)
                room.set_result(None)
