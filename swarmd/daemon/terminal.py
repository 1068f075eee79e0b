"""A daemon's display: on a terminal one line below the log that is renewed in place, with the stage, step, loss, speed
and time left, or what is waited for; elsewhere the same as a line of the log each minute.

The line is made of a `Status`. It is never wider than the terminal, and gone when the daemon ends. Nothing else of the
terminal is changed, so there is nothing to restore after a kill.
"""

import asyncio
import contextlib
import logging
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from swarmd import exits
from swarmd.printable import duration, printable
from swarmd.status import Status

RENEW_SECONDS = 1.0  # of the live line
LINE_SECONDS = 60.0  # between two lines where the output is no terminal
NARROW_COLUMNS = 24  # a terminal that says it is narrower is taken to have so many
USUAL_COLUMNS = 80  # of one that doesn't say
WAIT_SECONDS = 2.0  # what lasts less isn't worth a change of the line
CLEAR = "\r\x1b[2K"  # to the line's beginning, and erase it
LINE_LIMIT = 1000  # characters, however wide a terminal is


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


def live_line(status: Status, columns: int = LINE_LIMIT) -> str:
    """The daemon in one line of at most so many columns: what a person wants to know first comes first."""
    long = _parts(status)
    for parts in (long, long[:-1] if _waiting(status) is None else long):  # how many peers there are is left out first
        line = printable(" · ".join(parts), LINE_LIMIT)
        if width(line) <= columns or (not status.run and _waiting(status) is None):
            return cut(line, columns)
    short = _short_parts(status)
    while len(short) > 1 and width(" ".join(short)) > columns:
        short.pop()
    return cut(" ".join(short), columns)


def _parts(status: Status) -> list[str]:
    where = [] if status.stage is None else [f"stage {status.stage} of {status.stages}"]
    if (waiting := _waiting(status)) is not None:
        return [*(where or [status.state]), waiting]
    if not status.run:
        return ["idle: `swarmctl join --bootstrap ADDRESS` makes it join" if status.state == "idle" else status.state]
    state = [] if status.state == "serving" else [status.state]
    peers = sum(status.peers.values())
    return [
        *where,
        *state,
        f"step {status.step}/{status.steps}",
        *([] if status.loss is None else [f"loss {status.loss:.3f}"]),
        *([f"{status.tokens_per_second:,.0f} tokens/s"] if status.tokens_per_second else []),
        *([] if status.seconds_left is None else [f"{duration(status.seconds_left)} left"]),
        f"{peers} peer{'s' * (peers != 1)}",
    ]


def _short_parts(status: Status) -> list[str]:
    """The same for a narrow terminal; the last is left out first."""
    if (waiting := _waiting(status)) is not None:
        return [waiting]
    left = status.seconds_left
    return [
        f"{'-' if status.stage is None else status.stage}/{status.stages}",
        f"step {status.step}/{status.steps}",
        *([] if status.loss is None else [f"loss {status.loss:.2f}"]),
        *([f"{status.tokens_per_second:.0f}/s"] if status.tokens_per_second else []),
        *([] if left is None else [duration(left).replace(" min ", "m").replace(" h ", "h").replace(" ", "")]),
    ]


def _waiting(status: Status) -> str | None:
    """The wait to be shown, once one has lasted a while."""
    wait = next((wait for wait in status.waits if wait.seconds >= WAIT_SECONDS), None)
    if wait is None:
        return None
    details = f" ({wait.progress})" if wait.progress else ""
    advice = f": {wait.advice}" if wait.advice else ""
    return f"waiting {duration(wait.seconds)} for {wait.what}{details}{advice}"


def width(text: str) -> int:
    """Columns of a printable text: letters of East Asia take two, accents none."""
    return sum(0 if unicodedata.combining(it) else 1 + (unicodedata.east_asian_width(it) in "WF") for it in text)


def cut(text: str, columns: int) -> str:
    """The beginning of a text that fits, without anything that could steer a terminal."""
    text = printable(text, LINE_LIMIT)
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return f"{text}…"
