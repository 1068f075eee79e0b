"""The daemon as a whole: idle, or a peer of a run on this machine's device. The control socket commands it.

Brings a `Peer` together with a transport, a worker, data and a home. Decides nothing about the swarm; `run_search.py`
finds its run, `report.py` shows it.
"""

import asyncio
import dataclasses
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from swarmd import __version__
from swarmd.config import NodeConfig, RunConfig, fingerprint, lineage
from swarmd.daemon.device import look_at, torch_version
from swarmd.daemon.home import Home
from swarmd.daemon.logs import NOTICE
from swarmd.daemon.meeting import meet_others
from swarmd.daemon.run_memory import RunMemory
from swarmd.daemon.run_search import RunSearch
from swarmd.daemon.run_text import RunText
from swarmd.daemon.store import LocalStore
from swarmd.daemon.waits import Standstill, Waits
from swarmd.errors import ConfigError, ControlError, Refused, RunEnded
from swarmd.memory import settle
from swarmd.status import Wait
from swarmd.swarm.balance.places import Entrance
from swarmd.swarm.history.history import History
from swarmd.swarm.history.listener import HistoryListener
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Record
from swarmd.swarm.hops.custody import stuck
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.drain import Drained
from swarmd.swarm.peer.peer import Peer
from swarmd.swarm.peer.status_view import StatusView
from swarmd.swarm.ports import Compute, Data
from swarmd.swarm.tasks import Tasks
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.presence import Settings
from swarmd.swarm.wire.own_card import OwnCard, first_card
from swarmd.values import ComputeProgress, PeerId

if TYPE_CHECKING:
    from swarmd.net.libp2p import Libp2pTransport
    from swarmd.stage.worker import Worker

log = logging.getLogger(__name__)

RATE_RECORDS = 10  # committed steps that the shown tokens per second are averaged over
CLOSE_SECONDS = 3.0  # for the device's last task, and what is being written; the process ends then
UNOPENED_GOODBYE_SECONDS = 1.0  # where no stage was opened yet: nobody worked with this peer
GOODBYE_SECONDS = 5.0  # to tell the neighbours; those who don't hear it notice the broken connection
PLAIN_CODECS = ("fp32", "fp16", "bf16", "int8")  # what every device can


