"""The swarm of a demo: daemons are started as a person would, watched until all have ended, and stopped.

Relies on the `swarmd start` command and the daemons' control sockets. Time is counted from the first daemon's start.
"""

import asyncio
import contextlib
import functools
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from swarmd import exits
from swarmd.config import DataConfig, RunConfig
from swarmd.demo.kills import Killer
from swarmd.demo.options import DemoOptions
from swarmd.demo.process import DaemonProcess
from swarmd.demo.report import DemoResult, judge
from swarmd.demo.view import View
from swarmd.errors import SwarmError
from swarmd.printable import counted

POLL_INTERVAL_S = 1.0  # each poll costs every daemon a few milliseconds of the cores it trains on
FIRST_POLL_INTERVAL_S = 0.1  # while only the first daemon's address is awaited
LISTEN_BOUND_S = 120.0  # for the first daemon to listen; 3 s is the goal, but a cold disk reads torch slowly
FINISH_BOUND_S = 60.0  # after the first daemon is done, the others are, too, or something is wrong
STOP_BOUND_S = 20.0  # for a daemon to leave in good order after SIGTERM

LISTEN = ("--device", "cpu", "--listen", "/ip4/127.0.0.1/tcp/0")  # a port of its own, found by the kernel


class DemoFailed(SwarmError):
    """The swarm can't go on."""


def own_text(data: DataConfig) -> list[str]:
    """Options that tell a joiner where this machine has text that the run's settings don't name to others."""
    words = [] if data.has_open_source else ["--data", data.source]
    return words if data.has_open_tokenizer else [*words, "--tokenizer", data.tokenizer]


