"""kill -9 at several moments of a daemon's life: what it leaves behind never stops the next start."""

import asyncio
import dataclasses
import signal
import socket
from pathlib import Path

import pytest

from tests.e2e.swarm import Daemon, Swarm, swarm
from tests.e2e.test_training import INT8, write_settings

ALONE = dataclasses.replace(
    INT8,
    model=dataclasses.replace(INT8.model, layers=1, stages=1),
    steps=100_000,
    validate_every=0,
    checkpoint_every=1,  # it is nearly always writing one
)


async def start(it: Swarm, model: Path, home: Path, *more: str) -> Daemon:
    return await it.start("--model", str(model), *more, home=home)


async def kill(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGKILL)
    await daemon.process.wait()


async def exists(daemon: Daemon, path: Path) -> None:
    """Until a file is there: earlier in a daemon's life than its first status."""
    async with asyncio.timeout(60):
        while not path.exists():
            await asyncio.sleep(0.002)


def litter(home: Path) -> None:
    """Remains of a daemon that is killed, or whose disk is full, at the worst moments."""
    (home / ".control.new").touch()
    (home / ".node.json.abc").write_text("{")
    (home / ".identity-abc").write_text("swarmd-identity-1 00")
    (home / "lock").write_text("4194304\n")
    with (home / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"step": 99')
    torn = home / "checkpoints" / "step-900000"
    torn.mkdir(parents=True, exist_ok=True)
    (torn / "stage-0.safetensors").write_bytes(b"half of it")
    (torn / "stage-0.json").write_text('{"format": ')
    (home / "control.sock").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "control.sock"))


@pytest.mark.timeout(300)
async def test_a_killed_daemon_never_stops_the_next_start() -> None:
    async with swarm() as it:
        model = write_settings(ALONE, it.directory / "run.toml")
        home = it.directory / "h"
        daemon = await start(it, model, home)
        await exists(daemon, home / "lock")
        await kill(daemon)  # before it listens
        daemon = await start(it, model, home)
        await exists(daemon, home / "control.sock")
        await kill(daemon)  # as it begins to listen
        daemon = await start(it, model, home)
        await daemon.until(lambda status: status["version"] >= 3)
        peer = (await daemon.status())["peer_id"]
        await kill(daemon)  # while it writes its ledger and checkpoints
        litter(home)
        daemon = await start(it, model, home, "--resume")
        status = await daemon.until(lambda status: status["version"] >= 1)
        assert status["peer_id"] == peer, "it is the same peer"
        assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []
        daemon.process.terminate()
        assert await daemon.end(60) == 0, daemon.log()
        assert not (home / "control.sock").exists()
