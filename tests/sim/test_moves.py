"""Peers that go from one stage to another, when a record grants it: nothing is lost, no stage is left empty, and who
moves is identical to its new replicas from then on.
"""

import asyncio
import dataclasses
from typing import Any

import pytest

from swarmd import chunks
from swarmd.errors import ConfigError, Refused
from swarmd.sim.campaign.play import play
from swarmd.sim.faults import point_actions
from swarmd.sim.faults.commands import Move
from swarmd.sim.faults.connections import Partition
from swarmd.sim.faults.machines import Crash
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.world import Action, SimPeer, World
from swarmd.sizes import needed_bytes
from swarmd.swarm.wire.messages.hop import Hop
from swarmd.values import Encoded
from tests.sim.movers import ask, granted, members, slow_chunks, swarm
from tests.sim.toy import (
    PAIRS,
    RUN,
    Records,
    check_agreement,
    check_exact,
    conductor_of,
    everyone_at,
    journeys_of,
    long,
    moment,
    step_of,
    train,
)

LONG = dataclasses.replace(RUN, steps=20, optimizer=dataclasses.replace(RUN.optimizer, learning_rate=2e-3))
CROWD = {**PAIRS, "middle3": 1}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the toy's state is many of them."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2048)


# ------------------------------------------------------------------------------------------------- a move


@pytest.mark.parametrize("target", [0, 2])
def test_one_of_three_replicas_goes_to_another_stage(target: int) -> None:
    """With real gradients: training goes on as if nothing had happened."""

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        it = world.peers["middle2"]
        await ask(it, target)
        assert (it.peer.stage, it.peer.state, it.peer.mover.target) == (target, "serving", None)

    world = train(LONG, events, layout=CROWD)
    check_agreement(world)
    check_exact(world)
    check_moved(world, "middle2", 1, target)


def check_moved(world: World, name: str, source: int, target: int) -> None:
    """One peer has moved, once, and counted at one stage at a time; nobody noticed anything else."""
    assert granted(world) == [(name, source, target)]
    counted = members(world, name)
    assert set(counted) == {source, target}
    assert max(counted[source]) < min(counted[target])
    assert [line["step"] for line in world.peers[name].store.ledger] == list(range(1, world.run.steps + 1))
    ledgers = [it.store.ledger for it in world.peers.values()]
    assert not any(line["forked"] or line["skipped"] for ledger in ledgers for line in ledger)
    records = [record for it in world.peers.values() for record in it.peer.history.chain._records.values()]
    assert {record.ballot[0] for record in records} == {1}, "who leaves or arrives takes no step from its conductor"
    stages = {line["stage"] for ledger in ledgers for line in ledger if line["step"] == world.run.steps}
    assert stages == set(range(world.run.model.stages)), "the stage that it left keeps going"


@pytest.mark.parametrize(("name", "source", "target"), [("head2", 0, 1), ("tail2", 2, 0), ("middle1", 1, 2)])
def test_any_stage_can_be_left_for_any_other(name: str, source: int, target: int) -> None:
    async def events(world: World) -> None:
        await ask(world.peers[name], target)

    check_moved(swarm(events), name, source, target)


def test_it_serves_its_old_stage_until_the_state_is_here_and_a_record_grants_the_move() -> None:
    seen: list[tuple[bool, int | None, str]] = []  # after each commit: whether it grants, and where the peer is
    transfers: list[tuple[int, int]] = []

    async def events(world: World) -> None:
        it = world.peers["middle2"]
        slow_chunks(world)
        note = Records(lambda record: seen.append((bool(record.moves), it.peer.stage, it.peer.state)))
        it.peer.history.listen(note)

        def asked(world: World, name: str) -> None:
            transfers.append((it.view.transfer().done, it.view.transfer().total))

        world.fail_at("middle2", None, "ask.AskMove", asked)
        await ask(it, 2)

    world = swarm(events, steps=40)
    at = [grants for grants, _, _ in seen].index(True)
    assert at > 3, "steps commit while the state comes"
    assert set(seen[:at]) == {(False, 1, "serving")}
    assert seen[at] == (True, 2, "joining"), "in the same turn it is gone"
    assert set(seen[at + 1 : -1]) <= {(False, 2, "joining"), (False, 2, "serving")}
    ((done, total),) = transfers
    assert done == total > 0, "it asks once the state is here"
    assert len(members(world, "middle2")[1]) >= at + 2, "it counted at its old stage all that time"


