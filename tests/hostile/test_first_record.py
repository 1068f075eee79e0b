"""Before the first record nobody is a member of anything: the founder decides, and where it is gone no card does."""

import asyncio
import dataclasses
from typing import Any

import pytest

from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import World
from swarmd.swarm.history.confirmation import Confirmation
from swarmd.swarm.history.record import Record, build_record, genesis_hash
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.swarm.wire.messages.round import StageReport
from tests.hostile import words
from tests.hostile.attack import Scene
from tests.hostile.attacker import Attacker
from tests.hostile.attacks.orders import appear
from tests.hostile.victims import line
from tests.hostile.virtual import ATTACKER, LIFE, SMALL_RUN, SPEED, SimAccess, SimVictims

PEERS = {"head": 0, "middle": 1, "tail": 2, "head2": 0, "middle2": 1, "tail2": 2}  # the first one founds the run
TIMES = 90  # that the attacker says its record, one second apart: for longer than a fork takes
STEPS_SECONDS = 600.0


def skipped_first_step(author: str) -> Record:
    """A record of the first step that nothing is needed for."""
    blame = Blame("loss", 2, author)
    reports = [
        StageReport(stage, "", 0.0, 0, 0.0, 0, 0, 0, 0, finite=False, members=(author,), holders=(), blame=blame)
        for stage in range(SMALL_RUN.model.stages)
    ]
    made = build_record(
        SMALL_RUN, genesis_hash(SMALL_RUN), 1, reports, conductor=author, seconds=1.0, validation_loss=None
    )
    return dataclasses.replace(made, forked=True, ballot=(7, author))


async def insist(scene: Scene, made: Record) -> None:
    """Shows a card of a head that has the record, and brings it to everyone."""
    for _ in range(TIMES):
        for peer in scene.peers:
            stand = words.Stand(1, made.hash)
            await appear(scene, peer, stand, room=0)
            await scene.attacker.ask(peer, words.commit(made.raw, scene.peers))
        await asyncio.sleep(1)


@pytest.mark.parametrize("believing", [False, True])
def test_where_the_founder_is_gone_one_that_has_greeted_makes_no_record(
    monkeypatch: pytest.MonkeyPatch, *, believing: bool
) -> None:
    """It poses as a head that is past the step. Where one word is enough, its record is everybody's."""

    async def enough(*_: Any) -> bool:
        return True

    if believing:
        monkeypatch.setattr(Confirmation, "_is_known_around", enough)

    async def main() -> None:
        world = World(SMALL_RUN, Text(SMALL_RUN))
        peers = [await world.start(name, stage=stage, speed=SPEED) for name, stage in PEERS.items()]
        await world.until(lambda: all(it.peer.state == "serving" for it in peers), 60.0)
        victims = SimVictims(world)
        victims.addresses = [f"/sim/{name}" for name in PEERS]
        access = SimAccess(world, ATTACKER)
        scene = Scene(victims, Attacker(access, LIFE))
        await access.machine.spawn(scene.enter(), name=ATTACKER)
        world.crash("head")
        assert all(it.peer.history.version == 0 for it in peers)
        made = skipped_first_step(ATTACKER)
        await access.machine.spawn(insist(scene, made), name="insist")
        taken = [it.name for it in peers[1:] if made.hash in (entry.record for entry in map(line, it.store.ledger))]
        assert bool(taken) == believing
        if not believing:
            await world.until(lambda: all(it.peer.history.version for it in peers[1:]), STEPS_SECONDS)
        await access.stop()
        await world.stop()

    run_virtual(main())
