"""Log lines reach the file and the terminal, also those of libraries. In processes of their own: logging is global."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging, sys, warnings
from pathlib import Path
from swarmd.daemon.logs import FILE_ONLY, NOTICE, configure_logging
configure_logging(Path(sys.argv[1]), as_json="json" in sys.argv, debug="debug" in sys.argv)
log = logging.getLogger("swarmd.test")
log.debug("a detail"); log.info("an event"); log.log(NOTICE, "listening at %s", "/ip4/x")
log.error("silent", extra=FILE_ONLY)
logging.getLogger("swarmd.net.library").warning("dial refused"); warnings.warn("old API")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


FULL = """
import os
from swarmd.daemon import logs
logs.open_private = lambda path, flags: os.open("/dev/full", os.O_WRONLY)
"""


def run(path: Path, *words: str) -> tuple[str, str]:
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), *words], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == ""
    return path.read_text(), done.stderr


def test_everything_is_in_the_file_and_the_important_on_the_terminal(tmp_path: Path) -> None:
    file, terminal = run(tmp_path / "swarmd.log")
    for text in (
        "an event",
        "listening at /ip4/x",
        "silent",
        "library: dial refused",
        "old API",
        "Traceback",
    ):
        assert text in file
    assert "a detail" not in file
    assert [line.split(" ", 1)[1] for line in terminal.splitlines()] == ["listening at /ip4/x", "error: failed"]


def test_debug_shows_all_of_it(tmp_path: Path) -> None:
    file, terminal = run(tmp_path / "swarmd.log", "debug")
    assert "a detail" in file
    for text in ("a detail", "dial refused", "ZeroDivisionError"):
        assert text in terminal


def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    file, _ = run(tmp_path / "swarmd.log", "json")
    lines = [json.loads(line) for line in file.splitlines()]
    assert {"level": "notice", "logger": "swarmd.test", "message": "listening at /ip4/x"}.items() <= lines[1].items()
    assert "ZeroDivisionError" in lines[-1]["traceback"]


def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL + PROGRAM, str(tmp_path / "log")], capture_output=True, text=True, check=True
    )
    assert done.stderr.count("can't write") == 1
    assert "Traceback" not in done.stderr
