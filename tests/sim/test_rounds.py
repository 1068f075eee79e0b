"""Rounds that heal themselves: indices that are double or missing are mended, and each counts once in every stage."""

import asyncio
import dataclasses
import random

import pytest

from swarmd.config import LimitsConfig
from swarmd.errors import Refused
from swarmd.sim.engines.training import Text
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.rounds import coverage, parts
from swarmd.values import Encoded, HopId
from tests.sim.round_faults import CROWD, SEEDS, STEP, believe_dead, check, of_stage
from tests.sim.test_training import refuse_loss
from tests.sim.toy import (
    PAIRS,
    RUN,
    SHORT,
    accumulated,
    check_agreement,
    compute_of,
    conductor_of,
    everyone_at,
    journeys_of,
    leader_of,
    ledger_of,
    long,
    moment,
    rounds_of,
    step_of,
    sums_of,
    total,
    train,
)


@pytest.mark.parametrize("victim", ["middle1", "tail1"])
def test_what_two_members_hold_is_taken_out_of_one(victim: str) -> None:
    """Its custodians think that it is dead, and give its work to its replica, too."""

    async def events(world: World) -> None:
        await moment(world, lambda: accumulated(world.peers[victim], STEP) >= 2)
        for it in of_stage(world, PAIRS[victim] - 1):
            believe_dead(it, victim)

    world = train(SHORT, events)
    assert total(world, "subtracted") > 0
    check(world)


@pytest.mark.parametrize("stages", [1, 3])
def test_what_two_heads_trained_is_taken_out_of_one(stages: int) -> None:
    """A lease was given again while whoever had it first lived on."""
    run = dataclasses.replace(SHORT, model=dataclasses.replace(RUN.model, stages=stages))

    async def events(world: World) -> None:
        await moment(world, lambda: accumulated(world.peers["head1"], STEP) >= 2)
        other = journeys_of(world.peers["head2"])
        for index in sorted(sums_of(world.peers["head1"]).of(STEP).accumulated):
            tokens = await Text(run).microbatch(STEP, index)
            await asyncio.wait([other.train(HopId(STEP, index), tokens, again=True)])

    layout = {"head1": 0, "head2": 0} if stages == 1 else PAIRS
    world = train(run, events, layout=layout)
    assert total(world, "subtracted") > 0
    check(world)


def test_a_custodian_that_believes_a_living_peer_dead_costs_no_exactness() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: accumulated(world.peers["head1"], STEP) >= 2)
        for it in world.peers.values():
            if it.name != "head1":
                believe_dead(it, "head1")

    check(train(SHORT, events))


@pytest.fixture
def _rather_subtracts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums as small as the toy's are mostly left out whole, when others have half of them."""
    monkeypatch.setattr(coverage, "SUBTRACTED_PER_ADDED", 1000)


@pytest.mark.usefixtures("_rather_subtracts")
def test_what_was_taken_out_may_come_in_again() -> None:
    """The member whose share counts dies after the other one has subtracted."""

    async def events(world: World) -> None:
        await moment(world, lambda: accumulated(world.peers["middle1"], STEP) >= 3)
        for name in ("head1", "head2"):
            believe_dead(world.peers[name], "middle1")
        pair = of_stage(world, 1)
        await moment(world, lambda: any(sums_of(it).of(STEP).subtracted for it in pair))
        world.crash(next(it.name for it in pair if not sums_of(it).of(STEP).subtracted))

    world = train(SHORT, events)
    assert len(world.dead) == 1
    check(world)


@pytest.mark.usefixtures("_rather_subtracts")
def test_a_repeated_hop_and_a_subtraction_of_the_same_index_leave_it_in_the_sum_once() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: accumulated(world.peers["middle1"], STEP) >= 3)
        for name in ("head1", "head2"):
            believe_dead(world.peers[name], "middle1")
        pair = of_stage(world, 1)
        await moment(world, lambda: any(work.subtract for it in pair for work in journeys_of(it).hops))
        for it in pair:  # its custodian sends it again at just that time
            for name in ("head1", "head2"):
                for kept in list(journeys_of(world.peers[name]).custodian.retention._passed.values()):
                    if kept.holder == it.name:
                        journeys_of(world.peers[name]).custodian.send_again(kept)

    world = train(SHORT, events)
    assert total(world, "subtracted") > 0
    check(world)


def test_a_member_that_cannot_subtract_is_left_out_whole() -> None:
    async def events(world: World) -> None:
        for it in of_stage(world, 1):

            async def refuse(step: int, indices: list[int]) -> None:
                raise Refused("its bytes are gone")

            setattr(rounds_of(it)._rework, "subtract", refuse)  # noqa: B010
        await moment(world, lambda: accumulated(world.peers["middle1"], STEP) >= 2)
        for name in ("head1", "head2"):
            believe_dead(world.peers[name], "middle1")

    world = train(SHORT, events)
    line = next(line for line in world.peers["middle1"].store.ledger if line["step"] == STEP)
    assert len(line["members"]) == 1
    check(world)


def test_a_subtraction_needs_no_retained_bytes() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: accumulated(world.peers["tail1"], STEP) >= 2)
        for name in ("middle1", "middle2"):
            believe_dead(world.peers[name], "tail1")

    world = train(SHORT, events, limits=LimitsConfig(retained_bytes=1))
    check(world)


def test_custodian_and_holder_die_together() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: accumulated(world.peers["middle1"], STEP) >= 2)
        world.crash("head1")
        world.crash("middle1")

    check(train(SHORT, events))


