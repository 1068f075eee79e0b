"""Kills of a demo: the daemons that may be killed, and those that are away."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from swarmd.demo import kills as demo_kills
from swarmd.demo.kills import Killer, plan_victim
from swarmd.demo.process import DaemonProcess
from tests.daemon.fakes import STATUS
from tests.demo.stand_ins import FAKE


async def test_who_was_killed_is_away_until_it_is_started_again_whatever_it_said_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the signal and the process' end the daemon seems to run and to serve."""
    victim, other = (DaemonProcess(number, 0, tmp_path / f"peer-{number}", FAKE) for number in range(2))
    monkeypatch.setattr(DaemonProcess, "runs", True)
    monkeypatch.setattr(DaemonProcess, "signal", lambda *_: None)
    for peer in (victim, other):
        peer.status, peer.answers = replace(STATUS, state="serving"), True
    killer = Killer([victim, other], 1.0, lambda _: [], lambda _: None)
    started = asyncio.Event()
    monkeypatch.setattr(DaemonProcess, "ended", lambda _: started.wait())
    monkeypatch.setattr(DaemonProcess, "start", lambda *_: asyncio.sleep(0))
    monkeypatch.setattr(demo_kills, "AWAY_S", 0.0)
    kill = asyncio.create_task(killer._kill(victim))
    await asyncio.sleep(0)
    killer.notice_returns()
    assert killer.away == {victim.number}
    started.set()
    await kill
    killer.notice_returns()
    assert killer.away == set()


def test_the_last_replica_at_work_is_never_killed(tmp_path: Path) -> None:
    class Running(DaemonProcess):
        runs = True

    peers = [Running(number, number % 2, tmp_path) for number in range(3)]  # stage 0 twice, stage 1 once
    rng = random.Random(1)
    assert plan_victim(peers, rng) is None, "nobody is known to be at work"
    for peer in peers:
        peer.status, peer.answers = replace(STATUS, stage=peer.number % 2), True
    assert {plan_victim(peers, rng) for _ in range(50)} == {peers[0], peers[2]}
    peers[2].status = replace(STATUS, stage=0, state="joining")
    assert plan_victim(peers, rng) is None
