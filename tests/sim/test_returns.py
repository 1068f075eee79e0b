"""Going back to what is on disks: after a stage lost all its replicas, after a whole swarm was down. What comes of it
is what an uninterrupted run gives, and every step is in the ledgers once.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import pytest

from swarmd import chunks
from swarmd.config import LimitsConfig
from swarmd.sim.engines.training import Text
from swarmd.sim.faults import point_actions
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import SimPeer, World
from tests.sim.toy import PAIRS, RUN, check_exact, everyone_at, moment, start_all, step_of

SAVING = dataclasses.replace(RUN, steps=14, checkpoint_every=3)
LIMITS = LimitsConfig(stage_lost_timeout_s=20.0, fork_timeout_s=10.0)
MIDDLES = ("middle1", "middle2")
SECONDS = 900.0  # virtual


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the toy's state is many of them."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2048)


def play(
    events: Callable[[World], Awaitable[None]],
    layout: dict[str, int] = PAIRS,
    *,
    limits: LimitsConfig = LIMITS,
    finishes: bool = True,
) -> World:
    """A world to which something happens; then its run comes to its end."""

    async def main() -> World:
        world = World(SAVING, Text(SAVING))
        await start_all(world, layout, limits=limits)
        await events(world)
        if finishes:
            await world.until(lambda: everyone_at(world, SAVING.steps), SECONDS)
            await world.finish(SECONDS)
        else:
            await world.stop()
        return world

    return run_virtual(main())


def kept(it: SimPeer, stage: int) -> list[int]:
    """Versions of a stage on a peer's disk."""
    return sorted(version for version, at in it.store.checkpoints if at == stage)


def copied(world: World, version: int) -> bool:
    """True if every stage's checkpoint of a version is on a disk outside its replicas."""
    return all(
        any((version, stage) in it.store.checkpoints for it in world.peers.values() if it.peer.stage != stage)
        for stage in range(world.run.model.stages)
    )


def check(world: World) -> None:
    """Promises 1, 3 and 8: the steps of everyone alive are one chain, each once, and give what a plain run gives."""
    check_chain(world)
    world.dead.clear()
    check_exact(world)


def check_chain(world: World) -> None:
    """Promise 8: the steps of everyone alive are one chain, each once."""
    records: dict[int, tuple[str, str]] = {}
    for it in world.peers.values():
        steps = [line["step"] for line in it.store.ledger]
        assert steps == sorted(set(steps)), f"{it.name}: {steps}"
        for line in it.store.ledger:
            link = (line["parent"], line["record"])
            assert records.setdefault(line["step"], link) == link, f"{it.name} at {line['step']}"
    for step in range(2, world.run.steps + 1):
        if step in records and step - 1 in records:
            assert records[step][0] == records[step - 1][1], f"step {step} doesn't follow step {step - 1}"
    assert sorted(records) == list(range(1, world.run.steps + 1))


def check_calm(world: World) -> None:
    """Nobody says that it waits for anything, or pulls a state, once the swarm trains again."""
    for name, it in world.peers.items():
        said = it.view.waiting_for(), it.view.transfer().total, it.peer.returns.waiting
        assert said == ("", 0, ""), name


def returned_to(world: World) -> int:
    versions = {it.peer.history.returned.step for it in world.peers.values() if it.peer.history.returned is not None}
    assert len(versions) == 1, versions
    return versions.pop()


def test_every_stage_has_copies_on_other_disks() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: copied(world, 6))

    world = play(events)
    for it in world.peers.values():
        own = it.peer.stage
        others = {stage for _, stage in it.store.checkpoints} - {own}
        assert len(others) == 1, "one stage a peer"
        assert len(kept(it, others.pop())) <= 2


def test_a_stage_that_is_gone_comes_back_with_a_peer_of_another_stage() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: copied(world, 6) and step_of(world) >= 9)
        world.preempt(MIDDLES)
        for name in MIDDLES:
            world.dead[name].store.checkpoints.clear()

    world = play(events)
    check(world)
    assert returned_to(world) == 6
    assert sorted(it.peer.stage or 0 for it in world.peers.values()) in ([0, 0, 1, 2], [0, 1, 2, 2])
    assert any(it.store.voided for it in world.peers.values())


def test_a_stage_that_is_gone_comes_back_with_its_own_peers() -> None:
    """They were only restarted; nobody has copies, but their own disks count."""

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) >= 9)
        world.preempt(MIDDLES)
        await world.sleep(3.0)
        for name in MIDDLES:
            await world.restart(name)
        await moment(world, lambda: all(it.peer.history.version >= 10 for it in world.peers.values()))
        check_calm(world)

    world = play(events, limits=dataclasses.replace(LIMITS, copies_bytes=0))
    check(world)
    assert returned_to(world) == 6
    assert world.peers["middle1"].peer.stage == 1


