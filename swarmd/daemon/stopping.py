"""The signals that end a daemon: the first begins its end, which has a bound at any moment; a second one is the end."""

import asyncio
from collections.abc import Callable

from swarmd import exits

SECOND_SIGNAL_EXIT = 1
UNOPENED_SECONDS = 4.5  # from the first signal to the end where no stage is open yet: 5 are promised
AFTER_DRAIN_SECONDS = 14.5  # besides the drain's own bound where one is: 15 are promised


class Stopping:
    """Hears the signals of one daemon, inside `exits.heard_by`. Made in its event loop."""

    def __init__(self, drain_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.asked: asyncio.Future[str] = self._loop.create_future()  # gets the first signal's name
        self.opened: Callable[[], bool] = lambda: False  # whether a stage was opened
        self._drain_s = drain_s
        self._signalled = False
        self._starting: asyncio.Task[int] | None = None

    def hear(self, name: str) -> None:
        """A signal; called between any two instructions, so it does little."""
        if self._signalled:
            exits.at_once(SECOND_SIGNAL_EXIT, "swarmd: ended at once by a second signal.")
        self._signalled = True
        opened = self.opened()
        code = exits.FAILED if opened else exits.DONE
        seconds = self._drain_s + AFTER_DRAIN_SECONDS if opened else UNOPENED_SECONDS
        exits.end_within(seconds, code, f"swarmd: ended, as what it does on {name} took more than {seconds:.0f} s.")
        self._loop.call_soon_threadsafe(self._ask, name)

    def _ask(self, name: str) -> None:
        self.asked.set_result(name)
        if self._starting is not None:
            self._starting.cancel()

    def cancels(self, starting: "asyncio.Task[int] | None") -> None:
        """Lets the first signal cancel a task, also if it has come already. None: no task; `asked` is waited for."""
        self._starting = starting
        if starting is not None and self.asked.done():
            starting.cancel()
