"""`swarmd start --gpu all`: a daemon for each card of this machine, each a process with a home and ports of its own.

The first one founds the run, or goes on with it, if that is what was asked for; the others join it. Lines of each are
shown under its card's number, signals are passed on to all, and this process ends after the last of them. Relies on the
`swarmd start` command and on the first daemon's control socket. Knows nothing of the swarm.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from swarmctl.client import Client, parse_status
from swarmd import exits
from swarmd.cli.options import StartOptions, words_of
from swarmd.cli.reporting import warn
from swarmd.daemon.device import list_cards
from swarmd.daemon.home import Home
from swarmd.errors import ConfigError, ControlError
from swarmd.printable import printable

SWARMD = (sys.executable, "-m", "swarmd")  # the very one that this process runs
POLL_SECONDS = 0.1  # while the first daemon's address is awaited
ANSWER_SECONDS = 2.0  # for its answer; on a busy machine its event loop may wait for a core
LINE_LIMIT_BYTES = 1 << 20
KILL_SECONDS = 2.0  # from a second signal on, at which daemons end at once
OF_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")  # are for this process, not for what it starts


class CardDaemon:
    """The daemon of one card, as a process."""

    def __init__(self, card: int, home: Home, *, as_json: bool, program: Sequence[str] = SWARMD) -> None:
        self.card, self.home = card, home
        self._as_json, self._program = as_json, program
        self._process: asyncio.subprocess.Process | None = None
        self._told: signal.Signals | None = None  # the newest signal

    @property
    def code(self) -> int | None:
        """Its exit code; None before its start and while it runs."""
        return None if self._process is None else self._process.returncode

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def run(self, words: Sequence[str]) -> int:
        """Starts it and shows its lines until it ends. Returns its exit code, that of a shell if a signal ended it."""
        self._process = process = await asyncio.create_subprocess_exec(
            *self._program,
            "start",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT_BYTES,
            env={name: value for name, value in os.environ.items() if name not in OF_SYSTEMD},
            start_new_session=True,  # Ctrl-C reaches this process, which passes it on once
            preexec_fn=exits.with_parent(signal.SIGTERM),
        )
        if self._told is not None:  # it came while the process was being made
            process.send_signal(self._told)
        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.gather(self._show(process.stdout, sys.stdout), self._show(process.stderr, sys.stderr))
        code = await process.wait()
        return code if code >= 0 else 128 - code

    async def _show(self, lines: asyncio.StreamReader, place: TextIO) -> None:
        while True:
            try:
                line = await lines.readline()
            except ValueError:  # longer than the limit
                continue
            if not line:
                return
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more; the daemon goes on
                print(self._labelled(line.decode(errors="replace").rstrip("\n")), file=place, flush=True)

    def _labelled(self, line: str) -> str:
        if self._as_json:
            with contextlib.suppress(ValueError):
                if isinstance(found := json.loads(line), dict):
                    return json.dumps({"gpu": self.card, **found})
        return f"gpu {self.card}: {printable(line)}"

    async def addresses(self) -> list[str]:
        """The addresses at which the daemon listens, once it does; none if it ended before."""
        client = Client(self.home.path, timeout_s=ANSWER_SECONDS)
        while self.code is None:
            with contextlib.suppress(ControlError):
                if found := parse_status(await asyncio.to_thread(client.status)).addresses:
                    return list(found)
            await asyncio.sleep(POLL_SECONDS)
        return []

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal if it runs, or as soon as it does."""
        self._told = number
        if self._process is not None and self.runs:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


