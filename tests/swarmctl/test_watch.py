"""`swarmctl status --watch` into a pipe: a line, or an object of JSON, for each look."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swarmd.daemon.home import Home
from tests.daemon.fakes import STATUS, FakeDaemon, served

LINE = "stage 1 of 3 · step 8/20 · loss 3.250 · 1,234 tokens/s · 1 min 30 s left · 5 peers"


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Path]:
    async with served(FakeDaemon(), Home(tmp_path)):
        yield tmp_path


async def lines_of(home: Path, *options: str) -> tuple[list[str], int]:
    """The first three lines that it writes into a pipe, and its exit code when it is interrupted then."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "swarmctl", "--home", str(home), "status", "--watch", *options),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert process.stdout is not None
    lines = [(await process.stdout.readline()).decode() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    await process.stdout.read()
    return lines, await process.wait()


@pytest.mark.slow
async def test_into_a_pipe_it_writes_lines(home: Path) -> None:
    lines, code = await lines_of(home)
    assert (lines, code) == ([f"{LINE}\n"] * 3, 0)


@pytest.mark.slow
async def test_as_json_it_writes_an_object_a_line(home: Path) -> None:
    lines, code = await lines_of(home, "--json")
    assert [json.loads(line)["peer_id"] for line in lines] == [STATUS.peer_id] * 3
    assert code == 0
