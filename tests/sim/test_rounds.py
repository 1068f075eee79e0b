"""Rounds that heal themselves: whatever the members believe of each other, each index counts once in every stage."""

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from swarmd.config import LimitsConfig
from swarmd.errors import Refused, SwarmError
from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.rounds import parts
from swarmd.swarm.rounds.exchange import Exchange
from swarmd.swarm.rounds.member import Rounds
from swarmd.swarm.wire.messages.common import NO_BALLOT, Ballot
from swarmd.swarm.wire.messages.round import AskHoldings, Close, Freeze, Plan
from swarmd.values import Encoded, HopId
from tests.sim.test_training import refuse_loss
from tests.sim.toy import (
    PAIRS,
    RUN,
    SHORT,
    accumulated,
    check_agreement,
    check_exact,
    compute_of,
    conductor_of,
    everyone_at,
    journeys_of,
    leader_of,
    ledger_of,
    long,
    moment,
    reference,
    rounds_of,
    start_all,
    step_of,
    sums_of,
    total,
    train,
)

STEP = 3
CROWD = {f"{role}{n}": stage for stage, role in enumerate(("head", "middle", "tail")) for n in range(3)}
SEEDS = range(4)
AWKWARD = 58  # the conductor dies while it leads its stage's round: the next one must get the sums to thaw
QUICK_SECONDS = 60.0  # virtual; whatever is waited for in a round ends much sooner than any bound on a transfer


def check(world: World) -> None:
    """Everything that must hold after a run in which nothing was lost for good."""
    check_agreement(world)
    check_exact(world)
    assert [line["loss"] for line in ledger_of(world)] == pytest.approx(reference(world.run)[0], rel=1e-5)


def believe_dead(it: SimPeer, victim: str) -> None:
    """This peer thinks that another one is gone, until it hears of it again."""
    it.peer.membership.suspect(victim)
    journeys_of(it).peer_lost(victim)
    if it.peer.conductor is not None:
        it.peer.conductor.desk.peer_lost(victim)


def pause(world: World, name: str) -> Callable[[], None]:
    """Nothing goes in or out, and nobody is told, until what this returns is called: then everything does, late."""
    transport, awake = world.network.transports[name], asyncio.Event()

    def hold(method: str) -> None:
        call = getattr(transport, method)

        async def held(*arguments: Any, **options: Any) -> Any:
            await awake.wait()
            return await call(*arguments, **options)

        setattr(transport, method, held)

    for method in ("answer", "request", "publish"):
        hold(method)
    return awake.set


async def frozen(world: World, stage: int) -> None:
    """Until a round of the step has begun."""
    await moment(world, lambda: step_of(world) == STEP)
    await moment(world, lambda: any(sums_of(it).is_frozen(STEP) for it in of_stage(world, stage)))


def of_stage(world: World, stage: int) -> list[SimPeer]:
    return [it for it in world.peers.values() if it.peer.stage == stage]


async def others_reach(world: World, version: int, name: str) -> None:
    others = [it for it in world.peers.values() if it.name != name]
    await moment(world, lambda: all(it.peer.history.version >= version for it in others), QUICK_SECONDS)


# ------------------------------------------------------------------------------------------------- counted twice


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
    monkeypatch.setattr(parts, "SUBTRACTED_PER_ADDED", 1000)


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
                for kept in list(journeys_of(world.peers[name]).retention._passed.values()):
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

            setattr(rounds_of(it).repairs, "subtract", refuse)  # noqa: B010
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


# ------------------------------------------------------------------------------------------------- missing


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


# ------------------------------------------------------------------------------------------------- parts


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
    held = rounds_of(it)._held
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


# ------------------------------------------------------------------------------------------------- silence


