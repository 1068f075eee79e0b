"""Peers that say what isn't so, in words that are sound in themselves."""

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from swarmd.sim.engines.symbolic import HEADER
from swarmd.sim.faults.course import Course, Fault
from swarmd.swarm.ports import Compute
from swarmd.values import Buffer, PeerId

LOOK_SECONDS = 0.1  # how often it looks whether the peer serves a stage yet


class FalseState:
    """A device whose state, as a donor gives it, has other parameters than it computes with. It can be loaded."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    async def export_state(self) -> Buffer:
        state = bytearray(await self._compute.export_state())
        state[HEADER.size] ^= 1
        return state


@dataclass(frozen=True)
class LyingDonor(Fault):
    """A replica that gives newcomers a false state from now on, and is honest otherwise."""

    peer: PeerId
    kind: ClassVar[str] = "lying donor"

    async def strike(self, course: Course) -> bool:
        while (it := course.world.peers.get(self.peer)) is not None:
            if (served := it.peer.served) is not None:
                served.donor._compute = FalseState(served.donor._compute)  # type: ignore[assignment]  # noqa: SLF001
                return True
            await asyncio.sleep(LOOK_SECONDS)
        return False