def test_a_stage_that_is_gone_comes_back_with_a_newcomer() -> None:
    """With one peer a stage nobody can be spared."""

    async def events(world: World) -> None:
        await moment(world, lambda: copied(world, 6) and step_of(world) >= 8)
        world.crash("middle")
        world.dead["middle"].store.checkpoints.clear()
        await world.sleep(60.0)
        assert all("stage 1" in it.view.waiting_for() for it in world.peers.values())
        await world.start("newcomer", limits=LIMITS)
        await moment(world, lambda: all(it.peer.history.version >= 10 for it in world.peers.values()))
        check_calm(world)

    world = play(events, {"head": 0, "middle": 1, "tail": 2})
    check(world)
    assert returned_to(world) == 6
    assert world.peers["newcomer"].peer.stage == 1


def test_the_first_stage_and_with_it_most_acceptors_are_gone() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: copied(world, 6) and step_of(world) >= 8)
        world.preempt(["head1", "head2", "tail1"])

    world = play(events)
    check(world)
    assert returned_to(world) == 6


def test_where_no_version_is_whole_everyone_waits_and_says_so() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) >= 8)
        world.preempt(MIDDLES)
        await world.sleep(200.0)
        assert {it.peer.history.version for it in world.peers.values()} <= {7, 8}
        for it in world.peers.values():
            assert "stage 1" in it.view.waiting_for()

    play(events, limits=dataclasses.replace(LIMITS, copies_bytes=0), finishes=False)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_swarm_that_was_down_goes_on(damaged: bool, caplog: pytest.LogCaptureFixture) -> None:
    """All come back one by one; if one's newest checkpoint is damaged, the one before it is gone back to, and the
    founder says why, beforehand and then.
    """
    waits: set[str] = set()

    async def events(world: World) -> None:
        await moment(world, lambda: all(kept(it, it.peer.stage or 0) == [3, 6] for it in world.peers.values()))
        await moment(world, lambda: step_of(world) >= 8)
        names = list(world.peers)
        world.preempt(names)
        for name in names if damaged else ():
            if (6, 1) in world.dead[name].store.checkpoints:
                world.dead[name].store.damaged.append((6, 1))
        for name in names:
            await world.sleep(1.0)
            await world.restart(name)
        world.spawn(watch(world))

    async def watch(world: World) -> None:
        while world.peers["head1"].peer.history.origin.resumes:
            waits.add(world.peers["head1"].view.waiting_for())
            await world.sleep(0.5)

    world = play(events)
    check(world)
    assert returned_to(world) == (3 if damaged else 6)
    passed = "version 6 is passed over: no checkpoint of stage 1 (2 of 3 stages are here; damaged: that of stage 1 at"
    assert any(passed in words for words in waits) == damaged, waits
    assert (f"going back to version 3: {passed}" in caplog.text) == damaged


def test_a_swarm_that_was_down_waits_for_what_is_missing() -> None:
    """Until the tail is back, nothing begins, and everyone says so."""

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) >= 8)
        world.preempt(list(world.peers))
        for name in ("head", "middle"):
            await world.restart(name)
        await world.sleep(100.0)
        for it in world.peers.values():
            assert (it.peer.state, it.peer.history.version) == ("joining", 0)
        assert "stage 2" in world.peers["head"].view.waiting_for()
        await world.restart("tail")

    limits = dataclasses.replace(LIMITS, copies_bytes=0)
    world = play(events, {"head": 0, "middle": 1, "tail": 2}, limits=limits)
    check(world)
    assert returned_to(world) == 6


@pytest.mark.parametrize(
    "point",
    ["ask.Accept", "served.Accept", "served.Commit", "served.AskCheckpointList", "begin.import_state", "load", "void"],
)
def test_somebody_dies_on_the_way_back(point: str) -> None:
    """The others return all the same, or once more."""

    async def events(world: World) -> None:
        await moment(world, lambda: copied(world, 6) and step_of(world) >= 8)
        world.preempt(MIDDLES)
        await asyncio.sleep(LIMITS.stage_lost_timeout_s - 1)
        world.fail_at("*", None, point, point_actions.restart_after(5.0))

    world = play(events, {**PAIRS, "head3": 0, "tail3": 2})
    check(world)
