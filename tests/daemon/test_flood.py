"""A log is never flooded: of each kind a few records a minute, and how many there were besides."""

import logging
import sys
import threading
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path

import pytest

from swarmd.daemon.flood import KINDS_LIMIT, RECORDS_PER_WINDOW, WINDOW_SECONDS, Flood
from swarmd.daemon.logs import LOG_FILES_KEPT, LOG_LIMIT_BYTES, configure_logging


class Kept(logging.Handler):
    """A handler that keeps what comes through."""

    def __init__(self, flood: Flood, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.addFilter(flood)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def log(now: list[float]) -> Iterator[tuple[logging.Logger, Kept, Kept]]:
    """A logger with two handlers that share a flood's bound; the second takes warnings only."""
    logger, flood = logging.getLogger("swarmd.test_flood"), Flood(lambda: now[0])
    every, warnings = Kept(flood), Kept(flood, logging.WARNING)
    logger.handlers, logger.propagate = [every, warnings], False
    logger.setLevel(logging.INFO)
    yield logger, every, warnings
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


def test_a_flood_is_some_lines_and_a_count(now: list[float], log: tuple[logging.Logger, Kept, Kept]) -> None:
    logger, every, warnings = log
    for number in range(10_000):
        logger.warning("refused %s", number)
        logger.info("step %d", number)
    assert len([it for it in every.messages if it.startswith("refused")]) == RECORDS_PER_WINDOW
    assert len([it for it in every.messages if it.startswith("step")]) == RECORDS_PER_WINDOW
    assert warnings.messages == [f"refused {number}" for number in range(RECORDS_PER_WINDOW)]
    now[0] += WINDOW_SECONDS
    logger.info("something else")
    left_out = 10_000 - RECORDS_PER_WINDOW
    more = f"{left_out} more like this within a minute: refused 9999"
    assert more in every.messages
    assert warnings.messages[-1] == more
    assert f"{left_out} more like this within a minute: step 9999" in every.messages
    logger.warning("refused %s", "again")
    assert warnings.messages[-1] == "refused again"


def test_a_day_of_floods_is_bounded(now: list[float], log: tuple[logging.Logger, Kept, Kept]) -> None:
    logger, every, _ = log
    for second in range(3600):
        now[0] = float(second)
        for number in range(20):
            logger.info("hop %d of %s", number, "a peer %d %s")
    assert len(every.messages) <= 60 * (RECORDS_PER_WINDOW + 1)
    assert len([it for it in every.messages if "more like this" in it]) >= 58


def test_kinds_that_are_made_up_are_bounded_too(log: tuple[logging.Logger, Kept, Kept]) -> None:
    logger, every, _ = log
    for number in range(5 * KINDS_LIMIT):
        logger.info(f"kind {number}")
    (flood,) = every.filters
    assert isinstance(flood, Flood)
    assert len(flood._counts) == KINDS_LIMIT


def test_many_threads_share_the_bound(log: tuple[logging.Logger, Kept, Kept]) -> None:
    logger, every, _ = log

    def flood() -> None:
        for _ in range(500):
            logger.warning("from %s", "a thread")

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert every.messages == ["from a thread"] * RECORDS_PER_WINDOW


@pytest.mark.usefixtures("kept_logging")
def test_the_daemons_log_is_so_bounded_and_its_files_rotate(tmp_path: Path) -> None:
    path = tmp_path / "swarmd.log"
    configure_logging(path)
    for number in range(1000):
        logging.getLogger("swarmd.swarm.wire.links").warning("refused %s: %s", number, "x" * 100_000)
        logging.getLogger("py.warnings").warning("%s", number)
    lines = path.read_text().splitlines()
    assert len(lines) == 2 * RECORDS_PER_WINDOW
    assert path.stat().st_size < 100_000
    handler = next(it for it in logging.getLogger().handlers if isinstance(it, RotatingFileHandler))
    assert (handler.maxBytes, handler.backupCount) == (LOG_LIMIT_BYTES, LOG_FILES_KEPT)
    handler.maxBytes = 10_000
    for number in range(300):
        logging.getLogger(f"swarmd.kind{number}").info("y" * 1000)
    assert len(list(tmp_path.iterdir())) == 1 + LOG_FILES_KEPT
    assert sum(it.stat().st_size for it in tmp_path.iterdir()) < 150_000, "the first may be larger"


@pytest.mark.usefixtures("kept_logging")
def test_who_debugs_sees_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(tmp_path / "log", debug=True)
    for number in range(100):
        logging.getLogger("swarmd.test").debug("detail %d", number)
    assert len((tmp_path / "log").read_text().splitlines()) == 100
    capsys.readouterr()


@pytest.fixture
def kept_logging() -> Iterator[None]:
    """The root logger as it was."""
    root, ours, stderr = logging.getLogger(), logging.getLogger("swarmd"), sys.stderr
    before = list(root.handlers), root.level, ours.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level, ours.level = before
    logging.captureWarnings(False)
    sys.stderr = stderr
