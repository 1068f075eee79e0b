"""`python -m swarmd.sim scale`, `detect`, `straggler`, `routing` and `square-cube`: figures of simulated swarms, as
tables or JSON.

Parses and prints; `figures.py`, `routing_compared.py` and `square_cube.py` measure. All that is printed says that it is
simulated.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from swarmd.errors import ConfigError
from swarmd.sim.measure.figures import Scale, Straggler, detection_seconds, measure_scale, straggler_costs
from swarmd.sim.measure.plots import Line, draw
from swarmd.sim.measure.routing_compared import MICROBATCHES, POLICIES, SITUATIONS, UNEVEN, PolicyFigures, compare
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


def scale(
    peers: Annotated[int, typer.Option(metavar="N", min=1, help="Spread evenly over the stages.")] = 64,
    stages: Annotated[int, typer.Option(metavar="S", min=1)] = 8,
    minutes: Annotated[float, typer.Option(metavar="M", min=0.1, help="Virtual, once all have met.")] = 10.0,
    as_json: AsJson = False,
) -> int:
    """Run a large swarm and count its messages, what they weigh, and what the simulation costs."""
    if peers < stages:
        typer.echo(f"{stages} stages need {stages} peers at least; say --peers {stages} or more.", err=True)
        return 2
    shown = 0.0

    def show(seconds: float, version: int) -> None:
        nonlocal shown
        if seconds - shown >= PROGRESS_SECONDS:
            shown = seconds
            typer.echo(f"{seconds / 60:.0f} of {minutes:g} virtual minutes, {version} steps", err=True)

    result = measure_scale(peers, stages, 60 * minutes, on_progress=show)
    if as_json:
        _print_json(dataclasses.asdict(result))
    else:
        _print_scale(result)
    return 0


def _print_scale(it: Scale) -> None:
    table = _table(f"{it.peers} peers in {it.stages} stages, {it.virtual_seconds / 60:g} minutes", "", "")
    ratio = it.virtual_seconds / max(1e-9, it.cpu_seconds)
    for name, value in (
        ("steps committed", f"{it.steps}"),
        ("microbatches, lost, duplicated", f"{it.microbatches}, {it.lost}, {it.duplicated}"),
        ("messages per peer and second", f"{it.messages:.2f}"),
        ("of these gossip copies", f"{it.gossip:.2f}"),
        ("gossip bytes per peer and second", f"{it.gossip_bytes:.0f}"),
        ("CPU seconds, joining before that", f"{it.cpu_seconds:.1f}, {it.joining_cpu_seconds:.1f}"),
        ("virtual seconds per CPU second", f"{ratio:.1f}"),
        *((f"  {kind} per peer and second", f"{rate:.3f}") for kind, rate in it.by_kind.items()),
    ):
        table.add_row(name, value)
    Console().print(table)


def detect(
    stages: Annotated[int, typer.Option(metavar="S", min=2)] = 16,
    as_json: AsJson = False,
) -> int:
    """Pause one replica in the middle of its work, in each stage in turn: until when others wait for it."""
    seconds: list[float] = []
    for stage in range(stages):
        typer.echo(f"stage {stage} of {stages}", err=True)
        seconds.append(detection_seconds(stage, stages=stages))
    if as_json:
        _print_json({"stages": stages, "seconds": seconds})
        return 0
    table = _table("a paused replica is found", "stage", "seconds")
    for stage, taken in enumerate(seconds):
        table.add_row(f"{stage}", f"{taken:.2f}")
    Console().print(table)
    return 0


def straggler(
    replicas: Annotated[int, typer.Option(metavar="N", min=2, help="Of each of three stages.")] = 4,
    as_json: AsJson = False,
) -> int:
    """One peer that is ten times slower than the rest: what it costs the whole swarm."""
    rows: list[Straggler] = []
    for row in straggler_costs(replicas=replicas, microbatches=60 * replicas):
        typer.echo("all equal" if row.stage is None else f"slow peer in stage {row.stage}", err=True)
        rows.append(row)
    if as_json:
        _print_json({"rows": [dataclasses.asdict(row) for row in rows]})
        return 0
    table = _table(
        "one peer ten times slower", "in stage", "seconds per step", "throughput kept", "of the capacity left"
    )
    for row in rows:
        where = "none" if row.stage is None else f"{row.stage}"
        table.add_row(where, f"{row.seconds:.1f}", f"{row.kept:.1%}", f"{row.of_capacity:.1%}")
    Console().print(table)
    return 0


def routing(
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each policy in each situation.")] = 3,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Situations with this in their names.")] = "",
    microbatches: Annotated[
        int, typer.Option(metavar="N", min=5, help="Per step and unit of the middle stage's speed.")
    ] = MICROBATCHES,
    as_json: AsJson = False,
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
    _print_policies("percent of the sum of speeds, in the middle of a step", rows, lambda mine: _spread(mine, "used"))
    _print_policies("percent of the sum of speeds, of whole steps", rows, lambda mine: _spread(mine, "used_in_step"))
    uneven = [row for row in rows if row.speeds == UNEVEN]
    _print_policies("proportions in which peers were chosen (farthest off: a peer in a run)", uneven, _proportions)
    return 0


def _print_policies(title: str, rows: list[PolicyFigures], cell: Callable[[list[PolicyFigures]], str]) -> None:
    """A row for each situation, with what all runs of each policy give."""
    table = _table(title, "situation", *POLICIES)
    for situation in dict.fromkeys(row.situation for row in rows):
        mine = [row for row in rows if row.situation == situation]
        table.add_row(situation, *(cell([row for row in mine if row.policy == policy]) for policy in POLICIES))
    if table.row_count:
        Console().print(table)


def _spread(rows: list[PolicyFigures], name: str) -> str:
    """Mean, least and greatest."""
    figures = [100 * getattr(row, name) for row in rows]
    return f"{sum(figures) / len(figures):.1f} ({min(figures):.1f} to {max(figures):.1f})"


def _proportions(rows: list[PolicyFigures]) -> str:
    """The work done by peers of each speed, in terms of speed, and the largest deviation of any one from its own."""
    means = []
    for speed in sorted(set(rows[0].speeds)):
        shares = [share for row in rows for share, own in zip(row.shares, row.speeds, strict=True) if own == speed]
        means.append(f"{speed * sum(shares) / len(shares):.2f}")
    farthest = max(abs(share - 1) for row in rows for share in row.shares)
    return f"{' : '.join(means)} ({farthest:.0%})"


def square_cube(
    wire: Annotated[str, typer.Option(metavar="CODEC", help="On the wire: int8, fp16, 4-bit, ...")] = "int8",
    device: Annotated[str, typer.Option(metavar="NAME", help="One per stage.")] = DEVICE,
    compute: Annotated[str, typer.Option(metavar="DTYPE", help="fp16, bf16 or fp32, of matrix products.")] = DTYPE,
    layers: Annotated[int, typer.Option(metavar="N", min=1, help='Shared layers in a stage of "ours".')] = 16,
    as_json: AsJson = False,
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
    rtts = list(dict.fromkeys(cell.rtt_s for cell in cells))
    headings = [f"{1e3 * rtt:g} ms" for rtt in rtts]
    title = f"utilisation in percent (paper's in brackets), one {device} per stage, 500 Mb/s, {wire}, {compute}"
    table = _table(title, "model", "compute", "link", *headings)
    for model in dict.fromkeys(cell.model for cell in cells):
        row = [cell for cell in cells if cell.model == model]
        figures = [f"{cell.utilisation:.1f} ({cell.published:.1f})" for cell in row]
        table.add_row(model, f"{1e3 * row[0].compute_s:.0f} ms", f"{1e3 * row[0].transfer_s:.0f} ms", *figures)
    Console().print(table)
    typer.echo(_plot_cells(cells))
    return 0


def _plot_cells(cells: list[Cell]) -> str:
    """Utilisation over latency: lines are ours, crosses the paper's."""
    lines = []
    for model in dict.fromkeys(cell.model for cell in cells):
        row = [cell for cell in cells if cell.model == model]
        latencies = [1e3 * cell.rtt_s for cell in row]
        lines.append(Line(model, latencies, [cell.utilisation for cell in row]))
        lines.append(Line(f"{model}, paper", latencies, [cell.published for cell in row], model[0], joined=False))
    return draw("utilisation in percent over round trip in ms", lines)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=f"simulated: {title}", title_justify="left", show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _print_json(figures: dict[str, Any]) -> None:
    typer.echo(json.dumps({"simulated": True, **figures}))