@pytest.mark.parametrize("retained", [1, 4 << 30], ids=["evicted", "retained"])
@pytest.mark.parametrize("victim", ["middle1", *long("head1", "tail1")])
def test_the_leader_has_brought_what_no_custodian_knows_to_be_missing(victim: str, retained: int) -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 1))
        for it in world.peers.values():
            setattr(journeys_of(it).custodian, "peer_lost", lambda peer, heir="": None)  # noqa: B010
            assert it.peer.conductor is not None
            setattr(it.peer.conductor, "peer_lost", lambda peer, heir="": None)  # noqa: B010
        await moment(world, lambda: step_of(world) == STEP)
        victims_stage = PAIRS[victim]
        leads = conductor_of(world).name
        name = victim if victim != leads else f"{victim[:-1]}2"
        await moment(world, lambda: accumulated(world.peers[name], STEP) >= 2)
        if victims_stage == 0:  # nobody gives its leases again: it must be done with all of them
            await moment(world, lambda: any(STEP in rounds_of(it)._reports for it in of_stage(world, 0)))
        world.crash(name)

    world = train(SHORT, events, limits=LimitsConfig(retained_bytes=retained))
    assert len(world.dead) == 1
    check(world)


def test_a_stage_of_one_replica_repairs_its_neighbours() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: accumulated(world.peers["tail1"], STEP) >= 2)
        world.crash("tail1")
        await moment(world, lambda: accumulated(world.peers["head1"], STEP) >= 2)
        world.crash("head1")

    layout = {"head1": 0, "head2": 0, "middle": 1, "tail1": 2, "tail2": 2}
    check(train(SHORT, events, layout=layout, limits=LimitsConfig(retained_bytes=1)))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
def test_kills_and_false_beliefs_where_everything_is_evicted(seed: int) -> None:
    draw = random.Random(seed)

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 1))
        for _ in range(3):
            await asyncio.sleep(draw.uniform(0, 0.4))
            stage = draw.randrange(3)
            if len(of_stage(world, stage)) > 1:
                world.crash(draw.choice(of_stage(world, stage)).name)
            await asyncio.sleep(draw.uniform(0, 0.2))
            victim, fool = draw.sample(sorted(world.peers), 2)
            believe_dead(world.peers[fool], victim)
            world.network.cut(*draw.sample(sorted(world.peers), 2))

    check(train(RUN, events, layout=CROWD, seed=seed, limits=LimitsConfig(retained_bytes=1)))


def test_bad_numbers_and_deaths_skip_a_step_and_no_more() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 1))
        for name in ("tail1", "tail2"):
            refuse_loss(compute_of(world.peers[name]), HopId(STEP, 5))
        await moment(world, lambda: any(sums_of(it).of(STEP).spoiled for it in of_stage(world, 1)))
        world.crash("middle1")
        await asyncio.sleep(0.01)
        world.crash("tail1")

    world = train(SHORT, events)
    check_agreement(world)
    for line in ledger_of(world):
        assert line["skipped"] == (line["step"] == STEP)
        assert (line["lost"], line["duplicated"], line["microbatches"]) == (0, 0, SHORT.microbatches)


def noted_contributions(it: SimPeer, notes: list[tuple[float, str, int, int, int]]) -> None:
    """Writes down which parts of its sum a peer gives away."""
    device = compute_of(it)
    contribution = device.contribution

    async def noting(step: int, start: int, stop: int, *, codec: str) -> Encoded:
        notes.append((asyncio.get_running_loop().time(), it.name, step, start, stop))
        return await contribution(step, start, stop, codec=codec)

    setattr(device, "contribution", noting)  # noqa: B010


def averaged(it: SimPeer) -> list[tuple[int, int]]:
    """Borders of the parts that a peer has from this step's attempts."""
    held = rounds_of(it)._averaged
    return list(held._parts) if held._step == STEP else []


@pytest.mark.parametrize("who", ["owner", "leader"])
def test_parts_that_are_averaged_are_not_contributed_again(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ELEMENTS", 200)
    notes: list[tuple[float, str, int, int, int]] = []
    killed: list[float] = []
    done: set[tuple[int, int]] = set()

    async def events(world: World) -> None:
        trio = of_stage(world, 1)
        for it in trio:
            noted_contributions(it, notes)
        await moment(world, lambda: step_of(world) == STEP)
        leader = leader_of(world, STEP, 1)
        victim = leader if who == "leader" else next(it for it in trio if it is not leader)
        await moment(world, lambda: len(averaged(victim)) >= 4)
        world.crash(victim.name)
        killed.append(asyncio.get_running_loop().time())
        for it in of_stage(world, 1):
            done.update(averaged(it))

    world = train(SHORT, events, layout=CROWD)
    check(world)
    assert done
    again = {(start, stop) for when, _, step, start, stop in notes if step == STEP and when > killed[0] + 1e-9}
    assert again, "the parts that were not averaged yet"
    assert not again & done
    assert all(stop <= first or last <= start for start, stop in again for first, last in done)


def test_a_member_lost_when_everything_is_averaged_delays_nothing() -> None:
    """Its sum is not needed any more: nothing is sent again."""
    sizes: list[int] = []

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP)
        leader = leader_of(world, STEP, 1)
        victim = next(it for it in of_stage(world, 1) if it is not leader)
        size = compute_of(leader).gradient_size
        for it in of_stage(world, 0):  # nobody sends again of himself
            setattr(journeys_of(it).custodian, "peer_lost", lambda peer, heir="": None)  # noqa: B010

        await moment(world, lambda: sum(stop - start for start, stop in averaged(leader)) == size)
        world.crash(victim.name)
        await moment(world, lambda: all(it.peer.history.version >= STEP for it in world.peers.values()))
        sizes.append(len(sums_of(leader).of(STEP).accumulated))

    world = train(SHORT, events)
    check(world)
    assert len(world.dead) == 1
