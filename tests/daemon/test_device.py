"""A device's memory, as a tool that pretends to be the driver's says."""

import math
from pathlib import Path

import psutil
import pytest

from swarmd.daemon import device
from swarmd.daemon.device import device_memory

SAYS = """#!/bin/sh
case "$1" in
  --id=0) echo 15360 ;;
  --id=GPU-7) echo 40960 ;;
  --id=3) exec sleep 100 ;;
  *) echo "No devices were found"; exit 6 ;;
esac
"""


@pytest.fixture(autouse=True)
def _tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SAYS)
    tool.chmod(0o755)
    monkeypatch.setattr(device, "TOOL", str(tool))
    monkeypatch.setattr(device, "TOOL_SECONDS", 1.0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (None, math.inf),
        ("max\n", math.inf),
        ("1048576\n", 1 << 20),
        ("9223372036854771712\n", math.inf),
        ("?", math.inf),
    ],
)
async def test_a_cpu_has_the_machine_s_or_what_a_container_allows(
    says: str | None, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if says is not None:
        (tmp_path / "limit").write_text(says)
    monkeypatch.setattr(device, "LIMITS", (str(tmp_path / "none"), str(tmp_path / "limit")))
    assert await device_memory("cpu") == min(expected, psutil.virtual_memory().total)


@pytest.mark.parametrize(
    ("name", "visible", "expected"),
    [
        ("cuda", None, 15360 << 20),
        ("cuda:0", None, 15360 << 20),
        ("cuda:1", "0, GPU-7", 40960 << 20),
        ("cuda:2", "0,GPU-7", 0),
        ("cuda:1", None, 0),
        ("cuda:3", None, 0),
        ("mps", None, 0),
    ],
)
async def test_a_gpu_has_what_its_driver_says(
    name: str, visible: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert await device_memory(name) == expected


async def test_without_a_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "TOOL", "/nowhere/nvidia-smi")
    assert await device_memory("cuda:0") == 0
