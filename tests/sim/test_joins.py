"""Peers that come after version 0, or fall behind: they take their stage's state from donors, follow what is committed
meanwhile, and are identical from then on.
"""

import asyncio
import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from swarmd.config import LimitsConfig
from swarmd.errors import ConfigError
from swarmd.sim.engines.training import Text
from swarmd.sim.faults import point_actions
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.device import Speed
from swarmd.sim.world.world import Action, SimPeer, World
from swarmd.swarm.history import chain
from swarmd.swarm.history.record import Record
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.peer import Peer
from swarmd.swarm.peer.served_stage import ServedStage
from swarmd.swarm.peer.stage_switch import Switch
from swarmd.swarm.state import donor
from swarmd.swarm.state import manifest as statesync
from swarmd.swarm.state.donor import Pinned
from swarmd.swarm.wire.framing import to_frame
from swarmd.swarm.wire.messages.common import INCARNATION_STEP
from swarmd.swarm.wire.messages.presence import Summary
from swarmd.swarm.wire.messages.state import AskChunk, AskSnapshot, Chunk, Snapshot
from swarmd.values import PeerId
from tests.sim.toy import (
    PAIRS,
    RUN,
    SHORT,
    check_agreement,
    check_exact,
    compute_of,
    everyone_at,
    long,
    moment,
    start_all,
    step_of,
    train,
)

LONG = dataclasses.replace(RUN, steps=30, optimizer=dataclasses.replace(RUN.optimizer, learning_rate=2e-3))
CROWD = {"head1": 0, "head2": 0, "middle1": 1, "middle2": 1, "middle3": 1, "tail1": 2, "tail2": 2}
SINGLE = {"head1": 0, "head2": 0, "middle1": 1, "middle2": 1, "tail1": 2}


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


def test_the_state_comes_while_the_stage_is_being_opened() -> None:
    """A download of seconds beside an opening of seconds: the newcomer is there when the longer of the two is over."""

    async def main(opening: float, chunk: float) -> float:
        world = World(LONG, Text(LONG))
        await start_all(world, CROWD)
        await moment(world, lambda: everyone_at(world, 2))
        serve_slowly(world, chunk)
        new = await world.start("new", stage=1, speed=Speed(open_s=opening))
        began = asyncio.get_running_loop().time()
        await moment(world, lambda: new.peer.view.transfer().done > 0)
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

    world = train(LONG, events, layout={"head1": 0, "middle1": 1, "middle2": 1, "middle3": 1, "tail1": 2, "tail2": 2})
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
    give = it.peer.links._handlers[AskSnapshot]

    async def noted(peer: PeerId, ask: AskSnapshot) -> Snapshot:
        asked.append(name)
        answer: Snapshot = await give(peer, ask)
        return answer

    it.peer.links.handle(AskSnapshot, noted)


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

    newcomer = run_virtual(main()).peers["newcomer"].peer
    assert (newcomer.stage, newcomer.state, newcomer.history.version) == (None, "joining", 0)
    (wait,) = newcomer.view.waits()
    assert "answers" in wait.what
    assert wait.tried.startswith("founder")
    assert newcomer.view.waiting_for() == wait.short()


# ------------------------------------------------------------------------------------------------- slow downloads


@pytest.mark.parametrize("layout", [PAIRS, SINGLE], ids=["two donors", "one donor"])
def test_ten_steps_commit_during_the_download_and_the_newcomer_catches_up(layout: dict[str, int]) -> None:
    """Holders keep four gradients; one that only asked for them afterwards would be behind for good."""

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        serve_slowly(world, 0.4)
        asked: list[PeerId] = []
        for name, it in world.peers.items():
            watch(it, name, asked)
        new = await world.start("new", stage=2)
        await moment(world, lambda: new.peer.view.transfer().done > 0)
        versions = {it.peer.history.version for it in world.peers.values() if it is not new}
        shown = [new.peer.view.transfer()]
        while new.peer.history.version == 0:
            await asyncio.sleep(0.1)
            shown.append(new.peer.view.transfer())
            assert new.peer.history.version or new.peer.state == "joining"
        assert step_of(world) - 1 >= max(versions) + 10
        assert len({it.done for it in shown}) > 5, "progress is shown"
        assert len(asked) <= 2, "one snapshot was enough"

    world = train(LONG, events, layout=layout)
    check_agreement(world)
    check_exact(world)
    ledger = world.peers["new"].store.ledger
    pulled = ledger[0]["step"] - 1  # all commits since are there: `check_agreement` finds gaps
    assert any("new" in line["members"] for line in ledger)
    first = next(line["step"] for line in ledger if "new" in line["members"])
    assert first >= pulled + 10, "it was in no plan before it had caught up"


