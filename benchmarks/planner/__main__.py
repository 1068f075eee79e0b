"""`python -m benchmarks.planner`: what the planner says of small swarms on this machine, and what real daemons do.

The planner knows a profile (`swarmd profile`: CPU seconds of a block at a few widths, and of a round), the settings,
and the link's rate; it has seen none of the swarms. A swarm's daemons stand for machines of their own but share few
cores, so each is a device that takes two or three times as long as one core (`benchmarks.paced`): its thread sleeps the
rest, all else is the production code. Swarms take turns; the error is the median over the rounds.

A shared machine's speed drifts by tens of percent within minutes. So a probe is timed right after the profile, and
before and after each swarm; the prediction is for the profiled device as fast as the machine was then.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.forms import add_forms
from benchmarks.pipeline.swarm import Daemon
from benchmarks.planner.cases import CASES, Case
from benchmarks.planner.report import render
from benchmarks.toml import as_toml
from swarmd.screen import show
from swarmd.sim.planner.costs import find_wire
from swarmd.sim.planner.devices import Device, Group, profile_from_plain
from swarmd.sim.planner.forecast import Question, forecast
from swarmd.sim.planner.placement import Placement
from swarmd.stage.probe import Timed, plan_probe
from swarmd.stage.profile import FEW, measure_profile

THREADS = 1  # of a daemon
WARM_STEPS = 1
LIMIT_SECONDS = 600.0  # of one swarm
POLL_SECONDS = 0.05
LOOPBACK_BYTES_PER_SECOND = 200e6  # of libp2p between two processes here (docs/planning.md)
ERROR_LIMIT = 0.15  # the promise
PROBE_WIDTH, PROBE_STEPS = 256, 6


@dataclass(frozen=True)
class Measured:
    """One swarm in one round."""

    case: Case
    tokens_per_second: float
    predicted: float


@contextmanager
def shaped(address: str, bytes_per_second: float) -> Iterator[str]:
    """The same multiaddr behind a slow link."""
    before, _, rest = address.partition("/tcp/")
    port, _, after = rest.partition("/")
    command = [sys.executable, "-m", "benchmarks.planner.link", port, str(bytes_per_second)]
    proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert proxy.stdout is not None
    try:
        yield f"{before}/tcp/{proxy.stdout.readline().strip()}/{after}"
    finally:
        proxy.kill()
        proxy.communicate()


def measure(case: Case, steps: int, folder: Path) -> float:
    """Tokens per second of real daemons, from the head's ledger; the first step is not counted."""
    run = case.run(WARM_STEPS + steps)
    settings = folder / "run.toml"
    settings.write_text(as_toml(run))
    daemons: list[Daemon] = []
    with ExitStack() as stack:
        stack.callback(_end, daemons)
        daemons.append(Daemon(folder / "head", ["--model", str(settings), "--stage", "0"], _program(case.slowness)))
        address = daemons[0].address()
        if case.link_bytes_per_second:
            address = stack.enter_context(shaped(address, case.link_bytes_per_second))
        for stage, count in enumerate(case.replicas):
            for number in range(1 if stage == 0 else 0, count):
                slowness = case.slowness * (2 if stage == case.slow and number == count - 1 else 1)
                words = ["--bootstrap", address, "--stage", str(stage)]
                daemons.append(Daemon(folder / f"stage{stage}-{number}", words, _program(slowness)))
        lines = _wait(daemons, WARM_STEPS + steps)
    seconds = [line["seconds"] for line in lines[WARM_STEPS:]]
    lost = sum(line["lost"] + line["duplicated"] for line in lines)
    if lost or any(line["members"] != list(lines[-1]["members"]) for line in lines[WARM_STEPS:]):
        raise SystemExit(f"{case.name}: peers came or went while it was measured; run it again")
    return float(run.microbatches * run.tokens_per_microbatch / statistics.median(seconds))


