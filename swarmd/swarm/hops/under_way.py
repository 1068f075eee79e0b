"""A hop under way at this peer, as `journey.py` keeps it. Knows only the loop's time."""

import asyncio
from dataclasses import dataclass
from typing import Any

from swarmd.swarm.hops.retention import Retained
from swarmd.values import HopId, PeerId


@dataclass
class Work:
    """A hop under way at this peer."""

    hop: HopId
    custodian: PeerId  # "" at the head
    nbytes: int
    admitted: float  # loop time
    state: str = "waiting"
    since: float = 0.0
    kept: Retained | None = None  # what was passed on
    horizon_s: float = 0.0  # as its lease says
    given_up: bool = False  # its custodian cancelled it: it will not be accumulated
    subtract: bool = False  # the index is taken out of the sum
    aside: bool = False  # nobody waits for an answer, and the index isn't on its way into the sum
    task: asyncio.Task[Any] | None = None

    def move(self, state: str) -> None:
        self.state, self.since = state, asyncio.get_running_loop().time()
