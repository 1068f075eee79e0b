"""Plays a scenario: a safety phase with faults throughout, then everything is healed and the run must come to its end.

The checkers look at the world after every committed step and at the end. On a violation the run stops there.
"""

import asyncio
import gc
import importlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from swarmd.sim.campaign.checks import PROMISES, Violation
from swarmd.sim.campaign.course import ScenarioCourse
from swarmd.sim.faults.course import Fault
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.clock import Deadlock, run_virtual
from swarmd.swarm.recovery.return_plan import NoReturn, ReturnPlan
from swarmd.values import PeerId

LOOKS_PER_STEP = 4.0  # how often versions are looked at, by what a step takes without faults
LOOK_FLOOR_SECONDS = 0.05
NOTICE_SECONDS = 300.0  # in which everyone notices that a stage is gone: the silence of a peer, and what follows
STILL_SECONDS = 60.0  # in which nothing may happen then
TURNS_AFTER_STOP = 20  # of the event loop, in which what was cancelled ends
LAST_EVENTS = 40  # of the step or hop concerned, to be shown

CHUNK_BYTES_AT = ("swarmd.chunks", "CHUNK_BYTES")  # tuned down, so that a small state has many chunks


@dataclass(frozen=True)
class Outcome:
    """The result of playing a scenario."""

    seed: int
    violations: tuple[Violation, ...]
    trace: str  # the same for the same scenario, always
    virtual_s: float
    version: int  # the newest that a peer came to
    struck: dict[str, int]  # faults by kind
    points: dict[str, int] = field(default_factory=dict)  # at which a fault happened
    words: dict[str, dict[str, int]] = field(default_factory=dict)  # of outsiders: fates by kind of message
    events: tuple[str, ...] = ()  # the last ones of the step, hop or peer concerned
    transcript: str = ""
    figures: dict[str, Any] = field(default_factory=dict)  # what else a course measures

    @property
    def passed(self) -> bool:
        return not self.violations


