"""The tables of `python -m benchmarks.*` at every width: no word is cut, and what matters stays."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import RenderableType

from benchmarks import codecs, joining, moving, rebalance, recovery, start, wire
from benchmarks.chaos import report, virtual
from benchmarks.chaos.figures import Life, Recovery
from benchmarks.chaos.outcome import COUNTS, Ledgers
from benchmarks.chaos.plan import KINDS
from benchmarks.chaos.storm import Step, Trial
from benchmarks.pipeline.__main__ import BASELINE, PRESETS, SYSTEMS
from benchmarks.pipeline.report import Measurement, summarise
from benchmarks.pipeline.report import render as render_pipeline
from benchmarks.planner.cases import CASES
from benchmarks.planner.report import render as render_planner
from swarmd.sim.spot_market.meter import Flow
from tests.house import sources
from tests.widths import WIDTHS, check_width, drawn

STEPS = {name: {"count": 12, "median_s": 123.4, "longest_s": 234.5} for name in ("before", "during", "after")}
LEDGERS = Ledgers(260, dict.fromkeys(COUNTS, 12_345), [], 3)
MEASURED = [
    Measurement(preset, system, number, {"tokens": 1e6, "seconds": 9.0, "loss": 5.1234, "busy_cores": 1.97})
    for preset in PRESETS
    for system in SYSTEMS[:-1]
    for number in range(3)
] + [Measurement(PRESETS[0], SYSTEMS[-1], 0, None, "hivemind could not be installed (no wheel for this Python)")]
FLOW = Flow(98.76, 97.65, 99.12, 1_234, 38.6, 397.5, tuple(90.0 + hour % 7 for hour in range(320)))
RESULT = report.Result(
    minutes=60.0,
    faults=120,
    peace_rates=[4.87, 4.91],
    fault_rate=4.32,
    kept=0.883,
    capacity_alive=0.951,
    capacity_at_work=0.912,
    kept_of_alive=0.928,
    kept_of_at_work=0.968,
    recoveries=[Recovery(kind.name, 123, 11.2, 1_118.4, 12.3, None, 1) for kind in KINDS],
    ledgers=LEDGERS,
    largest_distance=3.4e-7,
    version=260,
    lives=[Life(number, 3_456.7, 450 << 20, 460 << 20, 512.0 * 1024, 123, 45) for number in range(3)],
    soaked=True,
    damaged_chunks=3,
    unsettled=[],
    deaths=[],
    bad_ends=[],
    home="/tmp/swarmd-chaos-abcdefgh",
)
PROBLEMS = ["12 microbatches lost", "memory of daemon 3 grew by 1.2 MiB per 10 minutes"]
JOIN = {
    **dict.fromkeys(("listening_s", "pulling_s", "opened_s", "serving_s", "first_microbatch_s", "bound_s"), 12.34),
    "state_bytes": 39_200_000,
    "gradient_bytes_meanwhile": 6_300_000,
    "bandwidth_bytes_per_second": 5e6,
    "steps": STEPS,
}
MOVE = {
    **dict.fromkeys(("pulled_s", "drains_s", "left_s", "opened_s", "serving_s", "first_microbatch_s"), 41.8),
    **dict.fromkeys(COUNTS, 0),
    "between_stages_s": 3.2,
    "state_bytes": 372_600_000,
    "bandwidth_bytes_per_second": 25e6,
    "step": 3,
    "left_in": 3,
    "served_in": 3,
    "steps": STEPS,
}
TRIAL = Trial(
    4.8,
    4.1,
    0.93,
    [Step(12.5, 0.9, kinds) for kinds in ("", "kill", "corrupt, drain, partition of 3, restart, slow")],
    dict.fromkeys(COUNTS, 12),
)
ROWS = [rebalance.Row(trace, name, (FLOW, FLOW), 12.3) for trace in rebalance.TRACES for name, *_ in rebalance.SWARMS]
KILLS = [
    recovery.Recovery("round leader", 7.9, 16.4, 12.3),
    recovery.Recovery("middle stage", 76.5, 85.1, None, 1),
]
CODECS = [
    codecs.Row("NVIDIA A100-SXM4-80GB", 2, (1, 2048, 4096), kind, "bottleneck-2", 1.0078, 7.4e-3, 67.123, 3.6)
    for kind in ("normal", "heavy")
]
PLANNED = [
    {"case": case.name, "predicted": 1_234.5, "measured": 1_321.0, "error": -0.067, "errors": [-0.07, 0.12, -0.01]}
    for case in CASES
]
STARTS = [start.Row("first microbatch, fresh home", 3.61, 3.4, 123.9, 5.2)]
WIRE = {name: {"bytes": 67_777, "encoded_per_second": 123_456, "decoded_per_second": 65_432} for name in wire.MESSAGES}

PAGES: dict[str, Callable[[], RenderableType]] = {
    "chaos": lambda: report.render(RESULT, []),
    "chaos, failed": lambda: report.render(RESULT, PROBLEMS),
    "chaos.virtual": lambda: virtual.render(virtual.figures([TRIAL, TRIAL])),
    "codecs": lambda: codecs.render(CODECS),
    "joining": lambda: joining.render(JOIN),
    "moving": lambda: moving.render(MOVE),
    "pipeline": lambda: render_pipeline(
        [summarise(MEASURED, preset, system, BASELINE) for preset in PRESETS for system in SYSTEMS],
        {"cpu": "AMD EPYC", "cores": 2, "load_before": 0.12},
    ),
    "planner": lambda: render_planner(PLANNED, 3),
    "rebalance": lambda: rebalance.summary(ROWS),
    "recovery": lambda: recovery.render(8.7, KILLS, LEDGERS, PROBLEMS),
    "start": lambda: start.render(STARTS, 3),
    "wire": lambda: wire.render(WIRE),
}


def in_one_line(page: str, width: int) -> str:
    return " ".join(drawn(PAGES[page](), width).split())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_no_word_is_cut(page: str, width: int) -> None:
    check_width(PAGES[page](), width)


@pytest.mark.parametrize("width", WIDTHS)
def test_curves_are_no_wider_than_the_page(width: int) -> None:
    lines = drawn(rebalance.Curves("recorded", ROWS[:8]), width).splitlines()
    assert max(map(len, lines)) <= min(width, rebalance.PLOT_COLUMNS)


def test_what_was_promised_is_said_at_every_width() -> None:
    for width in WIDTHS:
        assert "verdict passed" in in_one_line("chaos", width)
        assert "FAILED memory of daemon 3 grew" in in_one_line("chaos, failed", width)
        assert "2 promises or goals missed" in in_one_line("chaos, failed", width)
        assert "12,345 counted twice" in in_one_line("recovery", width)
        assert "FAILED: 12 microbatches lost" in in_one_line("recovery", width)
        assert "hivemind failed: hivemind could not be installed" in in_one_line("pipeline", width)
        assert "simulated" in in_one_line("chaos.virtual", width)


def test_every_benchmark_that_prints_has_its_page_here() -> None:
    """One with `main` is a command, and what it prints is a table or JSON."""
    commands = {
        ".".join(path.with_suffix("").parts[path.parts.index("benchmarks") + 1 :]).removesuffix(".__main__")
        for path in sources("benchmarks")
        if "add_forms(parser)" in Path(path).read_text(encoding="utf-8")
    }
    assert commands == {page.split(",")[0] for page in PAGES}
