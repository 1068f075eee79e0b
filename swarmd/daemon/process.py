"""Starts a daemon, keeps it running, stops it: listening first, then the run, then the stage on its device.

Only assembles: transport, control socket, node. The first SIGTERM, SIGINT or SIGHUP, or word that the machine is about
to go, drains within a bound and ends with 0; a second signal ends at once.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from swarmd import exits
from swarmd.config import NodeConfig, RunConfig
from swarmd.daemon.control import ControlServer
from swarmd.daemon.home import Home
from swarmd.daemon.logs import NOTICE, TERMINAL_ONLY
from swarmd.daemon.node import Node
from swarmd.daemon.patience import said_if_long
from swarmd.daemon.report import Report
from swarmd.daemon.spot import check_spot, spot_notice
from swarmd.daemon.stopping import Stopping
from swarmd.daemon.systemd import Notifier
from swarmd.daemon.terminal import show_status, terminal
from swarmd.errors import SwarmError
from swarmd.memory import share_arenas

log = logging.getLogger(__name__)

CLOSE_SECONDS = 20.0  # at the end: 10 for the device, the rest for the network and the control socket
LIFE_SECONDS = 3.0  # for what runs to take note that it is over
REST_SECONDS = 1.0  # for what is left then


async def run_daemon(node: NodeConfig, run: RunConfig | None, *, idle: bool) -> int:
    """Runs until the run is over (0), a signal (0) or a failure (1). Raises ConfigError for what the user must
    change. The process is to end then, without a look at the loop: threads may still be at something.
    """
    stopping = Stopping(node.drain_s)
    with exits.heard_by(stopping.hear):
        working = asyncio.create_task(_work(node, run, stopping, idle=idle), name="daemon")
        stopping.cancels(working)
        try:
            return await working
        except asyncio.CancelledError:
            if not stopping.asked.done():
                raise
            return exits.DONE
        finally:
            if rest := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in rest:
                    task.cancel()
                await asyncio.wait(rest, timeout=REST_SECONDS)


async def _work(node: NodeConfig, run: RunConfig | None, stopping: Stopping, *, idle: bool) -> int:
    """Listens and works. A signal that comes before it waits for one cancels this."""
    started = time.monotonic()
    share_arenas()
    check_spot(node)
    home = Home(node.home)
    async with _listening(node, home, idle=idle) as daemon, _reported(daemon, home) as report, _scraped(node, report):
        seconds = time.monotonic() - started
        log.log(NOTICE, "listening at %s after %.1f s", " ".join(daemon.addresses()) or "nothing", seconds)
        stopping.opened = lambda: daemon.opened
        async with _said(daemon, report), _discovered(daemon), _told_to_systemd(daemon, report):
            stopping.cancels(None)
            return await _until_over(daemon, daemon.live(run, idle=idle), stopping.asked)


@asynccontextmanager
async def _told_to_systemd(daemon: Node, report: Report) -> AsyncIterator[None]:
    """The service manager, if there is one, hears that the daemon is ready, alive, and stopping."""
    notifier = Notifier.from_environment()
    notifier.ready(report.summary())
    pulse = asyncio.create_task(notifier.pulse(report.summary, daemon.stuck), name="systemd")
    daemon.ending = lambda seconds: notifier.stopping("draining", seconds)
    try:
        yield
    finally:
        pulse.cancel()
        await asyncio.gather(pulse, return_exceptions=True)
        notifier.stopping("ending", CLOSE_SECONDS)


@asynccontextmanager
async def _said(daemon: Node, report: Report) -> AsyncIterator[None]:
    """Says in log and terminal what the daemon has waited for a while; the terminal also shows how it goes."""

    def say(line: str) -> None:
        log.log(NOTICE, "%s", line, extra=TERMINAL_ONLY)

    saying = asyncio.create_task(daemon.waits.say(), name="say what is waited for")
    showing = asyncio.create_task(show_status(report.status, say, terminal()), name="show how it goes")
    for task in (saying, showing):
        task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        saying.cancel()
        showing.cancel()
        await asyncio.gather(saying, showing, return_exceptions=True)


def _log_failure(task: "asyncio.Task[None]") -> None:
    """Logs the failure of a task that shows the daemon, which trains on."""
    if not task.cancelled() and (trouble := task.exception()) is not None:
        log.error("no more attempts to %s", task.get_name(), exc_info=trouble)


@asynccontextmanager
async def _listening(node: NodeConfig, home: Home, *, idle: bool) -> AsyncIterator[Node]:
    from swarmd.net.libp2p import Libp2pTransport
    from swarmd.net.limits import TransportLimits
    from swarmd.swarm.wire.framing import SIZES

    limits = TransportLimits(message_bytes=node.limits.frame_bytes, sizes=SIZES)
    incarnation = await asyncio.to_thread(home.next_incarnation, time.time_ns())
    with said_if_long("waiting for the network to be ready", log.info):  # a terminal shows that the daemon starts
        transport = await Libp2pTransport.start(
            home.identity, node.listen, node.announce, limits, home.kept_port(), incarnation
        )
    if not node.listen:
        await asyncio.to_thread(home.keep_port, transport.reservation.addresses[0].port)
    try:
        daemon = Node(node, home, transport, incarnation)
        daemon.search.idle = idle  # from its first word on
        yield daemon
    finally:
        await transport.close()


@asynccontextmanager
async def _reported(daemon: Node, home: Home) -> AsyncIterator[Report]:
    """The daemon's report, which its control socket shows."""
    report = Report(daemon)
    control = ControlServer(report, daemon, home)
    await control.start()
    try:
        yield report
    finally:
        await control.stop()


