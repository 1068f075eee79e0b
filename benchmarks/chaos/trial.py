"""One trial: a swarm that trains in peace, then under faults, then in peace again, and is stopped at a checkpoint.

Relies on `fleet` for the daemons, `plan` for what happens next and `recorder` for what is seen. Judges nothing.
"""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.fleet import Daemon, Fleet, Pace
from benchmarks.chaos.plan import FRESH_PROCESS, NAMES, Bag, Fault, plan_fault
from benchmarks.chaos.recorder import Event, Recorder
from swarmd.config import RunConfig
from swarmd.stage.checkpoint import saved_versions

READY_BOUND_S = 240.0  # for all daemons to be at work after the start
SETTLE_BOUND_S = 120.0  # for the victims of the last faults to be at work again
CHECKPOINT_BOUND_S = 240.0  # for the next version that everyone saves
WARM_UP_COMMITS = 2  # before the first is measured: the first steps hold the start-up
POLL_S = 0.25
DAMAGED_CHUNKS = 3
SLOW_DELAY_S, SLOW_BYTES_PER_SECOND = 0.05, 1e6  # one way; an ADSL line


@dataclass(frozen=True)
class TrialOptions:
    """The settings of a trial."""

    stages: int
    replicas: int
    pace: Pace
    peace_s: float  # before the faults, and again after them
    faults_s: float  # of faults
    every_s: tuple[float, float]  # between two faults, drawn between these
    seed: int
    kinds: tuple[str, ...] = NAMES
    steady: bool = False  # one replica of each stage keeps its process, so that its memory can be watched


@dataclass
class Trial:
    """The events of a trial. Times are of the event loop."""

    recorder: Recorder
    peace: list[tuple[float, float]]  # from, to
    faults: tuple[float, float]
    version: int  # the last one that everyone saved
    unsettled: list[str]  # what had not recovered in time
    bad_ends: list[int]  # daemons that did not end in good order on SIGTERM
    damaged: int  # chunks in which a bit was flipped


def say(text: str) -> None:
    """Progress, for a person."""
    print(text, file=sys.stderr, flush=True)


async def run_trial(options: TrialOptions, run: RunConfig, model: Path, home: Path) -> Trial:
    """Runs it all; leaves no process behind. Raises TimeoutError when the swarm does not come up at all."""
    fleet = Fleet(home, options.stages, options.replicas, options.pace)
    recorder = Recorder(fleet)
    try:
        await fleet.found(model)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(recorder.run())
            conductor = Storm(options, fleet, recorder, group)
            trial = await _phases(conductor, options, run)
            watching.cancel()
        trial.bad_ends = await fleet.stop()
        return trial
    finally:
        await fleet.close()


async def _phases(storm: "Storm", options: TrialOptions, run: RunConfig) -> Trial:
    recorder, clock = storm.recorder, asyncio.get_running_loop().time
    trial = Trial(recorder, [], (0.0, 0.0), 0, [], [], 0)
    say("starting")
    if not await until(lambda: storm.all_well() and recorder.version >= WARM_UP_COMMITS, READY_BOUND_S):
        raise TimeoutError("the swarm did not come up")
    say(f"peace for {options.peace_s:.0f} s")
    trial.peace.append(await storm.peace(options.peace_s))
    say(f"faults for {options.faults_s:.0f} s")
    began = clock()
    await storm.rage(options.faults_s)
    trial.faults = (began, clock())
    if not await until(storm.all_over, SETTLE_BOUND_S):
        trial.unsettled = storm.still_open()
    say(f"peace again for {options.peace_s:.0f} s")
    trial.peace.append(await storm.peace(options.peace_s))
    say("waiting for a checkpoint of everyone")
    trial.version = await storm.common_checkpoint(run)
    trial.damaged = storm.fleet.weather.damaged
    return trial


