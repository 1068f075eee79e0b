"""`swarmd start --gpu all`: which daemons are started with what, whose lines are shown, and how all of them end."""

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swarmd.cli import every_card
from swarmd.cli.every_card import CardDaemon, EveryCard, counted_up, for_card, joint_code
from swarmd.cli.main import run_command_line
from swarmd.cli.options import StartOptions, words_of
from swarmd.daemon.home import Home
from swarmd.errors import ConfigError
from tests.cli.test_start import GIVEN
from tests.daemon.fakes import STATUS

STAND_IN = (sys.executable, str(Path(__file__).parent / "stand_in.py"))
FIRST = "/ip4/198.51.100.7/tcp/4001/p2p/12D3KooWstandin"
LOCAL = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWstandin"
JOIN = StartOptions(bootstrap=("/ip4/203.0.113.7/tcp/4001/p2p/12D3KooWx",))
DEADLINE_S = 30.0


@pytest.fixture
def daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[CardDaemon]:
    status = dataclasses.asdict(dataclasses.replace(STATUS, addresses=(FIRST,)))
    monkeypatch.setenv("STAND_IN_STATUS", json.dumps(status))
    made = [CardDaemon(card, Home(tmp_path / f"gpu-{card}"), as_json=False, program=STAND_IN) for card in range(3)]
    for daemon in made:
        daemon.home.prepare()
    return made


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.01)


def written(daemon: CardDaemon, name: str = "words") -> Any:
    place = daemon.home.path / f"{name}.json"
    return json.loads(place.read_text()) if place.exists() else None


async def run_and_stop(
    options: StartOptions, daemons: list[CardDaemon], signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)
) -> int:
    """Runs them until all are there, sends this process signals, and waits for the end."""
    running = asyncio.create_task(EveryCard(options, daemons).run())
    await until(lambda: all(it.home.control_socket.exists() for it in daemons))
    for number in signals:
        os.kill(os.getpid(), number)
        await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S):
        return await running


async def test_each_card_has_a_daemon_with_a_home_of_its_own(daemons: list[CardDaemon]) -> None:
    assert await run_and_stop(JOIN, daemons) == 0
    for daemon in daemons:
        assert written(daemon) == [
            f"--gpu={daemon.card}",
            f"--bootstrap={JOIN.bootstrap[0]}",
            f"--home={daemon.home.path}",
        ]


async def test_lines_stand_under_their_card_s_number(
    daemons: list[CardDaemon], capsys: pytest.CaptureFixture[str]
) -> None:
    await run_and_stop(JOIN, daemons)
    said = capsys.readouterr().err.splitlines()
    assert sorted(said) == [f"gpu {card}: listening on card {card}" for card in range(3)]


@pytest.mark.parametrize("options", [StartOptions(model="tiny", steps=5), StartOptions(resume=True)])
async def test_the_first_one_founds_and_the_others_join_it(options: StartOptions, daemons: list[CardDaemon]) -> None:
    assert await run_and_stop(dataclasses.replace(options, data="my.txt"), daemons) == 0
    founding = [word for word in ("--model=tiny", "--steps=5") if options.model] or ["--resume"]
    assert set(founding) < set(written(daemons[0]))
    assert not any("--bootstrap" in word for word in written(daemons[0]))
    for daemon in daemons[1:]:
        assert written(daemon) == [
            f"--gpu={daemon.card}",
            f"--bootstrap={LOCAL}",
            f"--bootstrap={FIRST}",
            "--data=my.txt",
            f"--home={daemon.home.path}",
        ]


