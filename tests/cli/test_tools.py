"""The other commands of `swarmd`: their options reach the code that does the work."""

import errno
import json
from pathlib import Path

import pytest

from swarmd.cli import tools
from swarmd.cli.main import run_command_line
from swarmd.demo import run as demo
from swarmd.demo.options import DemoOptions
from swarmd.stage import profile as profiles


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


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices that were measured."""
    devices: list[str] = []

    def measure(device: str, _threads: int, **_: object) -> dict[str, object]:
        devices.append(device)
        return {"name": "this-machine", "points": [1]}

    monkeypatch.setattr(profiles, "measure_profile", measure)
    return devices


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (".", "is a folder; name a file in it"),
        ("none/box.json", "there is no folder"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_profile_that_has_no_place_is_refused_before_it_is_measured(
    output: str,
    sentence: str,
    tmp_path: Path,
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command_line(["profile", "--output", output]) == 2
    assert sentence in capsys.readouterr().err
    assert not measured
    assert not list(tmp_path.iterdir())


def test_a_profile_that_may_not_be_written_is_refused_before_it_is_measured(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path) != tmp_path)  # for root, whom no rights hold up
    assert run_command_line(["profile", "--output", str(tmp_path / "box.json")]) == 2
    assert "may not be written" in capsys.readouterr().err
    assert not measured


def test_a_profile_goes_into_its_file_and_takes_its_name(tmp_path: Path, measured: list[str]) -> None:
    place = tmp_path / "box.json"
    place.write_text("an older one")
    assert run_command_line(["profile", "--output", str(place), "--device", "cpu"]) == 0
    assert json.loads(place.read_text()) == {"name": "box", "points": [1]}
    assert measured == ["cpu"]


def test_a_command_that_is_proposed_can_be_pasted(
    tmp_path: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "my box.json"
    assert run_command_line(["profile", "--output", str(place), "--device", "cpu"]) == 0
    assert f"use it as --peers '4x{place}' in `swarmctl plan`" in capsys.readouterr().err


def test_a_profile_whose_place_has_gone_is_printed(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill)
    assert run_command_line(["profile", "--output", str(tmp_path / "box.json")]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["points"] == [1]
    assert "No space left on device" in said.err
    assert measured == ["cpu"]


@pytest.mark.parametrize(("device", "grown"), [("cpu", 0), ("cuda:0", 1)])
def test_the_allocator_of_cards_is_set_up_before_a_profile(
    device: str, grown: int, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    monkeypatch.setattr(tools, "grow_segments", lambda: found.append(len(measured)))
    assert run_command_line(["profile", "--device", device]) == 0
    assert found == [0] * grown