class Demo:
    """The swarm from the first daemon's start to the last one's end."""

    def __init__(
        self, options: DemoOptions, run: RunConfig, home: Path, peers: list[DaemonProcess], view: View
    ) -> None:
        self._options = options
        self._run = run
        self._home = home
        self.peers = peers
        self._view = view
        self._started_s = 0.0
        self._first_end_s: float | None = None  # when the first daemon ended in good order
        self._ended: set[int] = set()  # numbers of the daemons whose end was noticed
        self._interrupted = False
        self._killer = Killer(peers, options.kill_every_s or 0.0, self._joining, view.say)
        self._places = {peer.number: peer.stage for peer in peers}  # as it was last said

    async def run(self) -> DemoResult | None:
        """The result, or None when a signal stopped the demo; no daemon is left behind. Raises DemoFailed."""
        self._started_s = asyncio.get_running_loop().time()
        async with self._interruptible():
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    listening_s = await self._start()
                    await self._watch_and_kill()
                return judge(self._run, self._home, self.peers, self._elapsed_s(), listening_s, self._killer.kills)
            except TimeoutError as error:
                raise DemoFailed(f"the run was not done after {self._options.timeout_s:.0f} s (--timeout).") from error
            finally:
                await self._stop_all()
        return None

    def _elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started_s

    @contextlib.asynccontextmanager
    async def _interruptible(self) -> AsyncIterator[None]:
        """Inside it the first signal ends the work, and a second one kills the daemons that are still stopping."""
        loop, work = asyncio.get_running_loop(), asyncio.current_task()
        assert work is not None

        def hear() -> None:
            if self._interrupted:
                self._signal_all(signal.SIGKILL)
            else:
                self._interrupted = True
                work.cancel()

        with exits.heard_by(lambda _name: loop.call_soon_threadsafe(hear)):
            try:
                yield
            except asyncio.CancelledError:
                if not self._interrupted:
                    raise
                work.uncancel()

    async def _start(self) -> float:
        """Starts the first daemon, and once it listens all others at once. Returns how long it took to listen."""
        first, *others = self.peers
        founding = ["--model", self._options.model, "--stage", str(first.stage), *LISTEN]
        for name, value in (("--steps", self._options.steps), ("--stages", self._options.stages)):
            founding += [name, str(value)] if value is not None else []
        await first.start(founding)
        await self._address_of(first)
        listening_s = self._elapsed_s()
        await _all_of(functools.partial(peer.start, self._joining(peer)) for peer in others)
        return listening_s

    def _joining(self, newcomer: DaemonProcess) -> list[str]:
        """Options for a daemon that joins the swarm: the addresses of all daemons that have one."""
        known = [peer.status for peer in self.peers if peer is not newcomer and peer.runs and peer.status]
        entries = [word for status in known for address in status.addresses[:1] for word in ("--bootstrap", address)]
        return [*entries, *own_text(self._run.data), "--stage", str(newcomer.stage), *LISTEN]

    async def _address_of(self, first: DaemonProcess) -> str:
        deadline_s = self._elapsed_s() + LISTEN_BOUND_S
        while self._elapsed_s() < deadline_s:
            await first.poll()
            self._view.show(self.peers, self._elapsed_s())
            if first.status is not None and first.status.addresses:
                return first.status.addresses[0]
            if not first.runs:
                self._view.say(f"the last words of the first daemon:\n{first.last_words()}")
                raise DemoFailed(f"the first daemon {first.how_it_ended()}")
            await asyncio.sleep(FIRST_POLL_INTERVAL_S)
        raise DemoFailed(f"the first daemon did not listen within {LISTEN_BOUND_S:.0f} s; see {first.home.log}.")

    async def _watch_and_kill(self) -> None:
        killing = asyncio.create_task(self._killer.run()) if self._options.kill_every_s is not None else None
        try:
            await self._watch()
        finally:
            if killing is not None:
                killing.cancel()
                await asyncio.gather(killing, return_exceptions=True)

    async def _watch(self) -> None:
        """Shows the swarm until every daemon has ended."""
        while any(peer.runs for peer in self.peers):
            await _all_of(peer.poll for peer in self.peers if peer.runs)
            self._notice_ends()
            self._notice_moves()
            self._view.show(self.peers, self._elapsed_s())
            await self._wait_for_ends(POLL_INTERVAL_S)
        self._notice_ends()
        self._view.show(self.peers, self._elapsed_s())

    async def _wait_for_ends(self, seconds: float) -> None:
        """Waits that long, or until the last daemon has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _all_of(peer.ended for peer in self.peers)

    def _notice_ends(self) -> None:
        """Says what ended unexpectedly, and gives up when a stage is gone. Raises DemoFailed."""
        self._killer.notice_returns()
        for peer in self.peers:
            if peer.exit_code is None or peer.number in self._ended | self._killer.away:
                continue
            self._ended.add(peer.number)
            if peer.exit_code == 0:
                self._first_end_s = self._first_end_s or self._elapsed_s()
            else:
                self._view.say(f"peer {peer.number} (stage {peer.stage}) {peer.how_it_ended()}; its last words:")
                self._view.say(peer.last_words())
        for stage in range(self._run.model.stages):
            replicas = [peer for peer in self.peers if peer.stage == stage and peer.number not in self._killer.away]
            if all(peer.exit_code not in (None, 0) for peer in replicas):
                raise DemoFailed(f"stage {stage} has no daemon left, so the run can't go on.")
        if self._first_end_s is not None:
            self._give_up_the_killed()
        if self._first_end_s is not None and self._elapsed_s() > self._first_end_s + FINISH_BOUND_S:
            late = ", ".join(str(peer.number) for peer in self.peers if peer.runs)
            raise DemoFailed(f"peer {late} did not end within {FINISH_BOUND_S:.0f} s after the first one was done.")

    def _give_up_the_killed(self) -> None:
        """The run is over: who was killed and is not back would look for it in vain."""
        for peer in self.peers:
            if peer.number in self._killer.away and peer.runs and peer.number not in self._ended:
                self._ended.add(peer.number)
                self._view.say(f"the run was over before peer {peer.number} was back")
                peer.signal(signal.SIGTERM)

    def _notice_moves(self) -> None:
        """Says who has gone to another stage, and why."""
        for peer in self.peers:
            if peer.status is not None and peer.stage != (before := self._places[peer.number]):
                self._places[peer.number] = peer.stage
                because = f": {peer.status.moved_because}" if peer.status.moved_because else ""
                self._view.say(f"peer {peer.number} has gone from stage {before} to {peer.stage}{because}")

    def _signal_all(self, number: signal.Signals) -> None:
        for peer in self.peers:
            peer.signal(number)

    async def _stop_all(self) -> None:
        """SIGTERM to every daemon that still runs, SIGKILL to those that don't heed it."""
        running = [peer for peer in self.peers if peer.runs]
        if not running:
            return
        self._view.say(f"stopping {counted(len(running), 'daemon')}")
        self._signal_all(signal.SIGTERM)
        await self._wait_for_ends(STOP_BOUND_S)
        stubborn = [peer for peer in self.peers if peer.runs]
        self._signal_all(signal.SIGKILL)
        await _all_of(peer.ended for peer in self.peers)
        killed = ", ".join(str(peer.number) for peer in stubborn)
        self._view.say(f"killed peer {killed}, which did not stop in time" if killed else "all daemons are stopped")


async def _all_of(actions: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Runs them at once and waits for all."""
    async with asyncio.TaskGroup() as group:
        for action in actions:
            group.create_task(action())