async def test_where_the_first_one_cannot_found_nobody_else_is_started(
    daemons: list[CardDaemon], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAND_IN_CODES", '{"0": 2}')
    async with asyncio.timeout(DEADLINE_S):
        assert await EveryCard(StartOptions(model="tinny"), daemons).run() == 2
    assert [written(daemon) is None for daemon in daemons] == [False, True, True]
    assert f"the daemon of GPU 0 ended with 2, see {daemons[0].home.log}." in capsys.readouterr().err


async def test_one_that_fails_leaves_the_others_at_work_and_is_in_the_exit_code(
    daemons: list[CardDaemon], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAND_IN_CODES", '{"1": 1}')
    running = asyncio.create_task(EveryCard(JOIN, daemons).run())
    await until(lambda: daemons[1].code == 1)
    await until(lambda: all(it.home.control_socket.exists() for it in (daemons[0], daemons[2])))
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(DEADLINE_S):
        assert await running == 1
    assert "the daemon of GPU 1 ended with 1" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_reaches_every_daemon_once(number: signal.Signals, daemons: list[CardDaemon]) -> None:
    assert await run_and_stop(JOIN, daemons, (number,)) == 0
    assert [written(daemon, "heard") for daemon in daemons] == [[number]] * 3


async def test_a_signal_while_the_first_one_is_awaited_starts_no_other(
    daemons: list[CardDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_STATUS", json.dumps(dataclasses.asdict(dataclasses.replace(STATUS, addresses=()))))
    running = asyncio.create_task(EveryCard(StartOptions(model="tiny"), daemons).run())
    await until(daemons[0].home.control_socket.exists)
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(DEADLINE_S):
        assert await running == 0
    assert [written(daemon) is None for daemon in daemons] == [False, True, True]


async def test_daemons_that_hear_no_second_signal_are_killed(
    daemons: list[CardDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_DEAF", "1")
    monkeypatch.setattr(every_card, "KILL_SECONDS", 0.1)
    assert await run_and_stop(JOIN, daemons, (signal.SIGTERM, signal.SIGTERM)) == 1
    assert {daemon.code for daemon in daemons} == {-signal.SIGKILL}


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([0, 2], 2), ([2, 2], 2), ([0, 1], 1), ([2, 1], 1), ([137, 0], 1)]
)
def test_the_exit_code_of_all(codes: list[int], code: int) -> None:
    assert joint_code(codes) == code


def test_the_words_of_every_option_give_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from swarmd.cli import start

    found: list[StartOptions] = []

    def keep(options: StartOptions, *_: object, **__: object) -> int:
        found.append(options)
        return 0

    monkeypatch.setattr(start, "_run", keep)
    for _, field, value in GIVEN.values():
        options = dataclasses.replace(StartOptions(), **{field: value})
        assert run_command_line(["start", *words_of(options)]) == 0
        assert found.pop() == options


def test_ports_count_up_with_the_cards() -> None:
    options = StartOptions(
        listen=("/ip4/0.0.0.0/tcp/4001", "/ip4/10.0.0.1/tcp/0"), announce=("/dns4/a.org/tcp/80",), metrics="[::1]:9464"
    )
    assert for_card(options, 2) == StartOptions(
        gpu="2",
        listen=("/ip4/0.0.0.0/tcp/4003", "/ip4/10.0.0.1/tcp/0"),
        announce=("/dns4/a.org/tcp/82",),
        metrics="[::1]:9466",
    )
    with pytest.raises(ConfigError, match="there is no port 65536"):
        counted_up("/ip4/0.0.0.0/tcp/65535", 1)


def test_a_line_of_json_says_which_card_it_is_of(tmp_path: Path) -> None:
    daemon = CardDaemon(4, Home(tmp_path), as_json=True)
    assert daemon._labelled('{"level": "info"}') == '{"gpu": 4, "level": "info"}'
    assert daemon._labelled("no json") == "gpu 4: no json"


def test_a_machine_without_cards_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run_command_line(["start", "--gpu", "all", "--idle"]) == 2
    assert "CUDA_VISIBLE_DEVICES is '', so there is no card" in capsys.readouterr().err


def test_a_card_has_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["start", "--gpu", "-1", "--idle"]) == 2
    assert "--gpu -1 is no card; give its number, from 0, or all." in capsys.readouterr().err
