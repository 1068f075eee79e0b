"""`swarmctl plan` as tables and a plot: what a swarm would do that one thinks of renting.

Reads the question from the command line's words, has `swarmd.sim.planner.plan` answer it, and shows the answer; it
computes nothing. Imported only when a plan is asked for: the simulator takes half a second to load.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from swarmctl.render import words
from swarmd.errors import ConfigError
from swarmd.printable import SENTENCE_LIMIT, duration, size
from swarmd.settings import load_run, with_overrides
from swarmd.sim.measure.plots import Line, draw
from swarmd.sim.planner.costs import find_wire
from swarmd.sim.planner.devices import parse_peers
from swarmd.sim.planner.forecast import GroupInStage, Question
from swarmd.sim.planner.plan import Plan, Variant, plan

BITS = 8
DTYPES = ("auto", "fp32", "bf16", "fp16")


def answer(
    model: str,
    peers: str,
    *,
    rtt_ms: float,
    prices: Sequence[str] = (),
    wire: str | None = None,
    compute: str = "auto",
    stages: int | None = None,
    steps: int | None = None,
    one_machine: bool = False,
    variants: bool = True,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Plan:
    """The plan for what was typed. Raises ConfigError."""
    if compute not in DTYPES:
        raise ConfigError(f"--compute {compute} is not known; choose one of {', '.join(DTYPES)}.")
    run = with_overrides(load_run(model), stages=stages, steps=steps)
    groups = parse_peers(peers, prices)
    dtype = run.model.compute_dtype if compute == "auto" else compute
    if one_machine and not all(group.device.cores for group in groups):
        raise ConfigError("--one-machine is for profiles of `swarmd profile`; name only such files in --peers.")
    question = Question(run, groups, rtt_ms / 1e3, find_wire(wire or run.codecs.activations), dtype, one_machine)
    if one_machine:
        question = replace(question, rtt_s=0.0)
    return plan(question, variants=variants, on_progress=on_progress)


def render_plan(it: Plan) -> RenderableType:
    """Everything about a plan, most wanted first."""
    parts: list[RenderableType] = [_summary(it), _rows(it)]
    if it.wires:
        parts.append(_variants("on the wire", "bytes a hop, each way", it.wires, it.outlook.tokens_per_second))
    if it.growth:
        parts.append(_variants("peers", "", it.growth, it.outlook.tokens_per_second))
        parts.append(_plot(it))
    parts += [words(f"note: {note}", "dim", SENTENCE_LIMIT) for note in it.notes]
    return Group(*parts)


def _summary(it: Plan) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    look = it.outlook
    money = "no price given"
    if it.run_price is not None and it.price_per_billion is not None and it.price_per_hour is not None:
        money = f"{it.run_price:,.0f}, {it.price_per_hour:,.2f} an hour, {it.price_per_billion:,.2f} per billion tokens"
    for name, value in (
        ("simulated", f"{it.model}: {it.parameters_applied / 1e9:.2f} B parameters as applied, {it.stages} stages"),
        ("swarm", f"{it.peers} peers, {1e3 * it.rtt_s:g} ms round trip, {it.wire} on the wire, products in {it.dtype}"),
        ("speed", f"{look.tokens_per_second:,.0f} tokens/s; {look.of_bound:.0%} of what the slowest stage could do"),
        ("step", f"{duration(look.step_s)}, {look.overhead_s:,.1f} s of it to fill, drain, average and commit"),
        ("run", f"{_long(it.run_seconds)} for {it.run_tokens / 1e9:,.2f} billion tokens"),
        ("cost", money),
        ("bottleneck", look.bottleneck),
    ):
        table.add_row(words(name), words(value, limit=SENTENCE_LIMIT))
    return table


def _long(seconds: float) -> str:
    """Days, where a person would count them."""
    days = seconds / 86_400
    return f"{days:,.0f} days" if days >= 10 else duration(seconds)


def _rows(it: Plan) -> RenderableType:
    table = Table(title="best placement found", title_justify="left", header_style="bold")
    for name in ("stage", "peers", "device", "busy", "of peak", "uplink", "downlink", "sent", "received", "memory"):
        table.add_column(name, justify="left" if name == "device" else "right")
    for row in it.outlook.rows:
        table.add_row(*map(words, _cells(row)))
    return table


def _cells(row: GroupInStage) -> tuple[str, ...]:
    peak = "measured" if row.flops_share is None else f"{row.flops_share:.0%}"
    again = " +recompute" if row.recompute > 0.5 else ""
    memory = f"{size(round(row.memory_bytes))} ({row.memory_share:.0%})"
    return (
        f"{row.stage}",
        f"{row.count}",
        row.device,
        f"{row.utilisation:.0%}",
        peak + again,
        f"{row.uplink:.0%}",
        f"{row.downlink:.0%}",
        _bandwidth(row.sent),
        _bandwidth(row.received),
        memory,
    )


def _bandwidth(rate: float) -> str:
    return f"{rate * BITS / 1e6:,.1f} Mb/s"


def _variants(what: str, more: str, variants: Sequence[Variant], base: float) -> RenderableType:
    table = Table(title=f"with other {what}" if more else "with more peers", title_justify="left", header_style="bold")
    table.add_column(what)
    table.add_column("tokens/s", justify="right")
    table.add_column("against the plan", justify="right")
    if more:
        table.add_column(more, justify="right")
    table.add_column("bottleneck")
    for it in variants:
        name = it.what if it.exists else f"{it.what} (not in swarmd yet)"
        ratio = f"{it.tokens_per_second / base:.2f} x"
        middle = (size(it.wire_bytes),) if more else ()
        table.add_row(*map(words, (name, f"{it.tokens_per_second:,.0f}", ratio, *middle, it.bottleneck)))
    return table


def _plot(it: Plan) -> RenderableType:
    """Tokens per second over the number of peers, and what as many times the present speed would be."""
    peers = [float(variant.what) for variant in it.growth]
    speeds = [variant.tokens_per_second for variant in it.growth]
    in_proportion = [speeds[0] * count / peers[0] for count in peers]
    lines = [Line("planned", peers, speeds), Line("in proportion", peers, in_proportion, "x", joined=False)]
    return Text(draw("tokens/s over peers", lines))
