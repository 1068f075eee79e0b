"""Peers that go from one stage to another: how they are told, and what came of it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from swarmd.config import LimitsConfig
from swarmd.sim.campaign.play import Play
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.wire.messages.state import AskChunk
from tests.sim.toy import everyone_at, moment


def ask(it: SimPeer, stage: int) -> "asyncio.Task[None]":
    """Has a peer move, on its own machine."""
    task = it.machine.spawn(it.peer.mover.move(stage), name=f"move {it.name}")
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def granted(world: World) -> list[tuple[str, int, int]]:
    """Every move in the records of the living."""
    records = {step: record for it in world.peers.values() for step, record in it.peer.history.chain._records.items()}
    return [(move.peer, move.source, move.target) for step in sorted(records) for move in records[step].moves]


def members(world: World, name: str) -> dict[int, set[int]]:
    """At which stages a peer's sum counted, by stage the steps."""
    found: dict[int, set[int]] = {}
    for it in (*world.peers.values(), *world.dead.values()):
        for line in it.store.ledger:
            if name in line["members"]:
                found.setdefault(line["stage"], set()).add(line["step"])
    return found


def swarm(
    events: Callable[[World], Awaitable[None]],
    *,
    replicas: tuple[int, ...] = (2, 3, 2),
    steps: int = 14,
    microbatches: int = 8,
    limits: LimitsConfig | None = None,
) -> World:
    """A symbolic swarm to which something happens, and of which every promise is checked."""
    scenario = Scenario(replicas=replicas, steps=steps, microbatches=microbatches, limits=limits or LimitsConfig())

    async def main() -> World:
        course = Play(scenario, trace=False)
        for peer, stage in scenario.peers.items():
            await course.start(peer, stage)
        await moment(course.world, lambda: everyone_at(course.world, 2))
        await events(course.world)
        await course.world.until(lambda: everyone_at(course.world, steps), 600)
        course.watch.look()
        course.watch.conclude()
        await course.stop()
        assert not course.watch.found, course.watch.found
        return course.world

    return run_virtual(main())


def slow_chunks(world: World, seconds: float = 1.0) -> None:
    """Each chunk of a state takes a while."""
    for it in world.peers.values():
        give = it.peer.links._handlers[AskChunk]

        async def slow(peer: str, ask: AskChunk, give: Any = give) -> Any:
            await asyncio.sleep(seconds)
            return await give(peer, ask)

        it.peer.links.handle(AskChunk, slow)