def test_step_times_of_the_others_stay_the_same_during_a_download() -> None:
    def times(joins: bool) -> list[float]:
        stamps: list[float] = []

        async def main() -> None:
            world = World(LONG, Text(LONG))
            await start_all(world)
            await moment(world, lambda: everyone_at(world, 2))
            serve_slowly(world, 0.5)
            if joins:
                await world.start("new", stage=1)
            for version in range(3, 13):
                await moment(world, lambda version=version: step_of(world) > version)  # type: ignore[misc]
                stamps.append(asyncio.get_running_loop().time())
                assert not joins or world.peers["new"].peer.state == "joining"
            await world.stop()

        run_virtual(main())
        return [after - before for before, after in itertools.pairwise(stamps)]

    alone, joined = times(joins=False), times(joins=True)
    assert sum(joined) <= 1.1 * sum(alone)
    assert max(joined) <= 1.1 * max(alone)


def test_two_newcomers_at_once_share_one_snapshot() -> None:
    exports: dict[PeerId, int] = {}

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        serve_slowly(world, 0.1)
        for name in ("middle1", "middle2"):
            count_exports(world.peers[name], exports)
        await world.start("new1", stage=1)
        await world.start("new2", stage=1)
        await moment(world, lambda: all(world.peers[name].peer.state == "serving" for name in ("new1", "new2")))
        assert max(exports.values()) == 1

    world = train(LONG, events)
    check_agreement(world)
    check_exact(world)
    assert any({"new1", "new2"} <= set(line["members"]) for line in world.peers["new1"].store.ledger)


def count_exports(it: SimPeer, exports: dict[PeerId, int]) -> None:
    compute = compute_of(it)
    export = compute.export_state

    async def counted() -> Any:
        exports[it.name] = exports.get(it.name, 0) + 1
        return await export()

    compute.export_state = counted  # type: ignore[method-assign]


def pinned(peer: Peer) -> list[Pinned]:
    """What a donor keeps for those who pull from it."""
    return list(peer.served.donor._pinned.values()) if peer.served is not None else []


def test_a_newcomer_that_dies_in_its_download_leaves_no_trace() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        serve_slowly(world, 0.2)
        new = await world.start("new", stage=1)
        await moment(world, lambda: new.peer.view.transfer().done > 0)
        donors = [world.peers[name].peer for name in ("middle1", "middle2")]
        assert any("new" in it.pullers for donor in donors for it in pinned(donor))
        assert any("new" in it.peer.places._promises for it in world.peers.values())
        world.crash("new")
        await asyncio.sleep(0.1)
        assert not any("new" in it.pullers for donor in donors for it in pinned(donor))
        assert not any("new" in it.peer.places._promises for it in world.peers.values())

    world = train(RUN, events)
    check_agreement(world)
    check_exact(world)
    assert not world.dead["new"].store.ledger


def test_donors_die_one_after_the_other() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        served = serve_slowly(world, 0.3)
        new = await world.start("new", stage=1)
        for victim in ("middle1", "middle2"):
            count = served.get(victim, 0)
            await moment(world, lambda victim=victim, count=count: served.get(victim, 0) > count + 1)  # type: ignore[misc]
            assert new.peer.state == "joining"
            world.crash(victim)

    world = train(LONG, events, layout=CROWD)
    check_agreement(world)
    check_exact(world)
    assert any("new" in line["members"] for line in world.peers["new"].store.ledger)


