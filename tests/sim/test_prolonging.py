"""More steps for a run whose peers were all down: they go on in one chain, each step with the rate of its own total,
and end with what one process gives that changes its schedule at that step.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import pytest

from swarmd import chunks
from swarmd.config import prolonged
from swarmd.errors import ConfigError
from swarmd.schedule import learning_rate_at
from swarmd.sim.engines.training import Text
from swarmd.sim.faults import point_actions
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import World
from tests.sim.test_returns import LIMITS, MIDDLES, SAVING, SECONDS, check_chain, copied
from tests.sim.toy import PAIRS, check_exact, everyone_at, long, moment, start_all, step_of

DECAYING = dataclasses.replace(SAVING, optimizer=dataclasses.replace(SAVING.optimizer, decay="linear"))
Events = Callable[[World], Awaitable[None]]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the toy's state is many of them."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2048)


def play(*lives: Events, layout: dict[str, int] = PAIRS) -> World:
    """A world, and what happens in each life of its swarm; the last one comes to the end of its run."""

    async def main() -> World:
        world = World(DECAYING, Text(DECAYING))
        await start_all(world, layout, limits=LIMITS)
        for life in lives:
            await life(world)
        await world.until(lambda: everyone_at(world, world.run.steps), SECONDS)
        await world.finish(SECONDS)
        return world

    return run_virtual(main())


async def to_its_end(world: World) -> None:
    await world.until(lambda: everyone_at(world, world.run.steps), SECONDS)
    await world.finish(SECONDS)


async def saved(world: World, version: int = 6) -> None:
    """Until a version is on disks, and a step or two more."""
    peers = list(world.peers.values())
    await moment(world, lambda: all((version, it.peer.stage) in it.store.checkpoints for it in peers))
    await moment(world, lambda: step_of(world) >= version + 2)


async def again(world: World, steps: int) -> None:
    """All are stopped, if they run still, and started again one by one; the run has another total now."""
    names = list(world.peers)
    world.preempt(names)
    world.run = prolonged(world.run, steps)
    for name in names:
        await world.sleep(1.0)
        await world.restart(name)


def check(world: World, *totals: int) -> None:
    """`totals`: of the run at each step from the first one on, as far as it isn't the present one."""
    check_chain(world)
    run, lines = world.run, {}
    for it in world.peers.values():
        lines.update({line["step"]: line for line in it.store.ledger})
    expected = (*totals, *[run.steps] * (run.steps - len(totals)))
    for step, total in enumerate(expected, 1):
        assert lines[step]["lr"] == learning_rate_at(run.optimizer, step, total), f"step {step}"
    world.dead.clear()
    check_exact(world, tuple(totals))
    for it in world.peers.values():
        made = [it.peer.history.chain.at(step) for step in range(1, run.steps + 1)]
        places = [run.totals.index(record.total_steps or run.totals[0]) for record in made if record is not None]
        assert places == sorted(places), "no record goes back to an earlier schedule"


def test_a_run_that_was_over_goes_on() -> None:
    async def longer(world: World) -> None:
        await again(world, 18)

    world = play(to_its_end, longer)
    check(world, *[14] * 14)
    voided = {line["record"] for it in world.past for line in it.store.voided if line["step"] == 14}
    (begun,) = {line["continues"] for it in world.peers.values() for line in it.store.ledger if line["step"] == 14}
    assert voided == {begun}, "the first record of the longer run names the last one of the shorter"
    assert len({it.peer.history.chain.hash_at(0) for it in world.peers.values()}) == 1


def test_it_is_prolonged_twice() -> None:
    async def longer(world: World) -> None:
        await again(world, 16)
        await to_its_end(world)
        await again(world, 19)

    world = play(to_its_end, longer)
    check(world, *[14] * 14, 16, 16)
    assert world.run.totals == (14, 16, 19)


@pytest.mark.parametrize("steps", [18, 10])
def test_a_run_that_was_stopped_goes_on_with_another_total(steps: int) -> None:
    """From version 6, which is on disks. What was done after it is done anew by the new schedule, be it a longer or a
    shorter one.
    """

    async def other(world: World) -> None:
        await again(world, steps)

    check(play(saved, other), *[14] * 6)


def test_to_go_on_before_it_was_trained_at_all_under_one_total() -> None:
    """A total that was a mistake: nothing was done under it."""

    async def other(world: World) -> None:
        await again(world, 900)
        await again(world, 17)

    check(play(to_its_end, other), *[14] * 14)


def test_a_peer_without_its_disk_follows() -> None:
    """It gets the state of a version that was made under the old total."""

    async def longer(world: World) -> None:
        names = list(world.peers)
        world.preempt(names)
        world.run = prolonged(world.run, 18)
        for name in names:
            await world.restart(name, disk=name != "middle2")

    check(play(saved, longer), *[14] * 6)


def test_a_peer_that_comes_late_follows() -> None:
    """Its home is of the shorter run, and so is what its ledger ends with."""

    async def longer(world: World) -> None:
        names = list(world.peers)
        world.preempt(names)
        world.run = prolonged(world.run, 18)
        for name in names[:-1]:
            await world.restart(name)
        await moment(world, lambda: step_of(world) >= 11)
        await world.restart(names[-1])

    check(play(saved, longer), *[14] * 6)


def test_a_lost_stage_takes_it_back_to_what_was_done_under_the_old_total() -> None:
    async def longer(world: World) -> None:
        await again(world, 18)
        await moment(world, lambda: copied(world, 6) and step_of(world) in (8, 9))
        world.preempt(MIDDLES)
        for name in MIDDLES:
            world.dead[name].store.checkpoints.clear()

    check(play(saved, longer), *[14] * 6)


def test_fewer_steps_than_are_on_disks_end_the_founder_and_nothing_else() -> None:
    """The founder of the longer run may not know how far the others came; their versions stay theirs."""

    async def main() -> None:
        world = World(DECAYING, Text(DECAYING))
        await start_all(world, PAIRS, limits=LIMITS)
        await saved(world)
        before = {it.name: dict(it.store.checkpoints) for it in world.peers.values()}
        names = list(world.peers)
        world.preempt(names)
        world.run = prolonged(world.run, 5)
        for name in names:
            await world.restart(name)
        founder = world.peers[names[0]].task
        await asyncio.wait({founder}, timeout=SECONDS)
        with pytest.raises(ExceptionGroup) as failed:
            founder.result()
        (trouble,) = failed.value.exceptions
        assert isinstance(trouble, ConfigError)
        assert "come to version 6" in str(trouble)
        assert "give --steps 6 or more" in str(trouble)
        assert {it.name: it.store.checkpoints for it in world.peers.values()} == before
        world.failures.clear()
        await world.stop()

    run_virtual(main())


@pytest.mark.parametrize(
    "point",
    [
        "served.Commit",
        "void",
        *long(
            "load",
            "served.AskCheckpointList",
            "begin.import_state",
            "ask.Accept",
            "served.AskSnapshot",
            "ledger",
            "save",
        ),
    ],
)
def test_somebody_dies_while_it_is_prolonged(point: str) -> None:
    """The run ends with the new total all the same, also without its founder."""

    async def longer(world: World) -> None:
        world.fail_at("*", None, point, point_actions.restart_after(5.0))
        await again(world, 18)

    world = play(to_its_end, longer, layout={**PAIRS, "head3": 0, "tail3": 2})
    check(world, *[14] * 14)
