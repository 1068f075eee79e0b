"""`python -m benchmarks.chaos.virtual`: the faults of `benchmarks.chaos` in virtual time. Hours of them take a minute
or two, so this says what a real trial of ten minutes is too short for: what is kept on average, and what each kind
costs.

Everything is simulated: the production swarm code on simulated machines whose devices take as long as those of the real
trial, and compute with symbols. Each run is checked for nothing lost and nothing counted twice. The figures mean what
`figures` says; that of a step is its seconds times the capacity that was alive, less what a step takes in peace.
"""

import argparse
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import track

from benchmarks.chaos.plan import NAMES
from benchmarks.chaos.storm import CALM, Storm, Trial
from benchmarks.forms import add_forms, seconds, sentence, table
from swarmd.errors import ConfigError
from swarmd.layout import Column
from swarmd.printable import ledger_words
from swarmd.screen import show
from swarmd.sim.world.clock import run_virtual

SHOWN = 16

_COLUMNS = (
    Column("faults in a step", right=False, wraps=True),
    Column("steps", 1),
    Column("lost in each"),
    Column("of all", 2),
)


def costs(trials: Sequence[Trial]) -> list[tuple[str, int, float, float]]:
    """By the faults that fell into a step, dearest first: them, how many steps, seconds lost in each, share of all."""
    lost: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        usual = CALM.microbatches / trial.usual_rate
        for step in trial.steps:
            lost[step.faults].append(step.seconds * step.capacity - usual)
    total = sum(step.seconds * step.capacity for trial in trials for step in trial.steps)
    dearest = sorted(lost.items(), key=lambda item: -sum(item[1]))
    return [(kinds or "none", len(some), fmean(some), sum(some) / total) for kinds, some in dearest]


def figures(trials: Sequence[Trial]) -> dict[str, Any]:
    """The figures as plain data."""
    kept = [trial.kept for trial in trials]
    return {
        "simulated": True,
        "kept": {"mean": fmean(kept), "min": min(kept), "max": max(kept)},
        "counts": {name: sum(trial.counts[name] for trial in trials) for name in trials[0].counts},
        "costs": [dict(zip(("faults", "steps", "lost_seconds", "share"), row, strict=True)) for row in costs(trials)],
    }


def render(it: dict[str, Any]) -> RenderableType:
    """The figures for a person."""
    rows = [
        (row["faults"], row["steps"], seconds(row["lost_seconds"]), f"{row['share']:.1%}")
        for row in it["costs"][:SHOWN]
    ]
    kept = it["kept"]
    return Group(
        table(_COLUMNS, rows, "simulated: what faults cost"),
        sentence(
            f"simulated: {kept['mean']:.3f} of the throughput of the capacity alive "
            f"({kept['min']:.3f} to {kept['max']:.3f})"
        ),
        sentence(f"ledgers of one stage: {ledger_words(it['counts'])}"),
    )


def parse_arguments() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos.virtual",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30, help="of faults in each run (default 30)")
    parser.add_argument("--every", type=float, nargs=2, default=(15, 30), help="seconds between faults (default 15 30)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first run (default 0)")
    parser.add_argument("--seeds", type=int, default=8, help="runs (default 8)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="only these faults")
    add_forms(parser)
    arguments = parser.parse_args()
    if arguments.minutes <= 0 or arguments.seeds < 1 or not 0 < arguments.every[0] <= arguments.every[1]:
        raise ConfigError("--minutes, --seeds and --every must be positive, and --every from less to more.")
    return arguments


def main() -> int:
    """Plays and prints. Exits 1 if anything was lost or counted twice."""
    try:
        arguments = parse_arguments()
    except ConfigError as trouble:
        print(trouble, file=sys.stderr)
        return 2
    logging.getLogger("swarmd").setLevel(logging.CRITICAL)  # deaths are what this is about
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    trials = [
        run_virtual(Storm(seed, tuple(arguments.only), tuple(arguments.every), 60 * arguments.minutes).run())
        for seed in track(seeds, "playing", console=Console(stderr=True))
    ]
    found = figures(trials)
    if arguments.json:
        print(json.dumps(found))
    else:
        show(render(found), wide=arguments.wide)
    return 1 if any(trial.counts[name] for trial in trials for name in ("lost", "duplicated")) else 0


if __name__ == "__main__":
    sys.exit(main())