def test_the_last_replica_dies_and_takes_the_stage_with_it() -> None:
    """Nobody has the state any more: the newcomer says what it waits for and founds nothing."""
    waits: list[tuple[str, int, str]] = []

    async def main() -> None:
        world = World(LONG, Text(LONG))
        await start_all(world, SINGLE)
        await moment(world, lambda: everyone_at(world, 2))
        serve_slowly(world, 0.5)
        new = await world.start("new", stage=2)
        await moment(world, lambda: new.peer.view.transfer().done > 0)
        world.crash("tail1")
        await asyncio.sleep(120)
        waits.append((new.peer.state, new.peer.history.version, new.peer.view.waiting_for()))
        await world.stop()

    run_virtual(main())
    (state, version, what) = waits[0]
    assert (state, version) == ("joining", 0)
    assert "replica of stage 2" in what


def test_a_donor_that_falls_silent_in_the_middle_costs_seconds() -> None:
    async def main() -> None:
        world = World(LONG, Text(LONG))
        await start_all(world, CROWD)
        await moment(world, lambda: everyone_at(world, 2))
        served = serve_slowly(world)
        fall_silent(world.peers["middle1"], served)
        new = await world.start("new", stage=1)
        began = asyncio.get_running_loop().time()
        await moment(world, lambda: new.peer.state == "serving")
        assert asyncio.get_running_loop().time() - began < 8
        assert new.peer.joiner is not None
        assert {"middle2", "middle3"} <= set(new.peer.joiner.downloaded)
        await world.finish()
        check_agreement(world)
        check_exact(world)

    run_virtual(main())


def fall_silent(it: SimPeer, served: dict[PeerId, int]) -> None:
    """After two chunks; its machine trains on."""
    give = it.peer.links._handlers[AskChunk]

    async def mute(peer: PeerId, ask: AskChunk) -> Chunk:
        if served.get(it.name, 0) >= 2:
            await asyncio.get_running_loop().create_future()
        answer: Chunk = await give(peer, ask)
        return answer

    it.peer.links.handle(AskChunk, mute)


def test_a_backlog_that_does_not_fit_is_begun_anew_with_a_newer_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has given up makes room before the run is over: those who have finished don't stay for ever."""
    monkeypatch.setattr(donor, "PULLED_SECONDS", 1.0)

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        served = serve_slowly(world, 0.3)
        asked: list[PeerId] = []
        watch(world.peers["middle1"], "middle1", asked)
        new = await world.start("new", stage=1, limits=LimitsConfig(backlog_bytes=40_000))
        await moment(world, lambda: len(asked) >= 2)
        assert new.peer.state == "joining"
        serve_slowly(world, 0.0)
        served.clear()

    world = train(LONG, events)
    check_agreement(world)
    check_exact(world)


def test_three_donors_with_thin_uplinks_are_faster_than_one() -> None:
    """The newcomer's own line is wide; a donor's is what limits."""

    async def main(donors: int) -> float:
        world = World(LONG, Text(LONG))
        for name, stage in {"head1": 0, "tail1": 2}.items():
            await world.start(name, stage=stage)
        for number in range(donors):
            await world.start(f"middle{number}", stage=1, speed=Speed(0.2, 0.4), uplink=20e3)
        await moment(world, lambda: everyone_at(world, 1))
        began = asyncio.get_running_loop().time()
        new = await world.start("new", stage=1)
        await moment(world, lambda: new.peer.joiner is not None and bool(new.peer.joiner.downloaded))
        assert new.peer.joiner is not None
        assert len(new.peer.joiner.downloaded) == donors
        took = asyncio.get_running_loop().time() - began
        await world.stop()
        return took

    one, three = run_virtual(main(1)), run_virtual(main(3))
    assert three < 0.6 * one


