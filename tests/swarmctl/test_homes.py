"""The home that swarmctl means when none is named: one's own daemon, else the one service that runs here."""

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmctl import homes
from swarmctl.app import run_command_line
from swarmd.errors import ControlError

Patch = pytest.MonkeyPatch


class Machine:
    """Directories of homes, and sockets that answer in some."""

    def __init__(self, root: Path) -> None:
        self.root, self.system = root, root / "var"
        self._listening: list[socket.socket] = []

    def daemon(self, home: Path) -> Path:
        """A home at which a daemon answers."""
        home.mkdir(parents=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(home / "control.sock"))
        listening.listen()
        self._listening.append(listening)
        return home

    def died(self, home: Path) -> Path:
        """A home whose daemon left its socket behind."""
        self.daemon(home)
        self._listening.pop().close()
        return home

    def close(self) -> None:
        for listening in self._listening:
            listening.close()


@pytest.fixture
def machine(monkeypatch: Patch) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory() as name:
        it = Machine(Path(name))
        monkeypatch.delenv("SWARMD_HOME", raising=False)
        monkeypatch.setenv("HOME", name)
        yield it
        it.close()


def test_the_daemon_of_the_user_comes_first(machine: Machine) -> None:
    own = machine.daemon(machine.root / ".swarmd")
    machine.daemon(machine.system / "0")
    assert homes.find_home(machine.system) == (own, False)


def test_the_one_service_that_answers_is_found(machine: Machine) -> None:
    machine.died(machine.root / ".swarmd")
    machine.died(machine.system / "1")
    found = machine.daemon(machine.system / "0")
    assert homes.find_home(machine.system) == (found, True)


@pytest.mark.parametrize("place", [".local/state/swarmd", ".config/swarmd"])
def test_the_services_of_the_user_are_found(place: str, machine: Machine) -> None:
    (machine.root / ".config/swarmd").mkdir(parents=True)
    (machine.root / ".config/swarmd/example.env").touch()
    found = machine.daemon(machine.root / place / "0")
    assert homes.find_home(machine.system) == (found, True)


def test_of_several_services_one_must_be_named(machine: Machine) -> None:
    one, other = machine.daemon(machine.system / "0"), machine.daemon(machine.system / "1")
    with pytest.raises(ControlError, match=f"--home {one}, --home {other}"):
        homes.find_home(machine.system)


def test_where_nothing_runs_it_is_the_default_home(machine: Machine) -> None:
    assert homes.find_home(machine.system) == (machine.root / ".swarmd", False)


def test_a_home_that_the_environment_names_is_taken_as_it_is(machine: Machine, monkeypatch: Patch) -> None:
    machine.daemon(machine.system / "0")
    monkeypatch.setenv("SWARMD_HOME", "/nowhere")
    assert homes.find_home(machine.system) == (Path("/nowhere"), False)


def test_only_those_who_cannot_see_services_are_told_of_sudo(machine: Machine, monkeypatch: Patch) -> None:
    unit = machine.root / "swarmd@.service"
    assert homes.hint(unit) == ""
    unit.touch()
    for user, told in ((0, ""), (1000, " Services of the system are seen by root alone: sudo swarmctl.")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert homes.hint(unit) == told


def test_it_is_said_which_service_is_spoken_to(
    machine: Machine, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = machine.daemon(machine.root / ".local/state/swarmd/0")
    monkeypatch.setattr("swarmctl.client.Client._ask", lambda *_words, **_more: {"left": True})
    assert run_command_line(["leave", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == f"swarmctl: speaking to the service at {found}.\n"
    assert said.out == '{"left": true}\n'


def test_the_daemons_of_all_cards_are_found_in_the_home(machine: Machine) -> None:
    one = machine.daemon(machine.root / ".swarmd/gpu-2")
    machine.died(machine.root / ".swarmd/gpu-1")
    machine.daemon(machine.system / "0")
    assert homes.find_home(machine.system) == (one, False)
    other = machine.daemon(machine.root / ".swarmd/gpu-10")
    with pytest.raises(ControlError, match=f"name one: --home {one}, --home {other}"):
        homes.find_home(machine.system)


def test_of_a_home_that_is_named_the_daemon_in_it_is_meant(
    machine: Machine, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("swarmctl.client.Client._ask", lambda client, *_words, **_more: {"left": str(client.home)})
    one = machine.daemon(machine.root / "box/gpu-0")
    assert run_command_line(["leave", "--json", "--home", str(machine.root / "box")]) == 0
    assert json.loads(capsys.readouterr().out) == {"left": str(one)}
    machine.daemon(machine.root / "box/gpu-1")
    assert run_command_line(["leave", "--home", str(machine.root / "box")]) == 2
    assert "a daemon for each card runs there; name one" in capsys.readouterr().err
    own = machine.daemon(machine.root / "own")
    machine.daemon(own / "gpu-0")
    assert homes.home_of(own) == own
