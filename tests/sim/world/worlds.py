"""A small world whose events are recorded."""

import dataclasses
from collections.abc import Awaitable, Callable

from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.world.world import World
from tests.sim.toy import RUN_SECONDS, SHORT, everyone_at, start_all


def traced(events: Callable[[World], Awaitable[None]], *, seed: int = 0, link: LinkSpec | None = None) -> World:
    """Runs a small swarm to its end and keeps a trace."""
    run = dataclasses.replace(SHORT, steps=4)

    async def main() -> World:
        world = World(run, Text(run), seed=seed, link=link, trace=True)
        await start_all(world)
        await events(world)
        await world.until(lambda: everyone_at(world, run.steps), RUN_SECONDS)
        await world.finish(RUN_SECONDS)
        return world

    return run_virtual(main())
