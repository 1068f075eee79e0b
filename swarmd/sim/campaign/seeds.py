"""Seeds by the thousand: plays drawn scenarios in worker processes, and tells their results.

A worker takes one seed after the other, each in a fresh event loop; one that takes too much CPU time is interrupted,
and its process ended if even that doesn't help. A worker answers with JSON on a pipe.
"""

import dataclasses
import functools
import itertools
import json
import logging
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from swarmd.errors import NotAllowed, OutOfRange, UnknownFormat, UnknownKind
from swarmd.printable import counted
from swarmd.sim.campaign.play import Outcome, play, report
from swarmd.sim.campaign.shrink import shrink
from swarmd.sim.faults.draw import draw_scenario
from swarmd.sim.faults.draw_hostile import draw_hostile
from swarmd.sim.faults.outsider import Outsider
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.points import all_points

CPU_SECONDS = 30.0  # for one run; a large scenario with long silences takes about five
SHRINK_CPU_SECONDS = 60.0  # for all reruns of a scenario that failed
PATIENCE = 10  # a worker has so many times that by the wall clock, as it may have little of a core; then it is ended
PROGRESS_SECONDS = 10.0

UNTRIED = ("cut off", "not greeted", *(kind.code for kind in (OutOfRange, UnknownKind, UnknownFormat, NotAllowed)))
"""Fates of outsiders' questions that no handler has tried: the schema, the table of roles, or something before
that, ended them."""
UNASKED = ("gossiped", "given as an answer")
"""Fates of their other messages."""


class OutOfTime(SystemExit):
    """A run took too much CPU time. (A SystemExit, as that is what an event loop lets through.)"""


@dataclass(frozen=True)
class Result:
    """The result of one seed."""

    seed: int
    promise: int = 0  # the first that broke; 0: none
    lines: tuple[str, ...] = ()  # of a report, when one broke
    trace: str = ""
    virtual_s: float = 0.0
    wall_s: float = 0.0
    struck: dict[str, int] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)  # at which a fault happened
    words: dict[str, dict[str, int]] = field(default_factory=dict)  # of outsiders: fates by kind of message
    posing: bool = False  # an outsider's cards said at times that it is at work
    figures: dict[str, Any] = field(default_factory=dict)  # what else a job measures


@dataclass(frozen=True)
class Job:
    """The work that a campaign does with every seed."""

    examine: Callable[[int], Result]  # something that a fresh process can import
    replay: Callable[[int], str]  # the command that shows a seed again
    cpu_s: float  # that one seed may take at most


def replay_command(seed: int, *, hostile: bool = False) -> str:
    """The command that plays a seed again."""
    return f"python -m swarmd.sim replay {seed}" + (" --hostile" if hostile else "")


def scenario_of(seed: int, *, hostile: bool) -> Scenario:
    """The scenario of a seed, with outsiders or without."""
    return draw_hostile(seed) if hostile else draw_scenario(seed)