async def until(holds: Callable[[], bool], seconds: float, poll_s: float = POLL_S) -> bool:
    """True if a condition came to hold in time. It is of other processes, which can't notify this one."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not holds() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(poll_s)
    return holds()


class Storm:
    """Makes faults happen, one after another, some at the same time."""

    def __init__(self, options: TrialOptions, fleet: Fleet, recorder: Recorder, group: asyncio.TaskGroup) -> None:
        self._options, self.fleet, self.recorder, self._group = options, fleet, recorder, group
        self._rng = random.Random(f"chaos/{options.seed}")
        self._bag = Bag(self._rng, options.kinds)
        self._spared = list(range(options.stages)) if options.steady else []

    def all_well(self) -> bool:
        return sum(len(daemons) for daemons in self.recorder.well().values()) == len(self.fleet.daemons)

    def all_over(self) -> bool:
        return all(event.over for event in self.recorder.events)

    def still_open(self) -> list[str]:
        return [
            f"{event.fault.kind} of {event.fault.victims}, which struck at version {event.version}: "
            f"{sorted(set(event.fault.victims) - set(event.back_s)) or 'no commit'}"
            for event in self.recorder.events
            if not event.over
        ]

    async def peace(self, seconds: float) -> tuple[float, float]:
        """From a commit to the first commit after so long."""
        began = await self._to_next_commit()
        await asyncio.sleep(seconds)
        return began, await self._to_next_commit()

    async def _to_next_commit(self) -> float:
        version = self.recorder.version
        await until(lambda: self.recorder.version > version, SETTLE_BOUND_S)
        return max(self.recorder.commits.values())

    async def rage(self, seconds: float) -> None:
        """Faults for so long, the last of them over in time to end with the period."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (now := loop.time()) < deadline:
            self._strike(now)
            await asyncio.sleep(min(self._rng.uniform(*self._options.every_s), max(0.0, deadline - loop.time())))

    def _strike(self, now: float) -> None:
        """Begins the next fault that can be done now."""
        for _ in self._options.kinds:
            kind = self._bag.draw()
            if (fault := plan_fault(self._rng, kind, self.recorder.well(), self._spared)) is not None:
                event = Event(fault, now, self.recorder.version)
                self.recorder.events.append(event)
                names = ", ".join(map(str, fault.victims))
                say(f"  {fault.kind:9} of daemon {names} for {fault.seconds:.0f} s (version {event.version})")
                self._group.create_task(self._happen(event))
                return
            self._bag.put_back(kind)
        say("  no fault: too few are well")

    async def _happen(self, event: Event) -> None:
        """A fault from its beginning to its end."""
        actions: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "restart": self._kill,
            "stop": self._stop,
            "partition": self._partition,
            "slow": self._slow,
            "corrupt": self._corrupt,
            "drain": self._drain,
        }
        await actions[event.fault.kind](event.fault)
        for victim in event.fault.victims:
            daemon = self.fleet.daemons[victim]
            event.starts[victim] = daemon.starts
            fresh = event.fault.kind in FRESH_PROCESS
            event.done[victim] = 0 if fresh or daemon.status is None else daemon.status.microbatches_done
        event.ended_s = asyncio.get_running_loop().time()

    def _victims(self, fault: Fault) -> list[Daemon]:
        return [self.fleet.daemons[number] for number in fault.victims]

    async def _kill(self, fault: Fault) -> None:
        for daemon in self._victims(fault):
            daemon.kill()
        await asyncio.sleep(fault.seconds)
        for daemon in self._victims(fault):
            await daemon.ended()
            await self.fleet.restart(daemon)

    async def _stop(self, fault: Fault) -> None:
        for daemon in self._victims(fault):
            daemon.pause()
        await asyncio.sleep(fault.seconds)
        for daemon in self._victims(fault):
            daemon.go_on()

    async def _partition(self, fault: Fault) -> None:
        self.fleet.weather.cut_off(fault.victims)
        await asyncio.sleep(fault.seconds)
        self.fleet.weather.mend(fault.victims)

    async def _slow(self, fault: Fault) -> None:
        for daemon in self._victims(fault):
            self.fleet.weather.slow_down(daemon.number, SLOW_DELAY_S, SLOW_BYTES_PER_SECOND)
        await asyncio.sleep(fault.seconds)
        for daemon in self._victims(fault):
            self.fleet.weather.speed_up(daemon.number)

    async def _corrupt(self, fault: Fault) -> None:
        for daemon in self._victims(fault):
            self.fleet.weather.damage(daemon.number, DAMAGED_CHUNKS)
        await asyncio.sleep(fault.seconds)

    async def _drain(self, fault: Fault) -> None:
        for daemon in self._victims(fault):
            daemon.terminate()
            if not await self.fleet.ended(daemon):
                self.recorder.deaths.append(f"daemon {daemon.number} did not end in good order on SIGTERM")
        await asyncio.sleep(fault.seconds)
        for daemon in self._victims(fault):
            await self.fleet.restart(daemon)

    async def common_checkpoint(self, run: RunConfig) -> int:
        """The next version that every daemon has saved; 0 if that does not come."""
        every = run.checkpoint_every
        version = (self.recorder.version // every + 1) * every

        def saved_by_all() -> bool:
            return all(
                version in saved_versions(daemon.home.checkpoints, daemon.stage) for daemon in self.fleet.daemons
            )

        return version if await until(saved_by_all, CHECKPOINT_BOUND_S) else 0
