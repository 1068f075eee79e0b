"""Bare nodes on a simulated network: an echo at each, no peers, no compute."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.machine import Machine
from swarmd.sim.world.network import LinkSpec, SimNetwork
from swarmd.sim.world.transport import SimTransport
from swarmd.values import Frame, Urgency

SLOW = LinkSpec(delay_s=1.0, bytes_per_second=1000.0)
"""A link of numbers that can be added up in the head: a frame of 800 bytes takes 1 s to leave (a header is 200)."""


class Node:
    """One machine; remembers what it was asked and when, and what it heard by gossip."""

    def __init__(self, network: SimNetwork, name: str, **rates: float) -> None:
        self.network = network
        self.machine = Machine(name)
        self.transport: SimTransport = network.transport(name, self.machine, **rates)
        self.asked: list[tuple[float, str, Any]] = []
        self.heard: list[tuple[str, Any]] = []
        self.lost: list[tuple[float, str]] = []
        self.handler: Callable[[str, Frame], Awaitable[Frame]] | None = None
        self.transport.serve(self._answer)
        self.transport.on_disconnected(lambda peer: self.lost.append((now(), peer)))

    async def _answer(self, peer: str, frame: Frame) -> Frame:
        self.asked.append((now(), peer, frame.body.get("word")))
        if self.handler is not None:
            return await self.handler(peer, frame)
        return Frame("Echo", dict(frame.body))

    async def ask(
        self, peer: str, word: Any = "", nbytes: int = 0, urgency: Urgency = "control", deadline_s: float | None = None
    ) -> Any:
        """Asks from a task of this machine; returns the word that came back."""
        frame = Frame("Word", {"word": word}, (b"x" * nbytes,) if nbytes else ())
        task = self.machine.spawn(self.transport.request(peer, frame, urgency=urgency, deadline_s=deadline_s))
        return (await task).body["word"]

    def begin(self, *arguments: Any, **options: Any) -> "asyncio.Task[Any]":
        """Asks without waiting."""
        task = asyncio.create_task(self.ask(*arguments, **options))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def follow(self, topic: str = "news") -> None:
        self.transport.subscribe(topic, lambda author, frame: self.heard.append((author, frame.body["word"])))

    async def publish(self, word: Any, topic: str = "news") -> None:
        await self.machine.spawn(self.transport.publish(topic, Frame("News", {"word": word})))


def now() -> float:
    return round(asyncio.get_running_loop().time(), 9)


async def forever(*_: object) -> Any:
    await asyncio.get_running_loop().create_future()


async def connect(*nodes: Node) -> None:
    """Everyone to everyone."""
    for one in nodes:
        for other in nodes:
            if one is not other:
                one.transport.learn(other.transport.peer_id, ())
    for number, one in enumerate(nodes):
        for other in nodes[number + 1 :]:
            await one.machine.spawn(one.transport.connect(f"/sim/{other.transport.peer_id}"))
    await asyncio.sleep(3 * nodes[0].network.link.delay_s + 1)


def play(
    test: Callable[..., Coroutine[Any, Any, None]],
    names: str = "ab",
    link: LinkSpec | None = None,
    *,
    rates: dict[str, dict[str, float]] | None = None,
    break_seconds: float | None = None,
) -> None:
    """Runs a test with a network and connected nodes of these one-letter names; time begins when they are connected."""

    async def main() -> None:
        network = SimNetwork(link)
        if break_seconds is not None:
            network.break_seconds = break_seconds
        nodes = [Node(network, name, **(rates or {}).get(name, {})) for name in names]
        await connect(*nodes)
        await test(network, *nodes)

    run_virtual(main())
