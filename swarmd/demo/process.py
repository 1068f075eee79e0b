"""One daemon of the demo: a real process, seen from outside as any user sees it.

Relies on `swarmd start` and on swarmctl's client for the control socket. Knows nothing of the swarm it belongs to.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from swarmctl.client import Client, parse_status
from swarmd import exits
from swarmd.daemon.home import Home
from swarmd.errors import ControlError
from swarmd.files import open_regular
from swarmd.status import Status

POLL_TIMEOUT_S = 2.0  # on a busy machine the daemon's event loop may wait that long for a core
LAST_WORDS = 15  # lines of the log that are shown when a daemon dies
SWARMD = (sys.executable, "-m", "swarmd")  # the very one that this demo belongs to
TAIL_BYTES = 16 << 10  # enough of a file's end for that many lines


class DaemonProcess:
    """A daemon that was or will be started, perhaps more than once. Its status is the newest that it answered with."""

    def __init__(self, number: int, stage: int, home: Path, program: Sequence[str] = SWARMD) -> None:
        self.number = number
        self._program = program
        self._first_stage = stage
        self.home = Home(home)
        self.status: Status | None = None
        self.answers = False  # whether it answered when last asked
        self.starts = 0  # how often it was started
        self._process: asyncio.subprocess.Process | None = None

    @property
    def stage(self) -> int:
        """The stage that it serves, or was started for."""
        return self._first_stage if self.status is None or self.status.stage is None else self.status.stage

    @property
    def output(self) -> Path:
        """The lines that it wrote on stderr."""
        return self.home.path / "output.txt"

    @property
    def exit_code(self) -> int | None:
        """None before the start and while it runs; negative when a signal ended it."""
        return self._process.returncode if self._process else None

    @property
    def pid(self) -> int | None:
        """The id of its process, once it was started."""
        return self._process.pid if self._process else None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, options: Sequence[str]) -> None:
        """Starts it with one CPU thread, in a session of its own so that Ctrl-C reaches the demo alone."""
        assert not self.runs
        self.starts += 1
        self.status, self.answers = None, False
        self.home.prepare()
        command = [*self._program, "start", "--home", str(self.home.path), "--threads", "1", *options]
        with self.output.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Each counts as a machine of its own, so that the end of a run shows what it does with several.
                env={**os.environ, "OMP_NUM_THREADS": "1", "SWARMD_MACHINE": str(self.home.path)},
                start_new_session=True,
                preexec_fn=exits.with_parent(signal.SIGTERM),
            )

    async def poll(self) -> None:
        """Asks for its status; without an answer the last one stays."""
        client = Client(self.home.path, timeout_s=POLL_TIMEOUT_S)
        try:
            self.status = parse_status(await asyncio.to_thread(client.status))
            self.answers = True
        except ControlError:
            self.answers = False

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, if it still runs."""
        if self._process is not None and self.runs:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def ended(self) -> None:
        """Returns once the process has ended."""
        if self._process is not None:
            await self._process.wait()

    def how_it_ended(self) -> str:
        """The end of a daemon that has ended, in words."""
        code = self.exit_code
        assert code is not None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def last_words(self) -> str:
        """The end of its log, and what it said on stderr if that is not in the log."""
        log = _tail(self.home.log)
        output = [line for line in _tail(self.output) if line not in log]
        return "\n".join(f"    {line}" for line in [*log, *output][-LAST_WORDS:]) or "    (it wrote nothing)"


def _tail(path: Path) -> list[str]:
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-LAST_WORDS:]
    except OSError:
        return []
