"""A machine finds its swarm again, whatever has become of the peer by which it came; and it waits for it, saying so."""

import asyncio
import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.swarm import Daemon, run_command, swarm
from tests.e2e.test_training import RUN, write_settings

LONG = dataclasses.replace(RUN, steps=100_000, checkpoint_every=20, validate_every=0)
SHORT = dataclasses.replace(LONG, model=dataclasses.replace(RUN.model, layers=2, stages=2))
NOBODY = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWGFZqaMiEbZ2Rfw9qGdtYw3JG2GfYJMHp6S39cVQddTtU"


def remembered(daemon: Daemon) -> set[str]:
    """The peers that a home knows."""
    path = daemon.home / "run.json"
    return {it["peer"] for it in json.loads(path.read_text())["known"]} if path.exists() else set()


async def knows(daemon: Daemon, *others: Daemon) -> None:
    """Waits until a home knows others."""
    ids = {(await other.until(lambda status: bool(status["peer_id"])))["peer_id"] for other in others}
    async with asyncio.timeout(60):
        while not ids <= remembered(daemon):
            await asyncio.sleep(0.1)


def serving(status: dict[str, Any]) -> bool:
    return bool(status["state"] == "serving" and status["version"] > 2)


def check_one_history(*daemons: Daemon) -> None:
    """Each step that any of them has was decided once."""
    records: dict[int, str] = {}
    for line in (line for daemon in daemons for line in daemon.ledger()):
        assert records.setdefault(line["step"], line["record"]) == line["record"], line
    assert sorted(records) == list(range(1, max(records) + 1))


async def killed(daemon: Daemon) -> None:
    daemon.kill()
    await daemon.process.wait()


@pytest.mark.timeout(400)
async def test_the_founder_is_found_and_finds_the_others_wherever_it_listens() -> None:
    """It comes back on another port, and then a member whose only entry is the old one."""
    async with swarm() as it:
        text = it.directory / "text.txt"
        text.write_text("the quick brown fox jumps over the lazy dog. " * 2000)
        run = dataclasses.replace(SHORT, data=dataclasses.replace(SHORT.data, source=str(text)))
        model = write_settings(run, it.directory / "run.toml")
        founder = await it.start("--model", str(model), "--stage", "1")
        entry = await founder.address()
        head = await it.start("--bootstrap", entry, "--stage", "0", "--data", str(text))
        member = await it.start("--bootstrap", entry, "--stage", "1")
        await member.until(lambda status: status["version"] >= 2, seconds=120)
        await knows(founder, head, member)
        await killed(founder)
        founder = await it.start("--model", str(model), "--resume", home=founder.home)
        assert await founder.address() != entry
        await founder.until(serving, seconds=120)
        assert "joined run" in founder.log(), "it was founded once"
        await knows(member, head, founder)
        await killed(member)
        member = await it.start(home=member.home)
        await member.until(serving, seconds=120)
        check_one_history(founder, head, member)


@pytest.mark.timeout(120)
async def test_daemons_that_are_not_told_where_to_listen_keep_a_port_each() -> None:
    async with swarm() as it:
        first, second = [await it.start("--idle", listen="") for _ in range(2)]
        ports = [(await daemon.address()).split("/")[4] for daemon in (first, second)]
        assert ports[0] != ports[1]
        assert [(daemon.home / "port").read_text().strip() for daemon in (first, second)] == ports
        for daemon in (first, second):
            await killed(daemon)
        again = await it.start("--idle", listen="", home=second.home)
        assert (await again.address()).split("/")[4] == ports[1]
        code, _, error = await run_command(
            "swarmd", "start", "--idle", "--home", str(first.home), "--listen", f"/ip4/0.0.0.0/tcp/{ports[1]}"
        )
        assert code == 2
        assert f"tcp/{ports[1]}: another daemon of this user listens there; choose another with --listen" in error


@pytest.mark.timeout(120)
async def test_nobody_there_means_waiting_and_an_interrupt_ends_it_with_0() -> None:
    async with swarm() as it:
        waits = await it.start("--bootstrap", NOBODY, capture=True)
        assert waits.process.stderr is not None
        async with asyncio.timeout(60):
            while b"waiting for the settings" not in (line := await waits.process.stderr.readline()):
                assert line, "it ended"
        assert NOBODY.encode() in line
        assert b"start the other daemon" in line
        waits.process.send_signal(signal.SIGINT)
        _, rest = await waits.process.communicate()
        assert waits.process.returncode == 0
        assert b"Traceback" not in rest


@pytest.mark.timeout(120)
async def test_who_wants_to_wait_no_longer_says_so_and_a_wrong_peer_is_refused_at_once(tmp_path: Path) -> None:
    home = str(tmp_path / "h")
    common = ("swarmd", "start", "--home", home, "--listen", "/ip4/127.0.0.1/tcp/0")
    code, _, error = await run_command(*common, "--bootstrap", NOBODY, "--wait", "1")
    assert code == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith("swarmd: --wait is over: waiting for the settings of a run")
    assert NOBODY in last
    async with swarm() as it:
        other = await it.start("--idle")
        address = (await other.address()).rpartition("/")[0]
        wrong = f"{address}/{NOBODY.rpartition('/')[2]}"
        code, _, error = await run_command(*common, "--bootstrap", wrong)
    assert code == 2
    assert error.strip().splitlines()[-1].startswith(f"swarmd: can't join: {wrong}: another peer than")
