"""Requests and answers over one connection, without a network: two channels that feed each other."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from swarmd.errors import OutOfRange, Overruled, PeerFault, PeerUnreachable, Refused
from swarmd.net import frames
from swarmd.net.channel import STREAMS, Channel
from swarmd.net.frames import ANSWER, REQUEST
from swarmd.net.limits import TransportLimits
from swarmd.values import Frame, Size

Serve = Callable[[str, Frame], Awaitable[Frame]]


async def echo(peer: str, frame: Frame) -> Frame:
    return Frame("echo", {"peer": peer, **frame.body}, frame.buffers)


def channel(serve: Serve = echo, faults: list[PeerFault] | None = None, **limits: Any) -> Channel:
    return Channel(
        "peer",
        TransportLimits(**limits),
        serve=serve,
        on_fault=(faults if faults is not None else []).append,
        wake=lambda _: None,
    )


def carry(sender: Channel, receiver: Channel) -> int:
    """Everything that the sender has to send now; returns the bytes."""
    count = 0
    for name in STREAMS:
        while (chunk := sender.outboxes[name].next_chunk()) is not None:
            receiver.received(name, chunk)
            count += len(chunk)
    return count


async def answered(asker: Channel, server: Channel, question: Awaitable[Frame]) -> Frame:
    task = asyncio.ensure_future(question)
    async with asyncio.timeout(5):
        while not task.done():
            await asyncio.sleep(0)
            carry(asker, server)
            await asyncio.sleep(0)
            carry(server, asker)
    return task.result()


async def test_a_request_is_answered() -> None:
    one, two = channel(), channel()
    answer = await answered(one, two, one.request(Frame("x", {"a": [1, 2]}, (b"payload",)), "hop"))
    assert (answer.kind, answer.body, bytes(answer.buffers[0])) == ("echo", {"peer": "peer", "a": [1, 2]}, b"payload")


async def test_answers_travel_as_urgently_as_their_requests() -> None:
    one, two = channel(), channel()
    for urgency, stream in (("control", "control"), ("hop", "bulk"), ("bulk", "bulk")):
        asking = asyncio.create_task(one.request(Frame("x", {}), urgency))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        carry(one, two)
        await asyncio.sleep(0)
        assert [name for name in STREAMS if not two.outboxes[name].empty.is_set()] == [stream]
        carry(two, one)
        await asking


async def test_a_large_word_of_control_does_not_clog_the_control_stream() -> None:
    one, two = channel(), channel()
    answer = await answered(one, two, one.request(Frame("x", {"a": b"y" * 100_000}), "control"))
    assert len(answer.body["a"]) == 100_000


async def test_refusals_carry_their_sentence_and_failures_do_not() -> None:
    async def serve(peer: str, frame: Frame) -> Frame:
        if frame.kind == "no":
            raise Refused("other run")
        if frame.kind == "overruled":
            raise Overruled("another leads")
        raise RuntimeError("secret path")

    one, two = channel(), channel(serve)
    with pytest.raises(Refused, match="other run"):
        await answered(one, two, one.request(Frame("no", {}), "control"))
    with pytest.raises(Overruled, match=r"^another leads$"):
        await answered(one, two, one.request(Frame("overruled", {}), "control"))
    with pytest.raises(Refused, match=r"^internal error$"):
        await answered(one, two, one.request(Frame("bug", {}), "control"))


async def test_an_answer_that_cannot_be_sent_is_an_internal_error() -> None:
    async def serve(peer: str, frame: Frame) -> Frame:
        return Frame("x", {"a": object()})

    one, two = channel(), channel(serve)
    with pytest.raises(Refused, match="internal error"):
        await answered(one, two, one.request(Frame("x", {}), "control"))


async def test_a_fault_found_by_the_handler_reaches_the_transport() -> None:
    async def serve(peer: str, frame: Frame) -> Frame:
        raise PeerFault("unknown kind")

    faults: list[PeerFault] = []
    one, two = channel(), channel(serve, faults)
    asking = asyncio.create_task(one.request(Frame("x", {}), "control"))
    await asyncio.sleep(0)
    carry(one, two)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [str(fault) for fault in faults] == ["unknown kind"]
    one.fail("cut")
    with pytest.raises(PeerUnreachable, match="cut"):
        await asking


async def test_a_forgotten_answer_is_dropped_quietly_and_an_invented_one_is_a_fault() -> None:
    one, two = channel(), channel()
    asking = asyncio.create_task(one.request(Frame("x", {}), "control"))
    await asyncio.sleep(0)
    carry(one, two)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0)
    assert carry(two, one) > 0
    invented = b"".join(frames.encode(ANSWER, 2, Frame("x", {})).chunks("control"))
    with pytest.raises(PeerFault, match="never asked"):
        one.received("control", invented)


async def test_a_request_cancelled_before_it_was_sent_is_never_sent() -> None:
    one, two = channel(), channel()
    asking = asyncio.create_task(one.request(Frame("x", {}, (bytes(1000),)), "hop"))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert carry(one, two) == 0


async def test_too_many_requests_are_answered_busy_and_the_rest_goes_on() -> None:
    release = asyncio.Event()

    async def serve(peer: str, frame: Frame) -> Frame:
        await release.wait()
        return frame

    one, two = channel(), channel(serve, serving_per_peer=3)
    asking = [asyncio.create_task(one.request(Frame("x", {"n": n}), "control")) for n in range(5)]
    await asyncio.sleep(0)
    carry(one, two)
    carry(two, one)
    await asyncio.wait(asking[3:], timeout=5)
    for task in asking[3:]:
        with pytest.raises(Refused, match="as many"):
            task.result()
    release.set()
    for _ in range(3):
        await asyncio.sleep(0)
    carry(two, one)
    assert [(await task).body["n"] for task in asking[:3]] == [0, 1, 2]


async def test_a_flood_of_requests_whose_answers_are_not_read_is_a_fault() -> None:
    async def serve(peer: str, frame: Frame) -> Frame:
        await asyncio.Event().wait()
        raise AssertionError

    two = channel(serve, serving_per_peer=2, unsent_messages=10)
    flood = [chunk for n in range(1, 100) for chunk in frames.encode(REQUEST, n, Frame("x", {})).chunks("control")]
    with pytest.raises(PeerFault, match="without end"):
        two.received("control", b"".join(flood))
    two.fail("cut")


async def test_two_requests_with_one_id_are_a_fault() -> None:
    two = channel()
    data = b"".join(frames.encode(REQUEST, 1, Frame("x", {})).chunks("control"))
    with pytest.raises(PeerFault, match="one id"):
        two.received("control", data + data)
    two.fail("cut")


async def test_when_the_connection_breaks_everybody_knows_at_once() -> None:
    cancelled = asyncio.Event()

    async def serve(peer: str, frame: Frame) -> Frame:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    one, two = channel(unsent_bytes=1000), channel(serve)
    asked = asyncio.create_task(one.request(Frame("x", {}), "hop"))
    await asyncio.sleep(0)
    carry(one, two)
    await asyncio.sleep(0)
    queued = asyncio.create_task(one.request(Frame("x", {}, (bytes(5000),)), "hop"))
    waiting = asyncio.create_task(one.request(Frame("x", {}, (bytes(5000),)), "hop"))
    await asyncio.sleep(0)
    one.fail("the peer is gone")
    two.fail("the peer is gone")
    for task in (asked, queued, waiting):
        with pytest.raises(PeerUnreachable, match="the peer is gone"):
            await task
    async with asyncio.timeout(5):
        await cancelled.wait()
    with pytest.raises(PeerUnreachable, match="the peer is gone"):
        await one.request(Frame("x", {}), "hop")


async def test_what_is_read_after_the_end_is_neither_served_nor_kept() -> None:
    served: list[str] = []

    async def serve(peer: str, frame: Frame) -> Frame:
        served.append(frame.kind)
        return frame

    two = channel(serve)
    request = b"".join(frames.encode(REQUEST, 1, Frame("x", {}, (bytes(500),))).chunks("control"))
    two.fail("cut")
    two.received("control", request)
    two.received("bulk", request[:200])
    await asyncio.sleep(0)
    assert (served, two.partial_bytes) == ([], 0)


async def test_a_frame_over_the_limit_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="larger than a message may be"):
        await channel(message_bytes=1000).request(Frame("x", {}, (bytes(2000),)), "hop")


async def nine(peer: str, frame: Frame) -> Frame:
    return Frame("large", {}, (bytes(9),))


async def test_a_message_that_is_too_large_for_its_kind_is_refused_and_the_conversation_goes_on() -> None:
    """Another release may allow more: it hears that this one doesn't."""
    faults: list[PeerFault] = []
    later, own = channel(nine, faults), channel(echo, faults, sizes={"large": Size(4096, 8)})
    with pytest.raises(OutOfRange, match="9 of payload, and not up to 4096 and 8"):
        await answered(later, own, later.request(Frame("large", {}, (bytes(9),)), "hop"))
    with pytest.raises(OutOfRange, match="9 of payload, and not up to 4096 and 8"):
        await answered(own, later, own.request(Frame("large", {}, (bytes(8),)), "hop"))
    answer = await answered(later, own, later.request(Frame("large", {}, (bytes(8),)), "hop"))
    assert answer.kind == "echo"
    assert faults == []


async def test_requests_that_are_too_large_take_no_more_room_than_others() -> None:
    two = channel(sizes={"x": Size(4096, 8)}, unsent_control_bytes=600)
    with pytest.raises(PeerFault, match="without end"):
        for number in range(1, 100):
            for chunk in frames.encode(REQUEST, number, Frame("x", {}, (bytes(9),))).chunks("hop"):
                two.received("bulk", chunk)
