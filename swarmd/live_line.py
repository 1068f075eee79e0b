"""A daemon in one line, made of its `Status`: stage, step, loss, speed and time left, or what it waits for.

The daemon shows it on its terminal, `swarmctl status --watch` in a pipe. Relies on `printable` for words of others.
"""

import unicodedata

from swarmd.printable import counted, duration, printable
from swarmd.status import Status

WAIT_SECONDS = 2.0  # what lasts less isn't worth a change of the line
LINE_LIMIT = 1000  # characters, however wide a terminal is


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
    return [
        *where,
        *state,
        f"step {status.step}/{status.steps}",
        *([] if status.loss is None else [f"loss {status.loss:.3f}"]),
        *([f"{status.tokens_per_second:,.0f} tokens/s"] if status.tokens_per_second else []),
        *([] if status.seconds_left is None else [f"{duration(status.seconds_left)} left"]),
        counted(sum(status.peers.values()), "peer"),
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
