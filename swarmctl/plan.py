"""`swarmctl plan` as tables and a plot: what a swarm would do that one thinks of renting.

Reads the question from the command line's words, has `swarmd.sim.planner.plan` answer it, and shows the answer; it
computes nothing. Imported only when a plan is asked for: the simulator takes half a second to load.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.text import Text

from swarmd.errors import ConfigError
from swarmd.layout import Column, Facts, FittedTable, Sentence
from swarmd.printable import SENTENCE_LIMIT, amount, counted, money, share, size, span
from swarmd.screen import MORE, cells, words
from swarmd.settings import load_run, with_overrides
from swarmd.sim.measure.plots import Line, Plot
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
    logging.getLogger("swarmd").addHandler(logging.NullHandler())  # what simulated peers log is no news
    if compute not in DTYPES:
        raise ConfigError(f"--compute {compute} is not known; choose one of {', '.join(DTYPES)}.")
    run = with_overrides(load_run(model), stages=stages, steps=steps)
    groups = parse_peers(peers, prices)
    if one_machine and not all(group.device.cores for group in groups):
        raise ConfigError("--one-machine is for profiles of `swarmd profile`; name only such files in --peers.")
    question = Question(run, groups, rtt_ms / 1e3, find_wire(wire or run.codecs.activations), compute, one_machine)
    if one_machine:
        question = replace(question, rtt_s=0.0)
    return plan(question, variants=variants, on_progress=on_progress)


def render_plan(it: Plan) -> RenderableType:
    """Everything about a plan, most wanted first."""
    parts: list[RenderableType] = [_summary(it), _rows(it)]
    if it.wires:
        parts.append(_wires(it.wires, it.outlook.tokens_per_second))
    if it.growth:
        parts.append(_growth(it.growth, it.outlook.tokens_per_second))
        parts.append(_plot(it.growth))
    parts += [Sentence(words(f"note: {note}", "dim", SENTENCE_LIMIT)) for note in it.notes]
    return Group(*parts)


def _summary(it: Plan) -> RenderableType:
    look = it.outlook
    overhead = f", {span(look.overhead_s)} of it to fill, drain, average and commit"
    applied = f"{amount(it.parameters_applied, 'parameter')} as applied"
    swarm = f"{counted(it.peers, 'peer')}, {1e3 * it.rtt_s:g} ms round trip"
    facts = (
        ("simulated", f"{it.model}: {applied}, {counted(it.stages, 'stage')}"),
        ("swarm", f"{swarm}, {it.wire} on the wire, products in {it.dtype}"),
        (
            "speed",
            f"{_speed(look.tokens_per_second)} tokens/s; {share(look.of_bound)} of what the slowest stage could do",
        ),
        ("step", f"{span(look.step_s)}{overhead if look.overhead_s > 0.01 * look.step_s else ''}"),
        ("run", f"{_long(it.run_seconds)} for {amount(it.run_tokens, 'token')}"),
        ("cost", _cost(it)),
        ("bottleneck", look.bottleneck),
    )
    return Facts([(name, words(value, limit=SENTENCE_LIMIT)) for name, value in facts])


def _cost(it: Plan) -> str:
    if it.run_price is None or it.price_per_billion is None or it.price_per_hour is None:
        return f"no price given for {', '.join(it.unpriced)}"
    if not it.price_per_hour:
        return "nothing at these prices"
    per_billion = f"{money(it.price_per_billion)} per billion tokens"
    return f"{money(it.run_price)}, {money(it.price_per_hour)} an hour, {per_billion}"


def _speed(rate: float) -> str:
    """A rate whose first digits count, however small it is."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _long(seconds: float) -> str:
    """Days, where a person would count them."""
    days = seconds / 86_400
    return f"{days:,.0f} days" if days >= 10 else span(seconds)


_PLACEMENT_COLUMNS = (
    Column("stage"),
    Column("peers"),
    Column("device", right=False),
    Column("busy", 1),
    Column("of peak", 5),
    Column("uplink", 3),
    Column("downlink", 4),
    Column("sent", 6),
    Column("received", 7),
    Column("memory", 2),
)


def _rows(it: Plan) -> RenderableType:
    rows = [cells(*_cells(row)) for row in it.outlook.rows]
    return FittedTable(_PLACEMENT_COLUMNS, rows, MORE, "best placement found")


def _cells(row: GroupInStage) -> tuple[str, ...]:
    peak = "measured" if row.flops_share is None else share(row.flops_share)
    again = " +recompute" if row.recompute > 0.5 else ""
    memory = f"{size(round(row.memory_bytes))} ({share(row.memory_share)})"
    return (
        f"{row.stage}",
        f"{row.count}",
        row.device,
        share(row.utilisation),
        peak + again,
        share(row.uplink),
        share(row.downlink),
        _bandwidth(row.sent),
        _bandwidth(row.received),
        memory,
    )


def _bandwidth(rate: float) -> str:
    """Bytes a second, as bits a second."""
    bits = rate * BITS
    for unit, value in (("Gb/s", 1e9), ("Mb/s", 1e6), ("kb/s", 1e3)):
        if bits >= value:
            return f"{bits / value:,.1f} {unit}"
    return f"{bits:.0f} b/s"


_WIRE_COLUMNS = (
    Column("on the wire", right=False),
    Column("tokens/s"),
    Column("in swarmd", 1, right=False),
    Column("against the plan", 2),
    Column("bytes a hop, each way", 4),
    Column("bottleneck", 3, right=False, wraps=True),
)


def _wires(variants: Sequence[Variant], base: float) -> RenderableType:
    rows = []
    for it in variants:
        rate, ratio, bottleneck = _compared(it, base)
        there = words("yes" if it.exists else "not yet")
        rows.append((words(it.what), rate, there, ratio, words(size(it.wire_bytes)), bottleneck))
    return FittedTable(_WIRE_COLUMNS, rows, MORE, "with other formats on the wire")


_GROWTH_COLUMNS = (
    Column("peers"),
    Column("tokens/s"),
    Column("against the plan", 2),
    Column("bottleneck", 1, right=False, wraps=True),
)


def _growth(variants: Sequence[Variant], base: float) -> RenderableType:
    rows = [(words(it.what), *_compared(it, base)) for it in variants]
    return FittedTable(_GROWTH_COLUMNS, rows, MORE, "with more peers")


def _compared(it: Variant, base: float) -> tuple[Text, Text, Text]:
    """A variant's tokens per second, their ratio to the plan's, and the bottleneck."""
    ratio = it.tokens_per_second / base
    shown = f"{ratio:.2f} x" if ratio >= 0.1 else f"{ratio:.2g} x"
    return words(_speed(it.tokens_per_second)), words(shown), words(it.bottleneck, limit=SENTENCE_LIMIT)


def _plot(growth: Sequence[Variant]) -> Plot:
    """Tokens per second over the number of peers, and what as many times the present speed would be."""
    peers, speeds = [float(it.what) for it in growth], [it.tokens_per_second for it in growth]
    in_proportion = [speeds[0] * count / peers[0] for count in peers]
    lines = [Line("planned", peers, speeds), Line("in proportion", peers, in_proportion, "x", joined=False)]
    return Plot("tokens/s over peers", lines)
