"""The other commands of `swarmd`: their options reach the code that does the work."""

from pathlib import Path

import pytest

from swarmd.cli.main import run_command_line
from swarmd.demo import run as demo
from swarmd.demo.options import DemoOptions


def test_each_option_of_the_demo_fills_its_own_field(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[DemoOptions] = []

    def keep(options: DemoOptions) -> int:
        found.append(options)
        return 0

    monkeypatch.setattr(demo, "run_demo", keep)
    words = "--peers 7 --stages 2 --steps 50 --model m --home h --json --kill-every 20 --timeout 30 --uneven"
    assert run_command_line(["demo", *words.split()]) == 0
    assert found == [
        DemoOptions(
            peers=7,
            model="m",
            stages=2,
            steps=50,
            home=Path("h"),
            as_json=True,
            timeout_s=30,
            kill_every_s=20,
            uneven=True,
        )
    ]
