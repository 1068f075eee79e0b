"""Real daemons as processes on loopback: start, look, wait for something to hold, stop."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

START_SECONDS = 60.0  # a daemon imports torch on a core it shares with others
END_SECONDS = 150.0  # a toy run of tens of steps
POLL_SECONDS = 0.1


class Daemon:
    """One `swarmd start` process."""

    def __init__(self, home: Path, process: asyncio.subprocess.Process) -> None:
        self.home, self.process = home, process

    async def status(self) -> dict[str, Any]:
        """The object that `swarmctl status --json` prints."""
        connector = aiohttp.UnixConnector(path=str(self.home / "control.sock"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://swarmd/v1/status") as answer,
        ):
            status: dict[str, Any] = await answer.json()
            return status

    async def until(self, holds: Callable[[dict[str, Any]], bool], seconds: float = START_SECONDS) -> dict[str, Any]:
        """The status, once something holds of it. Fails with the log when it doesn't in time."""
        status: dict[str, Any] = {}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    assert self.process.returncode is None, f"ended with {self.process.returncode}\n{self.log()}"
                    with contextlib.suppress(aiohttp.ClientError):
                        status = await self.status()
                        if holds(status):
                            return status
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise AssertionError(f"not in {seconds} s; status {status}\n{self.log()}") from None

    async def end(self, seconds: float = END_SECONDS) -> int:
        """Its exit code, once it ends by itself."""
        try:
            async with asyncio.timeout(seconds):
                return await self.process.wait()
        except TimeoutError:
            raise AssertionError(f"still running after {seconds} s\n{self.log()}") from None

    async def address(self) -> str:
        """The address at which others can dial it."""
        addresses: list[str] = (await self.until(lambda status: bool(status["addresses"])))["addresses"]
        return addresses[0]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def log(self) -> str:
        path = self.home / "swarmd.log"
        return path.read_text() if path.exists() else "(no log)"

    def ledger(self) -> list[dict[str, Any]]:
        path = self.home / "ledger.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Swarm:
    """Some daemons, which are stopped at the block's end."""

    def __init__(self, directory: Path, program: Sequence[str]) -> None:
        self.directory, self._program = directory, program
        self.daemons: list[Daemon] = []

    async def start(
        self,
        *arguments: str,
        home: Path | None = None,
        machine: str = "",
        listen: str = "/ip4/127.0.0.1/tcp/0",
        capture: bool = False,
    ) -> Daemon:
        """Starts a daemon on the CPU with one thread, listening on a free port of loopback. `machine`: its name, if it
        is to count as one of its own. `listen=""`: it isn't told where. `capture`: what it says can be read.
        """
        home = home or self.directory / str(len(self.daemons))
        common = ("--home", str(home), "--device", "cpu", "--threads", "1", *(("--listen", listen) if listen else ()))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *self._program,
            "start",
            *common,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, "SWARMD_MACHINE": machine},
            stderr=asyncio.subprocess.PIPE if capture else None,
        )
        daemon = Daemon(home, process)
        self.daemons.append(daemon)
        return daemon

    async def found(self, model: Path, stages: Sequence[int], *options: str) -> list[Daemon]:
        """A whole swarm: the first founds the run, the others join it, one for each stage named. `options`: of all."""
        first = await self.start("--model", str(model), "--stage", str(stages[0]), *options)
        address = await first.address()
        others = [await self.start("--bootstrap", address, "--stage", str(stage), *options) for stage in stages[1:]]
        return [first, *others]

    async def stop(self) -> None:
        for daemon in self.daemons:
            if daemon.process.returncode is None:
                daemon.process.kill()
            await daemon.process.wait()


@contextlib.asynccontextmanager
async def swarm(program: Sequence[str] = ("swarmd",)) -> AsyncIterator[Swarm]:
    """Homes are directly under the temporary directory: a socket's path is short. `program`: a module that is swarmd,
    and its first arguments.
    """
    with tempfile.TemporaryDirectory(prefix="swarmd-") as directory:
        it = Swarm(Path(directory), program)
        try:
            yield it
        finally:
            await it.stop()


async def run_command(*command: str, seconds: float = START_SECONDS) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python -m ...`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise AssertionError(f"{command} still runs after {seconds} s") from None
    return process.returncode or 0, out.decode(), err.decode()


async def swarmctl(daemon: Daemon, *command: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """The object on stdout (empty if there is none) and what is on stderr."""
    got, out, error = await run_command("swarmctl", "--home", str(daemon.home), *command, "--json")
    assert (got, "Traceback" in error) == (code, False), (out, error, daemon.log())
    return (json.loads(out) if out.strip() else {}), error


def check_replicas(daemons: Sequence[Daemon]) -> int:
    """Replicas agree at every step (promise 2), along one chain of records. Returns the number of steps."""
    seen: dict[tuple[int, int], tuple[str, str, str]] = {}
    records: dict[int, str] = {}
    for daemon in daemons:
        lines = daemon.ledger()
        for line in lines:
            assert records.setdefault(line["step"], line["record"]) == line["record"]
            names = (line["record"], line["grad_digest"], line["digest"])
            assert seen.setdefault((line["step"], line["stage"]), names) == names, f"{daemon.home} differs: {line}"
        for before, after in itertools.pairwise(lines):
            assert (after["step"], after["parent"]) == (before["step"] + 1, before["record"])
    return len(records)
