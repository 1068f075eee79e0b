"""A fault, and the course of a scenario through which it strikes.

A fault is one plain dataclass that says when, whom and for how long, and how it strikes. A scenario is a list of them,
so it prints as text that can be pasted into Python, and written by hand. The course knows the world and spares what the
scenario must not take: a stage's last replica with state.
"""

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from swarmd.sim.world.world import World
from swarmd.values import PeerId


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
