"""The gate of a transport: floods of connections cost it little, and it lets others in."""

import asyncio
import contextlib
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from swarmd.errors import Mismatch, PeerUnreachable
from swarmd.net.limits import TransportLimits
from swarmd.values import Frame
from tests.net.peers import PATIENCE_S, Peer, bare_host, until

COUNT = 400
AFTER_HANDSHAKE_S = 1e-3  # of CPU for a refusal, from the end of the handshake on
BEFORE_IT_S = 0.0005  # of CPU; 0.03 ms on a quiet machine, ten times that where caches are shared with other work


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    started: list[Peer] = []

    async def one(**limits: float) -> Peer:
        peer = await Peer.start(tmp_path / f"{len(started)}.key", limits=TransportLimits(**limits))  # type: ignore[arg-type]
        started.append(peer)
        return peer

    yield one
    for peer in started:
        await peer.stop()


def port_of(peer: Peer) -> int:
    return int(peer.address.split("/")[4])


def knock(port: int, count: int) -> None:
    """Connects, and is cut off, one time after another."""
    for _ in range(count):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE_S) as it:
            it.settimeout(PATIENCE_S)
            it.recv(1)


async def test_what_is_refused_before_its_handshake_costs_next_to_nothing(start: Callable[..., Any]) -> None:
    victim = await start(handshakes_burst=0, handshakes_per_s=0.0)

    async def cpu() -> float:
        return float(await victim.now(time.thread_time))

    before = await cpu()
    await asyncio.to_thread(knock, port_of(victim), COUNT)
    assert victim.transport._gate.refused == COUNT
    assert (await cpu() - before) / COUNT < BEFORE_IT_S


async def test_what_is_refused_after_its_handshake_costs_little_more(start: Callable[..., Any]) -> None:
    victim = await start(strangers_burst=0, strangers_per_s=0.0)
    pace, begun, spent = victim.transport._accept_pace, list[float](), list[float]()
    admit, closed = pace.admit_peer, pace.closed

    def admit_peer(*args: Any, **kwargs: Any) -> bool:
        begun.append(time.thread_time())
        return bool(admit(*args, **kwargs))

    def count_closed(host: str) -> None:
        closed(host)
        spent.append(time.thread_time() - begun.pop())

    pace.admit_peer, pace.closed = admit_peer, count_closed
    target, _, peer = victim.address.partition("/p2p/")

    async def shake_hands() -> None:
        async with bare_host() as host:
            upgrader = host.get_network().upgrader
            for _ in range(20):
                raw = await TCP().dial(Multiaddr(target))
                await upgrader.upgrade_security(raw, True, ID.from_base58(peer))
                with trio.fail_after(PATIENCE_S), contextlib.suppress(Exception):  # whatever a reset is called
                    await raw.read(1)
                await raw.close()

    await asyncio.to_thread(trio.run, shake_hands)
    await until(lambda: len(spent) == 20)
    assert victim.transport.connected() == ()
    assert statistics.median(spent) < AFTER_HANDSHAKE_S


async def test_a_peer_that_is_refused_by_chance_tries_until_it_is_in(start: Callable[..., Any]) -> None:
    """A dialler goes on trying at an address that the user named, or that has worked."""
    victim, honest = await start(strangers_burst=1, strangers_per_s=2.0), await start()
    other = await start()
    await other.connect(victim)  # the share of strangers is used up
    await honest.connect(victim)
    assert (await honest.request(victim, Frame("x", {}))).kind == "echo"


async def test_a_hint_is_not_tried_again_at_once(start: Callable[..., Any]) -> None:
    """A peer could have somebody else's address dialled fifty times a second otherwise."""
    victim, honest = await start(handshakes_burst=0, handshakes_per_s=0.0), await start()
    honest.transport.learn(victim.id, [victim.address])
    with pytest.raises(PeerUnreachable):
        await honest.request(victim, Frame("x", {}))
    assert victim.transport._gate.refused == 1


async def test_a_peer_of_another_run_is_told_so_and_then_sent_away(start: Callable[..., Any]) -> None:
    victim, other = await start(turned_away_s=2.0), await start()

    async def refuse(peer: str, frame: Frame) -> Frame:
        raise Mismatch("another run")

    victim.transport.serve(refuse)
    await other.connect(victim)
    with pytest.raises(Exception, match="another run"):
        await other.request(victim, Frame("Hello", {}))
    await until(lambda: other.gone == [victim.id])
    refused = victim.transport._gate.refused
    await other.connect(victim)  # tries again until it may come
    assert victim.transport._gate.refused > refused
