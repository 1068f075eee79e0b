"""Attacks with connections alone: strangers that are refused, thousands of them."""

import asyncio
import contextlib
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


ATTACKS = (Attack("refused", "greets as one stranger after another, of another run", be_refused, physical=True),)
