"""The end of a run that has failed: for whom a peer stays, and which of its versions is good."""

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.errors import RunEnded
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.ending import LINGER_SECONDS
from swarmd.swarm.peer.failing import fail
from swarmd.swarm.wire.messages.disks import CheckpointName
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.records import record

VERSION, STAGE, SKIPS = 7, 1, 2


class Rig:
    """A peer of stage 1 at version 7; steps 6 and 7 were skipped."""

    def __init__(self, *kept: tuple[int, int], ended: bool = False) -> None:
        self.membership = Membership(OwnCard(card("me", stage=STAGE, version=VERSION)))
        newest = dataclasses.replace(record(step=VERSION), skips=SKIPS)
        self.history: Any = SimpleNamespace(
            record=newest, version=VERSION, failure="bad numbers", ended=newest if ended else None
        )

        async def checkpoints() -> list[CheckpointName]:
            return [CheckpointName(version, stage, "s") for version, stage in kept]

        self.disks: Any = SimpleNamespace(checkpoints=checkpoints)
        self._sequence = 1

    def hear(self, peer: str, **changes: Any) -> None:
        self._sequence += 1
        self.membership.hear(card(peer, sequence=self._sequence, **changes), 0.0)
        self.membership.changed.notify()

    async def fail(self) -> tuple[RunEnded, float]:
        """The end, and after how long it comes."""
        before = asyncio.get_running_loop().time()
        with pytest.raises(RunEnded) as ended:
            await fail(self.membership, self.history, self.disks)
        return ended.value, asyncio.get_running_loop().time() - before


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({"state": "serving", "version": VERSION - 1}, True),
        ({"state": "draining", "version": VERSION - 1}, True),
        ({"state": "joining", "version": 0}, True),
        ({"state": "serving", "version": VERSION}, False),
        ({"state": "finished", "version": VERSION - 1}, False),
        ({"state": "left", "version": VERSION - 1}, False),
    ],
)
def test_it_stays_for_those_who_lack_the_last_commit(changes: dict[str, Any], waits: bool) -> None:
    async def main() -> None:
        it = Rig()
        it.hear("p", **changes)
        assert (await it.fail())[1] == pytest.approx(LINGER_SECONDS if waits else 0.0)

    run_virtual(main())


@pytest.mark.parametrize(("ended", "waits"), [(False, False), (True, True)])
def test_where_a_record_ends_the_run_it_stays_until_the_others_have_ended(ended: bool, waits: bool) -> None:
    async def main() -> None:
        it = Rig(ended=ended)
        it.hear("p", version=VERSION)
        assert (await it.fail())[1] == pytest.approx(LINGER_SECONDS if waits else 0.0)

    run_virtual(main())


def test_it_goes_as_soon_as_they_have_it() -> None:
    async def main() -> None:
        it = Rig()
        it.hear("p", version=VERSION - 1)
        failing = asyncio.create_task(it.fail())
        await asyncio.sleep(2)
        it.hear("p", version=VERSION)
        assert (await failing)[1] == pytest.approx(2)

    run_virtual(main())


def test_nobody_waits_for_one_that_cannot_be_reached() -> None:
    async def main() -> None:
        it = Rig()
        it.hear("p", version=VERSION - 1)
        it.membership.suspect("p")
        assert (await it.fail())[1] == 0.0

    run_virtual(main())


@pytest.mark.parametrize(
    ("kept", "good"),
    [
        ([], None),
        ([(5, STAGE)], None),
        ([(7, STAGE), (6, STAGE)], None),
        ([(4, 0)], None),
        ([(2, STAGE), (4, STAGE), (3, STAGE)], 4),
    ],
    ids=["nothing", "what the first skipped one began from", "skipped ones", "another stage's", "the newest before"],
)
def test_the_good_version_is_the_newest_of_its_stage_before_what_the_skipped_steps_began_from(
    kept: list[tuple[int, int]], good: int | None
) -> None:
    async def main() -> None:
        ended, _ = await Rig(*kept).fail()
        assert ended.checkpoint == good
        assert str(ended) == "the run ends at version 7: bad numbers"

    run_virtual(main())
