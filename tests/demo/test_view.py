"""The demo's display: a live table, or lines."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from swarmd.demo.process import DaemonProcess
from swarmd.demo.view import Lines, LiveTable, peer_table, swarm_lines
from tests.daemon.fake_swarmd import STEPS
from tests.daemon.fakes import STATUS
from tests.demo.stand_ins import RUN


def test_the_live_table_leaves_sentences_above_it(tmp_path: Path) -> None:
    file = io.StringIO()
    view = LiveTable(RUN, Console(file=file, force_terminal=True, width=120))
    peers = [DaemonProcess(0, 0, tmp_path)]
    view.show(peers, 1.0)
    view.say("peer 3 [bold]was[/] killed")
    peers[0].status = STATUS
    view.show(peers, 2.0)
    view.close()
    drawn = file.getvalue()
    assert "peer 3 [bold]was[/] killed" in drawn
    assert "loss 3.250" in drawn


def test_tables_and_lines_show_the_swarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers = [DaemonProcess(0, 0, tmp_path), DaemonProcess(1, 1, tmp_path)]
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as captured:
        console.print(peer_table(peers), swarm_lines(RUN, peers, 1.0))
    assert "the first daemon starts" in captured.get()
    peers[1].status = STATUS
    with console.capture() as captured:
        console.print(peer_table(peers), swarm_lines(RUN, peers, 100.0))
    for text in ("2.50", "1 min 40 s", f"step 7/{STEPS}", "loss 3.250", "38%", "validation 3.500"):
        assert text in captured.get()
    lines = Lines(replace(RUN, steps=100))
    for version, elapsed_s in ((0, 1.0), (1, 2.0), (4, 3.0), (5, 4.0), (6, 5.0), (6, 40.0)):
        peers[1].status = replace(STATUS, version=version)
        lines.show(peers, elapsed_s)
    assert [line.split()[3] for line in capsys.readouterr().err.splitlines()] == ["0/100", "5/100", "6/100"]
