"""Watches the swarm and writes down what it sees: samples of every daemon, times of commits, faults.

Polls control sockets and the process table. What the figures mean is decided in `figures`.
"""

import asyncio
from dataclasses import dataclass, field

import psutil

from benchmarks.chaos.fleet import Daemon, Fleet
from benchmarks.chaos.plan import ALIVE, Fault

POLL_S = 0.5  # between two looks at everyone; a status costs a daemon a few milliseconds


@dataclass(frozen=True)
class Sample:
    """One daemon at one moment."""

    time_s: float
    number: int
    started_s: float  # when its process was started
    alive: bool  # its process runs with its stage on the device, and no fault keeps it from working
    at_work: bool  # it serves, at the swarm's version
    memory_bytes: int = 0
    open_files: int = 0
    tasks: int = 0
    done: int = 0  # microbatches since it began to serve


@dataclass
class Event:
    """One fault and what became of it. Times are of the event loop."""

    fault: Fault
    began_s: float
    version: int  # of the swarm when it began
    ended_s: float | None = None  # the process was started again, continued, connected
    done: dict[int, int] = field(default_factory=dict)  # microbatches of each victim when the fault ended
    starts: dict[int, int] = field(default_factory=dict)  # of each victim's process then
    back_s: dict[int, float] = field(default_factory=dict)  # when each victim was at work again
    commit_s: float | None = None  # of the first commit after it began
    note: str = ""

    @property
    def over(self) -> bool:
        """True if the swarm has left it behind."""
        return self.ended_s is not None and len(self.back_s) == len(self.fault.victims) and self.commit_s is not None


class Recorder:
    """The samples so far."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.samples: list[Sample] = []
        self.commits: dict[int, float] = {}  # version -> when it was first seen
        self.events: list[Event] = []
        self.deaths: list[str] = []  # of daemons that nobody killed
        self._dead: set[tuple[int, int]] = set()

    @property
    def version(self) -> int:
        """The swarm's newest that was seen."""
        return max(self.commits, default=0)

    @property
    def daemons(self) -> list[Daemon]:
        """Everyone watched."""
        return self._fleet.daemons

    def open_faults(self) -> dict[int, Event]:
        """The victims of faults that are not over, each with its newest."""
        return {victim: event for event in self.events if not event.over for victim in event.fault.victims}

    def well(self) -> dict[int, list[int]]:
        """By stage, the daemons that are at work and victims of nothing."""
        struck, newest = self.open_faults(), self.newest()
        well: dict[int, list[int]] = {daemon.stage: [] for daemon in self._fleet.daemons}
        for daemon in self._fleet.daemons:
            sample = newest.get(daemon.number)
            if daemon.number not in struck and sample is not None and sample.at_work:
                well[daemon.stage].append(daemon.number)
        return well

    def newest(self) -> dict[int, Sample]:
        """The last sample of each daemon."""
        return {sample.number: sample for sample in self.samples[-len(self._fleet.daemons) :]}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        """One look at everyone."""
        daemons = self._fleet.daemons
        await asyncio.gather(*(daemon.poll() for daemon in daemons if daemon.runs and not daemon.paused))
        now = asyncio.get_running_loop().time()
        newest = max((daemon.status.version for daemon in daemons if daemon.answers and daemon.status), default=0)
        for version in range(self.version + 1, newest + 1):
            self.commits[version] = now
        self.samples += [self._sample(daemon, now) for daemon in daemons]
        for event in self.events:
            if not event.over:
                self._follow(event, now)
        self._notice_deaths()

    def _sample(self, daemon: Daemon, now: float) -> Sample:
        status = daemon.status
        if status is None or not daemon.runs:
            return Sample(now, daemon.number, daemon.started_s, alive=False, at_work=False)
        alive = status.opened and not daemon.paused and not self._kept_from_work(daemon.number)
        at_work = alive and status.state in ("serving", "waiting") and status.version >= self.version - 1
        try:
            memory = psutil.Process(daemon.pid).memory_info().rss
        except psutil.NoSuchProcess:
            memory = 0
        return Sample(
            now,
            daemon.number,
            daemon.started_s,
            alive,
            at_work,
            memory,
            status.open_files,
            status.tasks,
            status.microbatches_done,
        )

    def _kept_from_work(self, number: int) -> bool:
        return any(
            event.ended_s is None and event.fault.kind not in ALIVE and number in event.fault.victims
            for event in self.events
        )

    def _follow(self, event: Event, now: float) -> None:
        """Notes who of a fault's victims is at work again: it serves, and has done a microbatch since the end."""
        if event.commit_s is None and self.version > event.version:
            event.commit_s = now
        if event.ended_s is None:
            return
        newest = self.newest()
        for victim in event.fault.victims:
            sample, daemon = newest[victim], self._fleet.daemons[victim]
            before = 0 if daemon.starts > event.starts[victim] else event.done[victim]
            if victim not in event.back_s and sample.at_work and sample.done > before:
                event.back_s[victim] = now

    def _notice_deaths(self) -> None:
        for daemon in self._fleet.daemons:
            name = (daemon.number, daemon.starts)
            if daemon.exit_code is not None and not daemon.killed and name not in self._dead:
                self._dead.add(name)
                self.deaths.append(f"daemon {daemon.number} {daemon.how_it_ended()}:\n{daemon.last_words()}")