# ------------------------------------------------------------------------------------------------- what is refused


def test_of_two_replicas_that_wish_at_once_one_goes() -> None:
    words: list[str] = []

    async def events(world: World) -> None:
        moves = [ask(world.peers[name], 1) for name in ("tail1", "tail2")]
        await asyncio.wait(moves)
        words.extend(str(move.exception()) for move in moves if move.exception() is not None)

    world = swarm(events)
    assert len(granted(world)) == 1
    assert words == ["stage 2 would be left with 0 replicas, and it needs 1"]


def test_both_of_two_stages_may_move_one_in_the_same_record() -> None:
    async def events(world: World) -> None:
        await asyncio.wait([ask(world.peers["head2"], 1), ask(world.peers["tail2"], 1)])

    assert sorted(granted(swarm(events))) == [("head2", 0, 1), ("tail2", 2, 1)]


@pytest.mark.parametrize(
    ("name", "stage", "why"),
    [
        ("tail1", 1, "stage 2 would be left with 0 replicas, and it needs 1"),
        ("head1", 3, "this run has no stage 3: its stages are 0 to 2"),
        ("head1", -1, "this run has no stage -1"),
        ("head1", 0, "it serves stage 0 already"),
    ],
)
def test_a_move_that_is_out_of_the_question_is_refused_with_a_sentence(name: str, stage: int, why: str) -> None:
    async def events(world: World) -> None:
        with pytest.raises(Refused, match=why):
            await ask(world.peers[name], stage)
        assert world.peers[name].peer.mover.target is None

    world = swarm(events, replicas=(2, 2, 1), steps=5)
    assert granted(world) == []


def test_a_device_that_is_too_small_for_a_stage_neither_goes_there_nor_is_placed_there() -> None:
    """The last stage has the vocabulary besides."""
    placed: list[int | None] = []

    async def events(world: World) -> None:
        needs = [needed_bytes(world.run, stage) for stage in range(3)]
        assert needs[1] < needs[2]
        it = world.peers["middle1"]
        it.peer.own.card = dataclasses.replace(it.peer.own.card, memory_bytes=needs[1])
        with pytest.raises(Refused, match=r"stage 2 takes .* at least, and this device has"):
            await ask(it, 2)
        places: Any = world.peers["head1"].peer.places
        placed.extend(
            places._place(has_data, memory) for has_data, memory in ((True, 0.0), (False, needs[1]), (False, 1.0))
        )

    world = swarm(events, replicas=(2, 2, 1), steps=5)
    assert granted(world) == []
    assert placed == [2, 1, 2], "where nothing fits, where it is needed most"


def test_a_move_while_another_is_under_way_is_refused() -> None:
    async def events(world: World) -> None:
        first = ask(world.peers["middle1"], 0)
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="on its way to stage 0 already"):
            await ask(world.peers["middle1"], 2)
        await first

    assert granted(swarm(events)) == [("middle1", 1, 0)]


def test_the_conductor_refuses_what_the_peer_itself_thought_possible() -> None:
    """The last replica but one is lost just before, and only the conductor has noticed."""

    async def events(world: World) -> None:
        it, conductor = world.peers["tail2"], conductor_of(world)
        membership: Any = conductor.peer.membership
        stage = membership.stage
        membership.stage = lambda at: [card for card in stage(at) if card.peer != "tail1"]
        with pytest.raises(Refused, match="stage 2 would be left with 0 replicas"):
            await ask(it, 1)
        membership.stage = stage
        assert (it.peer.stage, it.peer.state) == (2, "serving")

    assert granted(swarm(events, replicas=(1, 2, 2), steps=20)) == []


