"""Runs and worlds for the tests of a state's transfer."""

import asyncio
import dataclasses
from typing import Any

from swarmd.sim.world.device import Speed
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.wire.messages.state import AskChunk, AskSnapshot, Chunk, Snapshot
from swarmd.values import PeerId
from tests.sim.toy import (
    RUN,
)

LONG = dataclasses.replace(RUN, steps=30, optimizer=dataclasses.replace(RUN.optimizer, learning_rate=2e-3))
SLOW = Speed(0.05, 0.1)
FEW = dataclasses.replace(LONG, steps=12)  # on slow devices they take as long as the long run's on usual ones
CROWD = {"head1": 0, "head2": 0, "middle1": 1, "middle2": 1, "middle3": 1, "tail1": 2, "tail2": 2}


def serve_slowly(world: World, seconds: float = 0.05) -> dict[PeerId, int]:
    """Chunks served so far, by donor; each takes a while."""
    served: dict[PeerId, int] = {}
    for name, it in world.peers.items():
        give = it.peer.links._handlers[AskChunk]

        async def slow(peer: PeerId, ask: AskChunk, name: PeerId = name, give: Any = give) -> Chunk:
            served[name] = served.get(name, 0) + 1
            await asyncio.sleep(seconds)
            answer: Chunk = await give(peer, ask)
            return answer

        it.peer.links.handle(AskChunk, slow)
    return served


def watch(it: SimPeer, name: PeerId, asked: list[PeerId]) -> None:
    give = it.peer.links._handlers[AskSnapshot]

    async def noted(peer: PeerId, ask: AskSnapshot) -> Snapshot:
        asked.append(name)
        answer: Snapshot = await give(peer, ask)
        return answer

    it.peer.links.handle(AskSnapshot, noted)


def check_same(world: World) -> None:
    """Like `check_agreement`, for peers whose ledgers have no lines of the steps that were in a state they pulled."""
    for stage in range(world.run.model.stages):
        ends = {
            (it.peer.history.version, it.peer.history.record_hash, it.peer.history.digest)
            for it in world.peers.values()
            if it.peer.stage == stage
        }
        assert len(ends) == 1, ends
        assert ends.pop()[0] == world.run.steps
