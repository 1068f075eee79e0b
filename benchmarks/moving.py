"""`python -m benchmarks.moving`: a daemon of a running swarm is sent to another stage (`swarmctl switch`) just after a
step has begun. When its state is there, when it has left its old stage, when it serves the new one, and what the steps
took before, meanwhile and after.

Real daemons on this machine, three of each of two stages; a proxy that shapes the mover's link, devices of a set speed
(see `paced`). A step takes about a minute, so a mover that waited for its record would wait for most of that. Exits 0
if the mover, which is no head and so doesn't conduct the step, had left before it was over, and nothing was lost or
counted twice.
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
from benchmarks.chaos.outcome import COUNTS, read_lines
from benchmarks.chaos.trial import say
from benchmarks.forms import add_forms, sentence, step_table, table
from benchmarks.joining import PACE, POLL_S, RUN, STEPS_BOUND_S, reach
from benchmarks.toml import as_toml
from swarmd.config import RunConfig
from swarmd.layout import Column
from swarmd.printable import ledger_words, size
from swarmd.screen import show
from swarmd.status import Status

MICROBATCHES = 300  # a step, at the pace of `RUN`: about a minute
FOUNDERS = 6
STEPS_BEFORE = 2
STEPS_AFTER = 2


@dataclasses.dataclass
class Way:
    """Seconds from the command."""

    pulled_s: float = 0.0  # its state is there whole
    drains_s: float = 0.0  # it takes no more hops
    left_s: float = 0.0
    opened_s: float = 0.0  # the new stage is on the device
    serving_s: float = 0.0
    first_microbatch_s: float = 0.0
    state_bytes: int = 0
    step: int = 0  # in which it was sent
    left_in: int = 0
    served_in: int = 0


def plan(hidden: int) -> tuple[RunConfig, Pace]:
    """A run whose stages are so wide, and devices that are as much slower."""
    times = (hidden / RUN.model.hidden) ** 2
    model = dataclasses.replace(RUN.model, hidden=hidden, ffn=RUN.model.ffn * hidden // RUN.model.hidden)
    sequences = RUN.sequences_per_microbatch * max(12, round(MICROBATCHES / times))
    run = dataclasses.replace(RUN, name="moving", model=model, sequences_per_step=sequences)
    return run, Pace(PACE.forward_s * times, PACE.backward_s * times)


async def measure(home: Path, hidden: int, bandwidth: float) -> tuple[Way, list[dict[str, Any]]]:
    """The mover's times, and the ledger of a peer of the stage that it left."""
    run, pace = plan(hidden)
    fleet = Fleet(home, run.model.stages, FOUNDERS // run.model.stages, pace)
    (home / "run.toml").write_text(as_toml(run))
    try:
        await fleet.found(home / "run.toml", FOUNDERS)
        witness, mover = fleet.daemons[0], fleet.daemons[FOUNDERS - 1]
        say(f"training until version {STEPS_BEFORE}")
        fleet.weather.slow_down(mover.number, 0.0, bandwidth)
        await reach(mover, STEPS_BEFORE)
        say(f"daemon {mover.number} goes from stage {mover.stage} to {1 - mover.stage}")
        way = await _switch(mover, 1 - mover.stage)
        say(f"training until version {way.served_in + STEPS_AFTER}")
        await reach(witness, way.served_in + STEPS_AFTER)
        await fleet.stop()
        return way, list(read_lines(witness.home.path))
    finally:
        await fleet.close()


async def _switch(mover: Daemon, stage: int) -> Way:
    loop = asyncio.get_running_loop()
    await mover.poll()
    assert mover.status is not None
    way = Way(step=mover.status.version + 1)
    done, began = mover.status.microbatches_done, loop.time()
    program = Path(sys.executable).with_name("swarmctl")
    command = await asyncio.create_subprocess_exec(str(program), "switch", str(stage), "--home", str(mover.home.path))
    async with asyncio.timeout(STEPS_BOUND_S):
        while not way.first_microbatch_s:
            await asyncio.sleep(POLL_S)
            await mover.poll()
            if mover.status is not None:
                done = _note(way, mover.status, stage, loop.time() - began, done)
    assert await command.wait() == 0, "the switch was refused"
    return way


def _note(way: Way, status: Status, stage: int, seconds: float, done: int) -> int:
    """Takes in a status. Returns how many microbatches it had done by then, without those that it has handed over."""
    way.state_bytes = max(way.state_bytes, status.state_bytes_total)
    if status.state_bytes_total and status.state_bytes == status.state_bytes_total:
        way.pulled_s = way.pulled_s or seconds
    if status.state == "draining":
        way.drains_s = way.drains_s or seconds
    if status.stage != stage:
        return status.microbatches_done
    if not way.left_s:
        way.left_s, way.left_in = seconds, status.version + 1
    if status.opened:
        way.opened_s = way.opened_s or seconds
    if status.state == "serving" and not way.serving_s:
        way.serving_s, way.served_in = seconds, status.version + 1
    if status.microbatches_done > done:
        way.first_microbatch_s = seconds
    return status.microbatches_done


def figures(way: Way, lines: list[dict[str, Any]], bandwidth: float) -> dict[str, Any]:
    """The figures."""
    seconds = {line["step"]: line["seconds"] for line in lines}
    before = [took for step, took in seconds.items() if 1 < step < way.step]  # the first holds the start-up
    during = [took for step, took in seconds.items() if way.step <= step <= way.served_in]
    after = [took for step, took in seconds.items() if step > way.served_in]
    counts = {name: sum(line[name] for line in lines) for name in COUNTS}
    return {
        **dataclasses.asdict(way),
        "bandwidth_bytes_per_second": bandwidth,
        "between_stages_s": way.serving_s - way.left_s,
        "in_the_middle": way.left_in == way.step,
        **counts,
        "steps": {
            name: {"count": len(some), "median_s": median(some), "longest_s": max(some)}
            for name, some in (("before", before), ("during", during), ("after", after))
            if some
        },
    }


_TIME_COLUMNS = (Column("the mover", right=False, wraps=True), Column("seconds from the command"))


def render(result: dict[str, Any]) -> RenderableType:
    """The figures for a person."""
    times = (
        ("has its new state", "pulled_s"),
        ("drains at its old stage", "drains_s"),
        ("has left that", "left_s"),
        ("has the new one on the device", "opened_s"),
        ("serves there", "serving_s"),
        ("has done its first microbatch there", "first_microbatch_s"),
        ("was between two stages", "between_stages_s"),
    )
    state, link = size(result["state_bytes"]), size(round(result["bandwidth_bytes_per_second"]))
    counts = {name: result[name] for name in COUNTS}
    return Group(
        table(_TIME_COLUMNS, [(name, f"{result[key]:.1f}") for name, key in times]),
        step_table(result["steps"]),
        sentence(
            f"a state of {state} over {link} a second; told in step {result['step']}, left in {result['left_in']}, "
            f"served in {result['served_in']}; {ledger_words(counts)}"
        ),
    )


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moving", description=__doc__)
    parser.add_argument("--bandwidth", type=float, default=5.0, help="of the mover's link, MB/s (default 5)")
    parser.add_argument(
        "--hidden",
        type=int,
        default=512,
        help="width of the model (default 512: a state of 39 MB; 1600 makes it 379 MB)",
    )
    add_forms(parser)
    arguments = parser.parse_args()
    if arguments.bandwidth <= 0 or arguments.hidden < 64 or arguments.hidden % 64:
        print("--bandwidth must be positive, --hidden a multiple of 64.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="swarmd-moving-") as directory:
        way, lines = uvloop.run(measure(Path(directory), arguments.hidden, arguments.bandwidth * 1e6))
    result = figures(way, lines, arguments.bandwidth * 1e6)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        show(render(result), wide=arguments.wide)
    return 0 if result["in_the_middle"] and not result["lost"] and not result["duplicated"] else 1


if __name__ == "__main__":
    sys.exit(main())
