"""The hops under way at this peer: which there are, in what state, for whom. Knows only the loop's time."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from swarmd.status import HopRow
from swarmd.swarm.hops.retention import Retained
from swarmd.swarm.signals import Signal
from swarmd.values import HopId, PeerId


@dataclass
class HopUnderWay:
    """A hop under way at this peer."""

    hop: HopId
    custodian: PeerId  # "" at the head
    nbytes: int
    admitted: float  # loop time
    state: str = "waiting"
    since: float = 0.0
    retained: Retained | None = None  # what was passed on
    horizon_s: float = 0.0  # as its lease says
    given_up: bool = False  # its custodian cancelled it: it will not be accumulated
    subtract: bool = False  # the index is taken out of the sum
    side_task: bool = False  # nobody waits for an answer, and the index isn't on its way into the sum
    task: asyncio.Task[Any] | None = None

    def move(self, state: str) -> None:
        self.state, self.since = state, asyncio.get_running_loop().time()


class HopsUnderWay:
    """All hops under way here, each once."""

    def __init__(self) -> None:
        self.entered = Signal()  # a hop began here
        self._hops: dict[HopId, HopUnderWay] = {}

    def __len__(self) -> int:
        return len(self._hops)

    def __iter__(self) -> Iterator[HopUnderWay]:
        """A copy is gone through: hops may end meanwhile."""
        return iter(list(self._hops.values()))

    @property
    def busy(self) -> bool:
        """True while anything is under way."""
        return bool(self._hops)

    def get(self, key: HopId) -> HopUnderWay | None:
        return self._hops.get(key)

    def begin(self, it: HopUnderWay, journey: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Starts a hop's journey; it is under way until that ends."""
        assert it.hop not in self._hops, f"hop {it.hop} is under way once"
        self._hops[it.hop] = it
        it.task = asyncio.create_task(journey, name=f"hop {it.hop}")
        it.task.add_done_callback(lambda _: self._hops.pop(it.hop))
        self.entered.notify()
        return it.task

    async def undisturbed(self, key: HopId) -> None:
        """Waits until no side task works with a hop."""
        while (it := self._hops.get(key)) is not None and it.side_task and it.task is not None:
            await asyncio.wait([it.task])

    async def absent(self, key: HopId) -> None:
        """Waits until a hop isn't under way."""
        while (it := self._hops.get(key)) is not None and it.task is not None:
            await asyncio.wait([it.task])

    def is_under_way(self, key: HopId) -> bool:
        """True while a hop is on its way into the sum."""
        it = self._hops.get(key)
        return it is not None and not it.given_up and not it.side_task

    def indices(self, step: int) -> list[int]:
        """Indices on their way into the step's sum."""
        return [key.index for key in self._hops if key.step == step and self.is_under_way(key)]

    @property
    def nbytes(self) -> int:
        """Bytes of the activations that came with them."""
        return sum(it.nbytes for it in self._hops.values())

    def by_custodian(self) -> dict[PeerId, list[HopUnderWay]]:
        """The hops of each custodian, for beats."""
        found: dict[PeerId, list[HopUnderWay]] = {}
        for it in self._hops.values():
            if it.custodian:
                found.setdefault(it.custodian, []).append(it)
        return found

    def queues(self, running: HopId | None) -> Counter[str]:
        """The number of hops in each state; the one that is `running` on the device is `computing`."""
        return Counter(_shown(it, running) for it in self._hops.values())

    def rows(self, running: HopId | None) -> list[HopRow]:
        """Every hop, to be shown."""
        now = asyncio.get_running_loop().time()
        return [
            HopRow(
                it.hop.step,
                it.hop.index,
                _shown(it, running),
                it.custodian,
                it.retained.holder if it.state == "passed" and it.retained is not None else "",
                now - it.since,
            )
            for it in self._hops.values()
        ]


def _shown(it: HopUnderWay, running: HopId | None) -> str:
    return "computing" if it.hop == running else it.state
