"""`python -m swarmd.sim scale`, `detect`, `straggler`, `routing` and `square-cube`: figures of simulated swarms, as
tables or JSON.

Parses and prints; `figures.py`, `routing_compared.py` and `square_cube.py` measure, `views.py` makes tables. All that
is printed says that it is simulated.
"""

import dataclasses
import json
from typing import Annotated, Any

import typer

from swarmd.errors import ConfigError
from swarmd.printable import counted
from swarmd.screen import show
from swarmd.sim.measure import views
from swarmd.sim.measure.figures import Straggler, detection_seconds, measure_scale, straggler_costs
from swarmd.sim.measure.routing_compared import MICROBATCHES, SITUATIONS, PolicyFigures, compare
from swarmd.sim.measure.square_cube import DEVICE, DTYPE, Cell, measure
from swarmd.sim.planner.costs import find_wire
from swarmd.sim.planner.devices import find_device

PROGRESS_SECONDS = 60.0  # virtual, between two lines on the progress

SCALE_EXAMPLES = """
\b
Examples:
  python -m swarmd.sim scale                                         64 peers in 8 stages for ten minutes
  python -m swarmd.sim scale --peers 250 --stages 16
  python -m swarmd.sim scale --peers 1000 --stages 32 --minutes 60   the large one; see docs/simulator.md how long
  python -m swarmd.sim scale --json                                  one JSON object on stdout, progress on stderr
"""

DETECT_EXAMPLES = """
\b
Examples:
  python -m swarmd.sim detect                one paused replica in each of 16 stages, one run each
  python -m swarmd.sim detect --stages 4 --json
"""

STRAGGLER_EXAMPLES = """
\b
Examples:
  python -m swarmd.sim straggler             one peer ten times slower: as head, in the middle, as tail
  python -m swarmd.sim straggler --replicas 10
  python -m swarmd.sim straggler --json
"""

ROUTING_EXAMPLES = """
\b
Examples:
  python -m swarmd.sim routing                        three policies, ten situations, three seeds: 11 minutes
  python -m swarmd.sim routing --only "1, 2, 4" --seeds 1
  python -m swarmd.sim routing --json
"""

SQUARE_CUBE_EXAMPLES = """
\b
Examples:
  python -m swarmd.sim square-cube                   four models, five latencies, beside the paper: a minute
  python -m swarmd.sim square-cube --wire fp16 --json
  python -m swarmd.sim square-cube --device T4 --layers 4
"""

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; the rest on stderr.")]
Wide = Annotated[bool, typer.Option("--wide", help="All columns, whatever the terminal's width.")]


def scale(
    peers: Annotated[int, typer.Option(metavar="N", min=1, help="Spread evenly over the stages.")] = 64,
    stages: Annotated[int, typer.Option(metavar="S", min=1)] = 8,
    minutes: Annotated[float, typer.Option(metavar="M", min=0.1, help="Virtual, once all have met.")] = 10.0,
    as_json: AsJson = False,
    wide: Wide = False,
) -> int:
    """Run a large swarm and count its messages, what they weigh, and what the simulation costs."""
    if peers < stages:
        typer.echo(f"{stages} stages need {stages} peers at least; say --peers {stages} or more.", err=True)
        return 2
    told = 0.0

    def tell(seconds: float, version: int) -> None:
        nonlocal told
        if seconds - told >= PROGRESS_SECONDS:
            told = seconds
            typer.echo(f"{seconds / 60:.0f} of {minutes:g} virtual minutes, {counted(version, 'step')}", err=True)

    result = measure_scale(peers, stages, 60 * minutes, on_progress=tell)
    if as_json:
        _print_json(dataclasses.asdict(result))
    else:
        show(views.render_scale(result), wide=wide)
    return 0


def detect(
    stages: Annotated[int, typer.Option(metavar="S", min=2)] = 16,
    as_json: AsJson = False,
    wide: Wide = False,
) -> int:
    """Pause one replica in the middle of its work, in each stage in turn: until when others wait for it."""
    seconds: list[float] = []
    for stage in range(stages):
        typer.echo(f"stage {stage} of {stages}", err=True)
        seconds.append(detection_seconds(stage, stages=stages))
    if as_json:
        _print_json({"stages": stages, "seconds": seconds})
        return 0
    show(views.render_detection(seconds), wide=wide)
    return 0


def straggler(
    replicas: Annotated[int, typer.Option(metavar="N", min=2, help="Of each of three stages.")] = 4,
    as_json: AsJson = False,
    wide: Wide = False,
) -> int:
    """One peer that is ten times slower than the rest: what it costs the whole swarm."""
    rows: list[Straggler] = []
    for row in straggler_costs(replicas=replicas, microbatches=60 * replicas):
        typer.echo("all equal" if row.stage is None else f"slow peer in stage {row.stage}", err=True)
        rows.append(row)
    if as_json:
        _print_json({"rows": [dataclasses.asdict(row) for row in rows]})
        return 0
    show(views.render_straggler(rows), wide=wide)
    return 0


def routing(
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each policy in each situation.")] = 3,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Situations with this in their names.")] = "",
    microbatches: Annotated[
        int, typer.Option(metavar="N", min=5, help="Per step and unit of the middle stage's speed.")
    ] = MICROBATCHES,
    as_json: AsJson = False,
    wide: Wide = False,
) -> int:
    """Compare the policies by which the next peer is chosen: how much of a stage's speed they use, and in which
    proportions.
    """
    rows: list[PolicyFigures] = []
    for row in compare(seeds, named=only, microbatches=microbatches):
        typer.echo(f"{row.situation}, {row.policy}, seed {row.seed}: {row.used:.1%}", err=True)
        rows.append(row)
    if not rows:
        known = "; ".join(it.name for it in SITUATIONS)
        typer.echo(f"no situation has {only} in its name; there are: {known}.", err=True)
        return 2
    if as_json:
        _print_json({"microbatches": microbatches, "rows": [dataclasses.asdict(row) for row in rows]})
        return 0
    show(views.render_routing(rows), wide=wide)
    return 0


def square_cube(
    wire: Annotated[str, typer.Option(metavar="CODEC", help="On the wire: int8, fp16, 4-bit, ...")] = "int8",
    device: Annotated[str, typer.Option(metavar="NAME", help="One per stage.")] = DEVICE,
    compute: Annotated[str, typer.Option(metavar="DTYPE", help="fp16, bf16 or fp32, of matrix products.")] = DTYPE,
    layers: Annotated[int, typer.Option(metavar="N", min=1, help='Shared layers in a stage of "ours".')] = 16,
    as_json: AsJson = False,
    wide: Wide = False,
) -> int:
    """Utilisation of the paper's four models at 500 Mb/s and five latencies, beside what the paper measured."""
    cells: list[Cell] = []
    try:
        for cell in measure(find_wire(wire), compute, find_device(device), layers):
            typer.echo(f"{cell.model} at {1e3 * cell.rtt_s:g} ms: {cell.utilisation:.1f} %", err=True)
            cells.append(cell)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        return 2
    if as_json:
        _print_json({"wire": wire, "device": device, "compute": compute, "cells": list(map(dataclasses.asdict, cells))})
        return 0
    show(views.render_square_cube(cells, device, wire, compute), wide=wide)
    return 0


def _print_json(figures: dict[str, Any]) -> None:
    typer.echo(json.dumps({"simulated": True, **figures}))
