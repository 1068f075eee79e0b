"""A daemon's log: all of it goes to `swarmd.log` in its home, which rotates, and the important lines to stderr.

Important are warnings and lines logged at NOTICE (listening, joined, done). Of each kind only so many a minute are
written (`flood.py`). Must run before libp2p is imported, which otherwise installs a handler of its own on the root
logger; the library's own lines are capped and routed by `net/`.
"""

import json
import logging
import logging.handlers
import os
import sys
import time
from io import TextIOWrapper
from pathlib import Path

from swarmd.daemon.flood import Flood
from swarmd.daemon.terminal import Terminal
from swarmd.files import open_private
from swarmd.printable import printable, printable_lines

NOTICE = 25  # between INFO and WARNING: what the person at the terminal wants to see
LOG_LIMIT_BYTES = 10 << 20  # of one file; a day of a busy daemon at INFO
LOG_FILES_KEPT = 3  # older files beside the present one, so at most 40 MB a home

FILE_ONLY = {"file_only": True}
"""`extra` of a record that the terminal is told in another way."""

TERMINAL_ONLY = {"terminal_only": True}
"""`extra` of a record that says nothing new: it only shows a person, now and then, how it goes."""

_FROM_LIBRARIES = ("swarmd.net.library", "py.warnings")
"""Loggers of libp2p's records, which net/ routes there, and of captured warnings."""


def configure_logging(path: Path, *, as_json: bool = False, debug: bool = False) -> None:
    """Sets up the root logger. Called once, early, by the process's main code. Raises OSError."""
    logging.addLevelName(NOTICE, "NOTICE")
    to_file = _LogFile(path, maxBytes=LOG_LIMIT_BYTES, backupCount=LOG_FILES_KEPT, encoding="utf-8", delay=False)
    to_file.setFormatter(_JsonLines() if as_json else _Readable())
    to_file.addFilter(lambda record: not getattr(record, "terminal_only", False))
    to_stderr = Terminal(live=not as_json)
    to_stderr.setFormatter(_JsonLines() if as_json else _Readable() if debug else _Terse())
    to_stderr.addFilter(lambda record: not getattr(record, "file_only", False))
    to_stderr.setLevel(logging.DEBUG if debug else NOTICE)
    if not debug:
        to_stderr.addFilter(_ours)
    if not debug:  # who looks for something wants all of it
        flood = Flood()
        to_file.addFilter(flood)
        to_stderr.addFilter(flood)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(to_file)
    root.addHandler(to_stderr)
    root.setLevel(logging.INFO)
    if debug:  # of our own code only: the libraries' details, several lines for each address, would drown them
        logging.getLogger("swarmd").setLevel(logging.DEBUG)
    logging.captureWarnings(True)  # libraries' warnings belong in the log, not raw on the terminal


def _ours(record: logging.LogRecord) -> bool:
    """Keeps the lines of libraries for the file."""
    return record.name not in _FROM_LIBRARIES


class _LogFile(logging.handlers.RotatingFileHandler):
    """A rotating file that a full disk silences instead of filling stderr with tracebacks, after one word about it."""

    _complained = False

    def _open(self) -> TextIOWrapper:
        """Opens the file: private, since it tells where this machine's user has what, and never through a link."""
        descriptor = open_private(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        return open(descriptor, "a", encoding=self.encoding)  # the handler closes it

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name for it
        if isinstance(sys.exc_info()[1], OSError):
            if not self._complained:
                self._complained = True
                sys.stderr.write(f"swarmd: can't write {self.baseFilename}: {sys.exc_info()[1]}\n")
            return
        super().handleError(record)


class _Readable(logging.Formatter):
    """One line a record, in UTC, so that the logs of machines in several places can be laid side by side. A traceback
    follows indented, so none of its lines, and nothing that anyone says, passes for another record.
    """

    def __init__(self) -> None:
        super().__init__()
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        when = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{record.msecs:03.0f}Z"
        line = f"{when} {record.levelname:<7} {record.name}: {_message(record)}"
        if record.exc_info:
            line += "\n" + printable_lines(self.formatException(record.exc_info), "    ")
        return line


class _Terse(logging.Formatter):
    """Formats records for the terminal: the time and the sentence; tracebacks are in the file."""

    def format(self, record: logging.LogRecord) -> str:
        warning = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{self.formatTime(record, '%H:%M:%S')} {warning}{_message(record)}"


class _JsonLines(logging.Formatter):
    """One JSON object a line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info:
            line["traceback"] = printable_lines(self.formatException(record.exc_info))
        return json.dumps(line)


def _message(record: logging.LogRecord) -> str:
    return printable(record.getMessage().strip())