@asynccontextmanager
async def _scraped(node: NodeConfig, report: Report) -> AsyncIterator[None]:
    """The metrics on a port, if the daemon was asked to serve them. Raises ConfigError."""
    if node.metrics is None:
        yield
        return
    from swarmd.daemon.scrape import MetricsServer

    server = MetricsServer(report.status)
    await server.start(*node.metrics)
    try:
        yield
    finally:
        await server.stop()


@asynccontextmanager
async def _discovered(daemon: Node) -> AsyncIterator[None]:
    """Announces the daemon on the local network and hears of others there, if it was asked to."""
    if not daemon.config.mdns:
        yield
        return
    from swarmd.net.mdns import Discovery

    transport = daemon.transport
    with daemon.waits.during("the announcement on the local network"):
        discovery = await Discovery.start(
            transport.peer_id, daemon.addresses(), "", daemon.found, machine=transport.machine
        )

    async def announce(fingerprint: str) -> None:
        await discovery.announce(daemon.addresses(), fingerprint)

    daemon.on_run(announce)
    try:
        yield
    finally:
        await discovery.close()


async def _until_over(daemon: Node, life: Coroutine[None, None, None], stopped: "asyncio.Future[str]") -> int:
    """Waits for the end of the daemon's life, a reason to end it, or the end of the transport."""
    living = asyncio.create_task(life, name="life")
    spotted = asyncio.create_task(spot_notice(daemon.config), name="spot notice")
    try:
        ends: set[asyncio.Future[Any]] = {living, stopped, spotted, daemon.ended, daemon.transport.failed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        others = ends - {spotted}
        if spotted.done() and not any(it.done() for it in others):
            await daemon.end_soon(spotted.result())
            await asyncio.wait(others, timeout=daemon.config.grace_s, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done() or (spotted.done() and not any(it.done() for it in others)):
            why = f"on {stopped.result()}" if stopped.done() else f"the machine is about to go: {spotted.result()}"
            draining = asyncio.create_task(daemon.drain(why), name="drain")
            over: set[asyncio.Future[Any]] = {draining, living, daemon.transport.failed}
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            return 0
        if daemon.transport.failed.done() and not living.done():
            raise SwarmError(f"the network failed: {daemon.transport.failed.result()}")
        if daemon.ended.done():
            log.info("ending: %s", daemon.ended.result())
            return 0
        _raise_first(living)
        return 0
    finally:
        for task in (living, spotted):
            task.cancel()
        await asyncio.wait((living, spotted), timeout=LIFE_SECONDS)
        await daemon.close()


def _raise_first(living: "asyncio.Task[None]") -> None:
    """Raises the first exception of a task group's bundle."""
    trouble = living.exception()
    while isinstance(trouble, BaseExceptionGroup):
        trouble = trouble.exceptions[0]
    if trouble is not None:
        raise trouble