@pytest.mark.parametrize("name", ["middle1", *long("middle2", "tail1")])
def test_a_device_that_hangs_after_it_accumulated_is_left_out(name: str) -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP and accumulated(world.peers[name], STEP) >= 2)
        began = asyncio.get_running_loop().time()
        compute_of(world.peers[name]).device.hung = True
        await others_reach(world, STEP, name)
        assert asyncio.get_running_loop().time() - began < QUICK_SECONDS
        world.crash(name)

    check(train(SHORT, events))


@pytest.mark.parametrize("stage", [0, *long(1, 2)])
@pytest.mark.parametrize("leads", [False, True], ids=["member", "leader"])
def test_a_device_that_hangs_in_the_round_is_left_out(stage: int, leads: bool) -> None:
    async def events(world: World) -> None:
        await frozen(world, stage)
        leader = leader_of(world, STEP, stage)
        victim = next(it for it in of_stage(world, stage) if (it is leader) == leads)
        compute_of(victim).device.hung = True
        await others_reach(world, STEP, victim.name)
        world.crash(victim.name)

    check(train(SHORT, events))


@pytest.mark.parametrize("seconds", [8.0, *long(3.0, 30.0)])
def test_a_paused_member_may_wake_at_any_time(seconds: float) -> None:
    """Before it is missed, when it has been left out of a round that goes on, and long after the commit."""

    async def events(world: World) -> None:
        await frozen(world, 1)
        leader = leader_of(world, STEP, 1)
        victim = next(it for it in of_stage(world, 1) if it is not leader)
        wake = pause(world, victim.name)
        await asyncio.sleep(seconds)
        wake()
        await moment(world, lambda: victim.peer.history.version >= STEP, 200)

    check(train(dataclasses.replace(RUN, steps=6), events))


# ------------------------------------------------------------------------------------------------- leaders


async def lead(it: SimPeer, conductor: SimPeer, ballot: Ballot) -> bool:
    """Whether a peer brings its stage's round to a report."""
    try:
        await rounds_of(it)._answer_close(conductor.name, Close(STEP, conductor.peer.history.record_hash, ballot))
    except SwarmError:
        return False
    return True


@pytest.mark.parametrize("ballots", [(0, 0, 0), (1, 1, 1), (1, 2, 3), (3, 2, 1)])
def test_several_leaders_at_once_end_in_one_round(ballots: tuple[int, int, int]) -> None:
    tries: list[asyncio.Task[bool]] = []

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP)
        conductor = conductor_of(world)
        await moment(world, lambda: (conductor.peer.conductor.desk.completed or 0) == RUN.microbatches)
        for it, number in zip(of_stage(world, 1), ballots, strict=True):
            ballot = Ballot(number, conductor.name) if number else NO_BALLOT
            tries.append(asyncio.create_task(lead(it, conductor, ballot)))
            await asyncio.sleep(0.001)
        await moment(world, lambda: all(it.done() for it in tries), QUICK_SECONDS)
        forget_ballots(world)
        await moment(world, lambda: everyone_at(world, STEP), QUICK_SECONDS)

    check(train(SHORT, events, layout=CROWD))
    assert any(it.result() for it in tries) or not max(ballots)


def forget_ballots(world: World) -> None:
    """So that the conductor, whose ballot was overtaken, can go on."""
    for it in world.peers.values():
        rounds_of(it)._claims.ballot = NO_BALLOT


def test_a_leader_that_slept_is_refused() -> None:
    """Another leader had a higher ballot meanwhile."""
    outcome: list[bool] = []

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP)
        conductor, (slow, other) = conductor_of(world), of_stage(world, 1)
        await moment(world, lambda: accumulated(slow, STEP) >= 1)
        rounds_of(other)._claims.admit(STEP, Ballot(7, "later"))
        outcome.append(await lead(slow, conductor, Ballot(6, "sooner")))
        await moment(world, lambda: not sums_of(slow).is_frozen(STEP), 1.0)  # it lets go of those it froze
        forget_ballots(world)

    check(train(SHORT, events))
    assert outcome == [False]


