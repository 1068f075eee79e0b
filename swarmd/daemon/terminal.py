"""A daemon's display: on a terminal one line below the log that is renewed in place, with the stage, step, loss, speed
and time left, or what is waited for; elsewhere the same as a line of the log each minute.

The line is `live_line.py`'s. It is never wider than the terminal, and gone when the daemon ends. Nothing else of the
terminal is changed, so there is nothing to restore after a kill.
"""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from swarmd import exits
from swarmd.live_line import cut, live_line
from swarmd.status import Status

RENEW_SECONDS = 1.0  # of the live line
LINE_SECONDS = 60.0  # between two lines where the output is no terminal
NARROW_COLUMNS = 24  # a terminal that says it is narrower is taken to have so many
USUAL_COLUMNS = 80  # of one that doesn't say
CLEAR = "\r\x1b[2K"  # to the line's beginning, and erase it


class Terminal(logging.StreamHandler[TextIO]):
    """Log records on stderr, above a line that is renewed (`show`). Any thread may log, the event loop shows."""

    def __init__(self, stream: TextIO | None = None, *, live: bool = True) -> None:
        super().__init__(stream or sys.stderr)
        self._line, self._live = "", live

    def is_live(self) -> bool:
        """True if a line can be renewed there now: on a terminal that obeys, with this process in its foreground."""
        try:
            descriptor = self.stream.fileno()
            return (
                self._live
                and os.isatty(descriptor)
                and os.environ.get("TERM", "dumb") != "dumb"
                and os.tcgetpgrp(descriptor) == os.getpgrp()
            )
        except (OSError, ValueError):
            return False

    def columns(self) -> int:
        """The terminal's present width."""
        try:
            columns = os.get_terminal_size(self.stream.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return max(columns, NARROW_COLUMNS) if columns else USUAL_COLUMNS

    def show(self, line: str) -> None:
        """Puts this line in the place of the one before; "" takes it away."""
        encoding = self.stream.encoding or "utf-8"
        line = line.encode(encoding, "replace").decode(encoding)
        self.acquire()
        try:
            if line or self._line:
                self._write(CLEAR + line)
            self._line = line
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record above the line."""
        if not self._line:
            super().emit(record)
            return
        self._write(CLEAR)
        super().emit(record)
        self._write(self._line)

    def leave(self) -> None:
        """Leaves the terminal to the process in its foreground: this one was sent to the background."""
        self.acquire()
        self._line = ""
        self.release()

    def wipe(self) -> None:
        """Takes the line away where a process ends at once: no lock is waited for."""
        if self._line:
            with contextlib.suppress(OSError, ValueError):
                os.write(self.stream.fileno(), CLEAR.encode())

    def close(self) -> None:
        """Takes the line away."""
        self.show("")
        super().close()

    def _write(self, text: str) -> None:
        """A terminal that is gone is no reason to fail."""
        try:
            self.stream.write(text)
            self.flush()
        except (OSError, ValueError):
            self._line = ""


def terminal() -> Terminal | None:
    """The terminal of this process, once its logging is set up."""
    return next((it for it in logging.getLogger().handlers if isinstance(it, Terminal)), None)


@contextmanager
def shown_as(line: str) -> Iterator[None]:
    """Shows this until something else is shown, and leaves nothing of either behind."""
    shown = terminal()
    if shown is None:
        yield
        return
    exits.before_end.append(shown.wipe)
    if shown.is_live():
        shown.show(cut(line, shown.columns() - 1))
    try:
        yield
    finally:
        shown.show("")
        exits.before_end.remove(shown.wipe)


async def show_status(
    status: Callable[[], Status], say: Callable[[str], None], shown: Terminal | None, *, renew_s: float = RENEW_SECONDS
) -> None:
    """Goes on showing how the daemon is, until cancelled. `say` gets the lines for where there is no terminal."""
    said = time.monotonic()
    try:
        while True:
            if shown is not None and shown.is_live():
                shown.show(live_line(status(), shown.columns() - 1))  # a full line would wrap on some terminals
                await asyncio.sleep(renew_s)
                continue
            if shown is not None:
                shown.leave()
            if time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                say(live_line(status()))
            await asyncio.sleep(renew_s)
    finally:
        if shown is not None:
            shown.show("")
