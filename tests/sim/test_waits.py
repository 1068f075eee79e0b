"""A peer says what it waits for, and says nothing more once that is over: states, moves, drains, pauses.
Returns are in `test_returns.py`, acceptors and other histories in `test_commit.py`, places in `test_joins.py`.
"""

import asyncio

import pytest

from swarmd import chunks
from swarmd.sim.world.world import World
from tests.sim.movers import ask, slow_chunks, swarm
from tests.sim.test_drains import MICROBATCHES, drain, half_done
from tests.sim.toy import everyone_at, moment, train
from tests.sim.transfers import FEW, SLOW, serve_slowly
from tests.sim.waiting import calm, listening


def test_a_newcomer_says_how_much_of_its_state_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2048)

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        serve_slowly(world, 0.3)
        async with listening(world) as said:
            new = await world.start("new", stage=1)
            await moment(world, lambda: new.peer.state == "serving")
        wait = said.of("new", "the state of stage 1")
        assert " kB of " in wait.progress
        assert "from 2 donors" in wait.progress
        await calm(world)

    train(FEW, events, speed=SLOW)


def test_a_move_says_how_far_it_is_and_nothing_afterwards() -> None:
    async def events(world: World) -> None:
        slow_chunks(world)
        async with listening(world) as said:
            await ask(world.peers["middle1"], 2)
        assert " of " in said.of("middle1", "its move to stage 2").progress
        assert world.peers["middle1"].peer.stage == 2
        await calm(world)

    swarm(events)


def test_a_drain_says_what_it_is_at() -> None:
    async def events(world: World) -> None:
        await half_done(world, "middle1")
        async with listening(world) as said:
            await drain(world, "middle1")
        assert "microbatches" in said.of("middle1", "the end of its drain").progress
        await calm(world)

    swarm(events, steps=8, microbatches=MICROBATCHES)


def test_a_stage_that_pauses_is_said_where_others_wait_for_it() -> None:
    async def events(world: World) -> None:
        tails = [world.peers["tail1"], world.peers["tail2"]]
        async with listening(world) as said:
            for it in tails:
                await it.machine.spawn(it.peer.pause())
            await asyncio.sleep(10)
            for it in tails:
                await it.machine.spawn(it.peer.resume())
        assert "swarmctl resume" in said.of("head1", "a peer of stage 2 that takes work").advice
        await calm(world)

    swarm(events, steps=8)
