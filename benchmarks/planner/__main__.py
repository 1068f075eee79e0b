"""`python -m benchmarks.planner`: what the planner says of small swarms on this machine, and what real daemons do.

The planner knows a profile (`swarmd profile`: seconds of a block at a few widths, of a round, and how fast 1, 2, .. 4
processes run that compute at once), the settings, and the link's rate; it has seen none of the swarms. Daemons share
the machine's cores with each other and with whatever else runs, so how fast processes run at once is measured before
and after each swarm, and predictions use the mean. Swarms take turns; the error is that of medians over the rounds.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.pipeline.swarm import Daemon
from benchmarks.planner.cases import CASES, Case
from benchmarks.toml import as_toml
from swarmd.sim.costs import find_wire
from swarmd.sim.devices import Device, Group, profile_from_plain
from swarmd.sim.placement import Placement
from swarmd.sim.planner import Question, look
from swarmd.stage.profile import Crowd, measure_profile

THREADS = 1  # of a daemon
WARM_STEPS = 1
DUTY_SECONDS = 0.04  # a slowed daemon is stopped for half of each
LIMIT_SECONDS = 600.0  # of one swarm
POLL_SECONDS = 0.05
LOOPBACK_BYTES_PER_SECOND = 200e6  # of libp2p between two processes here (docs/planning.md)
ERROR_LIMIT = 0.15  # the promise
QUIET_SHARE = 0.85  # of a core that a single process gets; with less, others use the machine


@dataclass(frozen=True)
class Measured:
    """One swarm in one round."""

    case: Case
    tokens_per_second: float
    predicted: float
    crowd: tuple[float, ...]


@contextmanager
def slowed(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Half of the time it is stopped."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(DUTY_SECONDS / 2) and process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            over.wait(DUTY_SECONDS / 2)
            process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        process.send_signal(signal.SIGCONT)


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
        daemons.append(Daemon(folder / "head", ["--model", str(settings), "--stage", "0"]))
        address = daemons[0].address()
        if case.link_bytes_per_second:
            address = stack.enter_context(shaped(address, case.link_bytes_per_second))
        for stage, count in enumerate(case.replicas):
            for number in range(1 if stage == 0 else 0, count):
                home = folder / f"stage{stage}-{number}"
                daemons.append(Daemon(home, ["--bootstrap", address, "--stage", str(stage)]))
                if stage == case.slow and number == count - 1:
                    stack.enter_context(slowed(daemons[-1].process))
        lines = _wait(daemons, WARM_STEPS + steps)
    seconds = [line["seconds"] for line in lines[WARM_STEPS:]]
    lost = sum(line["lost"] + line["duplicated"] for line in lines)
    if lost or any(line["members"] != list(lines[-1]["members"]) for line in lines[WARM_STEPS:]):
        raise SystemExit(f"{case.name}: peers came or went while it was measured; run it again")
    return float(run.microbatches * run.tokens_per_microbatch / statistics.median(seconds))


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


def predict(case: Case, device: Device, steps: int) -> float:
    """Tokens per second, as the planner says."""
    run, stages = case.run(WARM_STEPS + steps), range(len(case.replicas))
    rate = case.link_bytes_per_second or LOOPBACK_BYTES_PER_SECOND
    slow = tuple(int(stage == case.slow) for stage in stages)
    normal = tuple(count - less for count, less in zip(case.replicas, slow, strict=True))
    groups, counts = [Group(sum(normal), device, rate, rate)], [normal]
    if any(slow):
        groups.append(Group(1, device, rate, rate, pace=0.5))
        counts.append(slow)
    question = Question(
        run, tuple(groups), 0.0, find_wire(case.codec), "fp32", one_machine=True, placement=Placement(tuple(counts))
    )
    return look(question).tokens_per_second


def run_rounds(cases: list[Case], rounds: int, steps: int) -> Iterator[Measured]:
    """Every swarm once per round, with the machine's speed taken on both sides."""
    most = max(sum(case.replicas) for case in cases)
    with Crowd(most, THREADS) as crowd:
        for number in range(rounds):
            _say("profile of this machine")
            plain = measure_profile("cpu", THREADS, crowded=False)
            before = [crowd.speed(count) for count in range(1, most + 1)]
            for case in cases:
                with tempfile.TemporaryDirectory() as folder:
                    rate = measure(case, steps, Path(folder))
                after = [crowd.speed(count) for count in range(1, most + 1)]
                speeds = tuple((one + other) / 2 for one, other in zip(before, after, strict=True))
                device = replace(profile_from_plain(plain), crowd=speeds)
                it = Measured(case, rate, predict(case, device, steps), speeds)
                _say(f"round {number + 1}, {case.name}: {it.predicted:,.0f} predicted, {rate:,.0f} measured")
                before = after
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
                "one_process": statistics.median(it.crowd[0] for it in mine),
            }
        )
    return rows


def main() -> int:
    """Measures and prints; 1 if a prediction is off by more than promised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each swarm runs (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a run (default 3)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="swarms whose name holds one of these")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.only or any(word in case.name for word in arguments.only)]
    if not cases or min(arguments.rounds, arguments.steps) < 1:
        _say("nothing to measure: --only names no swarm, or --rounds or --steps is under 1.")
        return 2
    rows = summarise(list(run_rounds(cases, arguments.rounds, arguments.steps)))
    machine = {"cores": psutil.cpu_count(), "load": os.getloadavg()[0]}
    if arguments.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=2))
    else:
        print(f"{'swarm':<32}{'predicted':>11}{'measured':>11}{'error':>8}   errors of each round")
        for row in rows:
            each = ", ".join(f"{error:+.0%}" for error in row["errors"])
            print(f"{row['case']:<32}{row['predicted']:>11,.0f}{row['measured']:>11,.0f}{row['error']:>+8.1%}   {each}")
        print(f"tokens/s, medians of {arguments.rounds} rounds; {machine['cores']} cores")
    if min(row["one_process"] for row in rows) < QUIET_SHARE:
        _say("others used this machine meanwhile: a single process got less than a core.")
    return int(any(abs(row["error"]) > ERROR_LIMIT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
