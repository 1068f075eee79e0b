"""The engine on a pretended CUDA device: no operation across devices, bytes within bounds, waits counted.

For every preset and every kind of stage, on cards with and without bf16 and flash attention. `bytes.json` has what the
stages hold; `python -m tests.pretended.record` writes it anew where a change means to alter that.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.house import ROOT
from tests.pretended.device import CARDS

HERE = Path(__file__).parent
BYTES = HERE / "bytes.json"
MB = 1_000_000
HIGHER, LOWER = (
    1.02,
    0.9,
)  # of the bytes on record: what may come of another release of torch, and what is worth a new one
COMPILER = shutil.which("g++")

WAITS = {
    "forward": 1,
    "backward": 2,
    "tail": 2,
    "evaluation": 1,
    "contribution": 2,  # a part, and so are the next
    "reduce": 2,
    "assemble": 1,  # all parts
    "apply": 2,  # are the numbers finite, and their digest
    "import": 1,
}
"""The most waits for the device, of each kind of work."""

GB = 1_000_000_000


class Bound(NamedTuple):
    """Bytes that are promised at a preset's work."""

    preset: str
    work: str  # or a part of its name
    limit: float
    but: str = ""  # not counted
    cards: tuple[str, ...] = tuple(CARDS)


BOUNDS = (
    Bound("125m", "tail, graphs", 2.5 * GB, "parameters", ("sm_80", "sm_75")),  # for machines with 8 GB each
    Bound("125m", "tail, block", 2.5 * GB, "parameters"),  # also where attention stores its scores
    Bound("13b-shared", "block", 14.0 * GB),  # a card with 16 GB holds any stage
    Bound("13b-shared", "source", 14.0 * GB),
    Bound("13b-shared", "apply", 14.0 * GB),
)


def measure(guard: Path, *arguments: str) -> list[dict[str, Any]]:
    """What the stages did, each an object."""
    command = [sys.executable, "-m", "tests.pretended.run", str(guard), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def compile_guard(folder: Path) -> Path:
    """The library that makes PyTorch believe in a device."""
    import torch

    place, library = Path(torch.__file__).parent, folder / "guard.so"
    assert COMPILER is not None
    command = [COMPILER, "-std=c++20", "-shared", "-fPIC", f"-I{place}/include", str(HERE / "guard.cpp")]
    done = subprocess.run(
        [*command, "-o", str(library), f"-L{place}/lib", "-lc10", "-ltorch_cpu"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return library


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        assert not os.environ.get("CI"), "there is no g++, so the GPU's code would go untested"
        pytest.skip("needs g++")
    return compile_guard(tmp_path_factory.mktemp("guard"))


def works(found: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The figures of a stage's works."""
    return {name: it for name, it in found.items() if isinstance(it, dict)}


def peaks(found: dict[str, Any]) -> dict[str, int]:
    """Megabytes at the peak of each work."""
    return {name: -(-it["peak"] // MB) for name, it in works(found).items()}


def complaints(found: dict[str, Any], card: str) -> list[str]:
    """All that a stage did and shouldn't have done."""
    where = f"{found['preset']} stage {found['stage']}"
    if "error" in found:
        return [f"{where}: {found['error']}"]
    said = []
    for name, it in works(found).items():
        most = WAITS.get(name.partition(",")[0])
        if most is not None and it["waits"] > most:
            said.append(f"{where}: {name} waits {it['waits']} times for the device, {most} at most")
        for bound in BOUNDS:
            its = bound.preset == found["preset"] and bound.work in name and card in bound.cards
            if its and it["peak"] - found.get(bound.but, 0) > bound.limit:
                said.append(f"{where}: {name} takes {it['peak']} bytes, {bound.limit:.0f} are promised")
    recorded = json.loads(BYTES.read_text())[card][found["preset"]][str(found["stage"])]
    for name, peak in peaks(found).items():
        if not LOWER * recorded[name] <= peak <= HIGHER * recorded[name] + 1:
            said.append(f"{where}: {name} takes {peak} MB, and {recorded[name]} are on record")
    if found.get("left"):
        said.append(f"{where}: {found['left']} bytes are left when it is gone")
    return said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "card", [pytest.param(card, marks=pytest.mark.long) if "math" in card else card for card in CARDS]
)
def test_every_stage_keeps_to_its_device_its_bytes_and_its_waits(guard: Path, card: str) -> None:
    stages = measure(guard, card)
    assert {(it["preset"], str(it["stage"])) for it in stages} == {
        (preset, stage) for preset, them in json.loads(BYTES.read_text())[card].items() for stage in them
    }
    assert not [line for it in stages for line in complaints(it, card)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("copy", "waits"),
        ("synchronisation", "waits"),
        ("number", "DataDependentOutputException"),
        ("cpu tensor", "FakeTensorDeviceMismatchError"),
        ("kept logits", "takes"),
    ],
)
def test_what_must_not_be_shows(guard: Path, fault: str, said: str) -> None:
    (found,) = measure(guard, "sm_80", fault)
    assert any(said in line for line in complaints(found, "sm_80"))