class Play(ScenarioCourse):
    """One scenario under way, from its first peer to its last check."""

    def __init__(self, scenario: Scenario, *, trace: bool) -> None:
        super().__init__(scenario, trace=trace)
        self._late: set[PeerId] = set()  # peers that were still joining when everything was healed

    async def play(self) -> Outcome:
        """Plays the scenario, from the first peer to the last check."""
        loop = asyncio.get_running_loop()
        try:
            for peer, stage in self.scenario.peers.items():
                await self.start(peer, stage)
            if await self._safety() and await self._liveness():
                self.watch.conclude()
            end = loop.time()
            await self.stop()
        except Deadlock as trouble:
            end = loop.time()
            self.watch.found.append(Violation(6, str(trouble)))
        return self._outcome(end)

    async def _safety(self) -> bool:
        """Lets the faults strike, as long as the scenario says, but not in its last step: a peer that is away when a
        run ends finds nobody any more. True if everything held.
        """
        span = self.scenario.safety_seconds()
        over = asyncio.get_running_loop().time() + span
        try:
            async with asyncio.TaskGroup() as self.tasks:
                tasks = [self.tasks.create_task(self._strike(fault)) for fault in self.scenario.faults]

                def done() -> bool:
                    return asyncio.get_running_loop().time() >= over or self.version() >= self.run.steps - 1

                held = await self._until(done)
                for task in tasks:
                    task.cancel()
                raise _Healed
        except* _Healed:
            pass
        finally:
            self.tasks = None
        return held

    async def _strike(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        if await fault.strike(self):
            self.count(fault.kind)

    async def _liveness(self) -> bool:
        """Heals everything; the rest of the run must be done in a bounded time. True if everything held."""
        self.world.heal()
        while self.down:
            await self.come_up()
        self._late = {name for name, it in self.world.peers.items() if it.peer.state == "joining"}
        if self.lost is not None and not await self._is_rescued(self.lost):
            return await self._standstill(self.lost)
        bound = self.scenario.liveness_seconds()
        try:
            async with asyncio.timeout(bound):
                return await self._until(self._ended)
        except TimeoutError:
            self.watch.conclude()
            text = f"the run hasn't ended {bound:.0f} virtual seconds after everything was healed"
            self.watch.found.append(Violation(6, text, self.version() + 1))
            return False

    async def _is_rescued(self, stage: int) -> bool:
        """True if a lost stage is there again, or can be brought back from disks; by a newcomer if nobody can be
        spared.
        """
        holders = [it.peer.history for it in self.world.peers.values() if it.peer.stage == stage]
        if any(history.ready and history.version for history in holders):  # not one on its way there for its state
            return True
        way = self.way_back()
        if isinstance(way, NoReturn) and way.whole:
            await self.start("rescuer", None)
            return True
        return isinstance(way, ReturnPlan)

    async def _standstill(self, stage: int) -> bool:
        """Waits while a stage is lost: the others notice it, say so, and stand still. True if everything held."""
        await asyncio.sleep(NOTICE_SECONDS)
        before = self.version()
        self.watch.look()
        await asyncio.sleep(STILL_SECONDS)
        self.watch.conclude(before, stage)
        return False

    async def _until(self, done: Callable[[], bool]) -> bool:
        """Lets time pass until `done`, or until a promise is broken: False in that case."""
        tick, seen = max(LOOK_FLOOR_SECONDS, self.scenario.step_seconds() / LOOKS_PER_STEP), -1
        while not done():
            await asyncio.sleep(tick)
            now = sum(len(it.store.ledger) for it in self.world.peers.values())
            if (now != seen or self._someone_failed()) and not self.watch.look():
                return False
            seen = now
        return self.watch.look()

    def _someone_failed(self) -> bool:
        return bool(self.watch.unheard or self.world.failures)

    def _ended(self) -> bool:
        self.watch.stranded = {name for name in self._late if self._is_stranded(name)}
        return all(it.task.done() for name, it in self.world.peers.items() if name not in self.watch.stranded)

    def _is_stranded(self, peer: PeerId) -> bool:
        """True if a peer came when the run was about to end, and nobody is left to give it its state."""
        it = self.world.peers[peer]
        others = [other for name, other in self.world.peers.items() if name not in self._late]
        return (
            it.peer.state == "joining"
            and bool(others)
            and all(other.task.done() for other in others if it.peer.stage in (None, other.peer.stage))
        )

    async def stop(self) -> None:
        """Ends everything that still runs, and checks that nothing is left."""
        for it in self.world.peers.values():
            it.machine.resume()
            it.task.cancel()
        await self._turn()
        for it in self.world.peers.values():
            it.transport.die()  # and with it what still answers others
        await self._turn()
        self.watch.after_peers()
        await self.world.stop()
        await self._turn()
        gc.collect()  # tasks whose exception nobody retrieved say so when they are collected
        self.watch.after()

    async def _turn(self) -> None:
        for _ in range(TURNS_AFTER_STOP):
            await asyncio.sleep(0)

    def _outcome(self, end: float) -> Outcome:
        found, trace = tuple(self.watch.found), self.world.trace
        first = found[0] if found else Violation(0, "")
        last = trace.last(step=first.step, index=first.index, count=LAST_EVENTS) if found else []
        return Outcome(
            seed=self.scenario.seed,
            violations=found,
            trace=trace.hash,
            virtual_s=end,
            version=max((it.peer.history.version for it in self.watch.everyone), default=0),
            struck=dict(sorted(self.struck.items())),
            points=dict(Counter(point for _, _, point in self.world.points.fired)),
            words={word: dict(fates) for word, fates in sorted(self.words.items())},
            events=tuple(event.line() for event in last),
            transcript=trace.transcript(),
            figures=self.figures(),
        )

    def figures(self) -> dict[str, Any]:
        """Figures beside the promises; none here."""
        return {}


class _Healed(Exception):
    """Ends the safety phase."""


@contextmanager
def tuned(place: tuple[str, str], value: int) -> Iterator[None]:
    """Gives a constant of the production code another value meanwhile."""
    module = importlib.import_module(place[0])
    before = getattr(module, place[1])
    setattr(module, place[1], value)
    try:
        yield
    finally:
        setattr(module, place[1], before)


@contextmanager
def silence() -> Iterator[None]:
    """Keeps the swarm from logging: the trace tells more, and the logs of a thousand runs would fill a disk."""
    logger = logging.getLogger("swarmd")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def play(scenario: Scenario, *, trace: bool = False, course: type[Play] = Play) -> Outcome:
    """Plays a scenario in a loop of its own. `trace`: remember what happens, at twice the cost."""
    with tuned(CHUNK_BYTES_AT, scenario.chunk_bytes), silence():

        async def main() -> Outcome:
            return await course(scenario, trace=trace).play()

        try:
            return run_virtual(main())
        except Deadlock as trouble:
            return Outcome(scenario.seed, (Violation(6, str(trouble)),), "", 0.0, 0, {})


def report(scenario: Scenario, outcome: Outcome) -> list[str]:
    """The lines that explain a scenario that failed."""
    lines = [f"seed {outcome.seed}: {violation}" for violation in outcome.violations[:5]]
    if outcome.violations:
        lines.append(f"  (promise {outcome.violations[0].promise}: {PROMISES[outcome.violations[0].promise]})")
    lines += ["last events:", *(f"  {event}" for event in outcome.events), "scenario:"]
    return lines + [f"  {line}" for line in scenario.text().splitlines()]
