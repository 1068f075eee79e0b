"""Attacks with connections alone: strangers that are refused, thousands of them."""

import asyncio
import contextlib
from typing import Any

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from swarmd.net import frames
from swarmd.net.frames import REQUEST
from swarmd.net.libp2p import PROTOCOLS
from swarmd.net.yamux import cut
from tests.hostile import words
from tests.hostile.attack import Attack, Scene
from tests.net.peers import bare_host, open_stream

REFUSED_S = 10.0  # for a refusal to come, on a busy machine


async def connect(address: str, count: int, *, greeting: bytes = b"") -> int:
    """Connects to a daemon as a new peer, again and again; with a greeting, waits for the refusal. Without one the
    connection is cut when both sides have agreed on encryption and muxer. Returns how many were made.
    """
    target, _, peer = address.partition("/p2p/")

    async def main() -> int:
        made = 0
        for _ in range(count):
            async with bare_host() as host:
                with contextlib.suppress(Exception):  # a connection that the daemon has cut is what is wanted
                    conn = await host.get_network().dial_addr(Multiaddr(target), ID.from_base58(peer))
                    try:
                        made += 1
                        if greeting:
                            await _be_refused(host, conn, greeting)
                    finally:
                        cut(conn.muxed_conn, abort=True)
        return made

    return await asyncio.to_thread(trio.run, main)


async def _be_refused(host: Any, conn: Any, greeting: bytes) -> None:
    streams = {name: await open_stream(host, conn, protocol) for name, protocol in PROTOCOLS.items()}
    await streams["control"].write(greeting)
    with trio.fail_after(REFUSED_S):
        await streams["control"].read(1 << 16)


def foreign_greeting(scene: Scene) -> bytes:
    """A greeting of another run, in the attacker's name: it is refused for both."""
    hello = words.hello("0" * len(scene.attacker.fingerprint), scene.attacker.card())
    return b"".join(frames.encode(REQUEST, 1, hello).chunks("control"))


async def be_refused(scene: Scene) -> None:
    """One stranger after another greets the head, and is refused."""
    while True:
        await connect(scene.victims.addresses[0], 20, greeting=foreign_greeting(scene))


ATTACKS = (Attack("refused", "greets as one stranger after another, of another run", be_refused),)
