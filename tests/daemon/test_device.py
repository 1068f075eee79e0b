"""A device's memory and name, as a tool that pretends to be the driver's says."""

import math
import platform
from pathlib import Path

import psutil
import pytest
import torch

from swarmd.daemon import device
from swarmd.daemon.device import Device, list_cards, look_at, torch_version
from swarmd.errors import ConfigError

SAYS = """#!/bin/sh
case "$1" in
  --id=0) echo 15360, Tesla T4 ;;
  --id=GPU-7) echo 40960 ;;  # an old tool that says no more
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
    found = await look_at("cpu")
    assert found.memory_bytes == min(expected, psutil.virtual_memory().total)
    assert found.name


@pytest.mark.parametrize(
    ("says", "name"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Other\n", "Some CPU @ 2 GHz"),
        ("processor\t: 0\n", platform.machine()),
        ("model name\t: " + "x" * 500, "x" * 93 + "..."),
        (None, platform.machine()),
    ],
)
async def test_a_cpu_is_called_what_the_kernel_calls_it(
    says: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if says is not None:
        (tmp_path / "cpuinfo").write_text(says)
    monkeypatch.setattr(device, "PROCESSORS", str(tmp_path / "cpuinfo"))
    assert (await look_at("cpu")).name == name


@pytest.mark.parametrize(
    ("name", "visible", "expected"),
    [
        ("cuda", None, Device(15360 << 20, "Tesla T4")),
        ("cuda:0", None, Device(15360 << 20, "Tesla T4")),
        ("cuda:1", "0, GPU-7", Device(40960 << 20)),
        ("cuda:2", "0,GPU-7", Device()),
        ("cuda:1", None, Device()),
        ("cuda:3", None, Device()),
        ("mps", None, Device()),
    ],
)
async def test_a_gpu_has_what_its_driver_says(
    name: str, visible: str | None, expected: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert await look_at(name) == expected


async def test_without_a_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "TOOL", "/nowhere/nvidia-smi")
    assert await look_at("cuda:0") == Device()


def test_the_version_of_torch_is_known_without_loading_it() -> None:
    assert torch_version() == torch.__version__


@pytest.mark.parametrize(("says", "cards"), [("0\n1\n2\n", [0, 1, 2]), ("0\n", [0])])
async def test_the_driver_s_tool_lists_the_cards(
    says: str, cards: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{says}'\n")
    assert await list_cards() == cards


@pytest.mark.parametrize(("visible", "cards"), [("0", [0]), ("3,GPU-7", [0, 1])])
async def test_cards_that_are_hidden_count_for_nothing(
    visible: str, cards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert await list_cards() == cards


@pytest.mark.parametrize(
    ("visible", "tool", "words"),
    [
        ("-1", None, "CUDA_VISIBLE_DEVICES is '-1', so there is no card"),
        (None, "/nowhere/nvidia-smi", "which cards there are can't be asked"),
        (None, None, "lists no card; install a driver"),
    ],
)
async def test_a_machine_without_cards(
    visible: str | None, tool: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if tool is not None:
        monkeypatch.setattr(device, "TOOL", tool)
    with pytest.raises(ConfigError, match=words):
        await list_cards()
