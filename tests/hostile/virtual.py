"""A simulated swarm that is attacked: production peers in virtual time, and the same attackers with the same words.

What an attack does to decisions and steps shows here in seconds, and the same each time. What it does to a process, its
memory, its disk, shows with real daemons only (`victims.py`).
"""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine

import msgpack
import torch

from swarmd.config import ModelConfig
from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.device import Speed
from swarmd.sim.world.transport import SimTransport
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.ports import Handler
from swarmd.values import Frame, PeerId, Urgency
from tests.hostile.attack import Attack, Scene
from tests.hostile.attacker import Attacker
from tests.hostile.trial import Fare, Spans, watch
from tests.hostile.victims import RUN, Look, line
from tests.hostile.weak_daemon import weak

torch.set_num_threads(1)

SMALL = ModelConfig(vocabulary=256, hidden=16, ffn=32, heads=2, layers=3, stages=3, sequence_length=12)
SMALL_RUN = dataclasses.replace(RUN, model=SMALL)  # what is computed doesn't matter, and costs CPU
NAMES = ("head", "middle", "tail")
ATTACKER = "stranger"
LIFE = 1 << 40  # the attacker's incarnation
SPEED = Speed(0.05, 0.1)  # about one step a second
POLL_S = 0.5
START_S = 60.0


def packed(frame: Frame) -> Frame:
    """A frame as it comes off a wire."""
    return dataclasses.replace(frame, body=msgpack.unpackb(msgpack.packb(frame.body)))


class SimAccess:
    """A machine of the world that is no peer of the run."""

    def __init__(self, world: World, name: PeerId) -> None:
        self._world, self.id = world, name
        self._transport: SimTransport
        self.machine, self._transport = world.add_stranger(name)

    @property
    def address(self) -> str:
        return self._transport.addresses()[0]

    def serve(self, handler: Handler) -> None:
        self._transport.serve(handler)

    async def connect(self, address: str) -> PeerId:
        return await self._transport.connect(address)

    async def request(self, peer: PeerId, frame: Frame, *, deadline_s: float, urgency: Urgency) -> Frame:
        return await self._transport.request(peer, packed(frame), deadline_s=deadline_s, urgency=urgency)

    async def subscribe(self, topic: str) -> None:
        self._transport.subscribe(topic, lambda peer, frame: None)

    async def publish(self, topic: str, frame: Frame) -> None:
        await self._transport.publish(topic, packed(frame))

    async def stop(self) -> None:
        if self.id in self._world.strangers:
            self._world.remove_stranger(self.id)


class SimVictims:
    """The peers of a simulated swarm that is attacked."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._all: list[SimPeer] = []
        self.addresses = [f"/sim/{name}" for name in NAMES]

    async def start(self) -> None:
        for stage, name in enumerate(NAMES):
            self._all.append(await self._world.start(name, stage=stage, speed=SPEED))
        await self._world.until(lambda: all(it.peer.history.version >= 2 for it in self._all), START_S)

    async def look(self) -> list[Look]:
        return [self._look(it) for it in self._all]

    def _look(self, it: SimPeer) -> Look:
        lines = {made.record: made for made in map(line, it.store.ledger)}
        alive = it.name in self._world.peers and not it.task.done()
        state = it.peer.state if alive else "ended"
        return Look(alive, state, it.view.waiting_for(), it.peer.history.version, 0.0, 0.0, lines)

    async def until(self, holds: Callable[[list[Look]], bool], seconds: float) -> bool:
        """Waits until something holds of the swarm; says whether it did in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not (held := holds(await self.look())) and loop.time() < deadline:
            await asyncio.sleep(POLL_S)
        return held


def play(attack: Attack, spans: Spans, without: str = "") -> Fare:
    """Plays an attack in virtual time."""

    async def main() -> Fare:
        world = World(SMALL_RUN, Text(SMALL_RUN))
        victims = SimVictims(world)
        await victims.start()
        access = SimAccess(world, ATTACKER)
        it = Scene(victims, Attacker(access, LIFE), without=without)
        try:
            await _on(access, it.enter())
            return await watch(it, attack, spans, lambda: access.machine.spawn(attack.run(it), name=attack.name))
        finally:
            await access.stop()
            world.failures.clear()  # a peer that ended shows
            await world.stop()

    async def _on(access: SimAccess, work: Coroutine[object, object, None]) -> None:
        await access.machine.spawn(work, name=ATTACKER)

    with weak(without):
        return run_virtual(main())