@pytest.mark.parametrize("seconds", [30.0, *long(5.0)])
def test_a_donor_whose_machine_is_paused_costs_seconds(seconds: float) -> None:
    async def main() -> None:
        world = World(LONG, Text(LONG))
        await start_all(world, CROWD, speed=Speed(0.05, 0.1))
        await moment(world, lambda: everyone_at(world, 2))
        served = serve_slowly(world, 0.1)
        new = await world.start("new", stage=1)
        await moment(world, lambda: served.get("middle1", 0) >= 2)
        world.pause("middle1")
        began = asyncio.get_running_loop().time()
        await moment(world, lambda: new.peer.joiner is not None and bool(new.peer.joiner.downloaded))
        assert asyncio.get_running_loop().time() - began < 8
        await asyncio.sleep(max(0.0, began + seconds - asyncio.get_running_loop().time()))
        world.resume("middle1")
        await world.until(lambda: everyone_at(world, LONG.steps), 600)
        await world.finish()
        check_same(world)
        late = world.peers["middle1"].store.ledger
        assert (len(late) < LONG.steps) == (seconds > 20), "after a long pause it comes back like a newcomer"

    run_virtual(main())


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


EDGES = ("asked.AskChunk", "begin.import_state", "serve.AskChunk")
JOINERS = ("ask.AskSnapshot", "asked.AskSnapshot", "ask.AskChunk")
DONORS = ("serve.AskSnapshot", "begin.export_state", "served.AskSnapshot", "served.AskChunk")


@pytest.mark.parametrize("point", [*EDGES, *long(*JOINERS, *DONORS)])
@pytest.mark.parametrize("action", [point_actions.crash, *long(point_actions.pause_for(20.0))], ids=["crash", "pause"])
def test_whoever_fails_at_any_point_of_a_transfer_all_others_end_alike(point: str, action: Action) -> None:
    async def main() -> None:
        world = World(RUN, Text(RUN))
        await start_all(world, CROWD)
        await moment(world, lambda: everyone_at(world, 2))
        victim = "*" if point in (*DONORS, "serve.AskChunk") else "new"
        world.fail_at(victim, None, point, action, skip=point.endswith("AskChunk") * 3)
        await world.start("new", stage=1)
        await world.until(lambda: not world.points.armed, 60)
        await world.until(lambda: everyone_at(world, RUN.steps), 600)
        await world.finish()
        check_same(world)

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- late peers


@pytest.mark.parametrize("disk", [True, False])
def test_a_peer_that_restarts_comes_back_like_a_newcomer(disk: bool) -> None:
    async def main() -> None:
        world = World(RUN, Text(RUN))
        await start_all(world)
        await moment(world, lambda: everyone_at(world, 3))
        await world.restart("middle1", disk=disk)
        await world.until(lambda: everyone_at(world, RUN.steps), 600)
        await world.finish()
        check_same(world)

    run_virtual(main())


@pytest.mark.parametrize("name", ["middle1", "head1"])
@pytest.mark.parametrize("clocks", [(0,), (1 << 60, 7), (4, 2)])
def test_a_peer_whose_clock_was_set_back_is_known_in_its_new_life(name: PeerId, clocks: tuple[int, ...]) -> None:
    async def main() -> None:
        world = World(RUN, Text(RUN))
        await start_all(world)
        for number, clock in enumerate(clocks):
            version = 2 + 3 * number
            await moment(world, functools.partial(everyone_at, world, version))
            before = world.peers[name].peer.membership.own.incarnation
            await world.restart(name, incarnation=clock)
            life = world.peers[name].peer.membership

            def known(it: Membership = life) -> bool:
                others = [other.peer.membership for other in world.peers.values() if other.name != name]
                return all((card := each.get(name)) is not None and card.incarnation == it.own.incarnation
                           for each in others)  # fmt: skip

            await world.until(known, 10)
            assert life.own.incarnation == (clock if clock > before else before + INCARNATION_STEP)
        await world.until(lambda: everyone_at(world, RUN.steps), 600)
        await world.finish()
        check_same(world)
        check_exact(world)

    run_virtual(main())


