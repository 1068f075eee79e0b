"""The end of a run: every stage's final state is on two machines before anyone leaves, or the end says what isn't."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import pytest

from swarmd import chunks
from swarmd.config import LimitsConfig
from swarmd.sim.campaign.checks import check_final_state
from swarmd.sim.engines.training import Text
from swarmd.sim.faults import point_actions
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.peer.ending import LINGER_SECONDS
from tests.sim.toy import PAIRS, RUN, everyone_at, moment

SHORT = dataclasses.replace(RUN, steps=3)
SINGLE = {"head": 0, "middle": 1, "tail": 2}
SECONDS = 300.0  # virtual


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the toy's state is many of them."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2048)


@dataclasses.dataclass
class Ended:
    """A world whose run is over."""

    world: World
    seconds: float  # from the last commit everywhere to the end of the last peer
    first: dict[int, int]  # stage -> machines that had its final state when the first peer ended

    def sentence(self, name: str) -> str:
        return self.world.peers[name].peer.ending.sentence()

    def risk(self) -> set[bool]:
        return {it.peer.ending.is_at_risk() for it in self.world.peers.values()}


def machines(world: World, stage: int) -> int:
    """On how many machines the final state of a stage is."""
    everyone = [*world.peers.values(), *world.dead.values()]
    return len({it.setup.machine for it in everyone if (world.run.steps, stage) in it.store.checkpoints})


def final(world: World) -> dict[int, int]:
    return {stage: machines(world, stage) for stage in range(world.run.model.stages)}


def play(
    layout: dict[str, int],
    events: Callable[[World], Awaitable[None]] | None = None,
    *,
    hosts: dict[str, str] | None = None,
    limits: LimitsConfig | None = None,
    uplink: float | None = None,
) -> Ended:
    async def main() -> Ended:
        world = World(SHORT, Text(SHORT))
        for name, stage in layout.items():
            machine = (hosts or {}).get(name, "")
            await world.start(name, stage=stage, limits=limits, uplink=uplink, machine=machine)
        if events is not None:
            await events(world)
        await world.until(lambda: everyone_at(world, SHORT.steps), SECONDS)
        began = asyncio.get_running_loop().time()
        await moment(world, lambda: any(it.task.done() for it in world.peers.values()), SECONDS)
        first = final(world)
        await world.finish(SECONDS)
        return Ended(world, asyncio.get_running_loop().time() - began, first)

    return run_virtual(main())


def finished(it: SimPeer) -> bool:
    return it.peer.state == "finished"


def test_replicas_on_two_machines_are_enough() -> None:
    ended = play(PAIRS)
    assert ended.first == {0: 2, 1: 2, 2: 2}
    assert ended.seconds < 5
    assert ended.risk() == {False}
    assert "stage 0 here, on head2 (head2)" in ended.sentence("head1")
    assert not list(check_final_state(ended.world))


def test_a_stage_with_one_peer_is_copied_before_anyone_leaves() -> None:
    ended = play(SINGLE)
    assert ended.first == {0: 2, 1: 2, 2: 2}
    assert ended.risk() == {False}
    assert not list(check_final_state(ended.world))


def test_two_peers_on_one_machine_count_as_one() -> None:
    hosts = {"head1": "x", "head2": "x", "middle1": "x", "middle2": "y", "tail1": "y", "tail2": "y"}
    ended = play(PAIRS, hosts=hosts)
    assert ended.first == {0: 2, 1: 2, 2: 2}


def test_on_one_machine_nobody_waits_and_the_end_says_so() -> None:
    ended = play(PAIRS, hosts=dict.fromkeys(PAIRS, "x"))
    assert ended.first == {0: 1, 1: 1, 2: 1}
    assert ended.seconds < 5
    for name in PAIRS:
        assert "Stages 0, 1 and 2 on one machine only: all peers are on one machine" in ended.sentence(name)
    assert ended.risk() == {False}, "there was no other"


def test_time_is_bounded_and_the_end_says_what_exists_once() -> None:
    waits: set[str] = set()

    async def events(world: World) -> None:
        await moment(world, lambda: all(finished(it) for it in world.peers.values()), SECONDS)
        await world.sleep(4.0)
        waits.update(wait.sentence() for it in world.peers.values() for wait in it.view.waits())

    limits = LimitsConfig(final_copies_timeout_s=8.0)
    ended = play(SINGLE, events, limits=limits, uplink=2_000.0)
    assert min(ended.first.values()) == 1
    assert ended.seconds < 15
    assert any("on one machine only: 8 s were not enough for a copy" in ended.sentence(name) for name in SINGLE)
    assert True in ended.risk()
    assert any("final state of stage" in it and "leaves in 4 s" in it for it in waits), waits
    assert any("of stage" in it and "have come here" in it for it in waits), waits


def test_a_replica_that_dies_before_it_has_written_is_made_up_for() -> None:
    async def events(world: World) -> None:
        world.fail_at("middle1", SHORT.steps, "save", point_actions.crash)

    ended = play(PAIRS, events)
    assert "middle1" in ended.world.dead
    assert ended.first == {0: 2, 1: 2, 2: 2}


def test_who_was_to_bring_a_copy_dies_and_another_does() -> None:
    async def events(world: World) -> None:
        world.fail_at("*", None, "asked.AskCheckpoint", point_actions.crash)

    ended = play({**SINGLE, "head2": 0, "tail2": 2}, events)
    assert len(ended.world.dead) == 1
    alive = {it.peer.stage for it in ended.world.peers.values()}
    assert all(ended.first[stage] >= 2 for stage in alive if stage is not None), ended.first


@pytest.mark.parametrize(
    "point",
    [
        "save",
        "load",
        "read",
        "ask.AskCheckpoint",
        "served.AskCheckpoint",
        "asked.AskCheckpointChunk",
        "served.AskCheckpointChunk",
    ],
)
def test_somebody_dies_at_the_end(point: str) -> None:
    """The others leave in time, and every stage that somebody still has is on two machines."""

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, SHORT.steps - 1), SECONDS)
        world.fail_at("*", None, point, point_actions.crash)

    ended = play({**SINGLE, "tail2": 2, "tail3": 2}, events)
    assert len(ended.world.dead) == 1
    assert ended.seconds < 90
    assert not list(check_final_state(ended.world))


def test_connections_that_break_at_the_end_are_waited_for() -> None:
    """A peer that can't be reached for a moment is no reason to leave."""

    async def events(world: World) -> None:
        await moment(world, lambda: all(finished(it) for it in world.peers.values()), SECONDS)
        for name in ("middle", "tail"):
            world.network.cut("head", name)
        world.network.cut("middle", "tail")
        await world.sleep(0.0)
        assert not any(it.peer.ending.over for it in world.peers.values())

    ended = play(SINGLE, events, uplink=20_000.0)
    assert min(ended.first.values()) == 2
    assert ended.risk() == {False}


