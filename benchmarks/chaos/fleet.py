"""The daemons: real processes in homes of their own, a proxy before each, and what can be done to them.

Relies on the demo's `DaemonProcess` (start, signals, status over the control socket) and on `weather`. Knows no plan
and takes no measurements.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.weather import LOOPBACK, Proxy, Weather, free_port
from swarmd.demo.process import DaemonProcess

LISTEN_BOUND_S = 60.0  # for a daemon to listen; nine of them start at once
END_BOUND_S = 45.0  # for a daemon to end after SIGTERM
POLL_S = 0.1


@dataclass(frozen=True)
class Pace:
    """Seconds that a stage's device takes for a microbatch."""

    forward_s: float
    backward_s: float


class Daemon(DaemonProcess):
    """One daemon behind its proxy. Started again, it has the same home, identity, port and stage."""

    def __init__(self, number: int, stage: int, home: Path, pace: Pace, weather: Weather, fleet: "Fleet") -> None:
        program = (sys.executable, "-m", "benchmarks.paced", str(pace.forward_s), str(pace.backward_s))
        super().__init__(number, stage, home, program)
        self._fleet = fleet
        self.port = free_port()
        self.proxy = Proxy(number, self.port, weather, fleet.number_of)
        self.address = ""  # with its peer id, once it has listened
        self.paused = False
        self.killed = False  # by us, so that its end is no surprise
        self.started_s = 0.0  # loop time of its last start

    async def begin(self, options: Sequence[str]) -> None:
        """Starts the process."""
        self.started_s = asyncio.get_running_loop().time()
        listen = f"/ip4/{LOOPBACK}/tcp/{self.port}"
        announce = f"/ip4/{LOOPBACK}/tcp/{self.proxy.port}"
        common = ("--device", "cpu", "--listen", listen, "--announce", announce, "--stage", str(self.stage))
        await self.start([*common, *options])
        self.killed = False  # not before: until then it is the end of the process before that shows

    async def listening(self) -> str:
        """Its address, once it has one. Raises TimeoutError."""
        async with asyncio.timeout(LISTEN_BOUND_S):
            while not (self.answers and self.status and self.status.addresses):
                if not self.runs:
                    raise RuntimeError(f"daemon {self.number} {self.how_it_ended()}\n{self.last_words()}")
                await asyncio.sleep(POLL_S)
                await self.poll()
        self.address = self.status.addresses[0]
        return self.address

    def kill(self) -> None:
        self.killed = True
        self.signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.killed = True
        self.signal(signal.SIGTERM)

    def pause(self) -> None:
        self.paused = True
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.paused = False
        self.signal(signal.SIGCONT)


class Fleet:
    """All daemons of the swarm."""

    def __init__(self, home: Path, stages: int, replicas: int, pace: Pace) -> None:
        self.weather = Weather()
        self.daemons = [
            Daemon(number, number % stages, home / f"peer-{number}", pace, self.weather, self)
            for number in range(stages * replicas)
        ]

    def number_of(self, pid: int) -> int | None:
        """The daemon whose process this is."""
        return next((daemon.number for daemon in self.daemons if daemon.pid == pid), None)

    def of_stage(self, stage: int) -> list[Daemon]:
        return [daemon for daemon in self.daemons if daemon.stage == stage]

    async def found(self, model: Path, count: int | None = None) -> None:
        """Starts all, or so many: the first founds the run, the others join it."""
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        for daemon in self.daemons:
            await daemon.proxy.start()
        first, *others = self.daemons[:count]
        await first.begin(["--model", str(model)])
        address = await first.listening()
        for daemon in others:
            await daemon.begin(["--bootstrap", address])
        await asyncio.gather(*(daemon.listening() for daemon in others))

    async def restart(self, daemon: Daemon) -> None:
        """Starts a daemon that has ended again: it joins through any daemon that answers."""
        known = [other.address for other in self.daemons if other is not daemon and other.runs and not other.paused]
        await daemon.begin([word for address in known for word in ("--bootstrap", address)])

    async def ended(self, daemon: Daemon) -> bool:
        """Waits for a daemon's end after SIGTERM; kills it when it does not come. Whether it ended by itself."""
        try:
            async with asyncio.timeout(END_BOUND_S):
                await daemon.ended()
            return daemon.exit_code == 0
        except TimeoutError:
            daemon.kill()
            await daemon.ended()
            return False

    async def stop(self) -> list[int]:
        """Ends all in good order; returns the numbers of those that had to be killed or failed."""
        for daemon in self.daemons:
            if daemon.paused:
                daemon.go_on()
            daemon.terminate()
        started = [daemon for daemon in self.daemons if daemon.starts]
        fine = await asyncio.gather(*(self.ended(daemon) for daemon in started))
        return [daemon.number for daemon, good in zip(started, fine, strict=True) if not good]

    async def close(self) -> None:
        """Ends every process and proxy, whatever happened."""
        for daemon in self.daemons:
            daemon.kill()
        for daemon in self.daemons:
            await daemon.ended()
            await daemon.proxy.stop()
