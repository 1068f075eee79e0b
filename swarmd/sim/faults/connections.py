"""Faults of the network between peers: it is cut, blocked one way, clogged, or damages frames."""

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from swarmd.sim.faults.course import Course, Fault, live
from swarmd.values import PeerId


@dataclass(frozen=True)
class Partition(Fault):
    """Groups that can't hear each other; those that are in none are one, too."""

    groups: tuple[tuple[PeerId, ...], ...]
    seconds: float
    kind: ClassVar[str] = "partition"

    async def strike(self, course: Course) -> bool:
        course.world.network.partition([list(group) for group in self.groups])
        await asyncio.sleep(self.seconds)
        course.world.network.partition([])
        return True


@dataclass(frozen=True)
class OneWay(Fault):
    """Nothing that one peer sends another arrives; the other way is open."""

    source: PeerId
    target: PeerId
    seconds: float
    kind: ClassVar[str] = "one-way block"

    async def strike(self, course: Course) -> bool:
        struck = live(course, self.source, self.target)
        course.world.network.block(self.source, self.target)
        await asyncio.sleep(self.seconds)
        course.world.network.unblock(self.source, self.target)
        return struck


@dataclass(frozen=True)
class Clog(Fault):
    """Frames between two peers are held for a while and then all delivered."""

    one: PeerId
    other: PeerId
    seconds: float
    kind: ClassVar[str] = "clog"

    async def strike(self, course: Course) -> bool:
        course.world.network.clog(self.one, self.other, self.seconds)
        return live(course, self.one, self.other)


@dataclass(frozen=True)
class Cut(Fault):
    """A connection is reset."""

    one: PeerId
    other: PeerId
    kind: ClassVar[str] = "cut"

    async def strike(self, course: Course) -> bool:
        network = course.world.network
        struck = network.connected(self.one, self.other)
        network.cut(self.one, self.other)
        return struck


@dataclass(frozen=True)
class Corruption(Fault):
    """A share `rate` of the frames that a peer sends arrives damaged."""

    peer: PeerId
    rate: float
    seconds: float
    kind: ClassVar[str] = "corruption"

    async def strike(self, course: Course) -> bool:
        struck = live(course, self.peer)
        course.world.network.corrupt(self.peer, self.rate)
        await asyncio.sleep(self.seconds)
        course.world.network.corrupt(self.peer, 0.0)
        return struck
