"""Peers that come, and peers that are told to leave, to drain, to take no work, or to move."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar

from swarmd.errors import Refused
from swarmd.sim.faults.course import Course, Fault, live
from swarmd.sim.world.world import SimPeer
from swarmd.values import PeerId

LEAVE_SECONDS = 10.0  # to say goodbye to everyone


@dataclass(frozen=True)
class Join(Fault):
    """A newcomer."""

    peer: PeerId
    stage: int | None = None
    kind: ClassVar[str] = "join"

    async def strike(self, course: Course) -> bool:
        if not course.may_start(self.peer):
            return False
        await course.start(self.peer, self.stage)
        return True


@dataclass(frozen=True)
class Leave(Fault):
    """A peer says goodbye and goes."""

    peer: PeerId
    kind: ClassVar[str] = "leave"

    async def strike(self, course: Course) -> bool:
        if not course.may_lose([self.peer]):
            return False
        it = course.world.peers[self.peer]
        course.leaving.add(self.peer)
        goodbye = it.machine.spawn(it.peer.leave(), name=f"leave {self.peer}")
        try:
            await asyncio.wait([goodbye], timeout=LEAVE_SECONDS)
        finally:  # the faults may end while it still tells the others: who says goodbye goes
            course.leaving.discard(self.peer)
            if course.world.peers.get(self.peer) is it:
                course.world.crash(self.peer)
        return True


@dataclass(frozen=True)
class Drain(Fault):
    """A peer is told to end its work within a bound, and goes; with what nobody else has if the others of its stage
    slept meanwhile. Then the stage is lost.
    """

    peer: PeerId
    seconds: float  # the bound
    kind: ClassVar[str] = "drain"

    async def strike(self, course: Course) -> bool:
        if not course.may_lose([self.peer]):
            return False
        it = course.world.peers[self.peer]
        course.leaving.add(self.peer)
        drain = it.machine.spawn(it.peer.drain(self.seconds), name=f"drain {self.peer}")
        try:
            await asyncio.wait([drain], timeout=self.seconds + LEAVE_SECONDS)
        finally:
            course.leaving.discard(self.peer)
            if course.world.peers.get(self.peer) is it:
                safe, stage = course.may_lose([self.peer]), it.peer.stage
                course.world.crash(self.peer)
                if not safe and stage is not None:
                    course.lose_stage(stage, power=False)
        return True


@dataclass(frozen=True)
class Hold(Fault):
    """A peer is told to take no more work for a while."""

    peer: PeerId
    seconds: float
    kind: ClassVar[str] = "hold"

    async def strike(self, course: Course) -> bool:
        if not live(course, self.peer):
            return False
        it = course.world.peers[self.peer]
        telling = self._tell(it, it.peer.pause)
        try:  # the faults may end while it still tells the others
            await asyncio.wait([telling])
            if telling.cancelled() or not telling.result():
                return False
            await asyncio.sleep(self.seconds)
        finally:
            if course.world.peers.get(self.peer) is it:
                self._tell(it, it.peer.resume)
        return True

    def _tell(self, it: SimPeer, command: Callable[[], Coroutine[Any, Any, None]]) -> "asyncio.Task[bool]":
        async def tell() -> bool:
            try:
                await command()
            except Refused:
                return False
            return True

        return it.machine.spawn(tell(), name=f"tell {self.peer}")


@dataclass(frozen=True)
class Move(Fault):
    """A peer is told to go to another stage. It does when a record grants it."""

    peer: PeerId
    stage: int
    kind: ClassVar[str] = "move"

    async def strike(self, course: Course) -> bool:
        if not course.may_move(self.peer):
            return False
        it = course.world.peers[self.peer]

        async def move() -> bool:
            try:
                await it.peer.mover.move(self.stage)
            except Refused:
                return False
            return True

        moving = it.machine.spawn(move(), name=f"move {self.peer}")
        await asyncio.wait([moving])
        return not moving.cancelled() and moving.result()
