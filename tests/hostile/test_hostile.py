"""Strangers that attack a small swarm of real daemons: what they do is in `attacks/`, and `python -m tests.hostile`
shows what it costs.

An attack that is stopped is played on a swarm with all its defences, one after another: the swarm goes on, and nothing
else is amiss. Where the defence is off, the same attack must work, so that it isn't stopped for a mistake of its own.
An attack that is open works today, and its test fails when it no longer does.
"""

import asyncio
from collections.abc import Sequence

import pytest

from tests.hostile.attack import Attack, Scene
from tests.hostile.attacker import Attacker
from tests.hostile.catalogue import ATTACKS
from tests.hostile.trial import scene, stop
from tests.hostile.victims import Look, Victims, harms, honest_steps, victims

STEPS = 4  # whole ones that a swarm does under attack, and once more afterwards, before it counts as unharmed
PATIENCE_S = 240.0  # for what takes seconds on a machine with nothing else to do
STOPPED_TIMES = 20.0  # a swarm that takes so many times its usual time for a step has been stopped
SEVERAL = 3  # steps by which the usual time is measured

pytestmark = pytest.mark.hostile

STOPPED = [attack for attack in ATTACKS.values() if not attack.open]


async def goes_on(it: Scene, before: Sequence[Look], steps: int) -> list[Look]:
    """The swarm, once it has done so many more steps than when it was looked at."""
    last: list[Look] = []

    def done(looks: list[Look]) -> bool:
        last[:] = looks
        return honest_steps(before, looks, it.forged) >= steps

    assert await it.victims.until(done, PATIENCE_S), (
        f"it stands still: {[(look.state, look.waiting_for) for look in last]}"
    )
    return last


async def withstand(attack: Attack, swarm: Victims) -> None:
    """Plays an attack on a swarm, which goes on under it and after it, and takes no harm."""
    attacker = await Attacker.start(swarm.swarm.directory, attack.name)
    it = Scene(swarm, attacker, swarm.swarm.directory)
    try:
        await it.enter()
        before = await swarm.look()
        task = asyncio.create_task(attack.run(it))
        await goes_on(it, before, STEPS)
        if attack.ends:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(task)
        won = list(it.won)
        await stop(task)
    finally:
        await attacker.stop()
    last = await goes_on(it, await swarm.look(), STEPS)
    done = [*won, *harms(before, last, it.forged)]
    assert not done, f"{attack.name}: {done}; answers: {attacker.heard}"


@pytest.mark.timeout(1200)
async def test_what_is_stopped_does_no_harm() -> None:
    async with victims((0, 1, 2)) as swarm:
        for attack in STOPPED:
            if not attack.minutes:
                await withstand(attack, swarm)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("attack", [it for it in STOPPED if it.minutes], ids=lambda it: it.name)
async def test_what_is_stopped_after_a_while_does_no_harm(attack: Attack) -> None:
    async with victims(attack.stages) as swarm:
        await withstand(attack, swarm)


async def harmed(attack: Attack, it: Scene) -> list[str]:
    """The harm that an attack does, once it has done some: to what is there, or by stopping everything."""
    loop = asyncio.get_running_loop()
    began, begun = loop.time(), await it.victims.look()
    before = await goes_on(it, begun, SEVERAL)
    usual_s = (loop.time() - began) / SEVERAL
    seen, newest, since = before, before, loop.time()
    task = asyncio.create_task(attack.run(it))

    def done(looks: list[Look]) -> bool:
        nonlocal seen, newest, since
        seen = looks
        if honest_steps(newest, looks, it.forged):
            newest, since = looks, loop.time()
        return bool(it.won or harms(before, looks, it.forged)) or loop.time() - since > STOPPED_TIMES * usual_s

    await it.victims.until(done, PATIENCE_S)
    stopped = ["stopped"] if loop.time() - since > STOPPED_TIMES * usual_s else []
    won = list(it.won)
    await stop(task)
    return [*won, *harms(before, seen, it.forged), *stopped]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("attack", [it for it in STOPPED if it.defence], ids=lambda it: it.name)
async def test_what_is_stopped_works_without_its_defence(attack: Attack) -> None:
    async with scene(attack, attack.defence) as it:
        assert await harmed(attack, it), it.attacker.heard


@pytest.mark.timeout(900)
@pytest.mark.parametrize("attack", [it for it in ATTACKS.values() if it.open], ids=lambda it: it.name)
async def test_what_is_open_still_works(attack: Attack) -> None:
    """Once it doesn't, a defence holds it: it is to be named, and docs/trust.md changed."""
    async with scene(attack) as it:
        assert await harmed(attack, it), it.attacker.heard