class Node(HistoryListener):
    """One daemon."""

    def __init__(self, config: NodeConfig, home: Home, transport: "Libp2pTransport", incarnation: int) -> None:
        self.config, self.transport, self._home = config, transport, home
        self.peer: Peer | None = None
        self.view: StatusView | None = None  # of the peer, as soon as there is one
        self.store: LocalStore | None = None
        self._worker: Worker | None = None
        self._on_run: Callable[[str], Awaitable[None]] | None = None
        self.records: deque[Record] = deque(maxlen=RATE_RECORDS)
        card = first_card(
            transport.peer_id, incarnation, transport.addresses(), config.device, PLAIN_CODECS, transport.machine
        )
        self._own = OwnCard(dataclasses.replace(card, software=__version__, torch=torch_version()))
        self.membership = Membership(self._own)
        self._links = Links(transport, self._own, self.membership, self._settings, self._keep_incarnation)
        self.search = RunSearch(config, home, transport, self._links, self.membership)
        self.waits = Waits(self._waits)
        self._standstill = Standstill()
        self._text = RunText(config, home, self.waits)
        self._memory: RunMemory | None = None
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # gets why this daemon is to end
        self.ending: Callable[[float], None] = lambda seconds: None  # hears that it drains, within so many seconds
        self.opened = False  # whether a stage was
        self._draining: asyncio.Task[Drained] | None = None

    def _settings(self) -> Settings | None:
        return self.search.settings()

    async def _keep_incarnation(self, incarnation: int) -> None:
        """Takes over a later life's number of this peer, which others know and this home doesn't. Raises OSError."""
        await asyncio.to_thread(self._home.keep_incarnation, incarnation)
        self.transport.renumber(incarnation)

    # ---------------------------------------------------------------------------------------------- life

    async def live(self, run: RunConfig | None, *, idle: bool) -> None:
        """Founds a run, joins one, or waits to be told; then trains to its end. Raises ConfigError, SwarmError."""
        self.search.idle = idle
        with self.waits.during(f"the memory of {self.config.device} to be found out"):
            device = await look_at(self.config.device)
        self._own.card = dataclasses.replace(self._own.card, memory_bytes=device.memory_bytes, device_name=device.name)
        if run is not None:
            self._home.check_not_ended(lineage(run))
            self.search.check_fits(run)
            await self.search.begin(await self._text.named(run))
        else:
            await self.search.find(idle=idle)
        assert self.search.run is not None
        self._home.check_not_ended(lineage(self.search.run))
        if self._on_run is not None:
            await self._on_run(fingerprint(self.search.run))
        may_be_head = await self._find_text(self.search.run)
        limits = self.config.limits
        self.store = LocalStore(self._home, copies_limit_bytes=limits.copies_bytes)
        self._memory = RunMemory(
            self._home, self.store, self.search, self._text.local, self.membership, self.transport.book
        )
        self._remember(None)  # also one that is killed before its stage is open knows where it was
        used = self.search.known.stage if self.search.known is not None else None
        entrance = Entrance(self.config.stage, used, self.search.entries, self.search.named, self.search.resume)
        self.peer = Peer(self._context(self.search.run, self.store), self.store, self._open_stage, entrance)
        self.view = StatusView(self.peer)
        if not may_be_head:
            self.peer.lacks_data()
        self.peer.history.listen(self)
        beside = [asyncio.create_task(work) for work in (self._memory.keep(self.peer), self._meet_others())]
        try:
            await self.peer.run()
        except* RunEnded as troubles:
            raise await self._write_down(_first_of(troubles)) from None
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        log.log(NOTICE, "the run is over at version %d", self.peer.history.version)
        self._tell_final(self.peer)

    def _context(self, run: RunConfig, store: LocalStore) -> PeerContext:
        links, rng = self._links, random.Random(f"{run.seed}/{self.transport.peer_id}")
        history, tasks = History(run, links, store), Tasks(links.fence)
        return PeerContext(run, self.config.limits, links, self.membership, history, tasks, rng)

    def _tell_final(self, peer: Peer) -> None:
        """Says where the final state is, if this peer has come to it."""
        if sentence := peer.ending.sentence():
            log.log(logging.WARNING if peer.ending.is_at_risk() else NOTICE, sentence)

    async def _write_down(self, end: RunEnded) -> RunEnded:
        """Writes down that the run is over before its last step, for good; the same error, and what to do about it."""
        assert self.search.run is not None
        where = f"the last good checkpoint is version {end.checkpoint}, in {self._home.checkpoints}."
        if end.checkpoint is None:
            where = "there is no checkpoint from before that on this machine."
        sentence = f"{end}; {where}"
        await asyncio.to_thread(self._home.remember_end, fingerprint(self.search.run), sentence)
        return RunEnded(sentence, end.checkpoint)

    async def _find_text(self, run: RunConfig) -> bool:
        """True if this daemon may be a head. Raises ConfigError if it lacks the text, and can be nothing else."""
        before = self.search.known
        lacking = await self._text.find(run, before)
        used = before.stage if before is not None else None
        founds = not self.search.entries and self.config.stage is None
        if lacking and (run.model.stages == 1 or self.config.stage == 0 or (founds and used == 0)):
            raise ConfigError(f"{lacking}.")
        if lacking:
            log.log(NOTICE, "%s; without, it serves other stages than the first", lacking)
        return not lacking

    async def _open_stage(self, stage: int) -> tuple[Compute, Data | None]:
        """Builds a stage on the device; the first one with the run's data. Raises ConfigError."""
        from swarmd.stage.worker import Worker

        assert self.search.run is not None
        await self._close_worker()
        began = time.monotonic()
        data = await self._text.load(self.search.run) if stage == 0 else None
        with self.waits.during(f"stage {stage} to be opened on {self.config.device}"):
            try:
                self._worker = await Worker.start(
                    self.search.run, stage, self.config.device, self.config.threads, self.config.compute
                )
            except MemoryError as trouble:
                raise ConfigError(
                    f"there is no memory for stage {stage} on {self.config.device} ({trouble}); free some, "
                    "or give another --stage or --device"
                ) from trouble
        self.opened = True
        settle()
        seconds, dtype = time.monotonic() - began, self._worker.progress().dtype
        log.log(NOTICE, "stage %d is on %s, products in %s, after %.1f s", stage, self.config.device, dtype, seconds)
        self._remember(stage)
        return self._worker, data

    def _remember(self, stage: int | None) -> None:
        if self._memory is not None:
            self._memory.write(stage, checkpointed=self.peer is not None and self.peer.history.checkpointed)

    async def _meet_others(self) -> None:
        await meet_others(self.search.others, self.membership, self._links, random.Random())

    def _waits(self) -> list[Wait]:
        """The waits of this daemon at the moment."""
        found = [self.search.looking] if self.search.looking is not None else []
        if self.store is not None and self.store.checking:
            found.append(Wait("the checkpoints on this disk to be checked", progress=self.store.checking))
        if self.peer is not None and self.view is not None:
            usual = max((record.seconds for record in self.records), default=0.0)
            found += self.view.waits() or self._standstill.waits(time.monotonic(), self.peer, self.view, usual)
        return found

    def on_record(self, record: Record) -> None:
        """Notes a step for the rates, the log and the next life of this daemon."""
        self.records.append(record)
        if (
            self.search.run is not None
            and record.step % self.search.run.checkpoint_every == 0
            and self.peer is not None
        ):
            self._remember(self.peer.stage)
        said = f"skipped: {record.why or 'not finite'}" if record.skipped else f"loss {record.loss:.4f}"
        log.info("step %d: %s, %.0f tokens/s", record.step, said, record.tokens / max(1e-9, record.seconds))

    def on_replaced(self) -> None:
        """Forgets what was measured, which may be void now, or long ago; a prolonged run may have begun."""
        self.records.clear()
        assert self.search.run is not None and self.peer is not None
        record = self.peer.history.record
        if record is not None and record.continues:
            from swarmd.daemon.prolonging import beginning

            log.log(NOTICE, "%s", beginning(self.search.run, record))

    async def leave(self) -> None:
        """Says goodbye at once, whatever is under way; then the daemon is to end."""
        if self.peer is not None:
            log.log(NOTICE, "leaving, as told")
            for stage in self.peer.ending.only_here():
                where = self._home.checkpoints
                log.warning("the final state of stage %d is on no other machine: keep %s", stage, where)
            try:
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self.peer.leave()
            except TimeoutError:
                log.warning("not everyone heard the goodbye")
        self.end("told to leave")

    async def close(self) -> None:
        """Lets go of the device, and writes down what the next life should know."""
        if self.peer is not None:
            self._remember(self.peer.stage)
        if self._draining is not None:
            self._draining.cancel()
        writing = [self.store.settle(CLOSE_SECONDS)] if self.store is not None else []
        await asyncio.gather(self._close_worker(CLOSE_SECONDS), *writing)

    async def _close_worker(self, limit_s: float | None = None) -> None:
        """Closes the stage that is open; None: however long its last task takes, so that no second one is built beside
        it. A device that hangs is noticed by who watches this daemon (`stuck`).
        """
        if self._worker is not None:
            with self.waits.during("the device to end what it is at"):
                await self._worker.close(limit_s)
            self._worker = None

    # ---------------------------------------------------------------------------------------------- discovery

    def addresses(self) -> tuple[str, ...]:
        return self.transport.addresses()

    def found(self, peer: PeerId, addresses: tuple[str, ...], run: str, machine: str) -> None:
        """Takes note of another daemon on the local network."""
        self.search.found(peer, addresses, run, machine)

    def on_run(self, callback: Callable[[str], Awaitable[None]]) -> None:
        """Calls back with the run's fingerprint once there is one."""
        self._on_run = callback

    # ---------------------------------------------------------------------------------------------- control

    async def join(self, bootstrap: str) -> None:
        """Makes an idle daemon join, and remember it. Raises ConfigError, ControlError, SwarmError."""
        await self.search.join(bootstrap)

    async def switch(self, stage: int) -> None:
        """Goes to another stage; returns when it serves there. Raises ControlError, Refused."""
        peer = self._at_work()
        log.log(NOTICE, "going to stage %d, as told", stage)
        try:
            await peer.mover.move(stage)
        except Refused as trouble:
            log.log(NOTICE, "staying at stage %s: %s", peer.stage, trouble)
            raise
        log.log(NOTICE, "serving stage %d", stage)

    async def pause(self) -> None:
        """Takes no more hops until `resume`. Raises ControlError, Refused."""
        await self._at_work().pause()
        log.log(NOTICE, "paused, as told: `swarmctl resume` lets it go on")

    async def resume(self) -> None:
        """Takes hops again. Raises ControlError, Refused."""
        await self._at_work().resume()
        log.log(NOTICE, "going on, as told")

    def _at_work(self) -> Peer:
        if self.peer is None:
            raise ControlError("this daemon serves no stage yet; `swarmctl status` shows what it is at.")
        return self.peer

    async def end_soon(self, why: str) -> None:
        """Tells others that this machine will be gone soon: they may prepare to take its place until it drains."""
        if self.peer is not None and self.config.grace_s > 0:
            log.log(NOTICE, "works on for %.0f s before it drains: %s", self.config.grace_s, why)
            await self.peer.end_soon()

    async def drain(self, why: str, bound_s: float | None = None) -> Drained:
        """Ends this daemon's work within a bound, so that nothing of it is lost; then the daemon is to end. A second
        caller waits for the same drain.
        """
        if self._draining is None:
            bound_s = self.config.drain_s if bound_s is None else bound_s
            self._draining = asyncio.create_task(self._drain(why, bound_s), name="drain")
        return await asyncio.shield(self._draining)

    async def _drain(self, why: str, bound_s: float) -> Drained:
        drained = Drained()
        goodbye_s = GOODBYE_SECONDS
        if not self.opened:  # there is nothing to hand over
            bound_s, goodbye_s = 0.0, UNOPENED_GOODBYE_SECONDS
        self.ending(bound_s + goodbye_s)
        if self.peer is not None:
            log.log(NOTICE, "draining within %.0f s: %s", bound_s, why)
            try:
                async with asyncio.timeout(bound_s + goodbye_s):
                    drained = await self.peer.drain(bound_s)
            except TimeoutError:
                log.warning("not everyone heard the goodbye")
            log.log(NOTICE, "drained: %s", drained.sentence())
            self._tell_final(self.peer)
        self.end(why)
        return drained

    def end(self, why: str) -> None:
        """Ends the daemon, with exit code 0."""
        if not self.ended.done():
            self.ended.set_result(why)

    def stuck(self) -> str:
        """Why the compute thread is not alive, or as good as dead, a sentence; "" while it is."""
        progress = self.computing()
        return stuck(progress) if progress is not None else ""

    def computing(self) -> ComputeProgress | None:
        """The pulse of the compute thread; None before a stage is open."""
        return self._worker.progress() if self._worker is not None else None


def _first_of(troubles: BaseExceptionGroup[RunEnded]) -> RunEnded:
    """The first of a group, which may hold groups."""
    trouble = troubles.exceptions[0]
    return _first_of(trouble) if isinstance(trouble, BaseExceptionGroup) else trouble
