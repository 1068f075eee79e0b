"""Faults that find their moment or their victims in the protocol: a step, a point of `points.py`, the acceptors."""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from swarmd.sim.faults.connections import Partition
from swarmd.sim.faults.course import Course, Fault
from swarmd.sim.faults.machines import Crash, Pause, come_back
from swarmd.sim.faults.point_actions import run_out_of_memory
from swarmd.sim.world.points import DROP
from swarmd.sim.world.world import World
from swarmd.swarm.history.consensus import plan_acceptors
from swarmd.values import PeerId

STEP_LOOK_SECONDS = 1.0  # how often a fault that waits for a step looks whether it has come


@dataclass(frozen=True)
class InStep(Fault):
    """A fault that waits until the swarm computes a step, and counts its own time from there. So faults spread over a
    run however long they make it.
    """

    step: int
    fault: Fault
    kind: ClassVar[str] = "fault in a step"

    async def strike(self, course: Course) -> bool:
        while course.version() < self.step - 1:  # noqa: ASYNC110 - nobody tells, and virtual time costs little
            await asyncio.sleep(STEP_LOOK_SECONDS)
        await asyncio.sleep(self.fault.at_s)
        if await self.fault.strike(course):
            course.count(self.fault.kind)
        return False  # counted under the other's kind


@dataclass(frozen=True)
class PointFault(Fault):
    """A fault that strikes a peer at a logical point of a step (`points.py`), not at a time."""

    peer: PeerId  # or ANYONE
    step: int | None  # None: any
    point: str
    action: str  # crash | power loss | pause | cut | drop | out of memory
    other: PeerId = ""  # the peer that it is cut from
    seconds: float = 0.0  # of a pause
    back_s: float | None = None  # after a crash
    skip: int = 0  # so many times the point is passed first
    kind: ClassVar[str] = "fault at a point"

    async def strike(self, course: Course) -> bool:
        def act(world: World, name: PeerId) -> Any:
            if not self._act(course, name):
                return None
            course.count(f"{self.action} at a point")
            if self.action == "out of memory":
                run_out_of_memory(world, name)
            return DROP if self.action == "drop" else None

        course.world.fail_at(self.peer, self.step, self.point, act, skip=self.skip)
        return False  # counted when it happens

    def _act(self, course: Course, name: PeerId) -> bool:
        world = course.world
        match self.action:
            case "crash" | "power loss":
                if not course.may_lose([name]):
                    return False
                world.crash(name, power=self.action == "power loss")
                course.beside(come_back(course, name, self.back_s, disk=True))
            case "cut":
                if name == self.other:
                    return False
                world.network.cut(name, self.other)
            case "pause":
                world.pause(name)
                course.beside(self._resume(world, name))
            case "out of memory":  # a peer that can't take a step loses its state
                return self.point != "begin.apply" or course.may_lose([name])
            case _:
                assert self.action == "drop", f"{self.action} is no action at a point"
        return True

    async def _resume(self, world: World, name: PeerId) -> None:
        await asyncio.sleep(self.seconds)
        if name in world.peers:
            world.resume(name)


@dataclass(frozen=True)
class Acceptors(Fault):
    """All acceptors of the present step are paused, cut from one another, or lost, as far as the swarm can do without
    them.
    """

    action: str  # pause | cut | power loss
    seconds: float  # until they go on, or are started again
    kind: ClassVar[str] = "acceptors"

    async def strike(self, course: Course) -> bool:
        peers = self._acceptors(course.world)
        faults: list[Fault] = [Pause(0.0, peer, self.seconds) for peer in peers]
        if self.action == "cut":
            faults = [Partition(0.0, tuple((peer,) for peer in peers), self.seconds)]
        if self.action == "power loss":
            faults = [Crash(0.0, peer, power=True, back_s=self.seconds) for peer in peers]
        for fault in faults:
            course.beside(_strike(fault, course))
        return bool(peers)

    def _acceptors(self, world: World) -> list[PeerId]:
        """Those of the step after the newest record, that live."""
        histories = [it.peer.history for it in world.peers.values()]
        newest = max(histories, key=lambda it: it.version, default=None)
        if newest is None:
            return []
        acceptors = plan_acceptors(newest.version + 1, newest.record, newest.origin.founder)
        return [peer for peer in acceptors if peer in world.peers]


async def _strike(fault: Fault, course: Course) -> None:
    await fault.strike(course)
