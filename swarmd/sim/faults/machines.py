"""Faults of machines and devices: they die, stop, hang or slow down, one by one or many at once."""

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from swarmd.sim.faults.course import Course, Fault
from swarmd.values import PeerId


@dataclass(frozen=True)
class Crash(Fault):
    """A process dies (its connections are reset) or its machine loses power (silence)."""

    peer: PeerId
    power: bool = False
    back_s: float | None = None  # it is started again after so long; None: never
    disk: bool = True  # it finds its disk as it left it
    kind: ClassVar[str] = "crash"

    async def strike(self, course: Course) -> bool:
        if not course.may_lose([self.peer]):
            return False
        course.world.crash(self.peer, power=self.power)
        await come_back(course, self.peer, self.back_s, disk=self.disk)
        return True


async def come_back(course: Course, peer: PeerId, back_s: float | None, *, disk: bool) -> None:
    """Starts a dead peer again."""
    if back_s is not None:
        await asyncio.sleep(back_s)
        if peer in course.world.dead and course.may_start(peer):
            await course.restart(peer, disk=disk)


@dataclass(frozen=True)
class StageLoss(Fault):
    """A stage loses all its replicas, and with them its state: the swarm can't go on, and must say so."""

    stage: int
    power: bool = False
    kind: ClassVar[str] = "stage loss"

    async def strike(self, course: Course) -> bool:
        return course.lose_stage(self.stage, power=self.power)


@dataclass(frozen=True)
class Outage(Fault):
    """Every machine loses power, and all are started again with their disks, one after the other."""

    seconds: float  # until the first is
    apart_s: float  # and each of the others
    kind: ClassVar[str] = "outage"

    async def strike(self, course: Course) -> bool:
        if not course.may_stop():
            return False
        names = list(course.world.peers)
        course.down += names
        course.count(self.kind)
        for name in names:
            course.world.crash(name, power=True)
        await asyncio.sleep(self.seconds)
        while course.down:
            await course.come_up()
            await asyncio.sleep(self.apart_s)
        return False  # counted already


@dataclass(frozen=True)
class Preemption(Fault):
    """Many machines are taken away at once."""

    peers: tuple[PeerId, ...]
    back_s: float | None = None
    kind: ClassVar[str] = "preemption wave"

    async def strike(self, course: Course) -> bool:
        taken: list[PeerId] = []
        for peer in self.peers:
            if course.may_lose([*taken, peer]):
                taken.append(peer)
        if not taken:
            return False
        course.world.preempt(taken)
        for peer in taken:
            await come_back(course, peer, self.back_s, disk=False)
        return True


@dataclass(frozen=True)
class Pause(Fault):
    """SIGSTOP for a while: nothing runs there, connections stay up, and then all timers are late."""

    peer: PeerId
    seconds: float
    kind: ClassVar[str] = "pause"

    async def strike(self, course: Course) -> bool:
        if self.peer not in course.world.peers:
            return False
        course.world.pause(self.peer)
        await asyncio.sleep(self.seconds)
        if self.peer in course.world.peers:
            course.world.resume(self.peer)
        return True


@dataclass(frozen=True)
class Hang(Fault):
    """A device that doesn't come back from its task, below a lively event loop."""

    peer: PeerId
    seconds: float
    kind: ClassVar[str] = "hang"

    async def strike(self, course: Course) -> bool:
        if self.peer not in course.world.peers:
            return False
        course.world.hang(self.peer)
        await asyncio.sleep(self.seconds)
        if self.peer in course.world.peers:
            course.world.unhang(self.peer)
        return True


@dataclass(frozen=True)
class Slowdown(Fault):
    """A device that takes `factor` times as long."""

    peer: PeerId
    factor: float
    seconds: float
    kind: ClassVar[str] = "slowdown"

    async def strike(self, course: Course) -> bool:
        if self.peer not in course.world.peers:
            return False
        course.world.slow(self.peer, self.factor)
        await asyncio.sleep(self.seconds)
        if self.peer in course.world.peers:
            course.world.slow(self.peer, 1.0)
        return True
