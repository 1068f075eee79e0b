"""Faults that tell a peer to go: it goes, even if the faults end meanwhile."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.sim.faults.commands import Drain, Leave
from swarmd.sim.faults.course import Fault
from swarmd.sim.world.clock import run_virtual


class Stuck:
    """A course with a peer that is stopped, and so comes to no end of what it is told."""

    def __init__(self) -> None:
        self.leaving: set[str] = set()
        self.lost: list[int] = []
        self.spared = True  # others of its stage have all that it has
        machine = SimpleNamespace(spawn=lambda work, name: asyncio.ensure_future(work))
        it = SimpleNamespace(machine=machine, peer=SimpleNamespace(stage=2, leave=self._stop, drain=self._stop))
        self.world = SimpleNamespace(peers={"head1": it}, crash=self._crash)

    def may_lose(self, peers: list[str]) -> bool:
        return self.spared

    def lose_stage(self, stage: int, *, power: bool) -> None:
        self.lost.append(stage)

    def _crash(self, peer: str) -> None:
        del self.world.peers[peer]

    async def _stop(self, *told: float) -> None:
        await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("fault", [Leave(0.0, "head1"), Drain(0.0, "head1", 5.0)])
@pytest.mark.parametrize("healed", [True, False])
def test_who_is_told_to_go_is_gone_in_the_end(fault: Fault, healed: bool) -> None:
    async def main() -> None:
        course: Any = Stuck()
        striking = asyncio.create_task(fault.strike(course))
        await asyncio.sleep(1)
        assert course.leaving == {"head1"}
        if healed:
            striking.cancel()
        await asyncio.wait([striking])
        assert not course.world.peers
        assert not course.leaving

    run_virtual(main())


@pytest.mark.parametrize("spared", [True, False])
def test_a_stage_is_lost_with_one_that_goes_while_the_others_lack_what_it_has(spared: bool) -> None:
    async def main() -> list[int]:
        course: Any = Stuck()
        striking = asyncio.create_task(Drain(0.0, "head1", 5.0).strike(course))
        await asyncio.sleep(1)
        course.spared = spared  # the others slept meanwhile
        await striking
        return course.lost  # type: ignore[no-any-return]

    assert run_virtual(main()) == ([] if spared else [2])
