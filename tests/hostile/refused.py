"""The price of strangers that a daemon refuses: its memory and its CPU, for each of thousands of them.

What a stranger costs up to the end of the encrypted handshake is what any server pays to learn who is there; what comes
after is ours: streams, a greeting, the refusal.
"""

import asyncio
from dataclasses import dataclass

from tests.e2e.swarm import swarm
from tests.e2e.test_training import write_settings
from tests.hostile.attacker import Attacker
from tests.hostile.attacks.connections import Stranger, connect, greeting, shake_hands
from tests.hostile.victims import RUN, look_at, weakened

IDLE_S = 20.0  # by which a daemon's own CPU is measured
WARM_UP = 50  # strangers, until whatever is made once is there


@dataclass(frozen=True)
class Price:
    """One kind of stranger, on the average."""

    count: int  # of those that got through
    cpu_ms: float
    memory_mb: float  # of all of them


async def measure(count: int) -> tuple[Price, Price]:
    """The prices of strangers that only shake hands, and of those that are refused. The daemon is the head of a run
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

            async def price(stranger: Stranger) -> Price:
                loop = asyncio.get_running_loop()
                began, first = loop.time(), await look_at(daemon)
                done = await connect(address, count, stranger)
                last = await look_at(daemon)
                cpu_s = last.cpu_s - first.cpu_s - idle * (loop.time() - began)
                return Price(done, cpu_s / count * 1e3, last.memory_mb - first.memory_mb)

            return await price(shake_hands), await price(said)
        finally:
            await attacker.stop()


async def show(count: int) -> None:
    handshake, refusal = await measure(count)
    print(f"{handshake.count} handshakes: {handshake.cpu_ms:.2f} ms CPU each, {handshake.memory_mb:+.1f} MB")
    print(f"{refusal.count} refusals: {refusal.cpu_ms:.2f} ms CPU each, {refusal.memory_mb:+.1f} MB")
    print(f"a refusal from the end of the handshake: {refusal.cpu_ms - handshake.cpu_ms:.2f} ms CPU")
