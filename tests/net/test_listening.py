"""A port is one daemon's: chosen, locked, kept."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from swarmd.errors import ConfigError
from swarmd.net import listening
from swarmd.net.addresses import parse_listened
from swarmd.net.listening import Reservation, reserve

DAEMONS = 20


@pytest.fixture(autouse=True)
def own_ports(monkeypatch: pytest.MonkeyPatch) -> int:
    """Ports that no daemon outside of the test takes by default; loopback keeps strangers away."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        first = min(probe.getsockname()[1], 65000)
    monkeypatch.setattr(listening, "DEFAULT_HOST", "127.0.0.1")
    monkeypatch.setattr(listening, "DEFAULT_PORT", first)
    monkeypatch.setattr(listening, "PORTS", 100)
    return int(first)


@pytest.fixture
def other() -> Iterator[Reservation]:
    """Another daemon's, of the same user."""
    it = reserve(())
    yield it
    it.release()


def port(reservation: Reservation) -> int:
    return reservation.addresses[0].port


CHOOSES = """
import socket, sys
from swarmd.net import listening
listening.DEFAULT_HOST, listening.DEFAULT_PORT = "127.0.0.1", int(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
it = listening.reserve(())
listener = socket.socket()  # as the library's
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind((it.addresses[0].host, it.addresses[0].port))
listener.listen()
it.listening()
print(it.addresses[0].port, flush=True)
sys.stdin.readline()
"""


@pytest.mark.timeout(120)
def test_daemons_that_start_at_once_get_a_port_each(own_ports: int) -> None:
    command = [sys.executable, "-c", CHOOSES, str(own_ports)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(DAEMONS)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        ports = [int(process.stdout.readline()) for process in processes if process.stdout is not None]
    finally:
        for process in processes:
            process.communicate("end\n")
    assert len(set(ports)) == DAEMONS, sorted(ports)


def test_a_port_is_chosen_kept_and_given_back(own_ports: int) -> None:
    first = reserve(())
    second = reserve(())
    assert own_ports <= port(first) < port(second)
    first.release()
    again = reserve((), kept=port(second))  # which somebody else has meanwhile
    assert port(again) not in (0, port(second))
    second.release()
    kept = reserve((), kept=own_ports + 77)
    assert port(kept) == own_ports + 77
    for one in (again, kept):
        one.release()


def test_a_lock_lasts_longer_than_the_listener(other: Reservation) -> None:
    """A daemon between choice and listening isn't seen on the network yet, nor one that has just lost its listener."""
    other.listening()
    wanted = parse_listened(f"/ip4/127.0.0.1/tcp/{port(other)}")
    with pytest.raises(ConfigError, match=f"tcp/{port(other)}: another daemon of this user.*--listen"):
        reserve([wanted])
    other.release()
    reserve([wanted]).release()


def test_one_that_listens_with_the_same_option_is_found(other: Reservation) -> None:
    """Listens like libp2p, which would share the port without a word."""
    taken = port(other)
    other.release()
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        busy.bind(("127.0.0.1", taken))
        busy.listen()
        wanted = parse_listened(f"/ip4/127.0.0.1/tcp/{taken}")
        with pytest.raises(ConfigError, match=f"tcp/{taken}: the port is in use"):
            reserve([wanted])
        elsewhere = reserve((), kept=taken)
        assert port(elsewhere) != taken
        elsewhere.release()
    reserve([wanted]).release()


def test_a_foreign_address_is_refused_and_any_port_needs_no_lock() -> None:
    with pytest.raises(ConfigError, match="--listen"):
        reserve([parse_listened("/ip4/203.0.113.7/tcp/0")])
    anywhere = parse_listened("/ip4/127.0.0.1/tcp/0")
    both = reserve([anywhere, anywhere]), reserve([anywhere])
    for one in both:
        one.release()


def test_one_port_of_both_families(own_ports: int) -> None:
    here = [parse_listened(f"/ip4/127.0.0.1/tcp/{own_ports}"), parse_listened(f"/ip6/::1/tcp/{own_ports}")]
    try:
        it = reserve(here)
    except ConfigError:
        pytest.skip("no IPv6 here")
    it.release()
    reserve(here).release()


def test_a_machine_full_of_daemons(monkeypatch: pytest.MonkeyPatch, other: Reservation) -> None:
    monkeypatch.setattr(listening, "DEFAULT_PORT", port(other))
    monkeypatch.setattr(listening, "PORTS", 1)
    with pytest.raises(ConfigError, match=f"any port from {port(other)} to {port(other)}.*--listen"):
        reserve(())
