"""The tables of `python -m swarmd.sim` at every width: no word is cut, and each says that it is simulated."""

from collections.abc import Callable

import pytest
from rich.console import RenderableType

from swarmd.sim.campaign import proof
from swarmd.sim.campaign.seeds import Result
from swarmd.sim.measure import views
from swarmd.sim.measure.figures import Scale, Straggler
from swarmd.sim.measure.plots import PLOT_COLUMNS, Line, Plot
from swarmd.sim.measure.routing_compared import POLICIES, SITUATIONS, PolicyFigures
from swarmd.sim.measure.square_cube import RTTS_S, SHAPES, Cell
from tests.widths import WIDTHS, check_width, drawn

KINDS = ("Card", "Beat", "Hop", "Gradient", "AskHoldings", "Contribution", "Room", "Announce")
SCALE = Scale(1_000, 32, 3_600.0, 1_234.5, 456.7, 78, 468_000, 0, 0, 12.34, 1.9, 14_321.0, dict.fromkeys(KINDS, 1.2345))
STRAGGLERS = [Straggler(stage, 123.4, 0.987, 1.02) for stage in (None, 0, 1, 2)]
ROUTING = [
    PolicyFigures(it.name, policy, seed, it.speeds, 0.987 - seed / 100, 0.9, tuple(1.0 + seed / 50 for _ in it.speeds))
    for it in SITUATIONS
    for policy in POLICIES
    for seed in range(3)
]
CELLS = [Cell(it.name, rtt, 99.5, 98.7, 1.234, 0.1) for it in SHAPES for rtt in RTTS_S]
PROOF = [
    Result(
        seed,
        struck={"cut": 30, "crash": 25},
        figures={
            **dict.fromkeys(("resent", "subtracted", "lost", "duplicated", "forked", "voided"), 12_345),
            "replicas": "12-13-12",
            "steps": 20,
            "difference": 1.2e-6,
            "tensor": "blocks.0.attention.output.weight",
        },
        virtual_s=12_345.6,
        wall_s=123.4,
    )
    for seed in (7, 4_711)
] + [Result(5, promise=6)]

PAGES: dict[str, Callable[[], RenderableType]] = {
    "scale": lambda: views.render_scale(SCALE),
    "detect": lambda: views.render_detection([1.23, 45.6]),
    "straggler": lambda: views.render_straggler(STRAGGLERS),
    "routing": lambda: views.render_routing(ROUTING),
    "square-cube": lambda: views.render_square_cube(CELLS, "RTX4090", "bottleneck-2", "fp16"),
    "prove": lambda: proof.render(PROOF),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_no_word_is_cut(page: str, width: int) -> None:
    check_width(PAGES[page](), width)


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"prove"}))
def test_a_page_says_that_it_is_simulated(page: str) -> None:
    assert "simulated" in drawn(PAGES[page](), 80).splitlines()[0]


def test_what_matters_is_still_there_where_the_terminal_is_narrow() -> None:
    assert "iwrr" in drawn(PAGES["routing"](), 40), "the default policy"
    assert {"seed", "faults", "lost", "difference"} <= set(drawn(PAGES["prove"](), 40).splitlines()[0].split())
    assert "0 counted twice" in " ".join(drawn(PAGES["scale"](), 40).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plot_is_no_wider_than_the_page(width: int) -> None:
    lines = drawn(Plot("speed", [Line("planned", [1.0, 2.0], [10.0, 20.0])]), width).splitlines()
    assert max(map(len, lines)) <= min(width, PLOT_COLUMNS)
