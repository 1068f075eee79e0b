"""`python -m benchmarks.pipeline`: measures the 2-stage swarm and its rivals beside plain PyTorch, in interleaved
rounds.

Every system trains the same layers on the same microbatches, in the same order, with one optimizer step per global
batch: their losses agree with plain PyTorch's to three digits, or to two where 8 bits travel, or the command fails.
Plain PyTorch has two threads; each stage of a pipeline has one. In a round each system runs once, and its ratio is to
plain PyTorch of the same round, because a machine's speed drifts. Prints a table, or with --json one object.
"""

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.forms import add_forms
from benchmarks.pipeline.environment import HIVEMIND, ensure_hivemind
from benchmarks.pipeline.processes import MeasurementError, Program, run_program
from benchmarks.pipeline.report import Measurement, disagreements, facts, render, summarise
from benchmarks.pipeline.workload import write_batches
from benchmarks.toml import as_toml
from swarmd.errors import ConfigError
from swarmd.screen import show
from swarmd.settings import load_run

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("hidden512", "hidden256")
BASELINE = "plain"
AGREEMENT = {"swarm": 1e-2, "gpipe": 1e-3, "1f1b": 1e-3, "hivemind": 1e-2}
"""How far the loss of a rival may be from plain PyTorch's, as a share of it: further where 8 bits travel."""

SYSTEMS = (BASELINE, *AGREEMENT)
QUICK_FRACTION = 4  # --quick takes global batches this much smaller: a smoke test, whose figures are only roughly right
QUIET_LOAD = 0.5  # processes that already run; two threads of OpenMP lose a factor of ten on a busy core
LIMIT_S = 600.0  # of one system in one round; a full one takes about a minute


def parse_arguments() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each system runs (default 3)")
    parser.add_argument("--warmup", type=int, default=1, help="steps of a run that are not measured (default 1)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a run that are measured (default 3)")
    parser.add_argument("--quick", action="store_true", help="one round of two short steps each: does it all work?")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="these, and plain beside them")
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=PRESETS, help="sizes (default both)")
    add_forms(parser)
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.warmup, arguments.steps) < 1:
        raise ConfigError("--rounds, --warmup and --steps must be at least 1.")
    if arguments.quick:
        arguments.rounds, arguments.warmup, arguments.steps = 1, 1, 2
    return arguments


def write_workload(preset: str, arguments: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The files that all systems read: the preset, with a smaller global batch when quick, and its microbatches."""
    run = load_run(str(Path(__file__).with_name(f"{preset}.toml")))
    if arguments.quick:
        run = dataclasses.replace(run, sequences_per_step=run.sequences_per_step // QUICK_FRACTION)
    path, batches = folder / f"{preset}.toml", folder / f"{preset}.npy"
    path.write_text(as_toml(run))
    write_batches(run, arguments.warmup + arguments.steps, batches)
    return path, batches


def plan_program(system: str, files: tuple[Path, Path], arguments: argparse.Namespace) -> Program:
    """The command of a system. Installs hivemind when it is its turn for the first time. Raises MeasurementError."""
    modules = {"gpipe": "torch_pipelining", "1f1b": "torch_pipelining", "hivemind": "hivemind_pipeline"}
    python, options = sys.executable, ("--schedule", system) if system in ("gpipe", "1f1b") else ()
    if system == "hivemind":
        try:
            python = str(ensure_hivemind(ROOT))
        except (OSError, subprocess.SubprocessError) as error:
            raise MeasurementError(f"{HIVEMIND} could not be installed ({error})") from error
    module = f"benchmarks.pipeline.{modules.get(system, system)}"
    run, batches = map(str, files)
    spans = ("--warmup", str(arguments.warmup), "--steps", str(arguments.steps))
    settings = ("--model", run, "--batches", batches, *spans)
    threads = 2 if system == BASELINE else 1
    return Program((python, "-m", module, *settings, *options), threads, ROOT)


def run_rounds(arguments: argparse.Namespace, systems: list[str], folder: Path) -> list[Measurement]:
    """Every system once per preset and round. A failure is a result too, and tried again in the next round."""
    measurements = []
    workloads = {preset: write_workload(preset, arguments, folder) for preset in arguments.preset}
    logs = ROOT / ".bench" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.rounds):
        for preset, files in workloads.items():
            for system in systems:
                try:
                    program = plan_program(system, files, arguments)
                    result = run_program(program, logs / f"{preset}-{system}-{number}.log", LIMIT_S)
                    measured = Measurement(preset, system, number, result)
                    said = f"{measured.rate:,.0f} tokens/s"
                except MeasurementError as failure:
                    measured = Measurement(preset, system, number, None, str(failure))
                    said = f"failed: {failure}"
                print(f"round {number + 1}, {preset}, {system}: {said}", file=sys.stderr, flush=True)
                measurements.append(measured)
    return measurements


def main() -> int:
    """Measures and prints; 1 when a system gave no result at all, or losses that aren't those of the same training."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        arguments = parse_arguments()
        systems = [system for system in SYSTEMS if system == BASELINE or system in arguments.only]
        environment = facts()
        if environment["load_before"] > QUIET_LOAD:
            print(f"load is {environment['load_before']}: figures of a busy machine mean little", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            measurements = run_rounds(arguments, systems, Path(folder))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    rows = [summarise(measurements, preset, system, BASELINE) for preset in arguments.preset for system in systems]
    apart = disagreements(measurements, BASELINE, AGREEMENT)
    if arguments.json:
        print(json.dumps({"environment": environment, "rows": rows, "disagreements": apart}, indent=2))
    else:
        show(render(rows, environment), wide=arguments.wide)
    for sentence in apart:
        print(sentence, file=sys.stderr)
    return 0 if not apart and all(row["rounds"] for row in rows if row["system"] != "hivemind") else 1


def _leave(*_: object) -> None:
    """Ends by an exception, so that what is being measured is killed on the way out."""
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
