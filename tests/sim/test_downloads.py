"""Long transfers of a state: donors and newcomers that die, fall silent or are slow meanwhile; training goes on."""

import asyncio
import itertools
from typing import Any

import pytest

from swarmd.config import LimitsConfig
from swarmd.sim.engines.training import Text
from swarmd.sim.faults import point_actions
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.device import Speed
from swarmd.sim.world.world import Action, SimPeer, World
from swarmd.swarm.peer.peer import Peer
from swarmd.swarm.state import donor
from swarmd.swarm.state.donor import Pinned
from swarmd.swarm.wire.messages.state import AskChunk, Chunk
from swarmd.values import PeerId
from tests.sim.toy import (
    PAIRS,
    RUN,
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
from tests.sim.transfers import CROWD, LONG, check_same, serve_slowly, watch

pytestmark = pytest.mark.usefixtures("small_chunks")


SINGLE = {"head1": 0, "head2": 0, "middle1": 1, "middle2": 1, "tail1": 2}


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
        await moment(world, lambda: new.view.transfer().done > 0)
        versions = {it.peer.history.version for it in world.peers.values() if it is not new}
        shown = [new.view.transfer()]
        while new.peer.history.version == 0:
            await asyncio.sleep(0.1)
            shown.append(new.view.transfer())
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
    """The snapshots that a donor keeps for its joiners."""
    return list(peer.served.donor._pinned.values()) if peer.served is not None else []


def test_a_newcomer_that_dies_in_its_download_leaves_no_trace() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        serve_slowly(world, 0.2)
        new = await world.start("new", stage=1)
        await moment(world, lambda: new.view.transfer().done > 0)
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
        await moment(world, lambda: new.view.transfer().done > 0)
        world.crash("tail1")
        await asyncio.sleep(120)
        waits.append((new.peer.state, new.peer.history.version, new.view.waiting_for()))
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
    """Its place is free before the run is over: peers that have finished don't stay for ever."""
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
