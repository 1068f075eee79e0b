"""Reading files of which it isn't certain what they are: a sentence for each that is none, at once."""

import os
import socket
from pathlib import Path

import pytest

from swarmd.files import open_regular, parse_json, read_json, read_regular

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
