"""Peers that come after version 0 take their stage's state from donors, and are identical from then on."""

import asyncio
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest

from swarmd.errors import ConfigError
from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.device import Speed
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.wire.messages.common import from_ranges, to_ranges
from swarmd.swarm.wire.messages.fields import STATE_LIMIT_BYTES
from swarmd.swarm.wire.messages.hop import AskGiven, Given
from swarmd.swarm.wire.messages.state import AskChunk, AskSnapshot, Chunk, Snapshot
from swarmd.values import PeerId
from tests.sim.toy import (
    RUN,
    SHORT,
    check_agreement,
    check_exact,
    everyone_at,
    moment,
    start_all,
    train,
)
from tests.sim.transfers import CROWD, FEW, SLOW, serve_slowly, watch

pytestmark = pytest.mark.usefixtures("small_chunks")


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


def test_newcomers_to_all_stages_work_in_the_step_in_which_they_come() -> None:
    """No record names them yet: those who gave them their work say so."""
    said: list[tuple[PeerId, bool]] = []

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        for stage in range(3):
            await world.start(f"new-{stage}", stage=stage)
        new = [f"new-{stage}" for stage in range(3)]
        for it in world.peers.values():
            it.peer.links.handle(AskGiven, functools.partial(heard, world, it.name))
        await moment(world, lambda: all(world.peers[name].store.ledger for name in new))

    async def heard(world: World, name: PeerId, peer: PeerId, ask: AskGiven) -> Given:
        it = world.peers[name].peer
        given = it._context.handouts.given(ask.step, ask.stage, from_ranges(ask.indices, RUN.microbatches), ask.peer)
        said.append((ask.peer, bool(given)))
        source = it._context.handouts.source(ask.step, ask.stage - 1, given[0]) if given else ""
        return Given(to_ranges(given), source)

    world = train(RUN, events)
    check_agreement(world)
    check_exact(world)
    assert all(given for _, given in said)
    assert {"new-0", "new-1"} <= {peer for peer, _ in said}, "the last stage passes nothing on"
    for it in world.peers.values():
        assert not it.peer.links.role_refusals.counts, it.name


def test_the_state_comes_while_the_stage_is_being_opened() -> None:
    """A download of seconds beside an opening of seconds: the newcomer is there when the longer of the two is over."""

    async def main(opening: float, chunk: float) -> float:
        world = World(FEW, Text(FEW))
        await start_all(world, CROWD, speed=SLOW)
        await moment(world, lambda: everyone_at(world, 2))
        serve_slowly(world, chunk)
        new = await world.start("new", stage=1, speed=dataclasses.replace(SLOW, open_s=opening))
        began = asyncio.get_running_loop().time()
        await moment(world, lambda: new.view.transfer().done > 0)
        assert (new.peer.compute is None) == (opening > 0)
        await moment(world, lambda: new.peer.state == "serving")
        took = asyncio.get_running_loop().time() - began
        if opening == 0:  # this one is for its time alone
            await world.stop()
            return took
        await world.finish()
        check_agreement(world)
        check_exact(world)
        return took

    download = run_virtual(main(0.0, 0.5))
    assert download > 2
    assert run_virtual(main(1.5 * download, 0.5)) < 1.8 * download


def test_a_stage_that_cannot_be_opened_ends_the_pull_of_its_state() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        served = serve_slowly(world, 0.5)
        new = await world.start("new")
        switch: Any = new.peer.switch

        async def open_stage(stage: int) -> Any:
            if stage == 0:
                await moment(world, lambda: "head1" in served)
                raise ConfigError("no data here")
            return await opened(stage)

        opened, switch._open_stage = switch._open_stage, open_stage
        await moment(world, lambda: new.peer.state == "serving")
        assert (new.peer.stage or 0) > 0
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert "pull early" not in names

    layout = {"head1": 0, "middle1": 1, "middle2": 1, "middle3": 1, "tail1": 2, "tail2": 2}
    world = train(FEW, events, layout=layout, speed=SLOW)
    check_agreement(world)
    check_exact(world)


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
        world.crash(donor[0])

    world = train(RUN, events, layout=CROWD, speed=Speed(0.05, 0.1))  # so that the run doesn't end meanwhile
    check_agreement(world)
    check_exact(world)
    assert donor[0] in world.dead
    assert world.peers["new"].store.ledger


def lie_about_a_chunk(it: SimPeer) -> None:
    """One bit of the state is another one than its hash says."""
    give = it.peer.links._handlers[AskChunk]

    async def lie(peer: PeerId, ask: AskChunk) -> Chunk:
        data = bytearray((await give(peer, ask)).data)
        data[7] ^= 1
        return Chunk(bytes(data))

    it.peer.links.handle(AskChunk, lie)


def damage(**changes: Any) -> Callable[[SimPeer], None]:
    """A manifest that can't be true."""

    def lie_about_the_manifest(it: SimPeer) -> None:
        give = it.peer.links._handlers[AskSnapshot]

        async def lie(peer: PeerId, ask: AskSnapshot) -> Snapshot:
            answer: Snapshot = dataclasses.replace(await give(peer, ask), **changes)
            return answer

        it.peer.links.handle(AskSnapshot, lie)

    return lie_about_the_manifest


LIES = {
    "a flipped bit": lie_about_a_chunk,
    "too few hashes": damage(hashes=("00" * 16,)),
    "a single byte": damage(nbytes=1),
    "the largest there may be": damage(nbytes=STATE_LIMIT_BYTES),
    "chunks of a byte": damage(chunk_bytes=1),
    "no record": damage(record=b""),
    "a record of a later format": damage(record=b"2{}"),
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


def test_a_peer_that_missed_a_commit_fetches_it() -> None:
    """Cut off from everyone at the moment of a commit, it asks for the record and the gradient afterwards."""

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        it = world.peers["tail2"]
        await moment(world, lambda: it.peer.sums is not None and it.peer.sums.is_frozen(3))
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
        world.crash("founder")
        await asyncio.sleep(60)
        return world

    life = run_virtual(main()).peers["newcomer"]
    newcomer, view = life.peer, life.view
    assert (newcomer.stage, newcomer.state, newcomer.history.version) == (None, "joining", 0)
    (wait,) = view.waits()
    assert "answers" in wait.what
    assert wait.tried.startswith("founder")
    assert view.waiting_for() == wait.short()
