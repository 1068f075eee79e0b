"""Rounds whose members fall silent, and whose leaders sleep, die or are several."""

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from swarmd.config import LimitsConfig
from swarmd.errors import SwarmError
from swarmd.sim.engines.training import Text
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.rounds.exchange import Exchange
from swarmd.swarm.rounds.member import Rounds
from swarmd.swarm.wire.messages.common import NO_BALLOT, Ballot
from swarmd.swarm.wire.messages.round import AskHoldings, Close, Freeze, Plan
from swarmd.values import Encoded
from tests.sim.round_faults import CROWD, SEEDS, STEP, check, fool, frozen, of_stage
from tests.sim.toy import (
    RUN,
    SHORT,
    accumulated,
    check_exact,
    compute_of,
    conductor_of,
    everyone_at,
    leader_of,
    long,
    moment,
    rounds_of,
    start_all,
    step_of,
    sums_of,
    train,
)

AWKWARD = 58  # the conductor dies while it leads its stage's round: the next one must get the sums to thaw
QUICK_SECONDS = 60.0  # virtual; whatever is waited for in a round ends much sooner than any bound on a transfer


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


async def others_reach(world: World, version: int, name: str) -> None:
    others = [it for it in world.peers.values() if it.name != name]
    await moment(world, lambda: all(it.peer.history.version >= version for it in others), QUICK_SECONDS)


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


async def lead(it: SimPeer, conductor: SimPeer, ballot: Ballot) -> bool:
    """Leads a round of a peer's stage; true if it comes to a report."""
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
        rounds_of(it)._authority.ballot = NO_BALLOT


def test_a_leader_that_slept_is_refused() -> None:
    """Another leader had a higher ballot meanwhile."""
    outcome: list[bool] = []

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP)
        conductor, (slow, other) = conductor_of(world), of_stage(world, 1)
        await moment(world, lambda: accumulated(slow, STEP) >= 1)
        rounds_of(other)._authority.admit(STEP, Ballot(7, "later"))
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
        await moment(world, lambda: bool(rounds._averaged._wholes.get(STEP)))
        size = compute_of(world.peers["middle1"]).gradient_size
        other = (Encoded("fp32", (size,), (b"\x00" * 4 * size,)),)
        digest, _ = await rounds._committed.assemble(STEP, other)
        rounds._averaged.add(STEP, digest, other)

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
