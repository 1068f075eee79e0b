"""`python -m benchmarks.joining`: a daemon joins a running swarm over a link of a set bandwidth. How long until its
first microbatch, and what the others' steps took before, meanwhile and after.

Real daemons on this machine, a proxy that shapes the newcomer's link, devices of a set speed (see `paced`). The
bound: (state + gradients committed meanwhile) bytes over the bandwidth x 1.2 + 5 s, from the start of the process, so
the 5 s contain Python and torch. Exits 0 if it holds and no step meanwhile took over 1.5 times the slowest before.
"""

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from rich.console import Group, RenderableType

from benchmarks.chaos.fleet import Daemon, Fleet, Pace
from benchmarks.chaos.outcome import read_lines
from benchmarks.chaos.trial import say
from benchmarks.forms import add_forms, sentence, step_table, table
from benchmarks.toml import as_toml
from swarmd.config import CodecConfig, ModelConfig, RunConfig
from swarmd.layout import Column
from swarmd.printable import size
from swarmd.screen import show
from swarmd.status import Status

PACE = Pace(0.2, 0.4)  # seconds per microbatch, above what this model takes on a busy core
RUN = RunConfig(
    name="joining",
    # One layer a stage: 3.1 million parameters, 37 MB with both moments.
    model=ModelConfig(vocabulary=256, hidden=512, ffn=1_360, heads=8, layers=2, stages=2, sequence_length=64),
    codecs=CodecConfig("int8", "int8", "fp16"),
    steps=1_000_000,
    sequences_per_step=96,
    sequences_per_microbatch=2,  # 48 microbatches: about 15 s a step
    validate_every=0,
    checkpoint_every=1_000_000,
)
FOUNDERS = 4  # two of each stage
STEPS_BEFORE = 3
STEPS_AFTER = 2
STEPS_BOUND_S = 600.0
POLL_S = 0.1
SLACK, START_S = 1.2, 5.0  # of the bound
SLOWER = 1.5  # a step may be so much slower than the slowest before without saying anything


@dataclasses.dataclass
class Join:
    """Seconds from the start of the newcomer's process."""

    listening_s: float = 0.0
    pulling_s: float = 0.0  # its state begins to come
    opened_s: float = 0.0  # its stage is on the device
    serving_s: float = 0.0
    first_microbatch_s: float = 0.0
    state_bytes: int = 0
    begun_version: int = 0
    served_version: int = 0