def test_a_state_that_its_own_disk_does_not_take_is_on_two_others() -> None:
    async def events(world: World) -> None:
        world.peers["middle"].store.full = True

    ended = play(SINGLE, events)
    assert ended.first == {0: 2, 1: 2, 2: 2}
    assert not [key for key in ended.world.peers["middle"].store.checkpoints if key[0] == SHORT.steps]


def test_a_disk_that_is_full_is_passed_over() -> None:
    async def events(world: World) -> None:
        for name in ("head", "tail"):
            world.peers[name].store.full = True

    ended = play({**SINGLE, "tail2": 2}, events)
    assert ended.first[1] == 2
    assert ended.seconds < 15


def test_nobody_takes_copies_and_nobody_waits() -> None:
    ended = play(SINGLE, limits=LimitsConfig(copies_bytes=0))
    assert ended.first == {0: 1, 1: 1, 2: 1}
    assert ended.seconds < 5
    assert all("no other machine could take a copy" in ended.sentence(name) for name in SINGLE)


@pytest.mark.parametrize("bound_s", [0.5, 30.0])
def test_who_is_told_to_leave_at_the_end_leaves_no_only_copy_behind(bound_s: float) -> None:
    """The others wait as long as the bound allows."""
    safe: list[int] = []

    async def events(world: World) -> None:
        await moment(world, lambda: finished(world.peers["middle"]), SECONDS)
        assert machines(world, 1) == 1
        await world.peers["middle"].machine.spawn(world.peers["middle"].peer.drain(bound_s))
        safe.append(machines(world, 1))
        world.crash("middle")

    limits = LimitsConfig(final_copies_timeout_s=60.0)
    ended = play(SINGLE, events, limits=limits, uplink=6_000.0)
    assert safe == ([2] if bound_s > 1 else [1])
    assert "on no disk that is known" not in ended.sentence("head")


