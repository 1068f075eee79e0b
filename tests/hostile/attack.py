"""An attack, as data and one coroutine, and the scene that it is played in."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from swarmd.values import PeerId
from tests.hostile import words
from tests.hostile.attacker import Attacker
from tests.hostile.victims import Look


class Prey(Protocol):
    """A swarm that is attacked, real or simulated."""

    addresses: list[str]

    async def look(self) -> list[Look]: ...

    async def until(self, holds: Callable[[list[Look]], bool], seconds: float) -> bool: ...


@dataclass
class Scene:
    """A swarm, its attacker, which has greeted everyone, and what the attacker counts as won."""

    victims: Prey
    attacker: Attacker
    directory: Path | None = None  # for files; a simulated world has none
    without: str = ""  # defences that newcomers lack, too
    peers: list[PeerId] = field(default_factory=list)  # the swarm's, in the order of its daemons
    forged: set[str] = field(default_factory=set)  # hashes of records of the attacker's making
    won: list[str] = field(default_factory=list)  # harms that show only where the attacker is, in words

    async def enter(self) -> None:
        """Has the attacker learn the run and greet everyone."""
        await self.attacker.learn(self.victims.addresses[0])
        self.peers = [await self.attacker.meet(address) for address in self.victims.addresses]

    @property
    def id(self) -> PeerId:
        return self.attacker.id

    @property
    def head(self) -> PeerId:
        return self.peers[0]

    async def each(self, say: "Callable[[PeerId, words.Stand], Awaitable[object]]") -> None:
        """Says something to everyone at once, by where each stands in history."""

        async def one(peer: PeerId) -> None:
            await say(peer, await self.attacker.stand(peer))

        await asyncio.gather(*(one(peer) for peer in self.peers))


Act = Callable[[Scene], Awaitable[None]]
"""What the attacker does. It is cancelled when its time is over, unless it ends before."""


@dataclass(frozen=True)
class Attack:
    """One way to do harm."""

    name: str
    does: str  # what the attacker says, in a sentence
    act: Act
    defence: str = ""  # that stops it, by its name in `weak_daemon.DEFENCES`; "": there is nothing to be switched off
    open: str = ""  # why it still works, in words; "": it is stopped
    stages: tuple[int, ...] = (0, 1, 2)  # of the swarm's peers
    ends: bool = False  # by itself: its harm is done, or not, when it has ended
    physical: bool = False  # its harm is to a process, or in what real connections cost: no simulated swarm shows it
    minutes: bool = False  # the defence needs more than a few seconds: its test is a long one

    async def run(self, scene: Scene) -> None:
        """Plays it."""
        await self.act(scene)


PACE_S = 0.05  # between two goes of an attack that is repeated


def repeated(act: Act, pause_s: float = PACE_S) -> Act:
    """The same attack again and again."""

    async def again(scene: Scene) -> None:
        while True:
            await act(scene)
            await asyncio.sleep(pause_s)

    return again
