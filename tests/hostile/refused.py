"""The price of strangers that a daemon refuses: its memory and its CPU, for each of thousands of them.

Most connections of a flood are refused before a byte is read. What a stranger costs up to the end of the encrypted
handshake is what any server pays to learn who is there; what comes after is ours: streams, a greeting, the refusal.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

from tests.e2e.swarm import swarm
from tests.e2e.test_training import write_settings
from tests.hostile.attacker import Attacker
from tests.hostile.attacks.connections import FLOOD_PER_S, Stranger, connect, greeting, knock, shake_hands, where
from tests.hostile.victims import RUN, look_at, weakened

IDLE_S = 20.0  # by which a daemon's own CPU is measured
WARM_UP = 50  # strangers, until whatever is made once is there
COMPANY = 50  # times as many connections are opened without a word as strangers come


@dataclass(frozen=True)
class Price:
    """One kind of stranger, on the average."""

    count: int  # of those that got through
    cpu_ms: float
    memory_mb: float  # of all of them


async def measure(count: int) -> tuple[Price, ...]:
    """The prices of connections without a word, of strangers that only shake hands, and of those that greet, and are
    refused for it or before. The daemon is the head of a run
    that waits for others, so that it does little else.
    """
    async with swarm(weakened("", "--quiet")) as it:
        daemon = await it.start("--model", str(write_settings(RUN, it.directory / "run.toml")), "--stage", "0")
        address = await daemon.address()
        await daemon.until(lambda status: bool(status["opened"]))
        attacker = await Attacker.start(it.directory)
        try:
            await attacker.learn(address)
            said = greeting(attacker)
            await connect(address, WARM_UP, said)
            before = await look_at(daemon)
            await asyncio.sleep(IDLE_S)
            idle = ((await look_at(daemon)).cpu_s - before.cpu_s) / IDLE_S

            async def price(work: Awaitable[int], count: int) -> Price:
                loop = asyncio.get_running_loop()
                began, first = loop.time(), await look_at(daemon)
                done = await work
                last = await look_at(daemon)
                cpu_s = last.cpu_s - first.cpu_s - idle * (loop.time() - began)
                return Price(done, cpu_s / count * 1e3, last.memory_mb - first.memory_mb)

            silent = await price(knock(*where(address), COMPANY * count, FLOOD_PER_S), COMPANY * count)
            strangers: tuple[Stranger, ...] = shake_hands, said
            return silent, *[await price(connect(address, count, it), count) for it in strangers]
        finally:
            await attacker.stop()


async def show(count: int) -> None:
    names = ("connections without a word", "handshakes", "greetings of another run")
    for name, it in zip(names, await measure(count), strict=True):
        print(f"{it.count} {name}: {it.cpu_ms:.3f} ms CPU each, {it.memory_mb:+.1f} MB")