def test_told_to_leave_before_the_final_state_is_written() -> None:
    """The signal comes right after the last commit."""

    async def events(world: World) -> None:
        it = world.peers["middle"]
        await moment(world, lambda: it.peer.history.finished, SECONDS)
        assert not machines(world, 1)
        await it.machine.spawn(it.peer.drain(30.0))
        assert machines(world, 1) == 2
        world.crash("middle")

    play(SINGLE, events)


def test_one_that_is_silent_at_the_end_is_waited_for_within_bounds() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, SHORT.steps - 1), SECONDS)
        await moment(world, lambda: any(finished(it) for it in world.peers.values()), SECONDS)
        world.pause("tail2")

    async def main() -> float:
        world = World(SHORT, Text(SHORT))
        for name, stage in PAIRS.items():
            await world.start(name, stage=stage)
        await events(world)
        began = asyncio.get_running_loop().time()
        others = [it.task for name, it in world.peers.items() if name != "tail2"]
        await asyncio.wait(others, timeout=SECONDS)
        assert all(task.done() for task in others)
        took = asyncio.get_running_loop().time() - began
        assert min(final(world).values()) >= 2
        world.resume("tail2")
        await world.stop()
        return took

    assert run_virtual(main()) < 85


WIDE = dataclasses.replace(SHORT, model=dataclasses.replace(SHORT.model, ffn=1024))  # 0.6 MB of state a stage


@pytest.mark.parametrize(("bound_s", "arrives"), [(60.0, True), (25.0, False)])
def test_who_pulls_its_state_when_the_run_ends_is_waited_for_within_bounds(
    bound_s: float, arrives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newcomer whose line is thin would find nobody any more."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 32_768)
    waits: set[str] = set()

    async def main() -> tuple[bool, float]:
        world, loop = World(WIDE, Text(WIDE)), asyncio.get_running_loop()
        limits = LimitsConfig(final_copies_timeout_s=bound_s)
        for name, stage in PAIRS.items():
            await world.start(name, stage=stage, limits=limits)
        await moment(world, lambda: everyone_at(world, WIDE.steps - 1), SECONDS)
        others = [it.task for it in world.peers.values()]
        newcomer = await world.start("newcomer", stage=1, downlink=20_000.0)
        await moment(world, lambda: world.peers["middle1"].peer.history.finished, SECONDS)
        began = loop.time()
        await world.sleep(LINGER_SECONDS + 2.0)
        waits.update(wait.sentence() for name in PAIRS for wait in world.peers[name].view.waits())
        await asyncio.wait(others, timeout=SECONDS)
        took = loop.time() - began
        there = newcomer.peer.history.version == WIDE.steps
        await world.stop()
        return there, took

    there, took = run_virtual(main())
    assert there == arrives
    assert LINGER_SECONDS < took < bound_s + 5.0
    assert any("1 behind, 1 of them pull their state from here, leaves in" in it for it in waits), waits
