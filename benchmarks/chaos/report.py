"""The figures of a trial as one plain object, for JSON, and as tables for a person. Judges what was promised."""

import dataclasses
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.chaos.figures import (
    JUDGED_LIFE_S,
    JUDGED_WARM_UP_S,
    Life,
    Recovery,
    capacity,
    last_commit,
    lives,
    rate_between,
    recoveries,
)
from benchmarks.chaos.outcome import TOLERANCE, Ledgers
from benchmarks.chaos.plan import KINDS
from benchmarks.chaos.trial import Trial, TrialOptions
from swarmd.config import RunConfig

KEPT_GOAL = 0.90  # of the throughput that the capacity alive would give
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Result:
    """All figures of a trial. Rates are microbatches per second."""

    minutes: float  # under faults
    faults: int
    peace_rates: list[float]  # before and after
    fault_rate: float
    kept: float  # of the rate in peace
    capacity_alive: float
    capacity_at_work: float
    kept_of_alive: float
    kept_of_at_work: float
    recoveries: list[Recovery]
    ledgers: Ledgers
    largest_distance: float | None  # over all tensors, from single-process training
    version: int
    lives: list[Life]
    soaked: bool  # long enough for memory to be judged
    damaged_chunks: int
    unsettled: list[str]
    deaths: list[str]
    bad_ends: list[int]
    home: str


def result_of(
    trial: Trial, options: TrialOptions, run: RunConfig, ledgers: Ledgers, distances: dict[str, float], home: Path
) -> Result:
    """Works the figures out."""
    commits, samples = trial.recorder.commits, trial.recorder.samples
    peace = [rate_between(commits, *span, run.microbatches) for span in trial.peace]
    usual = fmean(peace)
    begin, end = (commits[last_commit(commits, time_s) or 1] for time_s in trial.faults)
    rate = rate_between(commits, *trial.faults, run.microbatches)
    alive, working = capacity(samples, options.stages, options.replicas, begin, end)
    return Result(
        minutes=options.faults_s / 60,
        faults=len(trial.recorder.events),
        peace_rates=peace,
        fault_rate=rate,
        kept=_over(rate, usual),
        capacity_alive=alive,
        capacity_at_work=working,
        kept_of_alive=_over(rate, usual * alive),
        kept_of_at_work=_over(rate, usual * working),
        recoveries=recoveries(trial.recorder.events),
        ledgers=ledgers,
        largest_distance=max(distances.values(), default=None),
        version=trial.version,
        lives=lives(samples, JUDGED_WARM_UP_S, JUDGED_LIFE_S) if options.steady else lives(samples),
        soaked=options.steady,
        damaged_chunks=trial.damaged,
        unsettled=trial.unsettled,
        deaths=trial.recorder.deaths,
        bad_ends=trial.bad_ends,
        home=str(home),
    )


def _over(value: float, base: float) -> float:
    return value / base if base else 0.0


def failures(result: Result, *, goals: bool) -> list[str]:
    """The broken promises, a sentence each; with `goals`, also the goals that were missed."""
    counts = result.ledgers.counts
    found = [
        *(f"{counts[name]} microbatches {name}" for name in ("lost", "duplicated") if counts[name]),
        *result.ledgers.problems,
        *(f"not at work again: {what}" for what in result.unsettled),
        *(f"nobody killed it, but {what}" for what in result.deaths),
        *(f"daemon {number} did not end in good order" for number in result.bad_ends),
    ]
    if result.version == 0:
        found.append("no version was saved by all daemons at the end")
    elif result.largest_distance is None or not result.largest_distance <= TOLERANCE:
        found.append(f"parameters are {result.largest_distance} from those of one process; {TOLERANCE} is allowed")
    if goals and result.kept_of_alive < KEPT_GOAL:
        found.append(f"{result.kept_of_alive:.2f} of the throughput of the capacity alive, under {KEPT_GOAL:.2f}")
    if goals and result.soaked:
        if not result.lives:
            found.append("no process lived long enough for its memory to be judged")
        found += [
            f"memory of daemon {life.number} grew by {life.slope_bytes / MIB:.1f} MiB per 10 minutes"
            for life in result.lives
            if not life.flat
        ]
    return found


def plain(result: Result, problems: list[str]) -> dict[str, Any]:
    """For JSON."""
    return {**dataclasses.asdict(result), "failures": problems, "passed": not problems}


def print_tables(result: Result, problems: list[str]) -> None:
    """For a person, on stdout."""
    console = Console(width=110, highlight=False)
    console.print(_throughput(result), _recoveries(result), _lives(result))
    counts = ", ".join(f"{count} {name}" for name, count in result.ledgers.counts.items())
    distance = "not compared" if result.largest_distance is None else f"{result.largest_distance:.1e}"
    console.print(
        f"ledgers      {result.ledgers.steps} steps: {counts}; {result.ledgers.forked} steps without a majority"
    )
    console.print(f"parameters   version {result.version}: largest distance of a tensor from one process {distance}")
    console.print(f"files        {result.home}")
    for problem in problems:
        console.print(f"FAILED       {problem}", markup=False)
    console.print("passed" if not problems else f"{len(problems)} promises or goals don't hold")


def _throughput(result: Result) -> Table:
    table = Table(
        "throughput", "", title=f"{result.faults} faults in {result.minutes:.1f} minutes", title_justify="left"
    )
    peace = " and ".join(f"{rate:.2f}" for rate in result.peace_rates)
    table.add_row("in peace, before and after", f"{peace} microbatches/s")
    table.add_row("under faults", f"{result.fault_rate:.2f} microbatches/s, {result.kept:.3f} of that in peace")
    table.add_row("capacity alive (weakest stage)", f"{result.capacity_alive:.3f}")
    table.add_row("kept of the capacity alive", f"{result.kept_of_alive:.3f}")
    table.add_row("capacity at work (serving at the swarm's version)", f"{result.capacity_at_work:.3f}")
    table.add_row("kept of the capacity at work", f"{result.kept_of_at_work:.3f}")
    return table


def _recoveries(result: Result) -> Table:
    table = Table("fault", "times", "next commit p50", "p95", "at work again p50", "p95", "not over", "what happens")
    meanings = {kind.name: kind.meaning for kind in KINDS}
    for row in result.recoveries:
        figures = (row.commit_p50, row.commit_p95, row.at_work_p50, row.at_work_p95)
        shown = ("-" if value is None else f"{value:.1f} s" for value in figures)
        table.add_row(row.kind, str(row.faults), *shown, str(row.not_over), meanings.get(row.kind, ""))
    return table


def _lives(result: Result) -> Table:
    table = Table("daemon", "minutes", "memory, warmed up", "at the end", "slope per 10 min", "files", "tasks")
    for life in result.lives:
        table.add_row(
            str(life.number),
            f"{life.seconds / 60:.1f}",
            f"{life.memory_start_bytes / MIB:.1f} MiB",
            f"{life.memory_end_bytes / MIB:.1f} MiB",
            f"{life.slope_bytes / MIB:+.2f} MiB",
            str(life.open_files_most),
            str(life.tasks_most),
        )
    return table
