"""A start that can't be is one sentence and exit code 2: a full disk, a model that no device holds, odd things in the
place of files.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.swarm import run_command
from tests.e2e.test_training import INT8, write_settings

LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0")


def check(code: int, out: str, err: str, words: str) -> None:
    *before, last = err.strip().splitlines()
    assert (code, out) == (2, ""), err
    assert words in last
    assert "Traceback" not in err
    assert "swarmd: " in last
    assert len(before) <= 2  # what the daemon was at


async def test_a_model_that_no_device_holds(tmp_path: Path) -> None:
    model = dataclasses.replace(INT8.model, hidden=1 << 18, ffn=1 << 18)
    settings = write_settings(dataclasses.replace(INT8, model=model), tmp_path / "bomb.toml")
    home = tmp_path / "home"
    (tmp_path / "text.txt").write_text("a text of one's own, which is not read first\n" * 10_000)
    start = ("start", "--model", str(settings), "--data", str(tmp_path / "text.txt"), "--home", str(home), *LISTEN)
    done = await run_command("swarmd", *start)
    check(*done, "GB at least, and this device has")
    assert not (home / "data").exists()


async def test_a_model_that_is_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.toml")
    done = await run_command("swarmd", "start", "--model", str(tmp_path / "run.toml"), "--home", str(tmp_path / "h"))
    check(*done, "FIFO")


def can_mount() -> bool:
    """True if this user may mount a small file system where nobody else sees it."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


MORE = (*(f"nr_inodes={count}" for count in range(3, 6)), "size=4k", "size=8k", "size=100k")
FULL = 'mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@"'
"""Mounts a small file system at a directory, and becomes a command."""


@pytest.mark.skipif(not can_mount(), reason="no right to mount a small file system")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("limits", [("nr_inodes=2", "nr_inodes=6"), pytest.param(MORE, marks=pytest.mark.long)])
def test_a_disk_that_is_full_at_the_start(tmp_path: Path, limits: tuple[str, ...]) -> None:
    """Each start gets a little further: the lock, the log, the identity, the control socket, the tokens."""
    place = tmp_path / "disk"
    place.mkdir()
    (tmp_path / "text.txt").write_text("some text\n" * 50_000)
    start = ("start", "--model", "tiny", "--stage", "0", "--data", str(tmp_path / "text.txt"), *LISTEN)
    for limit in limits:
        shell = ("unshare", "-Urm", "sh", "-c", FULL, "sh", limit, str(place))
        command = (*shell, sys.executable, "-m", "swarmd", *start, "--home", str(place / "home"))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        words = done.stderr.strip().splitlines()[-1:]
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False), (limit, done.stderr)
        assert "o space left on device" in words[0], (limit, done.stderr)
