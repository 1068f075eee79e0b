"""The gain of rebalancing on a spot market: 32 stages, 400 peers, 32 hours of preemptions, everything simulated.

`python -m benchmarks.rebalance`. Throughput in percent of the best placement of the peers alive at each moment, over
all hours, the first and the last, as mean over the seeds with its 95 % confidence interval. On the same traces: nobody
moves, with newcomers placed at random or where they are needed; SWARM's published rule every T seconds, at its best
(everyone knows everything at once); and ours, from production's functions and with production's late views. In all of
them a newcomer needs its state before it serves, and a move is a download, the end of a step (or, in the middle of a
long one, the handing over of a sum), and a switch. Peers go without a word; in the last two rows they have two minutes'
notice, as AWS gives it (`swarmd start --spot-notice 120`): they work on for one, while others may come, and drain.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import plotext
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from benchmarks.forms import add_forms, sentence, table
from swarmd.layout import Column, FittedTable
from swarmd.screen import show
from swarmd.sim.spot_market.flow import STATE_BYTES, STEP_SECONDS, Rule, Setting, Swarm
from swarmd.sim.spot_market.meter import Flow
from swarmd.sim.spot_market.preemptions import Change, generated, recorded

HOURS = 32.0
SWARMS: tuple[tuple[str, Rule, float, float], ...] = (  # and seconds of a period, and of notice before a peer goes
    ("nobody moves, newcomers anywhere", "random", 300.0, 0.0),
    ("nobody moves", "none", 300.0, 0.0),
    ("SWARM, T = 300 s", "published", 300.0, 0.0),
    ("SWARM, T = 60 s", "published", 60.0, 0.0),
    ("ours, T = 300 s", "balance", 300.0, 0.0),
    ("ours, T = 60 s", "balance", 60.0, 0.0),
    ("ours, T = 300 s, 120 s notice", "balance", 300.0, 120.0),
    ("ours, T = 60 s, 120 s notice", "balance", 60.0, 120.0),
)
TRACES: dict[str, Callable[[int], list[Change]]] = {"generated": generated, "recorded": recorded}
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # of 95 %, by degrees of freedom
NORMAL = 1.96
PLOT_COLUMNS, PLOT_ROWS = 110, 24  # characters


@dataclass(frozen=True)
class Row:
    trace: str
    swarm: str
    flows: tuple[Flow, ...]
    cpu_seconds: float

    def plain(self) -> dict[str, object]:
        figures = {
            name: self.mean_of(name) for name in ("overall", "first_hour", "last_hour", "moves_per_hour", "peers")
        }
        means = {name: {"mean": round(mean, 3), "plus_minus": round(half, 3)} for name, (mean, half) in figures.items()}
        return {"trace": self.trace, "swarm": self.swarm, "seeds": len(self.flows), **means}

    def cells(self) -> tuple[object, ...]:
        """The row of the table."""
        spans = (self.mean_of(name) for name in ("overall", "first_hour", "last_hour"))
        shown = (f"{mean:.2f} ± {half:.2f}" for mean, half in spans)
        moves = statistics.fmean(flow.moves_per_hour for flow in self.flows)
        return (self.trace, self.swarm, *shown, f"{moves:.1f}", f"{self.cpu_seconds:.1f}")

    def mean_of(self, name: str) -> tuple[float, float]:
        """The mean of a figure over the seeds, and half of its interval."""
        return mean_and_interval([getattr(it, name) for it in self.flows])


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """The mean and half of its 95 % interval; 0 for a single value, which has none."""
    if len(values) < 2:
        return values[0], 0.0
    factor = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else NORMAL
    return statistics.fmean(values), factor * statistics.stdev(values) / math.sqrt(len(values))


def measure(trace: str, swarm: str, setting: Setting, seeds: int, hours: float) -> Row:
    began, flows = time.process_time(), list[Flow]()
    for seed in range(seeds):
        flows.append(Swarm(setting, TRACES[trace](seed), seed, hours).run())
        print(f"{trace}, {swarm}: seed {seed} is done", file=sys.stderr)
    return Row(trace, swarm, tuple(flows), time.process_time() - began)


_COLUMNS = (
    Column("trace", 1, right=False),
    Column("swarm", right=False, wraps=True),
    Column("overall"),
    Column("first hour", 3),
    Column("last hour", 2),
    Column("moves/h", 4),
    Column("CPU s", 5),
)
CURVES = "abcdefghij"


def render(rows: list[Row]) -> RenderableType:
    """Everything for a person: a plot for each trace, and the table."""
    parts: list[RenderableType] = []
    for trace in dict.fromkeys(row.trace for row in rows):
        mine = [row for row in rows if row.trace == trace]
        parts += [sentence(f"{mark}: {row.swarm}") for mark, row in zip(CURVES, mine, strict=False)]
        parts.append(Curves(trace, mine))
    return Group(*parts, summary(rows))


def summary(rows: list[Row]) -> FittedTable:
    """A row for each swarm on each trace."""
    title = "simulated: percent of the best placement, mean of the seeds and its 95 % interval"
    return table(_COLUMNS, [row.cells() for row in rows], title)


class Curves:
    """The percent of the best placement hour by hour, as wide as the page, up to PLOT_COLUMNS."""

    def __init__(self, trace: str, rows: list[Row]) -> None:
        self._trace, self._rows = trace, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        figure = plotext.figure
        figure.clear()
        figure.plot_size(min(PLOT_COLUMNS, options.max_width), PLOT_ROWS)
        figure.title(f"percent of the best placement by hour, {self._trace} trace, simulated")
        for mark, row in zip(CURVES, self._rows, strict=False):
            curve = hourly(row)
            figure.draw(figure.signal(list(range(1, len(curve) + 1)), curve, marker=mark).lines())
        yield Text(str(plotext.uncolorize(str(figure.build()))))


def hourly(row: Row) -> list[float]:
    """Mean over the seeds of each hour."""
    points = [statistics.fmean(it) for it in zip(*(flow.curve for flow in row.flows), strict=True)]
    return [statistics.fmean(points[at : at + 10]) for at in range(0, len(points), 10)]


def save_plot(path: str, rows: list[Row]) -> None:
    """A PNG, one panel a trace. Needs matplotlib, which nothing else here does."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    traces = list(dict.fromkeys(row.trace for row in rows))
    figure, panels = pyplot.subplots(len(traces), 1, figsize=(9, 4 * len(traces)), squeeze=False)
    for panel, trace in zip(panels[:, 0], traces, strict=True):
        for row in (it for it in rows if it.trace == trace):
            curve = hourly(row)
            panel.plot(range(1, len(curve) + 1), curve, label=row.swarm)
        panel.set(title=f"{trace} trace, simulated", xlabel="hour", ylabel="% of the best placement")
        panel.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_forms(parser)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--hours", type=float, default=HOURS)
    parser.add_argument("--trace", choices=TRACES, action="append", help="only this one; may be given twice")
    parser.add_argument("--step", type=float, default=STEP_SECONDS, help="seconds of a step (default %(default)s)")
    parser.add_argument("--state", type=float, default=STATE_BYTES / 1e6, help="MB of a stage's (default %(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="save the curves as PNG; needs matplotlib")
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.hours, arguments.step, arguments.state) <= 0:
        parser.error("--seeds, --hours, --step and --state must be positive")
    rows = [
        measure(
            trace,
            swarm,
            Setting(rule, period_s, step_s=arguments.step, state_bytes=1e6 * arguments.state, notice_s=notice_s),
            arguments.seeds,
            arguments.hours,
        )
        for trace in arguments.trace or TRACES
        for swarm, rule, period_s, notice_s in SWARMS
    ]
    if arguments.plot:
        save_plot(arguments.plot, rows)
    if arguments.json:
        print(json.dumps({"hours": arguments.hours, "rows": [row.plain() for row in rows]}))
        return
    show(render(rows), wide=arguments.wide)


if __name__ == "__main__":
    main()
