"""One attack on a swarm of its own: how the swarm fares before, during and after it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from tests.hostile.attack import Attack, Scene
from tests.hostile.attacker import Attacker
from tests.hostile.victims import Look, harms, honest_steps, victims

SLOW_SHARE = 0.6  # of the pace before: less is a harm


@dataclass(frozen=True)
class Spans:
    """Seconds of a trial's parts."""

    before: float = 10.0
    during: float = 20.0
    later: float = 60.0  # from the attack's end to the last look at the pace
    after: float = 10.0


@dataclass(frozen=True)
class Fare:
    """The course of a trial."""

    attack: Attack
    without: str
    before: float  # whole and honest steps a second
    during: float
    after: float
    harms: tuple[str, ...]
    states: tuple[str, ...]  # of the daemons at the end
    heard: tuple[str, ...]  # the commonest answers to the attacker

    @property
    def harm(self) -> bool:
        """True if something was done to the swarm, be it only that it has become much slower."""
        return bool(self.harms) or min(self.during, self.after) < self.before * SLOW_SHARE


@contextlib.asynccontextmanager
async def scene(attack: Attack, without: str = "") -> AsyncIterator[Scene]:
    """A swarm that does steps, and an attacker that has greeted everyone and not begun."""
    async with victims(attack.stages, without) as it:
        attacker = await Attacker.start(it.swarm.directory)
        try:
            made = Scene(it, attacker, it.swarm.directory, without)
            await made.enter()
            yield made
        finally:
            await attacker.stop()


async def stop(task: "asyncio.Task[None]") -> None:
    """Ends an attack. One that failed by itself has failed."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def play(attack: Attack, spans: Spans, without: str = "") -> Fare:
    """Plays an attack on real daemons."""
    async with scene(attack, without) as it:
        return await watch(it, attack, spans, lambda: asyncio.create_task(attack.run(it), name=attack.name))


async def watch(it: Scene, attack: Attack, spans: Spans, begin: "Callable[[], asyncio.Task[None]]") -> Fare:
    """The course of a trial; `begin` starts the attack."""
    first = await it.victims.look()
    await asyncio.sleep(spans.before)
    begun = await it.victims.look()
    task = begin()
    await asyncio.sleep(spans.during)
    ended = await it.victims.look()
    won = tuple(it.won)
    await stop(task)
    await it.attacker.stop()
    await asyncio.sleep(spans.later)
    late = await it.victims.look()
    await asyncio.sleep(spans.after)
    last = await it.victims.look()
    done = harms(begun, last, it.forged)
    return Fare(
        attack,
        it.without,
        honest_steps(first, begun, it.forged) / spans.before,
        honest_steps(begun, ended, it.forged) / spans.during,
        honest_steps(late, last, it.forged) / spans.after,
        (*won, *done),
        tuple(map(_state, last)),
        tuple(f"{answer} x{count}" for answer, count in it.attacker.heard.most_common(4)),
    )


def _state(look: Look) -> str:
    return look.state + (f" (waits for {look.waiting_for[:60]})" if look.waiting_for else "")
