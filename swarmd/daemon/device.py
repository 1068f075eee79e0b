"""The memory and name of a device, found out before torch is loaded: memory decides which stage a newcomer can hold.

The driver's tool is asked about a GPU. Memory that can't be found out counts as unknown, and limits nothing.
"""

import asyncio
import contextlib
import importlib.metadata
import logging
import math
import os
import platform
import re
from dataclasses import dataclass

import psutil

from swarmd.daemon.children import child
from swarmd.errors import ConfigError
from swarmd.files import read_regular
from swarmd.printable import printable
from swarmd.swarm.wire.messages.fields import DEVICE_NAME_CHARACTERS as NAME_CHARACTERS

log = logging.getLogger(__name__)

TOOL = "nvidia-smi"
TOOL_SECONDS = 5.0
MIB = 1 << 20
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # cgroups of version 2, and of 1
LIMIT_BYTES = 100  # of such a file
PROCESSORS = "/proc/cpuinfo"
PROCESSORS_BYTES = 1 << 20  # of that file; some 1.5 kB for each core


@dataclass(frozen=True)
class Device:
    """The facts about a device that others are told."""

    memory_bytes: float = 0.0  # 0: unknown
    name: str = ""  # as its maker calls it; "": unknown


async def look_at(device: str) -> Device:
    """Finds out about a device as torch names it (cpu, cuda, cuda:1)."""
    if device == "cpu":
        return Device(float(min(psutil.virtual_memory().total, _allowed())), printable(_processor(), NAME_CHARACTERS))
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return Device()
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    index = int(number or 0)
    if visible and index >= len(visible):
        return Device()
    return await _ask_driver(visible[index] if visible else str(index))


async def list_cards() -> list[int]:
    """The numbers of this machine's cards, those that CUDA_VISIBLE_DEVICES names if it is set. Raises ConfigError if
    there is none.
    """
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        count = len([name for name in named.split(",") if name.strip() and name.strip() != "-1"])
        if not count:
            raise ConfigError(f"CUDA_VISIBLE_DEVICES is '{named}', so there is no card; unset it, or use --device cpu.")
        return list(range(count))
    try:
        said = await _ask_tool("--query-gpu=index", "--format=csv,noheader")
        count = len([line for line in said.splitlines() if line.strip().isdecimal()])
    except (OSError, ValueError) as trouble:
        raise ConfigError(
            f"which cards there are can't be asked ({trouble}): `{TOOL}` must list them; or give --gpu N."
        ) from None
    if not count:
        raise ConfigError(f"`{TOOL}` lists no card; install a driver, or use --device cpu.")
    return list(range(count))


def torch_version() -> str:
    """The version of the torch that is installed, without loading it; "" if there is none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    """The model of this machine's processor, or at least its kind."""
    with contextlib.suppress(OSError, ValueError):
        text = read_regular(PROCESSORS, PROCESSORS_BYTES).decode()
        if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            return found[1].strip()
    return platform.machine()


def _allowed() -> float:
    """Bytes of memory that a container lets its processes have; infinite where there is no limit."""
    for path in LIMITS:
        with contextlib.suppress(OSError, ValueError):
            return float(read_regular(path, LIMIT_BYTES).decode().strip().replace("max", "inf"))
    return math.inf


async def _ask_driver(which: str) -> Device:
    """`which`: a number or a UUID."""
    try:
        said = await _ask_tool(f"--id={which}", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits")
        memory, _, name = said.strip().partition(",")
        return Device(float(memory) * MIB, printable(name.strip(), NAME_CHARACTERS))
    except (OSError, ValueError) as trouble:  # no such tool, or it is silent for too long
        log.info("the memory of GPU %s can't be found out: %r", which, trouble)
        return Device()


async def _ask_tool(*words: str) -> str:
    """The output of the driver's tool. Raises OSError (no such tool, or silent for too long), ValueError."""
    async with child(TOOL, *words, stdout=asyncio.subprocess.PIPE) as process, asyncio.timeout(TOOL_SECONDS):
        said, _ = await process.communicate()
    return said.decode()
