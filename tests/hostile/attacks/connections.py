"""Attacks with connections alone: strangers that are refused, thousands of them."""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from swarmd.net import frames
from swarmd.net.frames import REQUEST
from swarmd.net.libp2p import PROTOCOLS
from swarmd.net.yamux import cut
from swarmd.values import PeerId
from tests.hostile import words
from tests.hostile.attack import Attack, Scene
from tests.hostile.attacker import Attacker
from tests.net.peers import bare_host, open_stream

FLOOD_PER_S = 1000.0
HELD, HELD_S = 400, 0.5  # connections that a flood holds at once, and for how long
AT_ONCE = 5  # strangers between two times that the attack may be ended
REFUSED_S = 10.0  # for a refusal to come, on a busy machine


Stranger = Callable[[Any, Multiaddr, ID], Awaitable[None]]
"""Something that a host of its own does to a daemon at an address."""


async def shake_hands(host: Any, address: Multiaddr, peer: ID) -> None:
    """Agrees on encryption, and leaves: who the other is has been proved by then, and nothing more."""
    secured = await host.get_network().upgrader.upgrade_security(await TCP().dial(address), True, peer)
    await secured.close()


def foreign(attacker: Attacker, peer: PeerId) -> bytes:
    """A greeting of another run, as it is on a stream."""
    hello = words.hello("0" * len(attacker.fingerprint), attacker.card(peer=peer))
    return b"".join(frames.encode(REQUEST, 1, hello).chunks("control"))


def greeting(attacker: Attacker) -> Stranger:
    """Greets as one of another run, waits for the refusal, and leaves."""

    async def greet(host: Any, address: Multiaddr, peer: ID) -> None:
        conn = await host.get_network().dial_addr(address, peer)
        try:
            streams = {name: await open_stream(host, conn, protocol) for name, protocol in PROTOCOLS.items()}
            await streams["control"].write(foreign(attacker, host.get_id().to_base58()))
            with trio.fail_after(REFUSED_S):
                await streams["control"].read(1 << 16)
        finally:
            cut(conn.muxed_conn, abort=True)

    return greet


async def connect(address: str, count: int, stranger: Stranger) -> int:
    """Sends strangers to a daemon, one after another, each with a name of its own. Returns how many weren't cut off
    before they were done.
    """
    target, _, peer = address.partition("/p2p/")

    async def main() -> int:
        done = 0
        for _ in range(count):
            async with bare_host() as host:
                with contextlib.suppress(Exception):  # whichever way the library says that it was cut off
                    await stranger(host, Multiaddr(target), ID.from_base58(peer))
                    done += 1
        return done

    return await asyncio.to_thread(trio.run, main)


async def be_refused(scene: Scene) -> None:
    """One stranger after another greets the head, and is refused."""
    while True:
        await connect(scene.victims.addresses[0], AT_ONCE, greeting(scene.attacker))


def where(address: str) -> tuple[str, int]:
    """The host and port of a daemon's address."""
    _, _, host, _, port, *_ = address.split("/")
    return host, int(port)


async def knock(host: str, port: int, count: int | None, per_s: float) -> int:
    """Opens so many connections a second and says nothing, until it has opened so many, or is cancelled. Returns how
    many it has opened.
    """
    loop, opened = asyncio.get_running_loop(), 0
    began, open_now = loop.time(), deque[tuple[float, socket.socket]]()
    try:
        while count is None or opened < count:
            due = int((loop.time() - began) * per_s) - opened
            for _ in range(due if count is None else min(due, count - opened)):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex((host, port))
                open_now.append((loop.time(), one))
                opened += 1
            while open_now and (len(open_now) > HELD or loop.time() - open_now[0][0] > HELD_S):
                open_now.popleft()[1].close()
            await asyncio.sleep(0.005)
    finally:
        while open_now:
            open_now.popleft()[1].close()
    return opened


async def flood(scene: Scene) -> None:
    """A thousand connections a second to the head."""
    await knock(*where(scene.victims.addresses[0]), None, FLOOD_PER_S)


ATTACKS = (
    Attack("refused", "greets as one stranger after another, of another run", be_refused, physical=True),
    Attack("flood", "opens 1,000 connections a second", flood, defence="accept-pace", physical=True),
)
