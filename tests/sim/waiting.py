"""The words of a world's peers about what they wait for, while something goes on."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from swarmd.sim.world.world import World
from swarmd.status import Wait
from tests.sim.toy import moment

LOOK_SECONDS = 0.01


class Said:
    """All that the peers of a world have said of their waits, by what; how far each was, one after the other."""

    def __init__(self) -> None:
        self.waits: dict[str, Wait] = {}

    def look(self, world: World) -> None:
        for name, it in world.peers.items():
            for wait in it.view.waits():
                before = self.waits.get(f"{name}: {wait.what}", wait).progress
                progress = before if wait.progress in before else f"{before}; {wait.progress}"
                self.waits[f"{name}: {wait.what}"] = dataclasses.replace(wait, progress=progress)

    def of(self, name: str, what: str) -> Wait:
        found = [wait for key, wait in self.waits.items() if key.startswith(f"{name}: ") and what in key]
        assert found, f"{name} never waited for {what}: {list(self.waits)}"
        return found[0]


@asynccontextmanager
async def listening(world: World) -> AsyncIterator[Said]:
    """Hears what is waited for as long as the block takes."""
    said = Said()

    async def look() -> None:
        while True:
            said.look(world)
            await asyncio.sleep(LOOK_SECONDS)

    task = asyncio.create_task(look())
    try:
        yield said
    finally:
        task.cancel()


async def calm(world: World) -> None:
    """Comes to be once nobody waits for anything, nor shows a transfer; and everyone serves."""
    await moment(
        world,
        lambda: all(
            not it.view.waits() and not it.view.transfer().total and it.peer.state == "serving"
            for it in world.peers.values()
        ),
    )
