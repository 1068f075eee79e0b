"""The names of this machine and of its networks."""

from pathlib import Path

import pytest

from swarmd.net import machine
from swarmd.net.machine import machine_name
from swarmd.values import host_of, network_of


def test_a_machine_is_named_alike_each_time_and_tells_nothing() -> None:
    assert machine_name() == machine_name()
    assert len(machine_name()) == 25
    if machine.BOOT_ID.exists():
        assert machine.BOOT_ID.read_text().strip()[:8] not in machine_name()


def test_another_boot_is_another_machine_and_another_namespace_another_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = machine_name()
    monkeypatch.setattr(machine, "NETWORK", tmp_path)
    inside = machine_name()
    assert (host_of(inside), inside == ours) == (host_of(ours), False)
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(machine, "BOOT_ID", tmp_path / "boot_id")
    assert host_of(machine_name()) != host_of(ours)


def test_a_pretended_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = machine_name()
    monkeypatch.setenv(machine.HOST_VARIABLE, "pretended")
    assert host_of(machine_name()) != host_of(ours)
    assert network_of(machine_name()) == network_of(ours), "its loopback is the same all the same"


def test_where_the_kernel_names_no_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BOOT_ID", tmp_path / "none")
    monkeypatch.setattr(machine, "NETWORK", tmp_path / "none")
    assert machine_name() == machine_name()
    assert host_of("") == ""