def test_a_stage_that_cannot_be_opened_sends_the_peer_back() -> None:
    async def events(world: World) -> None:
        it = world.peers["middle1"]
        switch: Any = it.peer.switch
        opened = switch._open_stage

        async def open_stage(stage: int) -> Any:
            if stage == 0:
                raise ConfigError("no data here")
            return await opened(stage)

        switch._open_stage = open_stage
        with pytest.raises(Refused, match="stage 0 can't be opened here: no data here"):
            await ask(it, 0)
        assert (it.peer.stage, it.peer.state) == (1, "serving")
        with pytest.raises(Refused, match="needs the run's data"):
            await ask(it, 0)

    world = swarm(events, steps=30)
    assert members(world, "middle1").keys() == {1}
    assert max(members(world, "middle1")[1]) > 20, "it counts again where it was"


def test_a_move_that_is_given_up_before_it_is_granted_leaves_no_trace() -> None:
    async def events(world: World) -> None:
        it = world.peers["middle1"]
        move = ask(it, 2)
        await moment(world, lambda: it.view.transfer().done > 0)
        move.cancel()
        await asyncio.sleep(1)
        assert (it.peer.stage, it.peer.state, it.peer.mover.target) == (1, "serving", None)

    assert granted(swarm(events)) == []


def test_whoever_waits_for_a_move_ends_when_both_are_cancelled_at_once() -> None:
    """A peer may leave while it moves for balance: if that were taken for a refusal, it would go on for ever."""

    async def events(world: World) -> None:
        it = world.peers["middle1"]
        move = ask(it, 2)
        await moment(world, lambda: it.view.transfer().done > 0)
        moving = it.peer.mover._task
        assert moving is not None
        moving.add_done_callback(lambda _: move.cancel())
        await it.peer.mover.drain()
        await asyncio.wait([move])
        assert move.cancelled()

    swarm(events)


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("point", ["served.AskMove", "ask.Accept", *long("serve.AskMove", "ask.Close", "asked.Close")])
def test_the_conductor_dies_with_the_wish(point: str) -> None:
    """The next one knows nothing of it, and is asked again."""

    async def events(world: World) -> None:
        it = world.peers["middle2"]
        world.fail_at("middle2", None, "asked.AskMove" if "Move" not in point else "ask.AskMove", arm(world, point))
        await ask(it, 2)
        assert len(world.dead) == 1
        assert it.peer.stage == 2

    world = swarm(events, replicas=(3, 3, 2), steps=20)
    assert granted(world) == [("middle2", 1, 2)]
    assert next(iter(world.dead)).startswith("head")


def arm(world: World, point: str) -> Action:
    """Makes each conductor die at a point, from now on."""

    def act(world: World, name: str) -> None:
        world.fail_at(conductor_of(world).name, None, point, point_actions.crash)

    return act


@pytest.mark.parametrize(
    "point", ["asked.AskMove", "begin.import_state", *long("ask.AskChunk", "ask.AskMove", "begin.apply")]
)
@pytest.mark.parametrize("power", [False, True], ids=["crash", "power loss"])
def test_the_mover_dies_on_its_way(point: str, power: bool) -> None:
    async def events(world: World) -> None:
        action = point_actions.lose_power if power else point_actions.crash
        if point == "begin.apply":  # of the record that takes it away

            def then(world: World, name: str) -> None:
                world.fail_at(name, None, point, action)

            world.fail_at("middle2", None, "asked.AskMove", then)
        else:
            world.fail_at("middle2", None, point, action)
        ask(world.peers["middle2"], 2)
        await moment(world, lambda: "middle2" in world.dead)

    world = swarm(events, steps=8)
    assert len(granted(world)) == (point in ("begin.import_state", "begin.apply"))


