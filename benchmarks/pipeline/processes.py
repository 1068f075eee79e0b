"""Runs one measured program to its end, within a time limit, and leaves none of its processes behind.

Each program gets a mark in its environment, which whatever it starts inherits; afterwards every process with that
mark is killed. A process group is not enough: hivemind's network daemons outlive their parents for half a minute.
Knows no system by name.
"""

import json
import os
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MARK = "SWARMD_BENCHMARK_PROCESS"
LOG_LINES = 4  # of a failed program's log that are shown
EXIT_LIMIT_S = 10.0  # for killed processes to be gone


class MeasurementError(Exception):
    """The system did not give a result: one sentence, and where its log lies."""


@dataclass(frozen=True)
class Program:
    """A program to be run: its command, CPU threads of each of its processes, and where it runs."""

    command: tuple[str, ...]
    threads: int
    folder: Path


def run_program(program: Program, log: Path, limit_s: float) -> dict[str, Any]:
    """Runs it and gives the JSON object of its last line on stdout. Raises MeasurementError."""
    mark = uuid.uuid4().hex
    threads = str(program.threads)
    environment = os.environ | {MARK: mark, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    # Files rather than pipes: a forgotten child that holds a pipe open would keep us waiting for its end.
    with log.open("wb") as errors, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            program.command,
            cwd=program.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,  # an interrupt of the benchmark is the benchmark's to handle
        )
        try:
            process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(f"not done after {limit_s:.0f} s; its log is {log}") from error
        finally:
            kill_marked(mark)
            process.wait(timeout=EXIT_LIMIT_S)
        if process.returncode != 0:
            raise MeasurementError(f"ended with {process.returncode}; its log is {log}{_last_lines(log)}")
        output.seek(0)
        return _parse(output.read().decode(), log)


def kill_marked(mark: str) -> None:
    """Kills every process of ours whose environment has the mark, and waits until none is left."""
    deadline = time.monotonic() + EXIT_LIMIT_S
    while (marked := _marked(mark)) and time.monotonic() < deadline:
        for process in marked:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(marked, timeout=1.0)


def _marked(mark: str) -> list[psutil.Process]:
    """Looked up again each time, so that what a dying process started in between is found too."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, PermissionError):
            continue
    return found


def _parse(output: str, log: Path) -> dict[str, Any]:
    lines = output.strip().splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise MeasurementError(f"printed no result; its log is {log}{_last_lines(log)}") from error
    assert isinstance(result, dict)
    return result


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
    return "".join(f"\n    {line[:200]}" for line in lines)