class EveryCard:
    """The daemons of all cards, from the first one's start to the last one's end."""

    def __init__(self, options: StartOptions, daemons: Sequence[CardDaemon], *, more: Sequence[str] = ()) -> None:
        self._options, self._daemons, self._more = options, daemons, more
        self._signalled = False

    async def run(self) -> int:
        """Returns the exit code (`joint_code`)."""
        loop = asyncio.get_running_loop()
        with exits.heard_by(lambda name: loop.call_soon_threadsafe(self._hear, name)):
            async with asyncio.TaskGroup() as group:
                founds = self._options.model is not None or (self._options.resume and not self._options.bootstrap)
                begun = self._daemons[:1] if founds else self._daemons
                running = {daemon: group.create_task(self._run(daemon, self._options)) for daemon in begun}
                if founds and len(self._daemons) > 1:
                    joining = joiner_of(self._options, self._entries(await self._daemons[0].addresses()))
                    if joining.bootstrap and not self._signalled:
                        for daemon in self._daemons[1:]:
                            running[daemon] = group.create_task(self._run(daemon, joining))
        return joint_code([task.result() for task in running.values()])

    def _entries(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """The addresses of the first daemon, near ones first: it may announce some that only others can dial."""
        if not addresses:
            return ()
        peer_id = addresses[0].rpartition("/p2p/")[2]
        port = self._daemons[0].home.kept_port()
        places = self._options.listen or ((f"/ip4/127.0.0.1/tcp/{port}",) if port else ())
        near = [f"{place.replace('/ip4/0.0.0.0/', '/ip4/127.0.0.1/')}/p2p/{peer_id}" for place in places]
        return tuple(dict.fromkeys([*(it for it in near if "/tcp/0/" not in it), *addresses]))

    async def _run(self, daemon: CardDaemon, options: StartOptions) -> int:
        code = await daemon.run([*words_of(for_card(options, daemon.card)), f"--home={daemon.home.path}", *self._more])
        if code and not self._signalled:
            others = "; the others go on" if any(it.runs for it in self._daemons) else ""
            warn(f"the daemon of GPU {daemon.card} ended with {code}, see {daemon.home.log}{others}.")
        return code

    def _hear(self, name: str) -> None:
        """Passes a signal on. Daemons end at once at the second one; what doesn't is killed."""
        for daemon in self._daemons:
            daemon.signal(signal.Signals[name])
        if self._signalled:
            asyncio.get_running_loop().call_later(KILL_SECONDS, self._kill)
        self._signalled = True

    def _kill(self) -> None:
        for daemon in self._daemons:
            daemon.signal(signal.SIGKILL)


def run_every_card(options: StartOptions, home: Path, *, debug: bool, log_json: bool) -> int:
    """Runs a daemon on each card; returns the exit code. Raises ConfigError."""
    cards = asyncio.run(list_cards())
    homes = {card: Home(home.expanduser().absolute() / f"gpu-{card}") for card in cards}
    daemons = [CardDaemon(card, it, as_json=log_json) for card, it in homes.items()]
    for daemon in daemons:
        daemon.home.prepare()
    names = ", ".join(str(it.path) for it in homes.values())
    warn(
        f"a daemon for each of {len(cards)} cards, at home in {names}; `swarmctl --home {daemons[0].home.path} status`."
    )
    more = ["--debug"] * debug + ["--log-json"] * log_json
    return asyncio.run(EveryCard(options, daemons, more=more).run())


def for_card(options: StartOptions, card: int) -> StartOptions:
    """The options of one card's daemon: ports that were given count up from card to card."""
    return replace(
        options,
        gpu=str(card),
        listen=tuple(counted_up(address, card) for address in options.listen),
        announce=tuple(counted_up(address, card) for address in options.announce),
        metrics=_metrics_of(options.metrics, card) if options.metrics else None,
    )


def joiner_of(options: StartOptions, entries: tuple[str, ...]) -> StartOptions:
    """The options of those that join the one that founds. Text of this machine is theirs, too."""
    return replace(options, model=None, resume=False, steps=None, stages=None, mdns=False, bootstrap=entries)


def counted_up(address: str, card: int) -> str:
    """A multiaddr whose port is so much higher; port 0, any that is free, stays. Raises ConfigError."""
    return re.sub(r"(?<=/tcp/)[0-9]+", lambda found: _port(found[0], card), address)


def _metrics_of(endpoint: str, card: int) -> str:
    host, colon, port = endpoint.rpartition(":")
    return f"{host}{colon}{_port(port, card)}" if port.isascii() and port.isdecimal() else endpoint


def _port(text: str, card: int) -> str:
    port = int(text) + card if int(text) else 0
    if port >= 1 << 16:
        raise ConfigError(f"ports count up from {text} with the cards and there is no port {port}; give a lower one.")
    return str(port)


def joint_code(codes: Sequence[int]) -> int:
    """0 if all ended well, 2 if whatever failed must be changed by the user first, else 1."""
    failed = {code for code in codes if code != exits.DONE}
    return exits.DONE if not failed else exits.MISTAKE if failed == {exits.MISTAKE} else exits.FAILED