def test_movers_are_acceptors_of_the_step_that_they_miss() -> None:
    """Two of four members leave in one record and are long on their way: without their word there is no majority, and
    their memory must be that of before.
    """
    forked: list[bool] = []

    async def events(world: World) -> None:
        movers = [world.peers["head2"], world.peers["tail2"]]
        for it in movers:
            slow(it, 8.0)
        moves = [ask(it, 1 - (it.peer.stage or 0)) for it in movers]
        await moment(world, lambda: all(it.peer.state == "joining" for it in movers))
        left = step_of(world)
        assert len({it.peer.history.version for it in movers}) == 1, "one record grants both"
        began = asyncio.get_running_loop().time()
        await moment(world, lambda: step_of(world) > left)
        assert asyncio.get_running_loop().time() - began < 5, "the next step is decided without any wait"
        await asyncio.wait(moves)
        forked.extend(line["forked"] for line in world.peers["head1"].store.ledger)

    swarm(events, replicas=(2, 2), steps=100)
    assert not any(forked)


def test_a_death_that_nobody_has_noticed_leaves_a_stage_with_one_of_its_movers() -> None:
    """Two of three go with one record, and the third loses power while it is decided: it has the step's gradient."""
    stages: list[int | None] = []

    async def events(world: World) -> None:
        def decided(world: World, name: str) -> None:
            wishes: Any = world.peers["head1"].peer.conductor._wishes
            if len(wishes._wishes) == 2 and "middle3" in world.peers:
                world.crash("middle3", power=True)

        for _ in range(10):
            world.fail_at("head1", None, "ask.Accept", decided)
        ask(world.peers["middle1"], 0)
        ask(world.peers["middle2"], 2)
        await moment(world, lambda: "middle3" in world.dead)
        await moment(world, lambda: len(granted(world)) == 2)
        await asyncio.sleep(0.1)
        stages.extend(world.peers[name].peer.stage for name in ("middle1", "middle2"))

    swarm(events, replicas=(1, 3, 2), steps=60)
    assert stages == [0, 1]


def slow(it: SimPeer, seconds: float) -> None:
    """Its device takes long to open a stage."""
    switch: Any = it.peer.switch
    opened = switch._open_stage

    async def open_stage(stage: int) -> Any:
        await asyncio.sleep(seconds)
        return await opened(stage)

    switch._open_stage = open_stage


def test_what_is_meant_for_the_stage_before_is_refused() -> None:
    """A peer that hasn't heard of the move sends a hop: it must not count at the wrong stage."""

    async def events(world: World) -> None:
        it = world.peers["middle2"]
        await ask(it, 2)
        hop = Hop(step_of(world), 0, "", False, False, "fp32", b"", Encoded("fp32", (0,), (b"",)), stage=1)
        with pytest.raises(Refused, match="this peer is of stage 2, not 1"):
            await journeys_of(it)._answer_hop("head1", hop)

    swarm(events)


SPLITS = {
    "the mover is alone": (("middle2",),),
    "the mover is with one of each stage": (("head2", "middle2", "tail2"),),
    "the mover's old stage is elsewhere": (("middle1", "middle3"),),
    "the mover's new stage is elsewhere": (("tail1", "tail2"),),
}


@pytest.mark.parametrize("seconds", [3.0, *long(80.0)], ids=["short", "long"])
@pytest.mark.parametrize("groups", SPLITS.values(), ids=SPLITS.keys())
def test_a_move_during_a_partition(groups: tuple[tuple[str, ...], ...], seconds: float) -> None:
    calm = Scenario(replicas=(2, 3, 2), steps=12, microbatches=24)
    for at_s in (0.8, 1.0, 1.1):
        faults = (Partition(1.0, groups, seconds), Move(at_s, "middle2", 2))
        outcome = play(dataclasses.replace(calm, faults=faults))
        assert outcome.passed, outcome.violations


def test_moves_all_over_while_peers_crash_and_come_back() -> None:
    faults = (
        Move(0.5, "head1", 2),
        Move(0.5, "tail1", 1),
        Crash(0.9, "head2", back_s=0.5),
        Move(1.0, "middle1", 0),
        Crash(1.4, "tail2", power=True, back_s=1.0),
        Move(1.5, "head3", 1),
        Move(1.6, "middle2", 2),
    )
    outcome = play(Scenario(replicas=(3, 3, 3), steps=30, microbatches=12, faults=faults))
    assert outcome.passed, outcome.violations
    assert outcome.struck["move"] >= 3
