"""A joiner's state, loaded when its stage is open, and again when it fell behind."""

import asyncio
import dataclasses
from typing import Any

import pytest

from swarmd.errors import DeviceLost, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.messages.commit import AskRecord
from swarmd.swarm.wire.messages.state import AskSnapshot
from tests.swarm.state.holders import CHAIN, crowd, joiner_of, names, open_stage, seconds, state_of


def test_a_state_that_comes_before_the_stage_is_open_is_loaded_when_it_is() -> None:
    async def main() -> None:
        joiner, donors = crowd(2)
        it = joiner_of(joiner, donors, opened=False)
        it.begin(names(donors))
        await asyncio.sleep(60)
        assert (it.progress.done, joiner.compute.imported) == (it.progress.total, [])
        assert it.pulling
        open_stage(it, joiner)
        assert await seconds(it.reach_version(names(donors), Signal())) < 0.1
        assert (joiner.compute.imported, joiner.history.version, it.pulling) == ([state_of(5)], 5, False)

    run_virtual(main())


def test_a_pull_that_nobody_waits_for_ends_and_leaves_nothing() -> None:
    async def main() -> None:
        joiner, donors = crowd(2)
        before = asyncio.all_tasks()
        it = joiner_of(joiner, donors, opened=False)
        it.begin(names(donors))
        await asyncio.sleep(60)
        await it.ended()
        assert asyncio.all_tasks() == before
        assert joiner.history._ahead is None

    run_virtual(main())


def test_who_missed_a_gradient_does_not_take_the_version_before_it_again() -> None:
    """A donor still has that version pinned, and gives it to every joiner that asks for none in particular."""

    async def main() -> None:
        joiner, donors = crowd(1, version=3)
        await donors[0].links.ask(donors[0].name, AskSnapshot(0), deadline_s=10)
        joiner.compute.version = 3
        joiner.history.replace(CHAIN[2], "digest")
        joiner.history.fall_behind("told to")
        for _ in range(2):
            donors[0].commit()
        assert await joiner_of(joiner, donors).pull(names(donors))
        assert joiner.history.version == 5

    run_virtual(main())


def test_the_loser_of_a_fork_takes_a_state_that_is_not_newer() -> None:
    async def main() -> None:
        joiner, donors = crowd(1)
        joiner.compute.version = 7
        joiner.history.replace(CHAIN[6], "digest")
        assert await joiner_of(joiner, donors).pull(names(donors))
        assert joiner.history.version == 5
        assert joiner.history.record_hash == CHAIN[4].hash
        with pytest.raises(Refused):
            await donors[0].links.ask("joiner", AskRecord(7), deadline_s=1)

    run_virtual(main())


@pytest.mark.parametrize("fails", [False, True])
def test_a_load_that_nobody_waits_for_any_more_ends_as_it_was_begun(fails: bool) -> None:
    """A crossing that is cancelled leaves a whole state with its own history behind, or the one before."""

    async def main() -> None:
        joiner, donors = crowd(1)
        joiner.compute.version = 7
        joiner.history.replace(CHAIN[6], "digest")
        it, usual, voided = joiner_of(joiner, donors), joiner.compute.import_state, list[int]()
        joiner.history.ledger.void = voided.append  # type: ignore[assignment, method-assign]
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(state: Any) -> str:
            begun.set()
            await go_on.wait()
            if fails:
                raise DeviceLost("gone")
            return await usual(state)

        joiner.compute.import_state = slow  # type: ignore[method-assign]

        async def cross() -> None:
            with joiner.history.crossing(3):
                await it.pull(names(donors))

        task = asyncio.create_task(cross())
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (joiner.history.version, voided) == (7, [])
        go_on.set()
        await it.ended()
        version = 7 if fails else 5
        assert (joiner.history.version, joiner.compute.version) == (version, version)
        assert voided == ([] if fails else [3]), "what the given up history had committed since"

    run_virtual(main())


@pytest.mark.parametrize("other", [True, False])
def test_who_fell_behind_and_takes_the_state_of_another_history_gives_up_its_steps_that_are_not_in_it(
    other: bool,
) -> None:
    """It found nobody with the next record, as all who gave one were of another history."""

    async def main() -> None:
        joiner, donors = crowd(1, version=5)
        donors[0].history.chain.learn({it.step: it for it in CHAIN[:5]})
        third = dataclasses.replace(CHAIN[2], total_tokens=CHAIN[2].total_tokens + other)
        own = [*CHAIN[:2], third, dataclasses.replace(CHAIN[3], parent=third.hash)]
        joiner.history.replace(own[3], "digest")
        joiner.history.chain.learn({it.step: it for it in own[:4]})
        voided: list[int] = []
        joiner.history.ledger.void = voided.append  # type: ignore[assignment,method-assign]
        joiner.history.fall_behind("told to")
        assert await joiner_of(joiner, donors).pull(names(donors))
        assert (joiner.history.version, voided) == (5, [2 if other else 5])

    run_virtual(main())