# ------------------------------------------------------------------------------------------------- one seed


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the main thread after so many seconds of this process's CPU time."""

    def stop(number: int, frame: Any) -> None:
        raise OutOfTime(f"more than {seconds:.0f} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def examine(seed: int, cpu_s: float = CPU_SECONDS, *, minimal: bool = True, hostile: bool = False) -> Result:
    """Plays a seed's scenario; if a promise breaks, looks for the faults that matter."""
    scenario, again, began = scenario_of(seed, hostile=hostile), replay_command(seed, hostile=hostile), time.monotonic()
    posing = any(isinstance(fault, Outsider) and fault.poses for fault in scenario.faults)
    try:
        with time_limit(cpu_s):
            outcome = play(scenario)
    except OutOfTime as trouble:
        lines = (f"seed {seed}: promise 6: {trouble}", *scenario.text().splitlines(), f"replay: {again}")
        return Result(seed, 6, lines, wall_s=time.monotonic() - began, posing=posing)
    took = time.monotonic() - began
    result = Result(seed, virtual_s=outcome.virtual_s, wall_s=took, struck=outcome.struck, trace=outcome.trace)
    result = dataclasses.replace(result, points=outcome.points, words=outcome.words, posing=posing)
    if outcome.passed:
        return result
    promise = outcome.violations[0].promise
    return dataclasses.replace(
        result, promise=promise, lines=(*explain(scenario, outcome, minimal=minimal), f"replay: {again}")
    )


def explain(scenario: Scenario, outcome: Outcome, *, minimal: bool) -> list[str]:
    """The report of a scenario that failed, with the fewest faults that were found."""
    promise = outcome.violations[0].promise
    fewest, again = scenario, outcome
    try:
        with time_limit(SHRINK_CPU_SECONDS):
            fewest = shrink(scenario, promise) if minimal else scenario
            again = play(fewest, trace=True)
    except OutOfTime:
        pass  # what was found before is shown
    lines = [f"seed {scenario.seed}: {violation}" for violation in outcome.violations[:3]]
    return [*lines, f"with {len(fewest.faults)} of its {len(scenario.faults)} faults:", *report(fewest, again)]


# ------------------------------------------------------------------------------------------------- many seeds


@dataclass
class Summary:
    """The sums of a campaign so far."""

    began: float = field(default_factory=time.monotonic)
    seeds: int = 0
    virtual_s: float = 0.0
    struck: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    words: dict[str, Counter[str]] = field(default_factory=dict)
    posing: int = 0  # seeds with outsiders that posed
    failed: list[Result] = field(default_factory=list)
    interrupted: bool = False

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.virtual_s += result.virtual_s
        self.posing += result.posing
        self.struck.update(result.struck)
        self.points.update(result.points)
        for word, fates in result.words.items():
            self.words.setdefault(word, Counter()).update(fates)
        if result.promise:
            self.failed.append(result)

    def line(self) -> str:
        """The progress in one line."""
        minutes = max(1e-9, time.monotonic() - self.began) / 60
        pace = f"{counted(self.seeds, 'seed')}, {self.seeds / minutes:.0f} a minute"
        failed = f"{len(self.failed)} failed" if self.failed else "none failed"
        return f"{pace}, {self.virtual_s / 3600:.1f} virtual hours, {failed}"

    def lines(self) -> list[str]:
        """The summary at the end of a campaign."""
        faults = ", ".join(f"{count} {kind}" for kind, count in self.struck.most_common())
        lines = [self.line(), f"faults: {faults or 'none'}"]
        if self.points:
            never = [point for point in all_points() if not self.points[point]]
            lines.append(f"points with a fault: {len(self.points)}; never: {', '.join(never) or 'none'}")
        if self.words:
            lines += self.word_lines()
        if self.failed:
            promises = Counter(result.promise for result in self.failed)
            by_promise = ", ".join(f"{count} of promise {number}" for number, count in sorted(promises.items()))
            lines.append(f"violations: {by_promise}; seeds {', '.join(str(it.seed) for it in self.failed)}")
        return lines

    def tried(self) -> float:
        """The share of outsiders' questions that passed the schema and the table of roles, and came to a handler."""
        fates = sum(self.words.values(), Counter[str]())
        asked = fates.total() - sum(fates[fate] for fate in UNASKED)
        return 1.0 - sum(fates[fate] for fate in UNTRIED) / max(1, asked)

    def word_lines(self) -> list[str]:
        """The messages of outsiders by kind, and what became of them."""
        count = sum(fates.total() for fates in self.words.values())
        lines = [f"messages of outsiders: {count}; {100 * self.tried():.0f} % of their questions came to a handler"]
        failed = sum(result.posing for result in self.failed)
        lines.append(
            f"seeds with one that posed as a peer at work: {self.posing}, of which {failed} failed; "
            f"without: {self.seeds - self.posing}, of which {len(self.failed) - failed} failed"
        )
        for word, fates in sorted(self.words.items()):
            lines.append(f"  {word:20} " + ", ".join(f"{times} {fate}" for fate, times in fates.most_common()))
        return lines

    def plain(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return {
            "seeds": self.seeds,
            "seconds": time.monotonic() - self.began,
            "virtual_seconds": self.virtual_s,
            "faults": dict(self.struck),
            "points": dict(self.points),
            "words": {word: dict(fates) for word, fates in sorted(self.words.items())},
            "interrupted": self.interrupted,
            "failed": [dataclasses.asdict(result) for result in self.failed],
        }


class Worker:
    """A process that plays seeds."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._job = job
        self.process = context.Process(target=work, args=(theirs, job.examine), daemon=True)
        self.process.start()
        theirs.close()
        self.seed, self._deadline = -1, 0.0

    def give(self, seed: int) -> None:
        self.seed, self._deadline = seed, time.monotonic() + PATIENCE * self._job.cpu_s
        self.pipe.send_bytes(json.dumps(seed).encode())

    def take(self) -> Result:
        """Reads the result of its seed. A process that died is a violation, too."""
        try:
            plain = json.loads(self.pipe.recv_bytes())
        except EOFError:
            return self._failed(7, "its process died")
        return Result(**{**plain, "lines": tuple(plain["lines"])})

    def give_up(self) -> Result:
        """Ends a worker that can't even be interrupted."""
        self.process.kill()
        self.process.join()
        return self._failed(6, "it could not even be interrupted")

    def _failed(self, promise: int, text: str) -> Result:
        lines = (f"seed {self.seed}: promise {promise}: {text}", f"replay: {self._job.replay(self.seed)}")
        return Result(self.seed, promise, lines)

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def work(pipe: Connection, examine: Callable[[int], Result]) -> None:
    """The life of a worker: a seed comes, a result goes, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of runs that were interrupted; the others' is a violation
    while True:
        try:
            seed = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        pipe.send_bytes(json.dumps(dataclasses.asdict(examine(seed))).encode())


class Campaign:
    """Seeds and the processes that play them."""

    def __init__(self, seeds: Iterator[int], on_result: Callable[[Result], None], job: Job) -> None:
        self._seeds, self._on_result, self._job = seeds, on_result, job
        self.summary = Summary()
        self.pool: list[Worker] = []

    def begin(self, worker: Worker | None = None) -> None:
        """Gives the next seed to a worker, a new one if need be; ends it when there is none."""
        seed = next(self._seeds, None)
        if worker is not None and (seed is None or not worker.process.is_alive()):
            worker.end()
            worker = None
        if seed is not None:
            worker = worker or Worker(self._job)
            worker.give(seed)
            self.pool.append(worker)

    def turn(self) -> None:
        """Waits a second at most for results, and takes those that have come."""
        ready = wait([worker.pipe for worker in self.pool], timeout=1.0)
        done = [worker for worker in self.pool if worker.pipe in ready or worker.is_late]
        for worker in done:
            self.pool.remove(worker)
            result = worker.take() if worker.pipe in ready else worker.give_up()
            self.summary.add(result)
            self._on_result(result)
            self.begin(worker)

    def end(self) -> None:
        for worker in self.pool:
            worker.end()


def drawn(cpu_s: float = CPU_SECONDS, *, minimal: bool = True, hostile: bool = False) -> Job:
    """The job of playing drawn scenarios, with outsiders or without."""
    return Job(
        functools.partial(examine, cpu_s=cpu_s, minimal=minimal, hostile=hostile),
        functools.partial(replay_command, hostile=hostile),
        cpu_s + SHRINK_CPU_SECONDS,
    )


def run_campaign(
    first: int,
    seeds: int | None,
    workers: int,
    job: Job,
    *,
    on_result: Callable[[Result], None],
    on_progress: Callable[[str], None],
) -> Summary:
    """Does a job with seeds from `first` on, so many or until Ctrl-C. `on_result` gets each result."""
    numbers = itertools.count(first) if seeds is None else iter(range(first, first + seeds))
    campaign, said = Campaign(numbers, on_result, job), 0.0
    try:
        for _ in range(workers):
            campaign.begin()
        while campaign.pool:
            campaign.turn()
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                on_progress(campaign.summary.line())
    except KeyboardInterrupt:
        campaign.summary.interrupted = True
    finally:
        campaign.end()
    return campaign.summary