async def measure(home: Path, bandwidth: float) -> tuple[Join, list[dict[str, Any]]]:
    """The newcomer's times, and the ledger of a peer that was there all the time."""
    fleet = Fleet(home, RUN.model.stages, FOUNDERS // RUN.model.stages + 1, PACE)
    (home / "run.toml").write_text(as_toml(RUN))
    try:
        await fleet.found(home / "run.toml", FOUNDERS)
        witness, newcomer = fleet.daemons[1], fleet.daemons[FOUNDERS]
        say(f"training until version {STEPS_BEFORE}")
        await reach(witness, STEPS_BEFORE)
        fleet.weather.slow_down(newcomer.number, 0.0, bandwidth)
        say("a newcomer joins")
        join = await _join(fleet, newcomer, witness)
        say(f"training until version {join.served_version + STEPS_AFTER + 1}")
        await reach(witness, join.served_version + STEPS_AFTER + 1)
        await fleet.stop()
        return join, list(read_lines(witness.home.path))
    finally:
        await fleet.close()


async def reach(daemon: Daemon, version: int) -> None:
    """Waits until a daemon is at a version. Raises TimeoutError."""
    async with asyncio.timeout(STEPS_BOUND_S):
        while daemon.status is None or daemon.status.version < version:
            await asyncio.sleep(POLL_S)
            await daemon.poll()


async def _join(fleet: Fleet, newcomer: Daemon, witness: Daemon) -> Join:
    await witness.poll()
    join = Join(begun_version=_status(witness).version)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await fleet.restart(newcomer)
    async with asyncio.timeout(STEPS_BOUND_S):
        while not join.first_microbatch_s:
            await asyncio.sleep(POLL_S)
            await newcomer.poll()
            if newcomer.status is not None:
                _note(join, newcomer.status, loop.time() - began)
    return join


def _status(daemon: Daemon) -> Status:
    assert daemon.status is not None
    return daemon.status


def _note(join: Join, status: Status, seconds: float) -> None:
    join.listening_s = join.listening_s or seconds
    join.state_bytes = max(join.state_bytes, status.state_bytes_total)
    if status.state_bytes_total:
        join.pulling_s = join.pulling_s or seconds
    if status.opened:
        join.opened_s = join.opened_s or seconds
    if status.state == "serving" and not join.serving_s:
        join.serving_s, join.served_version = seconds, status.version
    if status.microbatches_done:
        join.first_microbatch_s = join.first_microbatch_s or seconds


def figures(join: Join, lines: list[dict[str, Any]], bandwidth: float) -> dict[str, Any]:
    """The figures. Steps that ended after the newcomer's start and began before it served are of the join."""
    seconds = {line["step"]: line["seconds"] for line in lines}
    first, last = join.begun_version + 1, join.served_version + 1
    before = [took for step, took in seconds.items() if 1 < step < first]  # the first holds the start-up
    during = [took for step, took in seconds.items() if first <= step <= last]
    after = [took for step, took in seconds.items() if step > last]
    gradients = (join.served_version - join.begun_version) * _gradient_bytes()
    bound = (join.state_bytes + gradients) / bandwidth * SLACK + START_S
    return {
        **dataclasses.asdict(join),
        "bandwidth_bytes_per_second": bandwidth,
        "gradient_bytes_meanwhile": gradients,
        "bound_s": bound,
        "within_bound": join.first_microbatch_s <= bound,
        "steps": {
            name: {"count": len(some), "median_s": median(some), "longest_s": max(some)}
            for name, some in (("before", before), ("during", during), ("after", after))
        },
        "no_pause": max(during) <= SLOWER * max(before),
    }


def _gradient_bytes() -> int:
    """Bytes of the first stage's averaged gradient at fp16: the embedding and a block."""
    model = RUN.model
    block = 4 * model.hidden**2 + 3 * model.hidden * model.ffn + 2 * model.hidden
    return 2 * (model.vocabulary * model.hidden + block)


_TIME_COLUMNS = (Column("the newcomer", right=False, wraps=True), Column("seconds from its start"))


def render(result: dict[str, Any]) -> RenderableType:
    """The figures for a person."""
    times = (
        ("listens", "listening_s"),
        ("pulls its state", "pulling_s"),
        ("has its stage on the device", "opened_s"),
        ("serves", "serving_s"),
        ("has done its first microbatch", "first_microbatch_s"),
        ("should have done it by", "bound_s"),
    )
    state, gradients = size(result["state_bytes"]), size(round(result["gradient_bytes_meanwhile"]))
    link = size(round(result["bandwidth_bytes_per_second"]))
    return Group(
        table(_TIME_COLUMNS, [(name, f"{result[key]:.1f}") for name, key in times]),
        step_table(result["steps"]),
        sentence(f"a state of {state} and {gradients} of gradients committed meanwhile, over {link} a second"),
    )


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joining", description=__doc__)
    parser.add_argument("--bandwidth", type=float, default=5.0, help="of the newcomer's link, MB/s (default 5)")
    add_forms(parser)
    arguments = parser.parse_args()
    if arguments.bandwidth <= 0:
        print("--bandwidth must be positive.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="swarmd-joining-") as directory:
        join, lines = uvloop.run(measure(Path(directory), arguments.bandwidth * 1e6))
    result = figures(join, lines, arguments.bandwidth * 1e6)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        show(render(result), wide=arguments.wide)
    return 0 if result["within_bound"] and result["no_pause"] else 1


if __name__ == "__main__":
    sys.exit(main())
