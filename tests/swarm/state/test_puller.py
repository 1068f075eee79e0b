"""The choice of a version and of its donors, while they come, go, pause and lie."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.record import Record
from swarmd.swarm.state.download import DONORS_AT_ONCE
from swarmd.swarm.state.snapshot_search import MOST_SECONDS
from tests.swarm.state.holders import CHAIN, CHUNK, CHUNKS, Node, crowd, joiner_of, meet, names, seconds, state_of


def test_all_donors_of_a_version_are_used_and_those_of_others_are_not() -> None:
    async def main() -> None:
        joiner, donors = crowd(4)
        donors[0].commit()
        for donor in donors:
            donor.uplink(4 * CHUNK)
        held: list[int] = []

        async def gather(record: Record) -> bool:
            assert record.step in held, "the backlog's gradients are handed over first"
            return True

        gradients = SimpleNamespace(gather=gather, objection=lambda record: "")
        joiner.history.attach(0, cast("Any", joiner.compute), cast("Any", gradients))
        assert await (it := joiner_of(joiner, donors, held)).pull(names(donors)) is True
        assert set(it.downloaded) == set("bcd")
        assert joiner.compute.imported == [state_of(5)]
        assert joiner.history.version == 6, "what was committed meanwhile is applied"

    run_virtual(main())


def test_when_all_donors_of_a_version_are_gone_another_is_begun_with_the_chunks_that_fit() -> None:
    async def main() -> None:
        joiner, donors = crowd(2)
        late = Node(joiner.network, "late", 9)
        meet(joiner, *donors, late)
        for donor in (*donors, late):
            donor.uplink(4 * CHUNK)
        it = joiner_of(joiner, donors)
        there = [*donors]
        task = asyncio.create_task(it.pull(lambda: names(there)()))
        await asyncio.sleep(4.5)
        assert 0 < it.progress.done < it.progress.total == CHUNK * CHUNKS
        assert it.progress.donors == 2
        there.append(late)
        for donor in donors:
            donor.network.kill(donor.name)
        assert await task
        assert joiner.compute.imported == [state_of(9)]
        assert len(late.asked) < CHUNKS - 8, "the part that is the same in both was not fetched again"
        assert it.progress.total == 0

    run_virtual(main())


def test_an_old_state_of_ones_own_spares_what_has_not_changed() -> None:
    async def main() -> None:
        joiner, donors = crowd(1)
        joiner.compute.version = 3
        joiner.history.replace(CHAIN[2], "digest")
        joiner.history.fall_behind("told to")
        donors[0].uplink(100 * CHUNK)
        assert await joiner_of(joiner, donors).pull(names(donors))
        assert joiner.history.version == 5
        assert not joiner.history.behind
        assert len(donors[0].asked) == CHUNKS * 3 // 4

    run_virtual(main())


def test_nobody_has_it() -> None:
    async def main() -> None:
        joiner, donors = crowd(2)
        for donor in donors:
            donor.history.fall_behind("told to")
        assert not await joiner_of(joiner, donors).pull(names(donors))

    run_virtual(main())


def test_for_each_donor_that_refuses_another_one_is_asked() -> None:
    async def main() -> None:
        joiner, donors = crowd(DONORS_AT_ONCE + 2)
        for donor in donors[:-1]:
            donor.history.fall_behind("told to")
        it = joiner_of(joiner, donors)
        assert await it.pull(names(donors))
        assert set(it.downloaded) == {donors[-1].name}

    run_virtual(main())


@pytest.mark.parametrize(("count", "bound"), [(2, MOST_SECONDS + 5), (3, 5)])
def test_a_donor_that_is_paused_before_it_answers_is_not_waited_for(count: int, bound: float) -> None:
    """Of two donors, the other one is not taken at its word before some time has passed."""

    async def main() -> None:
        joiner, donors = crowd(count)
        donors[0].compute.export_seconds = 1000.0
        it = joiner_of(joiner, donors)
        assert await seconds(it.pull(names(donors))) < bound
        assert set(it.downloaded) == {donor.name for donor in donors[1:]}

    run_virtual(main())
