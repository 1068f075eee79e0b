"""A member of a round that answers whatever it is asked, but does not carry the plan out, or an owner that keeps what
it is sent: the round goes on without it, within a bound, and nothing is lost.
"""

import asyncio
import dataclasses
import logging
from typing import Any

import pytest

from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.rounds.holdups import HOLDUP_FLOOR_SECONDS, TAKING_UP_SECONDS
from swarmd.swarm.wire.messages.round import Contribution, Plan
from tests.sim.nodes import forever
from tests.sim.round_faults import CROWD, STEP, check, frozen, of_stage
from tests.sim.toy import PAIRS, RUN, compute_of, leader_of, ledger_of, long, moment, rounds_of, step_of, train

SHORT = dataclasses.replace(RUN, steps=5)
NOTICE_SECONDS = 15.0  # virtual; besides the bound, until the step is over


def keep_plans(it: SimPeer) -> None:
    answerers(it)[Plan] = forever


def keep_contributions(it: SimPeer) -> None:
    answerers(it)[Contribution] = forever


def keep_averages(it: SimPeer) -> None:
    """Adds up what comes, and tells nobody."""
    answer = answerers(it)[Contribution]

    async def keep(*arguments: Any) -> None:
        await answer(*arguments)
        await forever()

    answerers(it)[Contribution] = keep


def keep_sum(it: SimPeer) -> None:
    """Takes its part in an attempt, but for what it has to give."""
    setattr(compute_of(it), "contribution", never)  # noqa: B010


def keep_result(it: SimPeer) -> None:
    """Has the whole gradient, and never says so."""
    setattr(compute_of(it), "assemble", never)  # noqa: B010


async def never(*_: Any, **__: Any) -> Any:
    await forever()


def answerers(it: SimPeer) -> Any:
    return rounds_of(it)._links._handlers


KEEPING = {
    "plan": (keep_plans, TAKING_UP_SECONDS),
    "contributions": (keep_contributions, HOLDUP_FLOOR_SECONDS),
    "averages": (keep_averages, HOLDUP_FLOOR_SECONDS),
    "sum": (keep_sum, HOLDUP_FLOOR_SECONDS),
    "result": (keep_result, HOLDUP_FLOOR_SECONDS),
}
CASES = [(what, stage, leads) for what in KEEPING for stage in range(3) for leads in (False, True)]
ALWAYS = {("plan", stage, False) for stage in range(3)} | {("contributions", stage, False) for stage in range(3)}
ALWAYS |= {
    ("plan", 1, True),
    ("contributions", 2, True),
    ("averages", 1, False),
    ("sum", 2, False),
    ("result", 0, False),
}
CHOSEN = [case for case in CASES if case in ALWAYS]


@pytest.mark.parametrize("layout", [CROWD, *long(PAIRS)], ids=lambda layout: f"{len(layout)}peers")
@pytest.mark.parametrize(("what", "stage", "leads"), [*CHOSEN, *long(*(it for it in CASES if it not in ALWAYS))])
def test_a_round_goes_on_without_whoever_holds_it_up(
    layout: dict[str, int], what: str, stage: int, leads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    keep, limit_s = KEEPING[what]
    names: list[str] = []

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP)
        leader = leader_of(world, STEP, stage)
        victim = next(it for it in of_stage(world, stage) if (it is leader) == leads)
        names.append(victim.name)
        keep(victim)
        await frozen(world, stage)
        began = asyncio.get_running_loop().time()
        others = [it for it in world.peers.values() if it is not victim]
        await moment(world, lambda: all(it.peer.history.version >= STEP for it in others))
        assert limit_s < asyncio.get_running_loop().time() - began < (1 + leads) * (limit_s + NOTICE_SECONDS)
        if what == "result":  # nor does it take part in anything later
            world.crash(victim.name)

    check(train(SHORT, events, layout=layout))
    told = [it.getMessage() for it in caplog.records if "holds the round up" in it.getMessage()]
    assert told, "it is said"
    assert all(names[0][-8:] in it for it in told), "of nobody else"


@pytest.mark.parametrize("stage", [1, *long(0, 2)])
def test_whoever_is_ten_times_slower_is_waited_for(stage: int, caplog: pytest.LogCaptureFixture) -> None:
    """Its share takes longer than any floor."""
    caplog.set_level(logging.WARNING)
    took: list[float] = []

    async def events(world: World) -> None:
        await frozen(world, stage)
        leader, began = leader_of(world, STEP, stage), asyncio.get_running_loop().time()
        slow = next(it for it in of_stage(world, stage) if it is not leader)
        for it in of_stage(world, stage):
            slowly(it, 60.0 if it is slow else 6.0)
        await moment(world, lambda: step_of(world) > STEP)
        took.append(asyncio.get_running_loop().time() - began)

    world = train(SHORT, events, layout=CROWD)
    check(world)
    assert took[0] > 60
    assert not [it for it in caplog.records if "holds the round up" in it.getMessage()]
    assert ledger_of(world)[STEP - 1]["microbatches"] == SHORT.microbatches


def slowly(it: SimPeer, seconds: float) -> None:
    """Makes a peer's contributions of this step take so long."""
    answer = compute_of(it).contribution

    async def contribution(step: int, *arguments: Any, **options: Any) -> Any:
        if step == STEP:
            await asyncio.sleep(seconds)
        return await answer(step, *arguments, **options)

    setattr(compute_of(it), "contribution", contribution)  # noqa: B010


@pytest.mark.parametrize("leads", [False, True], ids=["member", "leader"])
@pytest.mark.parametrize("stage", [0, *long(1, 2)])
def test_a_round_goes_on_without_whoever_can_not_carry_it_out(
    stage: int, leads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It used to fail for ever."""
    caplog.set_level(logging.WARNING)

    async def no_memory(*_: Any) -> Any:
        raise MemoryError

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP)
        leader = leader_of(world, STEP, stage)
        victim = next(it for it in of_stage(world, stage) if (it is leader) == leads)
        assemble = compute_of(victim).assemble
        setattr(compute_of(victim), "assemble", no_memory)  # noqa: B010
        others = [it for it in world.peers.values() if it is not victim]
        await moment(world, lambda: all(it.peer.history.version >= STEP for it in others), 60.0)
        setattr(compute_of(victim), "assemble", assemble)  # noqa: B010

    check(train(SHORT, events, layout=CROWD))
    assert any("can't carry the plan out" in it.getMessage() for it in caplog.records)
