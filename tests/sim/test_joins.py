"""Peers that come after version 0: they take their stage's state from one donor and are identical from then on."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from swarmd.sim.clock import run_virtual
from swarmd.sim.compute import Speed
from swarmd.sim.world import SimPeer, World
from swarmd.swarm import statesync
from swarmd.swarm.messages import AskChunk, AskSnapshot, Chunk, Snapshot
from swarmd.values import PeerId
from tests.sim.toy import (
    RUN,
    SHORT,
    Text,
    check_agreement,
    check_exact,
    everyone_at,
    moment,
    start_all,
    train,
)

CROWD = {"head1": 0, "head2": 0, "middle1": 1, "middle2": 1, "middle3": 1, "tail1": 2, "tail2": 2}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the toy's state is many of them."""
    monkeypatch.setattr(statesync, "CHUNK_BYTES", 2048)


@pytest.mark.parametrize("stage", range(3))
def test_a_newcomer_is_identical_from_its_first_step(stage: int) -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        await world.start("new", stage=stage)

    world = train(RUN, events)
    check_agreement(world)
    check_exact(world)
    lines = world.peers["new"].store.ledger
    assert lines[0]["step"] > 2, "the steps before were in the state"
    assert any("new" in line["members"] for line in lines), "it takes part once it has caught up"


def test_training_does_not_wait_for_a_newcomer() -> None:
    async def main(joins: bool) -> float:
        world = World(RUN, Text(RUN))
        await start_all(world)
        await moment(world, lambda: everyone_at(world, 2))
        old = list(world.peers.values())
        if joins:
            await world.start("new", stage=1)
        await moment(world, lambda: all(it.peer.history.version >= 5 for it in old))
        ended = asyncio.get_running_loop().time()
        await world.stop()
        return ended

    alone, joined = run_virtual(main(joins=False)), run_virtual(main(joins=True))
    assert joined <= 1.1 * alone


def chosen_donor(world: World) -> PeerId:
    """The one that a newcomer of the middle stage asks first: newest version, then lowest name."""
    cards = [it.peer.membership.own for it in world.peers.values() if it.peer.stage == 1]
    return min(cards, key=lambda card: (-card.version, card.peer)).peer


def test_a_donor_that_dies_midway_is_replaced() -> None:
    donor: list[PeerId] = []

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        served = serve_slowly(world)
        await world.start("new", stage=1)
        await moment(world, lambda: any(count >= 3 for count in served.values()))
        donor.append(max(served, key=lambda name: served[name]))
        assert world.peers["new"].peer.history.version == 0
        world.kill(donor[0])

    world = train(RUN, events, layout=CROWD, speed=Speed(0.05, 0.1))  # so that the run doesn't end meanwhile
    check_agreement(world)
    check_exact(world)
    assert donor[0] in world.dead
    assert world.peers["new"].store.ledger


def serve_slowly(world: World) -> dict[PeerId, int]:
    """Chunks served so far, by donor; each takes a while."""
    served: dict[PeerId, int] = {}
    for name, it in world.peers.items():
        give = it.peer.links._answerers[AskChunk]

        async def slow(peer: PeerId, ask: AskChunk, name: PeerId = name, give: Any = give) -> Chunk:
            served[name] = served.get(name, 0) + 1
            await asyncio.sleep(0.05)
            answer: Chunk = await give(peer, ask)
            return answer

        it.peer.links.answers(AskChunk, slow)
    return served


def lie_about_a_chunk(it: SimPeer) -> None:
    """One bit of the state is another one than its hash says."""
    give = it.peer.links._answerers[AskChunk]

    async def lie(peer: PeerId, ask: AskChunk) -> Chunk:
        data = bytearray((await give(peer, ask)).data)
        data[7] ^= 1
        return Chunk(bytes(data))

    it.peer.links.answers(AskChunk, lie)


def damage(**changes: Any) -> Callable[[SimPeer], None]:
    """A manifest that can't be true."""

    def lie_about_the_manifest(it: SimPeer) -> None:
        give = it.peer.links._answerers[AskSnapshot]

        async def lie(peer: PeerId, ask: AskSnapshot) -> Snapshot:
            answer: Snapshot = dataclasses.replace(await give(peer, ask), **changes)
            return answer

        it.peer.links.answers(AskSnapshot, lie)

    return lie_about_the_manifest


LIES = {
    "a flipped bit": lie_about_a_chunk,
    "too few hashes": damage(hashes=("00" * 16,)),
    "no bytes": damage(nbytes=0),
    "endless": damage(nbytes=1 << 60),
    "chunks of nothing": damage(chunk_bytes=0),
    "no record": damage(record={}),
    "another version": damage(version=1),
    "version 0": damage(version=0),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lying_donor_is_refused_and_the_next_one_used(lie: Callable[[SimPeer], None]) -> None:
    liar: list[PeerId] = []

    async def main() -> None:
        world = World(SHORT, Text(SHORT))
        await start_all(world)
        await moment(world, lambda: everyone_at(world, 2))
        liar.append(chosen_donor(world))
        asked: list[PeerId] = []
        lie(world.peers[liar[0]])
        for name, it in world.peers.items():
            watch(it, name, asked)
        new = await world.start("new", stage=1)
        await moment(world, lambda: new.peer.history.version >= 2, 20)
        assert liar[0] in asked, "the liar was meant to be asked"
        assert set(asked) - set(liar), "someone else gave the state"
        await world.finish()
        check_agreement(world)
        check_exact(world)

    run_virtual(main())


def watch(it: SimPeer, name: PeerId, asked: list[PeerId]) -> None:
    give = it.peer.links._answerers[AskSnapshot]

    async def noted(peer: PeerId, ask: AskSnapshot) -> Snapshot:
        asked.append(name)
        answer: Snapshot = await give(peer, ask)
        return answer

    it.peer.links.answers(AskSnapshot, noted)


def test_a_peer_that_missed_a_commit_fetches_it() -> None:
    """Cut off from everyone at the moment of a commit, it asks for the record and the gradient afterwards."""

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        it = world.peers["tail2"]
        await moment(world, lambda: it.peer.journeys is not None and it.peer.journeys.frozen_step == 3)
        for other in list(world.peers):
            if other != "tail2":
                world.network.cut("tail2", other)

    world = train(SHORT, events)
    check_agreement(world)
    assert [line["step"] for line in world.peers["tail2"].store.ledger] == list(range(1, SHORT.steps + 1))


def test_a_newcomer_at_the_very_end_gets_the_last_version() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, SHORT.steps - 1))
        await world.start("new", stage=2)

    world = train(SHORT, events)
    check_exact(world)
    assert world.peers["new"].peer.history.digest == world.peers["tail1"].peer.history.digest


def test_a_joiner_whose_only_acquaintance_dies_waits_and_founds_nothing() -> None:
    async def main() -> World:
        world = World(SHORT, Text(SHORT))
        await world.start("founder", stage=2)
        await world.start("newcomer")
        world.kill("founder")
        await asyncio.sleep(60)
        return world

    newcomer = run_virtual(main()).peers["newcomer"].peer
    assert (newcomer.stage, newcomer.state, newcomer.history.version) == (None, "joining", 0)
    assert "answers" in newcomer.waiting_for()
