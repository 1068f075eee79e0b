"""From `swarmd start` to listening, and to the first microbatch that counts: medians of real daemons in fresh homes.

    python -m benchmarks.start [--starts N] [--json | --wide]

Listening: the control socket answers. First microbatch: a daemon that founds the `tiny` run with one stage has added
one to its sum, which takes torch, the model and the data (the second time from its cache) besides. CPU seconds are
those of the process up to then; on a machine with other work they say more than the wall clock.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Group, RenderableType

from benchmarks.forms import add_forms, sentence, table
from swarmctl.client import Client
from swarmd.errors import ControlError
from swarmd.layout import Column
from swarmd.printable import counted
from swarmd.screen import show

POLL_S = 0.01
PATIENCE_S = 120.0
LISTEN = "/ip4/127.0.0.1/tcp/0"
IDLE = ("--idle",)
FOUNDER = ("--model", "tiny", "--stages", "1", "--device", "cpu", "--threads", "1")


@dataclass(frozen=True)
class Row:
    """One kind of start, measured several times."""

    name: str
    seconds: float  # median
    lowest: float
    highest: float
    cpu_seconds: float  # median


def answers(status: dict[str, Any]) -> bool:
    return True


def has_counted(status: dict[str, Any]) -> bool:
    return bool(status["version"] > 0 or status["microbatches_per_second"] > 0)


def measure(home: Path, options: tuple[str, ...], holds: Callable[[dict[str, Any]], bool]) -> tuple[float, float]:
    """Wall and CPU seconds from the start of a daemon until something holds of its status."""
    began = time.monotonic()
    command = [sys.executable, "-m", "swarmd", "start", "--home", str(home), "--listen", LISTEN, *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = Client(home)
    try:
        while time.monotonic() - began < PATIENCE_S:
            try:
                if holds(client.status()):
                    times = psutil.Process(process.pid).cpu_times()
                    return time.monotonic() - began, times.user + times.system
            except ControlError:
                if process.poll() is not None:
                    raise SystemExit(f"swarmd ended with {process.returncode}; see {home / 'swarmd.log'}") from None
            time.sleep(POLL_S)
        raise SystemExit(f"not within {PATIENCE_S:.0f} s; see {home / 'swarmd.log'}")
    finally:
        process.kill()
        process.wait()


def repeat(name: str, starts: int, once: Callable[[], tuple[float, float]]) -> Row:
    wall, cpu = zip(*(once() for _ in range(starts)), strict=True)
    return Row(name, statistics.median(wall), min(wall), max(wall), statistics.median(cpu))


def run(starts: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="swarmd-start-") as directory:
        home = Path(directory) / "home"

        def fresh(options: tuple[str, ...], holds: Callable[[dict[str, Any]], bool]) -> tuple[float, float]:
            shutil.rmtree(home, ignore_errors=True)
            return measure(home, options, holds)

        return [
            repeat("listening", starts, lambda: fresh(IDLE, answers)),
            repeat("first microbatch, fresh home", starts, lambda: fresh(FOUNDER, has_counted)),
            repeat("first microbatch, data cached", starts, lambda: measure(home, FOUNDER, has_counted)),
        ]


_COLUMNS = (
    Column("until", right=False, wraps=True),
    Column("median"),
    Column("least", 2),
    Column("greatest", 3),
    Column("CPU", 1),
)


def render(rows: list[Row], starts: int) -> RenderableType:
    """A row for each kind of start."""
    shown = [
        (row.name, *(f"{it:.2f}" for it in (row.seconds, row.lowest, row.highest, row.cpu_seconds))) for row in rows
    ]
    return Group(table(_COLUMNS, shown), sentence(f"seconds from the start, {counted(starts, 'start')}"))


def main() -> None:
    parser = argparse.ArgumentParser(description="From start to listening, and to the first microbatch.")
    parser.add_argument("--starts", type=int, default=5)
    add_forms(parser)
    options = parser.parse_args()
    rows = run(max(1, options.starts))
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    show(render(rows, max(1, options.starts)), wide=options.wide)


if __name__ == "__main__":
    main()
