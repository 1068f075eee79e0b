"""What can befall a world: each fault is one plain dataclass that says when, whom and for how long, and how it strikes.

A scenario is a list of them, so it prints as text that can be pasted into Python, and written by hand. Faults strike
through a `Course`, which knows the world and spares what the scenario must not take: a stage's last replica with state.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from swarmd.errors import Refused
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.history.consensus import plan_acceptors
from swarmd.values import PeerId

LEAVE_SECONDS = 10.0  # to say goodbye to everyone
STEP_LOOK_SECONDS = 1.0  # how often a fault that waits for a step looks whether it has come


class Course(Protocol):
    """A scenario that is being played."""

    world: World
    leaving: set[PeerId]  # who says goodbye at present
    down: list[PeerId]  # who is still to be started after an outage

    def may_lose(self, peers: Sequence[PeerId]) -> bool:
        """Whether the swarm can do without these: every stage keeps a replica that has its state."""

    def may_move(self, peer: PeerId) -> bool:
        """Whether a peer may be told to go elsewhere: once in its life, so that it can't be sent back and forth."""

    def version(self) -> int:
        """The newest that a living peer has come to."""

    def may_start(self, peer: PeerId) -> bool:
        """Whether a peer may come now: not one that is there, and not when the run is about to end."""

    async def start(self, peer: PeerId, stage: int | None) -> None:
        """A newcomer with the scenario's settings."""

    async def restart(self, peer: PeerId, *, disk: bool) -> None:
        """A dead peer again, with or without what was on its disk."""

    async def come_up(self) -> None:
        """Starts the next of those who are down."""

    def lose_stage(self, stage: int, *, power: bool) -> bool:
        """All replicas of a stage are lost for good, whatever they have. Whether there were any."""

    def may_stop(self) -> bool:
        """Whether the whole swarm may go down: a version of every stage is on disks, and the run isn't about to end."""

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something until the faults end."""

    def count(self, kind: str) -> None:
        """A fault of a kind has struck."""


@dataclass(frozen=True)
class Fault:
    """Base of all. `strike` returns whether it did anything; it may take as long as the fault lasts."""

    at_s: float  # virtual seconds since all peers were started
    kind: ClassVar[str] = ""

    async def strike(self, course: Course) -> bool:
        raise AssertionError("a fault says how it strikes")


def live(course: Course, *peers: PeerId) -> bool:
    """Whether all of these are there to be struck."""
    return all(peer in course.world.peers for peer in peers)


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
class Acceptors(Fault):
    """All who decide the present step are paused, cut from one another, or lost, as far as the swarm can do without
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
        await asyncio.wait([goodbye], timeout=LEAVE_SECONDS)
        course.leaving.discard(self.peer)
        if self.peer in course.world.peers:
            course.world.crash(self.peer)
        return True


@dataclass(frozen=True)
class Drain(Fault):
    """A peer is told to end its work within a bound, and goes."""

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
                course.world.crash(self.peer)
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
                await it.peer.move(self.stage)
            except Refused:
                return False
            return True

        moving = it.machine.spawn(move(), name=f"move {self.peer}")
        await asyncio.wait([moving])
        return not moving.cancelled() and moving.result()


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
    """What one peer sends another doesn't arrive; the other way is open."""

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
