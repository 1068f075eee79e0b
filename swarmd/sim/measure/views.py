"""The figures of simulated swarms as tables and plots for a person. Every title says that they are simulated.

Relies on what `figures.py`, `routing_compared.py` and `square_cube.py` measure; computes means and ratios only.
"""

from collections.abc import Callable, Iterator, Sequence

from rich.console import Group, RenderableType

from swarmd.layout import Column, Facts, FittedTable
from swarmd.printable import counted, size
from swarmd.screen import MORE, cells, words
from swarmd.sim.measure.figures import SLOWER, Scale, Straggler
from swarmd.sim.measure.plots import Line, Plot
from swarmd.sim.measure.routing_compared import POLICIES, UNEVEN, PolicyFigures
from swarmd.sim.measure.square_cube import Cell


def _table(title: str, columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> FittedTable:
    return FittedTable(columns, [cells(*row) for row in rows], MORE, f"simulated: {title}")


# ------------------------------------------------------------------------------------------------- scale

_KIND_COLUMNS = (Column("message", right=False), Column("sent by a peer per second"))


def render_scale(it: Scale) -> RenderableType:
    """A large swarm's traffic, and what its simulation costs."""
    ratio = it.virtual_seconds / max(1e-9, it.cpu_seconds)
    swarm = f"{counted(it.peers, 'peer')} in {counted(it.stages, 'stage')}"
    count = f"{counted(it.microbatches, 'microbatch')}, {it.lost:,} lost, {it.duplicated:,} counted twice"
    gossip = f"{it.gossip:.2f} copies of {size(round(it.gossip_bytes))} together"
    facts = (
        ("simulated", f"{swarm}, {counted(round(it.virtual_seconds), 'virtual second')} after all had met"),
        ("committed", f"{counted(it.steps, 'step')}: {count}"),
        ("messages", f"{it.messages:.2f} sent by a peer per second"),
        ("gossip", f"{gossip}, sent by a peer per second; they are among the messages"),
        ("CPU", f"{it.cpu_seconds:.1f} s: {ratio:.1f} virtual seconds per CPU second"),
        ("joining", f"{it.joining_cpu_seconds:.1f} s of CPU before that, until all had met"),
    )
    kinds = [(kind, f"{rate:.3f}") for kind, rate in it.by_kind.items()]
    return Group(
        Facts([(name, words(value)) for name, value in facts]),
        _table("messages by kind, most frequent first", _KIND_COLUMNS, kinds),
    )


# ------------------------------------------------------------------------------------------------- detect

_DETECTION_COLUMNS = (Column("stage"), Column("seconds"))


def render_detection(seconds: Sequence[float]) -> RenderableType:
    """The seconds until nobody waits for a paused replica, by its stage."""
    rows = [(stage, f"{taken:.2f}") for stage, taken in enumerate(seconds)]
    return _table("until nobody waits for a paused replica", _DETECTION_COLUMNS, rows)


# ------------------------------------------------------------------------------------------------- straggler

_STRAGGLER_COLUMNS = (
    Column("slow peer", right=False),
    Column("step takes", 2),
    Column("throughput"),
    Column("of the capacity left", 1),
)


def render_straggler(rows: Sequence[Straggler]) -> RenderableType:
    """The cost of one slow peer in each place."""
    shown = [
        (
            "none" if row.stage is None else f"stage {row.stage}",
            f"{row.seconds:.1f} s",
            f"{row.kept:.1%}",
            f"{row.of_capacity:.1%}",
        )
        for row in rows
    ]
    return _table(f"one peer {SLOWER:g} times slower than the others", _STRAGGLER_COLUMNS, shown)


# ------------------------------------------------------------------------------------------------- routing

_POLICY_COLUMNS = (
    Column("situation", right=False, wraps=True),
    *(Column(policy, number) for number, policy in enumerate(POLICIES)),  # the run's default comes first and stays
)


def render_routing(rows: Sequence[PolicyFigures]) -> RenderableType:
    """The policies side by side in every situation."""
    uneven = [row for row in rows if row.speeds == UNEVEN]
    proportions = "proportions in which peers were chosen (in brackets how far off the worst peer of a run was)"
    pages = [
        ("percent of the sum of speeds used in the middle of a step", rows, lambda mine: _spread(mine, "used")),
        ("percent of the sum of speeds used over whole steps", rows, lambda mine: _spread(mine, "used_in_step")),
        (proportions, uneven, _proportions),
    ]
    return Group(*(_policies(*page) for page in pages if page[1]))


def _policies(
    title: str, rows: Sequence[PolicyFigures], cell: Callable[[Sequence[PolicyFigures]], str]
) -> RenderableType:
    """A row for each situation, with what all runs of each policy give."""
    shown = []
    for situation in dict.fromkeys(row.situation for row in rows):
        mine = [row for row in rows if row.situation == situation]
        shown.append((situation, *(cell([row for row in mine if row.policy == policy]) for policy in POLICIES)))
    return _table(title, _POLICY_COLUMNS, shown)


def _spread(rows: Sequence[PolicyFigures], name: str) -> str:
    """Mean, least and greatest."""
    figures = [100 * getattr(row, name) for row in rows]
    return f"{sum(figures) / len(figures):.1f} ({min(figures):.1f} to {max(figures):.1f})"


def _proportions(rows: Sequence[PolicyFigures]) -> str:
    """The work done by peers of each speed, in terms of speed, and the largest deviation of any one from its own."""
    means = []
    for speed in sorted(set(rows[0].speeds)):
        shares = [share for row in rows for share, own in zip(row.shares, row.speeds, strict=True) if own == speed]
        means.append(f"{speed * sum(shares) / len(shares):.2f}")
    farthest = max(abs(share - 1) for row in rows for share in row.shares)
    return f"{' : '.join(means)} ({farthest:.0%})"


# ------------------------------------------------------------------------------------------------- square-cube


def render_square_cube(found: Sequence[Cell], device: str, wire: str, dtype: str) -> RenderableType:
    """Utilisation by model and latency, beside the paper's."""
    rtts = list(dict.fromkeys(cell.rtt_s for cell in found))
    columns = (
        Column("model", right=False),
        Column("compute", len(rtts)),
        Column("link", len(rtts)),
        *(Column(f"{1e3 * rtt:g} ms", number) for number, rtt in enumerate(rtts)),
    )
    rows = []
    for model, row in _by_model(found):
        figures = (f"{cell.utilisation:.1f} ({cell.published:.1f})" for cell in row)
        rows.append((model, f"{1e3 * row[0].compute_s:.0f} ms", f"{1e3 * row[0].transfer_s:.0f} ms", *figures))
    title = f"utilisation in percent by round trip (the paper's in brackets), one {device} per stage, 500 Mb/s, {wire}"
    return Group(
        _table(f"{title}, {dtype}", columns, rows),
        Plot("utilisation in percent over round trip in ms", list(_curves(found))),
    )


def _curves(found: Sequence[Cell]) -> Iterator[Line]:
    """Utilisation over latency: lines are ours, single letters the paper's."""
    for model, row in _by_model(found):
        latencies = [1e3 * cell.rtt_s for cell in row]
        yield Line(model, latencies, [cell.utilisation for cell in row])
        yield Line(f"{model}, paper", latencies, [cell.published for cell in row], model[0], joined=False)


def _by_model(found: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    for model in dict.fromkeys(cell.model for cell in found):
        yield model, [cell for cell in found if cell.model == model]