def _program(slowness: float) -> tuple[str, ...]:
    return sys.executable, "-m", "benchmarks.paced", f"x{slowness:g}"


def _wait(daemons: list[Daemon], steps: int) -> list[dict[str, Any]]:
    ledger, deadline = daemons[0].home / "ledger.jsonl", time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        if len(lines) >= steps:
            return [json.loads(line) for line in lines]
        if any(daemon.process.poll() for daemon in daemons):
            raise SystemExit("a daemon failed; its words are above")
        time.sleep(POLL_SECONDS)
    raise SystemExit(f"not done after {LIMIT_SECONDS:.0f} s")


def _end(daemons: list[Daemon]) -> None:
    for daemon in daemons:
        try:
            daemon.process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()


def probe_seconds() -> float:
    """Seconds of a small stage for a microbatch at present, on one thread."""
    timed = Timed()
    timed.measure(plan_probe(PROBE_WIDTH, "cpu", FEW), "cpu", PROBE_STEPS)
    return sum(timed.medians())


def predict(case: Case, device: Device, steps: int, speed: float) -> float:
    """Tokens per second, as the planner says, where the device is `speed` times as fast as its profile."""
    run, stages = case.run(WARM_STEPS + steps), range(len(case.replicas))
    rate = case.link_bytes_per_second or LOOPBACK_BYTES_PER_SECOND
    slow = tuple(int(stage == case.slow) for stage in stages)
    normal = tuple(count - less for count, less in zip(case.replicas, slow, strict=True))
    pace = speed / case.slowness
    groups, counts = [Group(sum(normal), device, rate, rate, pace=pace)], [normal]
    if any(slow):
        groups.append(Group(1, device, rate, rate, pace=pace / 2))
        counts.append(slow)
    question = Question(run, tuple(groups), 0.0, find_wire(case.codec), "fp32", placement=Placement(tuple(counts)))
    return forecast(question).tokens_per_second


def run_rounds(cases: list[Case], rounds: int, steps: int) -> Iterator[Measured]:
    """Every swarm once per round."""
    for number in range(rounds):
        _say("profile of this machine")
        device = profile_from_plain(measure_profile("cpu", THREADS, crowded=False))
        profiled = probe_seconds()
        for case in cases:
            before = probe_seconds()
            with tempfile.TemporaryDirectory() as folder:
                rate = measure(case, steps, Path(folder))
            speed = 2 * profiled / (before + probe_seconds())
            it = Measured(case, rate, predict(case, device, steps, speed))
            told = f"{it.predicted:,.0f} predicted at {speed:.2f} of the profile's speed, {rate:,.0f} measured"
            _say(f"round {number + 1}, {case.name}: {told}")
            yield it


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def summarise(measured: list[Measured]) -> list[dict[str, Any]]:
    """A row for each swarm: medians over the rounds."""
    rows = []
    for case in dict.fromkeys(it.case for it in measured):
        mine = [it for it in measured if it.case == case]
        predicted = statistics.median(it.predicted for it in mine)
        rate = statistics.median(it.tokens_per_second for it in mine)
        errors = [it.predicted / it.tokens_per_second - 1 for it in mine]
        rows.append(
            {
                "case": case.name,
                "predicted": predicted,
                "measured": rate,
                "error": statistics.median(errors),
                "errors": errors,
            }
        )
    return rows


def main() -> int:
    """Measures and prints; 1 if a prediction is off by more than promised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each swarm runs (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a run (default 3)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="swarms whose name holds one of these")
    add_forms(parser)
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.only or any(word in case.name for word in arguments.only)]
    if not cases or min(arguments.rounds, arguments.steps) < 1:
        _say("nothing to measure: --only names no swarm, or --rounds or --steps is under 1.")
        return 2
    rows = summarise(list(run_rounds(cases, arguments.rounds, arguments.steps)))
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    if arguments.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=2))
    else:
        show(render(rows, arguments.rounds), wide=arguments.wide)
    return int(any(abs(row["error"]) > ERROR_LIMIT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
