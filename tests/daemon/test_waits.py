"""Waits of a daemon are said: after two seconds, again and again but never in a flood, and in its status."""

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.config import NodeConfig
from swarmd.daemon.home import Home
from swarmd.daemon.node import Node
from swarmd.daemon.report import Report
from swarmd.daemon.waits import WAITS_LIMIT, Standstill, Waits
from swarmd.errors import PeerUnreachable
from swarmd.sim.world.network import SimNetwork
from swarmd.status import Queues, Wait

DAY_SECONDS = 86_400
LOGGER = "swarmd.daemon.waits"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, LOGGER):
        yield caplog


def test_what_lasts_is_said_after_two_seconds_and_then_less_and_less_often(said: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    waits = Waits(lambda: [Wait("a peer for stage 1", tried="nobody answered", advice="start one")], clock)
    times = []
    for _ in range(DAY_SECONDS):
        before = len(said.records)
        waits.say_due()
        if len(said.records) > before:
            times.append(clock.now - 1000.0)
        clock.now += 1.0
    assert times[:5] == [2.0, 62.0, 182.0, 422.0, 902.0]
    assert len(times) < 35, "a day of waiting is some lines"
    assert said.messages[0] == "waiting for a peer for stage 1 (for 2 s, last: nobody answered): start one"
    assert said.records[0].levelno == logging.WARNING


def test_what_is_over_soon_is_not_said_and_what_was_said_is_ended(said: pytest.LogCaptureFixture) -> None:
    clock, now = Clock(), [Wait("short")]
    waits = Waits(lambda: now, clock)
    waits.say_due()
    clock.now += 1.9
    waits.say_due()
    now[:] = [Wait("long", progress="1 of 9")]
    waits.say_due()
    clock.now += 2.0
    now[:] = [Wait("long", progress="2 of 9")]
    waits.say_due()
    clock.now += 3.0
    now.clear()
    assert waits.now() == (), "who looks at the status takes nothing from the log"
    clock.now += 1.0
    waits.say_due()
    waits.say_due()
    assert said.messages == ["waiting for long (for 2 s, 2 of 9)", "over after 5 s: waiting for long"]


def test_seconds_count_from_when_it_was_first_seen() -> None:
    clock, now = Clock(), [Wait("text", progress="1")]
    waits = Waits(lambda: now, clock)
    assert waits.now() == (Wait("text", 0.0, "1"),)
    clock.now += 7.5
    now[:] = [Wait("text", progress="2")]
    with waits.during("the device"):
        assert waits.now() == (Wait("text", 7.5, "2"), Wait("the device"))
    assert waits.now() == (Wait("text", 7.5, "2"),)
    now.clear()
    assert waits.now() == ()


def test_what_was_under_way_before_is_said_at_once(said: pytest.LogCaptureFixture) -> None:
    clock, now = Clock(), [Wait("step 8 to go on", 61.0)]
    waits = Waits(lambda: now, clock)
    waits.say_due()
    assert said.messages == ["waiting for step 8 to go on (for 61 s)"]
    clock.now += 5.0
    now[:] = [Wait("step 8 to go on", 66.0)]
    assert waits.now()[0].seconds == 66.0


def test_a_standstill_is_noticed_after_a_minute_or_two_usual_steps() -> None:
    still = Standstill()
    assert [still.seconds(now, "a", 10.0) for now in (0.0, 60.0, 61.0)] == [0.0, 0.0, 61.0]
    assert [still.seconds(now, "b", 10.0) for now in (62.0, 121.0)] == [0.0, 0.0], "something moved"
    assert [still.seconds(now, "b", 300.0) for now in (500.0, 662.0, 663.0)] == [0.0, 0.0, 601.0]


def test_there_is_a_bound_on_waits() -> None:
    waits = Waits(lambda: [Wait(str(number)) for number in range(1000)])
    assert len(waits.now()) == WAITS_LIMIT


def test_a_sentence_says_all_that_is_known() -> None:
    assert Wait("x").sentence() == Wait("x").short() == "x"
    full = Wait("x", 12.34, "3 of 4", "b: refused", "do this")
    assert full.sentence() == "x (for 12 s, 3 of 4, last: b: refused): do this"
    assert full.short() == "x: 3 of 4: do this"


# ------------------------------------------------------------------------------------------------- a daemon


class Silent:
    """A transport that reaches nobody."""

    def __init__(self) -> None:
        self._inner: Any = SimNetwork().transport("a")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def traffic(self) -> tuple[int, int]:
        return 0, 0

    async def connect(self, address: str) -> str:
        raise PeerUnreachable(f"{address} refused")


def daemon(tmp_path: Path, **settings: Any) -> Node:
    transport: Any = Silent()
    return Node(NodeConfig(home=str(tmp_path), **settings), Home(tmp_path), transport, 1)


async def until(holds: Any) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_daemon_that_looks_for_a_run_says_so(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    address = "/ip4/127.0.0.1/tcp/9/p2p/x"
    node = daemon(tmp_path, bootstrap=(address, "/ip4/127.0.0.1/tcp/8/p2p/y"))
    report = Report(node)
    living = asyncio.create_task(node.live(None, idle=False))
    saying = asyncio.create_task(node.waits.say())
    try:
        await until(lambda: node.waits.now() and node.waits.now()[0].tried)
        status = report.status()
        assert status.state == "looking"
        assert status.waits[0].what == "the settings of a run, at 2 addresses"
        assert "refused" in status.waits[0].tried
        assert "--bootstrap" in status.waits[0].advice
        for words in (status.waiting_for, report.summary()):
            assert "at 2 addresses" in words
        await until(lambda: said.messages)
        assert re.search(r"at 2 addresses \(for \d+ s, last: ", said.messages[0])
    finally:
        for task in (living, saying):
            task.cancel()
        await asyncio.gather(living, saying, return_exceptions=True)


async def test_nobody_on_the_local_network_is_said_too(tmp_path: Path) -> None:
    node = daemon(tmp_path, mdns=True)
    report = Report(node)
    living = asyncio.create_task(node.live(None, idle=False))
    try:
        await until(lambda: report.status().waiting_for)
        assert "on this network" in report.status().waiting_for
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)


async def test_an_idle_daemon_is_idle_and_waits_for_nothing(tmp_path: Path) -> None:
    node = daemon(tmp_path)
    report = Report(node)
    living = asyncio.create_task(node.live(None, idle=True))
    try:
        await until(lambda: report.status().state == "idle")
        assert (report.status().waits, report.status().waiting_for) == ((), "")
        joining = asyncio.create_task(node.join("/ip4/127.0.0.1/tcp/9/p2p/x"))
        with pytest.raises(PeerUnreachable):
            await joining
        assert report.status().state == "idle"
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)


async def test_a_step_that_stands_still_is_said_though_nothing_is_known_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, now, done = daemon(tmp_path), [0.0], [3]
    idle = Queues(idle_because="2 microbatches are with the next stage")
    view: Any = SimpleNamespace(waits=list, queues=lambda: idle, progress=lambda: 0.5)
    figures = SimpleNamespace(microbatches_done=lambda: done[0])
    peer: Any = SimpleNamespace(figures=figures, state="serving", history=SimpleNamespace(version=7, finished=False))
    node.peer, node.view = peer, view
    monkeypatch.setattr("swarmd.daemon.node.time.monotonic", lambda: now[0])
    assert node._waits() == []
    now[0] = 59.0
    assert node._waits() == []
    now[0] = 61.0
    (wait,) = node._waits()
    assert (wait.what, wait.seconds) == ("step 8 to go on", 61.0)
    assert wait.progress == "50% of its microbatches are done; 2 microbatches are with the next stage"
    assert "swarmctl peers" in wait.advice
    peer.state = "paused"
    assert node._waits() == [], "it was told to stand still"
    peer.state, done[0] = "serving", 4
    assert node._waits() == [], "it goes on"
    node.peer = node.view = None