def test_who_hears_of_a_later_life_of_its_own_by_gossip_goes_above_it() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        victim, liar = world.peers["middle1"].peer, world.peers["tail1"].peer
        forged = dataclasses.replace(victim.membership.own, incarnation=1000, addresses=("/nowhere",))
        for name in ("head1", "middle1", "tail2"):
            world.peers[name].peer.gossip._hear(liar.membership.own.peer, to_frame(Summary(1, (forged,), 1)))
        assert world.peers["head1"].peer.membership.get("middle1") == forged

        def mended() -> bool:
            card = world.peers["head1"].peer.membership.get("middle1")
            return card is not None and card.incarnation == 1000 + INCARNATION_STEP == victim.membership.own.incarnation

        await world.until(mended, 10)

    world = train(RUN, events)
    check_exact(world)


def test_newcomers_are_numbered_as_they_come() -> None:
    async def main() -> None:
        world = World(RUN, Text(RUN))
        await start_all(world)
        await world.until(lambda: everyone_at(world, 1), 60)
        arrivals = [it.peer.membership.own.arrival for it in world.peers.values()]
        assert arrivals[0] == 0
        assert arrivals == sorted(set(arrivals)), arrivals
        await world.finish()

    run_virtual(main())


@pytest.mark.parametrize("name", ["middle2", *long("head2", "tail1")])
def test_a_peer_that_lost_a_gradient_for_good_comes_back_like_a_newcomer(name: PeerId) -> None:
    states: list[str] = []

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        it = world.peers[name]
        serve_slowly(world, 0.2)
        gather = it.peer.history._gather

        async def lost(record: Record) -> bool:
            it.peer.history._gather = gather
            return False

        it.peer.history._gather = lost
        await moment(world, lambda: it.peer.state == "joining")
        assert it.peer.history.behind
        began = step_of(world)
        await moment(world, lambda: step_of(world) > began + 1)
        states.append(it.peer.state)
        others = [other for other in world.peers.values() if other is not it]
        assert all(
            name not in [card.peer for card in other.peer.membership.stage(it.peer.stage or 0)] for other in others
        )
        assert all(other.peer.membership.get(name) is not None for other in others), "it keeps its place"
        await moment(world, lambda: it.peer.state == "serving")

    world = train(LONG, events)
    check_exact(world)
    assert states == ["joining"]
    ledger = world.peers[name].store.ledger
    missing = set(range(1, LONG.steps + 1)) - {line["step"] for line in ledger}
    assert missing, "the steps in the state have no line"
    assert any(name in line["members"] for line in ledger if line["step"] > max(missing))
    digests = {it.peer.history.digest for it in world.peers.values() if it.peer.stage == world.peers[name].peer.stage}
    assert len(digests) == 1


def test_a_peer_that_was_away_for_longer_than_records_are_kept_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "RECORDS_KEPT", 2)

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        rest = [name for name in world.peers if name != "middle2"]
        world.network.partition([["middle2"], rest])
        await moment(world, lambda: all(world.peers[name].peer.history.version >= 7 for name in rest))
        world.network.heal()

    world = train(LONG, events)
    check_same(world)
    assert world.peers["middle2"].peer.joiner.downloaded  # type: ignore[union-attr]


def test_who_is_cut_off_before_it_has_arrived_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told its place by a swarm that had begun. While its device gets ready, all others are lost to it."""
    open_at_once = Switch.open

    async def open_slowly(switch: Switch, stage: int, *, pull: bool = False) -> ServedStage:
        await asyncio.sleep(25)
        return await open_at_once(switch, stage, pull=pull)

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        monkeypatch.setattr(Switch, "open", open_slowly)
        new = await world.start("new", stage=1)
        await moment(world, lambda: new.peer.history.origin.heard > 0)
        assert new.peer.history.version == 0
        others = [name for name in world.peers if name != "new"]
        world.network.partition([["new"], others])
        await asyncio.sleep(40)
        assert new.peer.state == "joining"
        world.network.heal()

    slow = Speed(forward_s=0.1, backward_s=0.2)  # so that the others are still there afterwards
    world = train(dataclasses.replace(LONG, steps=40), events, speed=slow)
    check_same(world)
