"""Telling systemd how this daemon is: ready, alive, stopping. The protocol of sd_notify(3), over one datagram socket.

Does nothing where systemd isn't: without NOTIFY_SOCKET in the environment. The word that it is alive comes from the
event loop, so a loop that hangs falls silent, and the watchdog of the unit restarts the daemon. It isn't said while the
compute thread is dead, or has been at one task for very long, either.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

from swarmd.printable import printable

log = logging.getLogger(__name__)

STATUS_SECONDS = 10.0  # between two status lines where no watchdog asks for more
PULSES_PER_WATCHDOG = 2  # as sd_watchdog_enabled(3) advises
STATUS_LIMIT = 500  # characters of a status line


class Notifier:
    """Words to the service manager that started this process."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @: an abstract name
        self.watchdog_s = watchdog_s  # the manager expects a word so often; 0: it doesn't watch

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Notifier":
        """A notifier for the manager of this process, as its environment says."""
        names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        address, watchdog, pid = (environment.get(name, "") for name in names)
        mine = not pid or pid == str(os.getpid())
        return cls(address, int(watchdog) / 1e6 if mine and watchdog.isdecimal() else 0.0)

    def tell(self, **words: str | int) -> None:
        """Sends assignments such as READY=1. What can't be sent is logged: the daemon goes on without."""
        if not self._address:
            return
        text = "\n".join(
            f"{name}={printable(' '.join(str(word).split()), STATUS_LIMIT)}" for name, word in words.items()
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(text.encode(), self._address)
            except OSError as error:
                log.warning("can't tell systemd %s: %s", ", ".join(words), error.strerror)

    def ready(self, status: str) -> None:
        """The daemon listens."""
        self.tell(READY=1, STATUS=status)

    def stopping(self, status: str, seconds: float) -> None:
        """The daemon ends, within so many seconds at most."""
        self.tell(STOPPING=1, STATUS=status, EXTEND_TIMEOUT_USEC=int(seconds * 1e6))

    async def pulse(self, status: Callable[[], str], stuck: Callable[[], str] = lambda: "") -> None:
        """Says again and again that the event loop runs, and how the daemon is; until cancelled. `stuck`: why the
        daemon is not alive although its loop is; then the watchdog hears nothing.
        """
        pause = self.watchdog_s / PULSES_PER_WATCHDOG if self.watchdog_s else STATUS_SECONDS
        told = ""
        while True:
            why = _said_by(stuck)
            if why and not told:
                log.error("the watchdog is told nothing any more: %s", why)
            told = why
            self.tell(**({} if why else {"WATCHDOG": 1}), STATUS=why or _said_by(status))
            await asyncio.sleep(pause)


def _said_by(word: Callable[[], str]) -> str:
    """The line that a function gives; if it fails, the daemon lives all the same."""
    try:
        return word()
    except Exception:
        log.exception("this daemon can't say how it is")
        return ""
