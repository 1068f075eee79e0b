"""Plays a scenario: a safety phase with faults throughout, then everything is healed and the run must come to its end.

The checkers look at the world after every committed step and at the end. On a violation the run stops there, and
`shrink` leaves out faults as long as the same promise breaks.
"""

import asyncio
import dataclasses
import gc
import importlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from swarmd.sim.campaign.checks import PROMISES, Violation, held_gradients
from swarmd.sim.campaign.watch import SymbolicWatch, Watch
from swarmd.sim.engines.symbolic import Factory, SymbolicData
from swarmd.sim.faults.course import Fault
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.clock import Deadlock, run_virtual
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.history.record_codec import record_from_plain
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.recovery.return_plan import Way, plan_return
from swarmd.swarm.wire.messages.disks import Kept, Stock
from swarmd.values import PeerId

LOOKS_PER_STEP = 4.0  # how often versions are looked at, by what a step takes without faults
LOOK_FLOOR_SECONDS = 0.05
NOTICE_SECONDS = 300.0  # in which everyone notices that a stage is gone: the silence of a peer, and what follows
STILL_SECONDS = 60.0  # in which nothing may happen then
TURNS_AFTER_STOP = 20  # of the event loop, in which what was cancelled ends
SHRINK_RUNS = 40  # reruns at most to find the faults that matter
LAST_EVENTS = 40  # of the step or hop concerned, to be shown

PLAIN: dict[str, Any] = {
    name: getattr(Scenario(), name)
    for name in ("uplinks", "limits", "validate_every", "checkpoint_every", "symbols", "link", "speeds")
}
"""Settings that `shrink` tries to do without, in this order."""

NOBODY_TO_SPARE = "a peer for stage"  # the beginning of what `plan_return` says then

CHUNK_BYTES_AT = ("swarmd.swarm.state.manifest", "CHUNK_BYTES")  # tuned down, so that a small state has many chunks


@dataclass(frozen=True)
class Outcome:
    """How a scenario went."""

    seed: int
    violations: tuple[Violation, ...]
    trace: str  # the same for the same scenario, always
    virtual_s: float
    version: int  # the newest that a peer came to
    struck: dict[str, int]  # faults by kind
    points: dict[str, int] = field(default_factory=dict)  # at which a fault happened
    events: tuple[str, ...] = ()  # the last ones of the step, hop or peer concerned
    transcript: str = ""
    figures: dict[str, Any] = field(default_factory=dict)  # what else a course measures

    @property
    def passed(self) -> bool:
        return not self.violations


