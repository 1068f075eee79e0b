"""A daemon's home: its lock, and what it remembers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarmd.daemon.home import Home
from swarmd.daemon.remembered import Remembered
from swarmd.errors import ConfigError
from swarmd.swarm.wire.messages.common import INCARNATION_STEP

JOIN = Remembered(("/ip4/10.0.0.1/tcp/4001/p2p/12D3KooWx",), stage=2)


def test_a_second_daemon_is_told_who_has_the_home(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with (
        home.locked(),
        pytest.raises(ConfigError, match=f"process {os.getpid()}.*its own --home"),
        Home(home.path).locked(),
    ):
        pytest.fail("the home was taken twice")
    with home.locked():
        pass


def test_a_killed_daemon_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys, swarmd.daemon.home as local\n"
        f"with local.Home({str(tmp_path)!r}).locked():\n"
        "    print('locked', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match=f"process {child.pid}"), Home(tmp_path).locked():
            pytest.fail("the home was taken twice")
        child.kill()
    with Home(tmp_path).locked():
        pass


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shorter --home"):
        Home(tmp_path / ("x" * 100)).prepare()


def test_a_home_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another --home"):
        Home(tmp_path / "file" / "home").prepare()


def test_a_join_is_remembered(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.remembered() is None
    home.remember(JOIN)
    assert Home(tmp_path).remembered() == JOIN
    assert [path.name for path in tmp_path.iterdir()] == ["node.json"]


def test_a_port_is_kept(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.kept_port() == 0
    home.keep_port(4002)
    assert Home(tmp_path).kept_port() == 4002
    for damage in (b"", b"no port", b"70000", b"-1", b"\xff", b"4" * 1000):
        home.port_file.write_bytes(damage)
        assert home.kept_port() == 0


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b'{"bootstrap": []}',
        b'{"bootstrap": [1]}',
        b'{"bootstrap": ["/x"], "stage": "0"}',
    ],
)
def test_a_damaged_memory_is_named(tmp_path: Path, damage: bytes) -> None:
    home = Home(tmp_path)
    home.node_file.write_bytes(damage)
    with pytest.raises(ConfigError, match=r"node\.json is damaged"):
        home.remembered()


NOW = 1_790_000_000_000_000_000  # ns, in 2026
TEN_YEARS = 315_576_000 * 10**9


def lives(home: Home, *clocks: int) -> list[int]:
    return [home.next_incarnation(clock) for clock in clocks]


@pytest.mark.parametrize(
    "clocks",
    [
        (NOW, NOW + 1, NOW + 2),
        (NOW, NOW - 86_400 * 10**9, 0, -5, NOW),  # no battery
        (0, NOW),
        (NOW, NOW + TEN_YEARS, NOW, NOW + 1),
    ],
)
def test_every_life_of_a_home_has_a_higher_incarnation(tmp_path: Path, clocks: tuple[int, ...]) -> None:
    found = lives(Home(tmp_path), *clocks)
    assert found == sorted(set(found))
    assert found[0] == max(INCARNATION_STEP, clocks[0])
    assert all(incarnation >= clock for incarnation, clock in zip(found, clocks, strict=True))
    assert Home(tmp_path).incarnation.read_text() == f"{found[-1]}\n", "it is written down before it is used"


def test_a_home_from_a_backup_or_of_the_first_release_goes_by_its_clock(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.next_incarnation(NOW) == NOW, "the first release kept nothing"
    backup = home.incarnation.read_bytes()
    day = 86_400 * 10**9
    assert lives(home, NOW + day, NOW + 2 * day) == [NOW + day, NOW + 2 * day]
    home.incarnation.write_bytes(backup)
    assert home.next_incarnation(NOW + 3 * day) == NOW + 3 * day


@pytest.mark.parametrize("damage", [b"", b"12x", b"-4", b"9" * 40, b"\xff\xfe", str(1 << 62).encode()])
def test_a_damaged_incarnation_is_as_good_as_none(tmp_path: Path, damage: bytes) -> None:
    home = Home(tmp_path)
    home.incarnation.write_bytes(damage)
    assert lives(home, NOW, 0) == [NOW, NOW + INCARNATION_STEP]


def test_an_incarnation_that_cannot_be_kept_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"incarnation \(No space left"):
        Home(tmp_path).next_incarnation(NOW)


# ------------------------------------------------------------------------------------------------- a run that has ended


def test_a_run_that_has_ended_is_not_begun_again_until_its_user_says_so(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.check_not_ended(["abc"])
    home.remember_end("abc", "7 steps in a row were skipped.")
    home.check_not_ended(["def"])  # another run's business
    with pytest.raises(ConfigError, match=r"7 steps in a row were skipped.*remove .*ended\.json"):
        home.check_not_ended(["def", "abc"])
    home.ended_file.unlink()
    home.check_not_ended(["abc"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": "abc"}', '{"run": 1, "why": "x"}', "[" * 100_000])
def test_a_damaged_word_of_the_end_stops_the_start_with_a_sentence(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    home.ended_file.write_text(text)
    with pytest.raises(ConfigError, match=r"ended\.json can't be read"):
        home.check_not_ended(["abc"])


def test_what_is_no_file_where_the_word_of_the_end_should_be_is_a_sentence_too(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.ended_file.mkdir()
    with pytest.raises(ConfigError, match=r"ended\.json can't be read"):
        home.check_not_ended(["abc"])
    home.remember_end("abc", "why")  # said in the log, no more
