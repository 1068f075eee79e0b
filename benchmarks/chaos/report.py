"""The figures of a trial as one plain object, for JSON, and as tables for a person. Judges what was promised."""

import dataclasses
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Group, RenderableType

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
from benchmarks.forms import seconds, table
from swarmd.config import RunConfig
from swarmd.layout import Column, Facts
from swarmd.printable import SENTENCE_LIMIT, counted, ledger_words
from swarmd.screen import words

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


_RECOVERY_COLUMNS = (
    Column("fault", right=False),
    Column("times"),
    Column("next commit p50", 1),
    Column("next commit p95", 3),
    Column("at work again p50", 2),
    Column("at work again p95", 4),
    Column("not over", 5),
    Column("what happens", 6, right=False, wraps=True),
)
_LIFE_COLUMNS = (
    Column("daemon"),
    Column("minutes", 2),
    Column("memory, warmed up", 3),
    Column("at the end", 4),
    Column("slope per 10 min"),
    Column("files", 5),
    Column("tasks", 6),
)


def render(result: Result, problems: list[str]) -> RenderableType:
    """Everything for a person."""
    kinds = {kind.name: kind.meaning for kind in KINDS}
    recoveries = [_recovery_cells(row, kinds.get(row.kind, "")) for row in result.recoveries]
    lives = [_life_cells(life) for life in result.lives]
    return Group(
        Facts([(name, words(value, limit=SENTENCE_LIMIT)) for name, value in _throughput(result)]),
        table(_RECOVERY_COLUMNS, recoveries, "recovery by kind of fault"),
        *([table(_LIFE_COLUMNS, lives, "processes that lived long")] if lives else []),
        Facts([(name, words(value, limit=SENTENCE_LIMIT)) for name, value in _verdict(result, problems)]),
    )


def _throughput(result: Result) -> list[tuple[str, str]]:
    peace = " and ".join(f"{rate:.2f}" for rate in result.peace_rates)
    return [
        ("faults", f"{result.faults:,} in {result.minutes:.1f} minutes"),
        ("in peace", f"{peace} microbatches/s, before and after"),
        ("under faults", f"{result.fault_rate:.2f} microbatches/s, {result.kept:.3f} of that in peace"),
        (
            "alive",
            f"{result.capacity_alive:.3f} of the weakest stage's replicas; {result.kept_of_alive:.3f} of that kept",
        ),
        (
            "at work",
            f"{result.capacity_at_work:.3f} of them, at the swarm's version; {result.kept_of_at_work:.3f} of that kept",
        ),
    ]


def _recovery_cells(row: Recovery, meaning: str) -> tuple[object, ...]:
    figures = (row.commit_p50, row.commit_p95, row.at_work_p50, row.at_work_p95)
    return (row.kind, row.faults, *map(seconds, figures), row.not_over, meaning)


def _life_cells(life: Life) -> tuple[object, ...]:
    return (
        life.number,
        f"{life.seconds / 60:.1f}",
        f"{life.memory_start_bytes / MIB:.1f} MiB",
        f"{life.memory_end_bytes / MIB:.1f} MiB",
        f"{life.slope_bytes / MIB:+.2f} MiB",
        life.open_files_most,
        life.tasks_most,
    )


def _verdict(result: Result, problems: list[str]) -> list[tuple[str, str]]:
    ledgers, steps = result.ledgers, counted(result.ledgers.steps, "step")
    distance = "not compared" if result.largest_distance is None else f"{result.largest_distance:.1e}"
    verdict = f"{counted(len(problems), 'promise or goal', 'promises or goals')} missed" if problems else "passed"
    return [
        ("ledgers", f"{steps}: {ledger_words(ledgers.counts)}; {ledgers.forked:,} committed without a majority"),
        ("parameters", f"version {result.version}: largest distance of a tensor from one process {distance}"),
        ("files", result.home),
        *(("FAILED", problem) for problem in problems),
        ("verdict", verdict),
    ]