def test_what_is_committed_is_applied_though_a_later_attempt_was_assembled() -> None:
    """A record may name an earlier attempt's gradient: candidates are kept until the commit."""

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP)
        rounds = rounds_of(world.peers["middle1"])
        await moment(world, lambda: bool(rounds._held._wholes.get(STEP)))
        size = compute_of(world.peers["middle1"]).gradient_size
        other = (Encoded("fp32", (size,), (b"\x00" * 4 * size,)),)
        digest, _ = await rounds._assemble(STEP, other)
        rounds._held.add(STEP, digest, other)

    check(train(SHORT, events))


@pytest.mark.parametrize("seed", [*SEEDS, AWKWARD], ids=lambda seed: f"seed{seed}")
def test_anything_may_happen_to_anyone(seed: int) -> None:
    draw = random.Random(seed)
    happenings: list[Callable[[World], Awaitable[None] | None]] = [
        lambda world: world.network.cut(*draw.sample(sorted(world.peers), 2)),
        lambda world: fool(world, draw),
        lambda world: end_one(world, draw),
    ]

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 1))
        for _ in range(8):
            await asyncio.sleep(draw.uniform(0, 0.25))
            draw.choice(happenings)(world)

    link = LinkSpec(delay_s=draw.choice([0.0005, 0.005, 0.02]))
    retained = draw.choice([1, 5000, 1 << 30])
    check(train(RUN, events, layout=CROWD, seed=seed, link=link, limits=LimitsConfig(retained_bytes=retained)))


def fool(world: World, draw: random.Random) -> None:
    victim, who = draw.sample(sorted(world.peers), 2)
    believe_dead(world.peers[who], victim)


def end_one(world: World, draw: random.Random) -> None:
    stage: list[Any] = of_stage(world, draw.randrange(3))
    if len(stage) > 1:
        world.crash(draw.choice(stage).name)


def test_a_leader_that_was_restarted_names_no_attempt_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that still has the earlier one would add its contributions in place of the new ones."""
    began: dict[str, set[int]] = {}
    begin = Rounds._begin_exchange

    def noted(rounds: Rounds, plan: Plan) -> Exchange:
        began.setdefault(plan.attempt, set()).add(plan.step)
        return begin(rounds, plan)

    async def events(world: World) -> None:
        for version in range(1, RUN.steps - 1, 2):  # in between it leads, if it is its turn
            await moment(world, lambda version=version: everyone_at(world, version))  # type: ignore[misc]
            await world.restart("tail1")

    monkeypatch.setattr(Rounds, "_begin_exchange", noted)
    check_exact(train(RUN, events))
    assert all(len(steps) == 1 for steps in began.values()), began
    led = [attempt for attempt in began if attempt.startswith("tail1/")]
    assert len(led) > 1, "it was meant to lead in more than one life"


def test_two_leaders_that_thaw_and_freeze_at_once_leave_a_sum_that_can_thaw_again() -> None:
    """While the device thaws for one, another's freezing comes; a peer that then thinks it has thawed never does."""

    async def main() -> None:
        world = World(SHORT, Text(SHORT))
        await start_all(world)
        it = world.peers["tail1"]
        await moment(world, lambda: accumulated(it, STEP) >= 2)
        record, rounds = it.peer.history.record_hash, rounds_of(it)
        freeze, holdings = Freeze(STEP, record), AskHoldings(STEP, record)

        def agree() -> bool:
            return compute_of(it).engine.sum.frozen == (sums_of(it).is_frozen(STEP))

        await rounds._answer_freeze("tail2", freeze)
        thawing = asyncio.create_task(rounds._answer_holdings("tail2", holdings))
        freezing = asyncio.create_task(rounds._answer_freeze("tail2", freeze))
        await asyncio.gather(thawing, freezing)
        assert compute_of(it).engine.sum.frozen
        assert agree()
        await rounds._answer_holdings("tail2", holdings)
        assert not compute_of(it).engine.sum.frozen
        assert agree()
        await world.stop()

    run_virtual(main())
