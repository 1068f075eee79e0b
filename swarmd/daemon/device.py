"""The memory of a device, found out before torch is loaded: it decides which stage a newcomer can hold.

The driver's tool is asked about a GPU. Memory that can't be found out counts as unknown, and limits nothing.
"""

import asyncio
import contextlib
import logging
import math
import os

import psutil

from swarmd.daemon.children import child
from swarmd.files import read_regular

log = logging.getLogger(__name__)

TOOL = "nvidia-smi"
TOOL_SECONDS = 5.0
MIB = 1 << 20
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # cgroups of version 2, and of 1
LIMIT_BYTES = 100  # of such a file


async def device_memory(device: str) -> float:
    """Bytes of a device as torch names it (cpu, cuda, cuda:1); 0 if that can't be found out."""
    if device == "cpu":
        return float(min(psutil.virtual_memory().total, _allowed()))
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return 0.0
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    index = int(number or 0)
    if visible and index >= len(visible):
        return 0.0
    return await _ask_driver(visible[index] if visible else str(index))


def _allowed() -> float:
    """Bytes of memory that a container lets its processes have; infinite where there is no limit."""
    for path in LIMITS:
        with contextlib.suppress(OSError, ValueError):
            return float(read_regular(path, LIMIT_BYTES).decode().strip().replace("max", "inf"))
    return math.inf


async def _ask_driver(name: str) -> float:
    """`name`: a number or a UUID."""
    question = (TOOL, f"--id={name}", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    try:
        async with child(*question, stdout=asyncio.subprocess.PIPE) as process, asyncio.timeout(TOOL_SECONDS):
            said, _ = await process.communicate()
        return float(said.decode().strip()) * MIB
    except (OSError, ValueError) as trouble:  # no such tool, or it is silent for too long
        log.info("the memory of GPU %s can't be found out: %r", name, trouble)
        return 0.0
