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
    leaving: set[PeerId]  # peers that leave at present
    down: list[PeerId]  # peers still to be started after an outage

    def may_lose(self, peers: Sequence[PeerId]) -> bool:
        """True if the swarm can do without these: every stage keeps a replica that has its state."""

    def may_move(self, peer: PeerId) -> bool:
        """True if a peer may be told to move: once in its life, and not when it has just moved of its own accord, so
        that it can't be sent back and forth.
        """

    def version(self) -> int:
        """The newest version of any living peer."""

    def may_start(self, peer: PeerId) -> bool:
        """True if a peer may come now: not one that is there, and not when the run is about to end."""

    async def start(self, peer: PeerId, stage: int | None) -> None:
        """Starts a newcomer with the scenario's settings."""

    async def restart(self, peer: PeerId, *, disk: bool) -> None:
        """Starts a dead peer again, with or without its disk."""

    async def come_up(self) -> None:
        """Starts the next peer that is down."""

    def lose_stage(self, stage: int, *, power: bool) -> bool:
        """Kills all replicas of a stage for good. True if there were any."""

    def may_stop(self) -> bool:
        """True if the whole swarm may go down: a version of every stage is on disks, and the run isn't about to end."""

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something until the faults end."""

    def count(self, kind: str) -> None:
        """Counts a fault of a kind that has struck."""

    def count_word(self, word: str, fate: str) -> None:
        """Counts a message that an outsider has drawn, by its kind and what became of it."""


@dataclass(frozen=True)
class Fault:
    """Base of all. `strike` returns whether it did anything; it may take as long as the fault lasts."""

    at_s: float  # virtual seconds since all peers were started
    kind: ClassVar[str] = ""

    async def strike(self, course: Course) -> bool:
        raise AssertionError("a fault says how it strikes")


def live(course: Course, *peers: PeerId) -> bool:
    """True if all of these are alive."""
    return all(peer in course.world.peers for peer in peers)
