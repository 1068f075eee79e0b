"""Files: a sentence at once for each that is not a regular one, and the replacement of one as a whole."""

import contextlib
import errno
import logging
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmd.daemon import logs
from swarmd.daemon.home import Home
from swarmd.daemon.remembered import Remembered
from swarmd.files import PRIVATE_MODE, open_private, open_regular, parse_json, read_json, read_regular, write_atomically
from swarmd.net.identity import load_or_create_seed

LIMIT = 1000


def make_odd(path: Path, kind: str) -> None:
    """Something at `path` that isn't a regular file."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        assert kind == "socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))


ODD = ("FIFO", "directory", "device", "socket")


@pytest.mark.parametrize("kind", [*ODD, "loop"])
@pytest.mark.parametrize("append", [False, True])
def test_what_is_no_file_is_named_and_nobody_waits(tmp_path: Path, kind: str, append: bool) -> None:
    make_odd(tmp_path / "odd", kind)
    with pytest.raises(OSError) as caught:
        open_regular(tmp_path / "odd", append=append).close()
    assert kind == "loop" or kind in str(caught.value.strerror)


def test_links_are_followed_only_if_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"{}")
    (tmp_path / "link").symlink_to("file")
    assert read_json(tmp_path / "link", LIMIT) == {}
    with pytest.raises(OSError, match="link"):
        read_regular(tmp_path / "link", LIMIT, follow=False)


def test_a_file_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * LIMIT)
    assert read_regular(tmp_path / "file", LIMIT) == b"x" * LIMIT
    with pytest.raises(OSError, match="longer than 999 bytes"):
        read_regular(tmp_path / "file", LIMIT - 1)


def test_appending_begins_a_file_and_goes_on(tmp_path: Path) -> None:
    for word in (b"one", b"two"):
        with open_regular(tmp_path / "file", append=True) as file:
            file.write(word)
    assert read_regular(tmp_path / "file", LIMIT) == b"onetwo"


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"{", b"1" * 5_000])
def test_whatever_is_no_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


# ------------------------------------------------------------------------------------------------- private files

UMASKS = (0o000, 0o022, 0o777)


@pytest.fixture(params=UMASKS, ids=oct)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.usefixtures("_umask")
def test_what_is_made_is_private_under_any_umask(tmp_path: Path) -> None:
    os.close(open_private(tmp_path / "file", os.O_WRONLY | os.O_CREAT))
    assert mode(tmp_path / "file") == PRIVATE_MODE
    os.close(open_private(tmp_path / "file", os.O_RDONLY))


@pytest.mark.usefixtures("_umask")
def test_a_home_is_private_under_any_umask(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with home.locked():
        load_or_create_seed(home.identity)
        home.next_incarnation(0)
        home.remember(Remembered(("/ip4/10.0.0.1/tcp/4001/p2p/12D3KooWx",)))
        append = logs._LogFile(home.log, maxBytes=10, backupCount=1)
        for _ in range(3):
            append.emit(logging.LogRecord("swarmd", logging.INFO, "", 0, "some words", None, None))
        append.close()
        with open_regular(home.ledger, append=True) as ledger:
            ledger.write(b"{}\n")
        found = {path.name: mode(path) for path in home.path.iterdir()}
    assert mode(home.path) == 0o700
    umask = os.umask(0)
    os.umask(umask)
    assert found.pop("ledger.jsonl") == PRIVATE_MODE & ~umask
    assert found.keys() >= {"lock", "identity.key", "incarnation", "node.json", "swarmd.log", "swarmd.log.1"}
    assert set(found.values()) == {PRIVATE_MODE}, found


def test_a_wider_mode_is_narrowed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o664)
    os.close(open_private(tmp_path / "file", os.O_RDWR))
    assert mode(tmp_path / "file") == PRIVATE_MODE


@pytest.mark.parametrize("kind", [*ODD, "loop", "link", "hard link"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_APPEND | os.O_CREAT])
def test_nothing_but_a_file_is_opened_as_private_and_no_other_mode_is_changed(
    tmp_path: Path, kind: str, flags: int
) -> None:
    other, path = tmp_path / "other", tmp_path / "odd"
    other.write_text("precious")
    other.chmod(0o644)
    if kind == "link":
        path.symlink_to(other)
    elif kind == "hard link":
        path.hardlink_to(other)
    else:
        make_odd(path, kind)
    before = mode(path)
    with pytest.raises(OSError) as caught:
        open_private(path, flags)
    assert caught.value.strerror is not None
    assert (kind if kind in (*ODD[:2], "socket", "hard link") else "link") in caught.value.strerror
    assert (mode(path), mode(other), other.read_text()) == (before, 0o644, "precious")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_mode_of_another_user_s_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 12345, 12345)
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="belongs to another user"):
        open_private(path, os.O_RDONLY)
    assert mode(path) == 0o644
    path.chmod(0o600)
    os.close(open_private(path, os.O_RDONLY))


@pytest.mark.parametrize(
    "name",
    [
        "lock",
        "identity.key",
        "swarmd.log",
        "control.sock",
        "node.json",
        "run.json",
        "port",
        "incarnation",
        "ledger.jsonl",
    ],
)
def test_a_link_in_a_home_is_a_sentence_and_touches_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home" / name).symlink_to(tmp_path / "precious")
    (tmp_path / "precious").chmod(0o644)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "swarmd",
            "start",
            "--model",
            "tiny",
            "--stage",
            "1",
            "--device",
            "cpu",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--home",
            str(tmp_path / "home"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 2, done.stderr
    assert name in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert (mode(tmp_path / "precious"), (tmp_path / "precious").read_text()) == (0o644, "precious")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("number", "matters"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_only_a_folder_that_cant_be_synced_at_all_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, matters: bool
) -> None:
    path, sync = tmp_path / "file", os.fsync

    def fail_on_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    with pytest.raises(OSError, match="Input/output") if matters else contextlib.nullcontext():
        write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
