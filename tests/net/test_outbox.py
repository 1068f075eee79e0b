"""Messages that wait to be sent: order, bounds, room, and taking back."""

import asyncio

import pytest

from swarmd.errors import PeerUnreachable
from swarmd.net import frames
from swarmd.net.frames import REQUEST, Decoder, Message
from swarmd.net.outbox import Outbox
from swarmd.values import Frame

BIG = 200_000


def message(number: int, size: int = 10) -> Message:
    return frames.encode(REQUEST, number, Frame("hop", {}, (bytes(size),)))


def outbox(limit_bytes: int = 1 << 20, limit_messages: int = 100) -> Outbox:
    return Outbox(("hop", "bulk"), limit_bytes=limit_bytes, limit_messages=limit_messages, wake=lambda: None)


def drained(box: Outbox) -> list[int]:
    reader, ids = Decoder(("hop", "bulk"), 1 << 30), []
    while (chunk := box.next_chunk()) is not None:
        ids += [envelope.id for envelope in reader.feed(chunk)]
    assert reader.partial_bytes == 0
    return ids


async def test_the_more_urgent_goes_first_and_in_order() -> None:
    box = outbox()
    for number, urgency in ((1, "bulk"), (2, "hop"), (3, "bulk"), (4, "hop")):
        await box.put(message(number), "hop" if urgency == "hop" else "bulk")
    assert drained(box) == [2, 4, 1, 3]
    assert box.empty.is_set()
    assert box.unsent_bytes == 0


async def test_an_urgent_message_overtakes_one_that_is_being_sent() -> None:
    box = outbox()
    await box.put(message(1, BIG), "bulk")
    reader = Decoder(("hop", "bulk"), 1 << 30)
    first = box.next_chunk()
    assert first is not None
    assert reader.feed(first) == []
    await box.put(message(2), "hop")
    second = box.next_chunk()
    assert second is not None
    assert [envelope.id for envelope in reader.feed(second)] == [2]


async def test_senders_wait_for_room_and_are_let_in_in_order() -> None:
    box = outbox(limit_bytes=2 * BIG)
    await box.put(message(1, BIG), "hop")
    later = [asyncio.create_task(box.put(message(number, BIG), "hop")) for number in (2, 3, 4)]
    await asyncio.sleep(0)
    assert [task.done() for task in later] == [False, False, False]
    await box.put(message(9), "bulk")  # another urgency has its own room
    assert drained(box) == [1, 2, 3, 4, 9]
    await asyncio.gather(*later)


async def test_the_number_of_messages_is_bounded_too() -> None:
    box = outbox(limit_messages=2)
    assert [box.offer(message(number), "hop") for number in (1, 2, 3)] == [True, True, False]


async def test_a_message_larger_than_the_bound_goes_alone() -> None:
    box = outbox(limit_bytes=1000)
    await box.put(message(1, BIG), "hop")
    assert drained(box) == [1]


async def test_a_cancelled_wait_gives_up_its_place() -> None:
    box = outbox(limit_bytes=BIG)
    await box.put(message(1, BIG), "hop")
    waiting = asyncio.create_task(box.put(message(2, BIG), "hop"))
    behind = asyncio.create_task(box.put(message(3), "hop"))
    await asyncio.sleep(0)
    waiting.cancel()
    assert drained(box) == [1, 3]
    await asyncio.gather(waiting, behind, return_exceptions=True)
    assert waiting.cancelled()


async def test_cancelled_in_the_moment_of_being_let_in() -> None:
    box = outbox(limit_bytes=BIG)
    await box.put(message(1, BIG), "hop")
    waiting = asyncio.create_task(box.put(message(2, BIG), "hop"))
    await asyncio.sleep(0)
    for _ in range(4):
        box.next_chunk()  # makes room: message 2 is queued now
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert drained(box) == []
    assert box.unsent_bytes == 0


async def test_only_what_has_not_begun_is_taken_back() -> None:
    box = outbox()
    begun, queued = message(1, BIG), message(2, BIG)
    await box.put(begun, "hop")
    await box.put(queued, "hop")
    first = box.next_chunk()
    assert first is not None
    box.discard(begun, "hop")
    box.discard(queued, "hop")
    reader = Decoder(("hop", "bulk"), 1 << 30)
    ids = [envelope.id for envelope in reader.feed(first)]
    while (chunk := box.next_chunk()) is not None:
        ids += [envelope.id for envelope in reader.feed(chunk)]
    assert ids == [1]


async def test_closing_wakes_those_who_wait() -> None:
    box = outbox(limit_bytes=BIG)
    await box.put(message(1, BIG), "hop")
    waiting = asyncio.create_task(box.put(message(2, BIG), "hop"))
    await asyncio.sleep(0)
    box.close("gone")
    with pytest.raises(PeerUnreachable, match="gone"):
        await waiting
    with pytest.raises(PeerUnreachable, match="gone"):
        await box.put(message(3), "hop")
    assert box.next_chunk() is None
