"""A real daemon on a terminal: a live line below the log."""

import dataclasses
import sys
from pathlib import Path

import pytest

from swarmd.daemon.terminal import CLEAR
from swarmd.live_line import width
from tests.daemon.test_terminal import Screen, run_on
from tests.e2e.test_training import RUN, write_settings

ALONE = dataclasses.replace(RUN, steps=40, model=dataclasses.replace(RUN.model, stages=1), validate_every=0)
COLUMNS = 60


@pytest.mark.timeout(300)
def test_a_terminal_shows_how_it_goes(tmp_path: Path) -> None:
    model, home = write_settings(ALONE, tmp_path / "run.toml"), tmp_path / "home"
    words = ("--model", str(model), "--home", str(home), "--threads", "1", "--listen", "/ip4/127.0.0.1/tcp/0")
    code, said = run_on(COLUMNS, [sys.executable, "-m", "swarmd", "start", *words])
    assert code == 0, said
    lines = [piece.split("\r\n")[0].split("\x1b")[0] for piece in said.split(CLEAR)]
    shown = [line for line in lines if line and ":" not in line[:3]]
    assert "starting" in shown[0]
    assert [line for line in shown if line.startswith(("stage 0 of 1 · step", "0/1 step")) and "loss" in line], shown
    assert max(width(line) for line in shown) < COLUMNS
    screen = Screen(COLUMNS)
    screen.take(said.replace("\r\n", "\n").replace("\x1b[?25h", ""))
    assert screen.lines[-1] == "", "nothing of the line is left"
    assert "the run is over" in " ".join(screen.lines)
    assert not [line for line in screen.lines if " · " in line]
