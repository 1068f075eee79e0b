"""`python -m benchmarks.chaos`: real daemons on this machine under kills, stops, partitions, slow links, damaged bytes,
drains and restarts; what they kept of their throughput, how fast they recovered, and whether anything was lost.

Each daemon's device has a set speed (see `paced`), because daemons that share cores would get faster when others die.
Connections go through proxies, so no root is needed. The wire is fp32, and the final parameters are compared with
single-process training. Exits 0 only if every promise and goal holds.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import uvloop

from benchmarks.chaos.fleet import Pace
from benchmarks.chaos.outcome import check_ledgers, distance
from benchmarks.chaos.plan import KINDS, NAMES
from benchmarks.chaos.report import failures, plain, render, result_of
from benchmarks.chaos.trial import TrialOptions, run_trial, say
from benchmarks.forms import add_forms
from benchmarks.toml import as_toml
from swarmd.config import CodecConfig, DataConfig, ModelConfig, OptimizerConfig, RunConfig
from swarmd.errors import ConfigError
from swarmd.screen import show

PACE = Pace(0.2, 0.4)  # seconds per microbatch: nine daemons then use about one core
RUN = RunConfig(
    name="chaos",
    model=ModelConfig(vocabulary=256, hidden=64, ffn=128, heads=4, layers=3, stages=3, sequence_length=64),
    data=DataConfig(source="stdlib"),
    # A small rate and a large eps, so that the swarm is compared and not its rounding: at 1e-3 the same microbatches in
    # another order, in one process, end 6e-2 apart after 215 steps; at this rate 3e-7 after 330. One microbatch that is
    # counted in another's place still shows: 1.2e-4, more than ten times the tolerance.
    optimizer=OptimizerConfig(learning_rate=3e-4, eps=1e-3, warmup_steps=10, decay="constant"),
    codecs=CodecConfig("fp32", "fp32", "fp32"),
    steps=1_000_000,  # the trial ends it
    sequences_per_step=96,
    sequences_per_microbatch=2,  # 48 microbatches: about 10 s a step for nine daemons of this pace
    validate_every=0,
    checkpoint_every=5,
    # Nobody goes elsewhere: these devices take as long at any stage, which misleads the rule, and capacity is counted
    # by the stages that daemons were started for.
    rebalance_seconds=0.0,
    seed=11,
)


def parse_arguments() -> argparse.Namespace:
    """The words of the command line."""
    kinds = "\n".join(f"  {kind.name:10} {kind.meaning}" for kind in KINDS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=f"{__doc__}\nfaults:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10, help="of faults (default 10)")
    parser.add_argument("--peace", type=float, default=60, help="seconds without faults, before and after (default 60)")
    parser.add_argument("--every", type=float, nargs=2, default=(15, 30), help="seconds between faults (default 15 30)")
    parser.add_argument("--replicas", type=int, default=3, help="of each of the 3 stages (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="what happens when, and to whom (default 0)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="only these faults")
    parser.add_argument(
        "--soak", action="store_true", help="one replica of each stage keeps its process: its memory counts"
    )
    parser.add_argument("--home", type=Path, help="where the daemons live (default: a new temporary directory)")
    add_forms(parser)
    arguments = parser.parse_args()
    if arguments.minutes <= 0 or arguments.peace <= 0 or not 0 < arguments.every[0] <= arguments.every[1]:
        raise ConfigError("--minutes, --peace and --every must be positive, and --every from less to more.")
    if arguments.replicas < 2:
        raise ConfigError("--replicas must be at least 2: a stage's only replica can't be missed.")
    return arguments


def run_and_report(options: TrialOptions, run: RunConfig, home: Path, arguments: argparse.Namespace) -> int:
    """One trial with its report; returns the exit code."""
    model = home / "run.toml"
    model.write_text(as_toml(run))
    trial = uvloop.run(run_trial(options, run, model, home))
    homes = [daemon.home.path for daemon in trial.recorder.daemons]
    say("training in one process, to compare")
    distances = distance(homes, run, trial.version, home / "data") if trial.version else {}
    ledgers = check_ledgers(homes, run, trial.version or trial.recorder.version)
    result = result_of(trial, options, run, ledgers, distances, home)
    problems = failures(result, goals=True)
    if arguments.json:
        print(json.dumps(plain(result, problems), indent=2))
    else:
        show(render(result, problems), wide=arguments.wide)
    return 1 if problems else 0


def main() -> int:
    """Runs it; 0 if all holds, 1 if not, 2 for a mistake of the user's."""
    try:
        arguments = parse_arguments()
        home = arguments.home or Path(tempfile.mkdtemp(prefix="swarmd-chaos-"))
        home.mkdir(parents=True, exist_ok=True)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    options = TrialOptions(
        stages=RUN.model.stages,
        replicas=arguments.replicas,
        pace=PACE,
        peace_s=arguments.peace,
        faults_s=60 * arguments.minutes,
        every_s=tuple(arguments.every),
        seed=arguments.seed,
        kinds=tuple(arguments.only),
        steady=arguments.soak,
    )
    say(f"the daemons live in {home}")
    return run_and_report(options, dataclasses.replace(RUN), home, arguments)


if __name__ == "__main__":
    sys.exit(main())