class Play:
    """One scenario under way: the `Course` of its faults."""

    def __init__(self, scenario: Scenario, *, trace: bool) -> None:
        self.scenario = scenario
        self.run = scenario.run_config()
        self.world, self.watch = self.build(trace=trace)
        self.struck: Counter[str] = Counter()
        self._moved: set[int] = set()  # lives, by incarnation, that were told to move
        self._late: set[PeerId] = set()  # who was still joining when everything was healed
        self.leaving = self.watch.leaving
        self.down: list[PeerId] = []
        self.lost: int | None = None  # a stage that has lost its state
        self._faults: asyncio.TaskGroup | None = None

    def build(self, *, trace: bool) -> tuple[World, Watch]:
        """A world that computes with symbols, and who watches it."""
        it, factory = self.scenario, Factory(self.run, self.scenario.symbols)
        data = SymbolicData(self.run, it.symbols)
        world = World(self.run, data, seed=it.seed, link=it.link, engine=factory, trace=trace)
        return world, SymbolicWatch(world, factory=factory)

    # ---------------------------------------------------------------------------------------------- for faults

    def may_lose(self, peers: Sequence[PeerId]) -> bool:
        """Whether all of these live, and each leaves behind a replica that has all that the stage has."""
        living = self.world.peers
        if any(peer not in living for peer in peers) or self.lost is not None:
            return False
        newest = max(it.peer.history.version for it in (*self.watch.everyone, *living.values()))
        others = self._others(peers)
        return all(any(has_all_of(other, living[peer], newest) for other in others) for peer in peers)

    def _others(self, peers: Sequence[PeerId]) -> list[SimPeer]:
        return [it for name, it in self.world.peers.items() if name not in peers and name not in self.leaving]

    def may_move(self, peer: PeerId) -> bool:
        if peer not in self.world.peers:
            return False
        life = self.world.peers[peer].peer.membership.own.incarnation
        told = life in self._moved
        self._moved.add(life)
        return not told

    def may_start(self, peer: PeerId) -> bool:
        if self.lost is not None or not self.world.peers:  # a newcomer could only wait, or found another run
            return False
        return peer not in self.world.peers and self.version() < self.run.steps - 1

    async def start(self, peer: PeerId, stage: int | None) -> None:
        it = self.scenario
        up, down = it.uplink(peer), it.downlink(peer)
        await self.world.start(peer, stage=stage, speed=it.speed(peer), limits=it.limits, uplink=up, downlink=down)
        self.watch.listen()  # the world has its own ear since a peer came

    async def restart(self, peer: PeerId, *, disk: bool, entries: Sequence[PeerId] | None = None) -> None:
        await self.world.restart(peer, disk=disk, entries=entries)
        self.watch.listen()

    async def come_up(self) -> None:
        name = self.down.pop(0)
        if name in self.world.dead:
            await self.restart(name, disk=True)

    def lose_stage(self, stage: int, *, power: bool) -> bool:
        if self.lost is not None or not self.version():  # before the first commit anyone can begin it anew
            return False
        gone = [name for name, it in self.world.peers.items() if stage in (it.peer.stage, it.setup.stage)]
        self.lost = stage
        for name in gone:
            self.world.crash(name, power=power)
        return bool(gone)

    def may_stop(self) -> bool:
        common = self._way_back()
        paused = any(it.machine.paused for it in self.world.peers.values())
        whole = isinstance(common, Way) and self.lost is None and not paused
        return whole and not self.leaving and 0 < self.version() < self.run.steps - 1

    def _way_back(self) -> Way | str:
        """Where the living could return to, by what is on their disks."""
        living = {name: it for name, it in self.world.peers.items() if it.peer.stage is not None}
        stocks = {name: Stock(tuple(self._kept(it)), has_data=True) for name, it in living.items()}
        places = {name: it.peer.stage or 0 for name, it in living.items()}
        newest = max((it.peer.history for it in living.values()), key=lambda it: it.version, default=None)

        def known(version: int) -> str:
            record = newest.chain.at(version) if newest is not None else None
            return record.state if record is not None else ""

        return plan_return(stocks, places, self.run.model.stages, self.version(), known)

    def _kept(self, it: SimPeer) -> Iterator[Kept]:
        for (version, stage), (_, record) in it.store.checkpoints.items():
            yield Kept(version, stage, record_from_plain(self.run, record).state)

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        if self._faults is None:
            work.close()
        else:
            self._faults.create_task(work)

    def count(self, kind: str) -> None:
        self.struck[kind] += 1

    # ---------------------------------------------------------------------------------------------- the course

    async def play(self) -> Outcome:
        """From the first peer to the last check."""
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
        """Lets the faults strike, for as long as the scenario says, but not in its last step: who is away when a run
        ends finds nobody any more. Whether everything held.
        """
        span = self.scenario.safety_seconds()
        over = asyncio.get_running_loop().time() + span
        try:
            async with asyncio.TaskGroup() as self._faults:
                tasks = [self._faults.create_task(self._strike(fault)) for fault in self.scenario.faults]

                def done() -> bool:
                    return asyncio.get_running_loop().time() >= over or self.version() >= self.run.steps - 1

                held = await self._until(done)
                for task in tasks:
                    task.cancel()
                raise _Healed
        except* _Healed:
            pass
        finally:
            self._faults = None
        return held

    async def _strike(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        if await fault.strike(self):
            self.count(fault.kind)

    async def _liveness(self) -> bool:
        """Heals everything; the rest of the run must be done in a bounded time. Whether everything held."""
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
        """Whether a lost stage is there again, or can be brought back from disks; by a newcomer if nobody can be
        spared.
        """
        holders = [it.peer.history for it in self.world.peers.values() if it.peer.stage == stage]
        if any(history.ready and history.version for history in holders):  # not who was on its way there for its state
            return True
        way = self._way_back()
        if isinstance(way, str) and way.startswith(NOBODY_TO_SPARE):
            await self.start("rescuer", None)
            return True
        return isinstance(way, Way)

    async def _standstill(self, stage: int) -> bool:
        """A stage is lost: the others notice it, say so, and go on in nothing. Whether everything held."""
        await asyncio.sleep(NOTICE_SECONDS)
        before = self.version()
        self.watch.look()
        await asyncio.sleep(STILL_SECONDS)
        self.watch.conclude(before, stage)
        return False

    async def _until(self, done: Callable[[], bool]) -> bool:
        """Lets time pass until then, or until a promise is broken. False in that case."""
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
        """Whether a peer came when the run was about to end, and nobody is left to give it its state."""
        it = self.world.peers[peer]
        others = [other for name, other in self.world.peers.items() if name not in self._late]
        return (
            it.peer.state == "joining"
            and bool(others)
            and all(other.task.done() for other in others if it.peer.stage in (None, other.peer.stage))
        )

    def version(self) -> int:
        """The newest that a living peer has come to."""
        return max((it.peer.history.version for it in self.world.peers.values()), default=0)

    async def stop(self) -> None:
        """Ends what still runs, and looks at what is left then."""
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
            events=tuple(event.line() for event in last),
            transcript=trace.transcript(),
            figures=self.figures(),
        )

    def figures(self) -> dict[str, Any]:
        """What is measured beside the promises."""
        return {}


