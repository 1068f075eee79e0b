"""Words to systemd over a real datagram socket, by parts and by a real daemon; and the unit that is installed."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmd.cli.main import run_command_line
from swarmd.config import NodeConfig
from swarmd.daemon import service
from swarmd.daemon.process import CLOSE_SECONDS
from swarmd.daemon.systemd import Notifier

DEADLINE_S = 50.0


class Manager:
    """Listens as the service manager does."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(DEADLINE_S)

    def hear(self) -> dict[str, str]:
        """The next word, as assignments."""
        lines = self.socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, name: str) -> dict[str, str]:
        """The next word with this assignment."""
        while name not in (word := self.hear()):
            pass
        return word


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    it = Manager(str(tmp_path / "notify") if request.param == "path" else f"@swarmd-test-{os.getpid()}")
    with it.socket:
        yield it


def test_ready_and_stopping(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.ready("joining")
    assert manager.hear() == {"READY": "1", "STATUS": "joining"}
    notifier.stopping("draining\nREADY=1", 65.0)
    assert manager.hear() == {"STOPPING": "1", "STATUS": "draining READY=1", "EXTEND_TIMEOUT_USEC": "65000000"}


async def test_the_watchdog_hears_from_the_event_loop_twice_in_its_time(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier.from_environment(environment)
    assert notifier.watchdog_s == 0.1
    loop = asyncio.get_running_loop()
    pulse = asyncio.create_task(notifier.pulse(lambda: "serving"))
    try:
        began = loop.time()
        for _ in range(4):
            word = await asyncio.to_thread(manager.hear)
            assert word == {"WATCHDOG": "1", "STATUS": "serving"}
        assert loop.time() - began >= 3 * 0.05 - 0.02, "at half its time, not more often"
    finally:
        pulse.cancel()


async def test_the_watchdog_hears_nothing_while_the_daemon_is_stuck_though_its_loop_runs(manager: Manager) -> None:
    notifier, why = Notifier(manager.address, 0.1), ""
    pulse = asyncio.create_task(notifier.pulse(lambda: "serving", lambda: why))
    try:
        assert await asyncio.to_thread(manager.until, "WATCHDOG")
        why = "the device hangs"
        while (word := await asyncio.to_thread(manager.hear)) == {"WATCHDOG": "1", "STATUS": "serving"}:
            pass  # said before
        for _ in range(3):
            assert word == {"STATUS": "the device hangs"}
            word = await asyncio.to_thread(manager.hear)
        why = ""
        assert await asyncio.to_thread(manager.until, "WATCHDOG")
    finally:
        pulse.cancel()


async def test_a_daemon_that_cannot_say_how_it_is_lives_all_the_same(manager: Manager) -> None:
    def fail() -> str:
        raise KeyError("status")

    pulse = asyncio.create_task(Notifier(manager.address, 0.1).pulse(fail, fail))
    try:
        for _ in range(2):
            assert await asyncio.to_thread(manager.hear) == {"WATCHDOG": "1", "STATUS": ""}
    finally:
        pulse.cancel()


def test_without_systemd_nothing_is_said_and_a_lost_manager_is_no_trouble(tmp_path: Path) -> None:
    Notifier.from_environment({}).ready("joining")
    Notifier(str(tmp_path / "nobody")).ready("joining")
    foreign = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "5", "WATCHDOG_PID": str(os.getpid() + 1)}
    assert Notifier.from_environment(foreign).watchdog_s == 0.0


NOBODY = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWGFZqaMiEbZ2Rfw9qGdtYw3JG2GfYJMHp6S39cVQddTtU"


@pytest.mark.parametrize(
    ("option", "status"), [("--idle", "idle"), (f"--bootstrap={NOBODY}", "looking")], ids=["idle", "alone"]
)
def test_a_daemon_says_that_it_is_ready_alive_and_stopping(option: str, status: str, tmp_path: Path) -> None:
    """Also while the peer that it joins isn't there yet: the unit must not take that for a failure."""
    manager = Manager(str(tmp_path / "notify"))
    environment = {**os.environ, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
    command = [sys.executable, "-m", "swarmd", "start", option, "--home", str(tmp_path / "home")]
    process = subprocess.Popen([*command, "--listen", "/ip4/127.0.0.1/tcp/0", "--drain-timeout", "7"], env=environment)
    try:
        with manager.socket:
            assert manager.hear()["READY"] == "1"
            assert (tmp_path / "home" / "control.sock").exists()
            while status not in manager.until("WATCHDOG")["STATUS"]:
                pass  # it has just begun
            for _ in range(3):
                assert status in manager.until("WATCHDOG")["STATUS"]
            process.send_signal(signal.SIGTERM)
            word = manager.until("STOPPING")
            assert int(word["EXTEND_TIMEOUT_USEC"]) >= 1e6, "there is nothing to drain"
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()


# ------------------------------------------------------------------------------------------------- the unit


def settings(text: str, name: str) -> list[str]:
    return [line.split("=", 1)[1] for line in text.splitlines() if line.startswith(f"{name}=")]


@pytest.mark.parametrize("user", [False, True])
def test_systemd_accepts_the_unit(user: bool, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "swarmd@.service"
    unit.write_text(service.unit_text(user=user))
    command = ["systemd-analyze", *(["--user"] if user else []), "verify", str(unit)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    unit.write_text(service.unit_text(user=user).replace("Type=notify", "Type=notify\nTpye=simple"))
    assert "Tpye" in subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_gives_few_rights(tmp_path: Path) -> None:
    unit = tmp_path / "swarmd@.service"
    text = service.unit_text(user=False)

    def exposure() -> float:
        command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return float(told.split("Overall exposure level for")[1].split(":")[1].split()[0])

    unit.write_text(text)
    assert exposure() <= 1.6
    unit.write_text(text.replace("SystemCallFilter=", "#"))
    assert exposure() > 1.6


@pytest.mark.parametrize("user", [False, True])
def test_the_unit_fits_the_daemon(user: bool) -> None:
    text = service.unit_text(user=user)
    (start,) = settings(text, "ExecStart")
    assert Path(start.split()[0]).exists()
    assert "/usr/local/bin/swarmd" not in start
    stop = float(settings(text, "TimeoutStopSec")[0])
    assert stop >= NodeConfig("/h").drain_s + CLOSE_SECONDS + 5, "the drain, the goodbye and the end fit in"
    assert settings(text, "Type") == ["notify"]
    assert settings(text, "StartLimitIntervalSec") == ["0"], "it is never given up"
    assert settings(text, "StateDirectory") == ["swarmd/%i"]
    assert bool(settings(text, "DynamicUser")) != user
    assert settings(text, "WantedBy") == ["default.target" if user else "multi-user.target"]


def test_the_service_is_installed_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_command_line(["service", "install", "--user"]) == 0
    said = capsys.readouterr().out
    unit = tmp_path / ".config/systemd/user/swarmd@.service"
    assert unit.read_text() == service.unit_text(user=True)
    assert (tmp_path / ".config/swarmd/example.env").read_text().startswith("#")
    assert "systemctl --user enable --now swarmd@0" in said.replace("daemon-reload && systemctl --user ", "")
    assert run_command_line(["service", "install", "--print"]) == 0
    assert capsys.readouterr().out == service.unit_text(user=False)


def test_what_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert run_command_line(["service", "install", "--user"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
