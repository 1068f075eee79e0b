"""The end of a process: on a signal, from its first line on, and when it is done.

Every command ends by `end` or `at_once`, and both leave by `os._exit`: torch's and other threads that are in C++ when
Python takes itself down would abort the process. Files and sockets are closed by then by their owners, or are such that
a killed process may leave them. Until a command listens to signals itself (`heard_by`), the first one ends
it with the code that `begin` was given. Relies on the standard library only, and imports little: the time until it is
loaded is the time in which a signal still does what it does to any Python.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

DONE, FAILED = 0, 1
MISTAKE = 2  # the user must change something

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Those that ask a process to end. SIGQUIT wants a core dump, and gets it."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SHOW_CURSOR = b"\x1b[?25h"
_CLEAR = b"\r\x1b[2K"
_STDOUT, _STDERR = 1, 2

Handler = Callable[[int, FrameType | None], object]

before_end: list[Callable[[], object]] = []
"""Called when the process ends without unwinding: for what must not outlive it."""


def begin(program: str, code: int) -> None:
    """Makes a signal end this process with `code`; to be called before anything that takes time."""
    sentence = f"{program}: interrupted." if code else ""
    _install(lambda _number, _frame: at_once(code, sentence))


@contextlib.contextmanager
def heard_by(listener: Callable[[str], object]) -> Iterator[None]:
    """Gives the name of each signal to a listener while the block runs, between two instructions of the main thread."""
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    _install(lambda number, _frame: listener(signal.Signals(number).name))
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _install(handler: Handler) -> None:
    for number in SIGNALS:
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue  # `nohup` asks that the terminal's end be survived
        signal.signal(number, handler)


def end_within(seconds: float, code: int, sentence: str) -> None:
    """Ends the process at once after so long, should it still be there. May be called by what listens to signals."""
    signal.signal(signal.SIGALRM, lambda _number, _frame: at_once(code, sentence))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def end(code: int) -> NoReturn:
    """Ends the process with `code` after what was written is out; with FAILED if nobody reads it any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            code = code or FAILED
    at_once(code)


def at_once(code: int, sentence: str = "") -> NoReturn:
    """Ends the process where it stands; a terminal gets its cursor back."""
    for call in before_end:
        call()
    with contextlib.suppress(OSError):
        for descriptor in (_STDOUT, _STDERR):
            if os.isatty(descriptor):
                os.write(descriptor, _SHOW_CURSOR)
        if sentence:
            line = _CLEAR if os.isatty(_STDERR) else b""  # of what was shown there in place
            os.write(_STDERR, line + f"{sentence}\n".encode())
    os._exit(code)


def with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """For a child between fork and exec: the kernel sends it a signal when the thread that forked dies, so that nothing
    is left behind. None where there is no such kernel.
    """
    if sys.platform != "linux":
        return None
    import ctypes

    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it died before
            os._exit(FAILED)

    return ask_kernel
