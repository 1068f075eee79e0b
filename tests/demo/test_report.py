"""The demo's report: ledgers, curve, figures and sample."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from swarmd.config import DataConfig, RunConfig
from swarmd.demo.report import judge, loss_curve, print_report, read_ledgers, with_sample
from tests.demo.stand_ins import RUN, daemon_with_losses


def test_ledgers_are_merged_and_torn_lines_skipped(tmp_path: Path) -> None:
    for name, content in (
        ("a", '{"step": 2, "stage": 0, "loss": 1}\n{"st'),
        ("b", '[]\n{"step": 1, "stage": 0}\n{"step": 2, "stage": 0}\n{"step": 1, "stage": 1}\n'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.jsonl").write_text(content)
    assert read_ledgers([tmp_path / "a", tmp_path / "b", tmp_path / "none"]) == [
        {"step": 1, "stage": 0},
        {"step": 1, "stage": 1},
        {"step": 2, "stage": 0, "loss": 1},
    ]


def test_the_report_shows_curve_figures_and_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(directories: Sequence[Path], _run: RunConfig, prompt: str, tokens: int) -> str:
        assert directories == [tmp_path / "peer-0" / "checkpoints"]
        assert tokens > 0
        return f"{prompt}f(x):\n\x1b[31m return"

    result = judge(RUN, tmp_path, [daemon_with_losses(tmp_path, [5.5 - 0.1 * step for step in range(30)])], 130.0, 1.0)
    print_report(with_sample(result, replace(RUN, data=DataConfig()), write))
    out = capsys.readouterr().out
    for text in (
        "training loss",
        "5.500 at the first step",
        "validation 3.500",
        "2 min 10 s",
        "def f(x):",
        str(tmp_path),
    ):
        assert text in out
    assert "\x1b" not in out


def test_a_curve_is_drawn_and_drawn_again() -> None:
    curve = loss_curve([5.0, None, 3.0, 2.5], coloured=False)
    assert curve == loss_curve([5.0, None, 3.0, 2.5], coloured=False)
    assert len(curve.splitlines()) >= 10
    assert "5.0" in curve
    assert "\x1b" not in curve
    assert loss_curve([5.0], coloured=False)


def test_text_of_a_model_cannot_confuse_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    print_report(replace(judge(RUN, tmp_path, [], 1.0, 1.0), sample="a\tb\n\x1b[2J\x00é"))
    assert capsys.readouterr().out.endswith("    a\tb\n    ·[2J·é\n")