class _Healed(Exception):
    """The safety phase is over."""


def has_all_of(other: SimPeer, it: SimPeer, newest: int) -> bool:
    """Whether a stage loses nothing when it loses `it`, as long as it has the other: state, and the gradients of
    rounds that are done and of steps up to `newest`, which is decided.
    """
    theirs = other.peer.history
    stage = it.setup.stage if it.peer.stage is None else it.peer.stage
    if stage is not None and other.peer.stage != stage:
        return False
    if other.peer.moving_to is not None:  # it leaves as soon as it may
        return False
    common = min(theirs.version, it.peer.history.version)
    if theirs.chain.hash_at(common) != it.peer.history.chain.hash_at(common):  # another history's, which may lose
        return False
    if not theirs.ready or theirs.behind or other.task.done() or other.peer.state not in (*AT_WORK, "joining"):
        return False
    held, known = held_gradients(other), held_gradients(it)
    return all(step in held for step in range(theirs.version + 1, max(newest, *known, 0) + 1))


@contextmanager
def tuned(place: tuple[str, str], value: int) -> Iterator[None]:
    """A constant of the production code at another value."""
    module = importlib.import_module(place[0])
    before = getattr(module, place[1])
    setattr(module, place[1], value)
    try:
        yield
    finally:
        setattr(module, place[1], before)


@contextmanager
def silence() -> Iterator[None]:
    """No log of the swarm's: the trace tells more, in virtual time, and a thousand runs of it would fill a disk."""
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


class Shrinking:
    """Reruns of a scenario that breaks a promise, as many as are left."""

    def __init__(self, promise: int, runs: int) -> None:
        self._promise, self.left = promise, runs

    def breaks(self, scenario: Scenario) -> bool:
        """Whether the same promise breaks here, too; False when there are no runs left to tell."""
        self.left -= 1
        return self.left >= 0 and any(it.promise == self._promise for it in play(scenario).violations)

    def fewer_faults(self, scenario: Scenario) -> Scenario:
        """Leaves out halves, then quarters and so on (ddmin, Zeller and Hildebrandt 2002, complements only)."""
        faults, pieces = scenario.faults, 2
        while faults and self.left > 0:
            size = max(1, len(faults) // pieces)
            trials = (faults[:start] + faults[start + size :] for start in range(0, len(faults), size))
            fewer = next((it for it in trials if self.breaks(dataclasses.replace(scenario, faults=it))), None)
            if fewer is not None:
                faults, pieces = fewer, max(2, pieces - 1)
            elif size == 1:
                break
            else:
                pieces *= 2
        return dataclasses.replace(scenario, faults=faults)

    def plainer(self, scenario: Scenario) -> Scenario:
        """Gives settings their defaults, one after the other."""
        for name, value in PLAIN.items():
            plain = dataclasses.replace(scenario, **{name: value})
            if plain != scenario and self.breaks(plain):
                scenario = plain
        return scenario


def shrink(scenario: Scenario, promise: int, runs: int = SHRINK_RUNS) -> Scenario:
    """The scenario with as few faults and as plain settings as still break the same promise, as far as `runs` reruns
    tell.
    """
    shrinking = Shrinking(promise, runs)
    return shrinking.fewer_faults(shrinking.plainer(shrinking.fewer_faults(scenario)))


def report(scenario: Scenario, outcome: Outcome) -> list[str]:
    """What a person needs to see of a scenario that failed."""
    lines = [f"seed {outcome.seed}: {violation}" for violation in outcome.violations[:5]]
    if outcome.violations:
        lines.append(f"  (promise {outcome.violations[0].promise}: {PROMISES[outcome.violations[0].promise]})")
    lines += ["last events:", *(f"  {event}" for event in outcome.events), "scenario:"]
    return lines + [f"  {line}" for line in scenario.text().splitlines()]
