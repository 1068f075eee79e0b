"""The swarm: two daemons on this machine, one stage and one CPU thread each, started as a user would start them.

Throughput comes from the head's ledger: tokens over seconds of the steps after the warm-up. The time at which each
line appears is watched as well, and a ledger whose seconds differ from the clock's is an error, not a result.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.pipeline.workload import load_workload, parser

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
START_LIMIT_S = 60.0  # until the first daemon says its address; it reads and tokenises the data meanwhile
END_LIMIT_S = 60.0  # for daemons that are done to write their checkpoint and leave
POLL_S = 0.02  # between looks at the ledger: under 1 % of the shortest measured step
STATUS_POLL_S = 0.25  # between calls of swarmctl, which start a process each
AGREEMENT = 0.05  # of the ledger's seconds with the clock's


class Daemon:
    """One `swarmd start` in a home of its own."""

    def __init__(self, home: Path, arguments: list[str], program: Sequence[str] = ()) -> None:
        self.home = home
        self._cpu_seconds = 0.0
        command = [
            *(program or (_script("swarmd"),)),
            "start",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--listen",
            LOOPBACK,
        ]
        # Its words go to our stderr, which is the log; stdout is for the result.
        self.process = subprocess.Popen([*command, "--home", str(home), *arguments], stdout=sys.stderr)

    def address(self) -> str:
        """Its multiaddr on the loopback interface, as soon as swarmctl knows it."""
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            for address in self._status().get("addresses", ()):
                if "/127.0.0.1/" in address:
                    return str(address)
            if self.process.poll() is not None:
                raise SystemExit(f"the {self.home.name} ended with {self.process.returncode} before it listened")
            time.sleep(STATUS_POLL_S)
        raise SystemExit(f"the {self.home.name} gave no address within {START_LIMIT_S:.0f} s")

    def cpu_seconds(self) -> float:
        """CPU time so far, or when it was last seen alive."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
            self._cpu_seconds = max(self._cpu_seconds, times.user + times.system)
        except psutil.NoSuchProcess:
            pass  # gone a moment ago; what it used since the last look is less than a look's time
        return self._cpu_seconds

    def _status(self) -> dict[str, Any]:
        command = [_script("swarmctl"), "--home", str(self.home), "status", "--json"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=START_LIMIT_S, check=False)
        if answer.returncode != 0:
            return {}
        status: dict[str, Any] = json.loads(answer.stdout)
        return status


def watch_ledger(head: Daemon, tail: Daemon, steps: int) -> tuple[list[dict[str, Any]], list[float], list[float]]:
    """Waits for `steps` lines. Gives them, the time each appeared, and both daemons' CPU seconds by then."""
    path = head.home / "ledger.jsonl"
    appeared: list[float] = []
    cpu: list[float] = []
    while len(appeared) < steps:
        over = head.process.poll() is not None  # asked before reading: what it wrote is then complete
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        used = head.cpu_seconds() + tail.cpu_seconds()
        for _ in range(lines - len(appeared)):
            appeared.append(time.monotonic())
            cpu.append(used)
        if over and lines < steps:
            raise SystemExit(f"the head ended with {head.process.returncode} after {lines} of {steps} steps")
        if tail.process.poll():
            raise SystemExit(f"the tail ended with {tail.process.returncode}")
        time.sleep(POLL_S)
    return [json.loads(line) for line in path.read_text().splitlines()], appeared, cpu


def measure(lines: list[dict[str, Any]], appeared: list[float], cpu: list[float], warmup: int) -> dict[str, Any]:
    """The result of the steps after the warm-up; `busy_cores` is what both daemons used of the machine."""
    measured = lines[warmup:]
    seconds = sum(line["seconds"] for line in measured)
    watched = appeared[-1] - appeared[warmup - 1]
    if abs(seconds - watched) > AGREEMENT * watched:
        raise SystemExit(f"the ledger says {seconds:.2f} s for steps that took {watched:.2f} s")
    faults = {key: sum(line[key] for line in measured) for key in ("resent", "subtracted", "lost", "duplicated")}
    return {
        "tokens": sum(line["tokens"] for line in measured),
        "seconds": seconds,
        "loss": measured[-1]["loss"],
        "busy_cores": (cpu[-1] - cpu[warmup - 1]) / watched,
        **faults,
    }


def main() -> None:
    """Starts both daemons, waits for the run's end and prints the result."""
    arguments = parser(__doc__).parse_args()
    run = load_workload(arguments.model)
    assert run.model.stages == 2, "this comparison is between pipelines of two stages"
    assert arguments.warmup >= 1, "the first step holds the start-up, so it can't be measured"
    steps = arguments.warmup + arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        head = Daemon(Path(folder) / "head", ["--model", arguments.model, "--steps", str(steps), "--stage", "0"])
        tail = Daemon(Path(folder) / "tail", ["--bootstrap", head.address(), "--stage", "1"])
        result = measure(*watch_ledger(head, tail, steps), arguments.warmup)
        for daemon in (head, tail):
            if daemon.process.wait(timeout=END_LIMIT_S) != 0:
                raise SystemExit(f"the {daemon.home.name} ended with {daemon.process.returncode}")
        print(json.dumps(result), flush=True)


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


if __name__ == "__main__":
    main()
