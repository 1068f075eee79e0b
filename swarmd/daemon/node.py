"""The daemon as a whole: idle, or a peer of a run on this machine's device. What the control socket shows and commands.

Brings a `Peer` together with a transport, a worker, data and a home. Decides nothing about the swarm; the run's
settings come from a preset or from whoever is joined.
"""

import asyncio
import contextlib
import dataclasses
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import psutil

from swarmd.config import NodeConfig, RunConfig, fingerprint, to_plain
from swarmd.daemon.device import device_memory
from swarmd.daemon.local import Home, Remembered, RememberedRun
from swarmd.daemon.logs import NOTICE
from swarmd.daemon.store import LocalStore
from swarmd.errors import ConfigError, ControlError, PeerFault, PeerUnreachable, Refused, SwarmError
from swarmd.memory import settle
from swarmd.status import Bytes, HopRow, PeerRow, PeerState, Queues, Status
from swarmd.swarm.commit import Record
from swarmd.swarm.drain import Drained
from swarmd.swarm.links import Links
from swarmd.swarm.membership import AT_WORK, Membership, first_card
from swarmd.swarm.messages import Settings
from swarmd.swarm.peer import Peer
from swarmd.swarm.ports import Compute, Data
from swarmd.swarm.signals import Signal
from swarmd.values import PeerId

if TYPE_CHECKING:
    from swarmd.net.libp2p import Libp2pTransport
    from swarmd.stage.worker import Worker

log = logging.getLogger(__name__)

JOIN_RETRY_SECONDS = 1.0
JOIN_PATIENCE_SECONDS = 30.0  # for a bootstrap peer given on the command line; a remembered one is tried for ever
LIVING_SECONDS = 5.0  # for peers of a run that is to be resumed to answer, if they still work at it
PEERS_REMEMBERED = 16  # addresses of so many are written down
RATE_RECORDS = 10  # committed steps that the shown tokens per second are averaged over
PASSING_SECONDS = 1.0  # what the swarm waits for no longer than this is not worth a warning
GOODBYE_SECONDS = 5.0  # to tell the neighbours; those who don't hear it notice the broken connection
PLAIN_CODECS = ("fp32", "fp16", "bf16", "int8")  # what every device can


class Node:
    """One daemon."""

    def __init__(self, config: NodeConfig, home: Home, transport: "Libp2pTransport") -> None:
        self.config, self.transport, self._home = config, transport, home
        self._started = time.monotonic()
        self._process = psutil.Process()
        self._run: RunConfig | None = None
        self._peer: Peer | None = None
        self._worker: Worker | None = None
        self._store: LocalStore | None = None
        self._known: RememberedRun | None = None  # what this home says of the run
        self._resume = config.resume
        self._found: deque[str] = deque(maxlen=64)  # addresses heard of on the local network
        self._changed = Signal()
        self._adopting = asyncio.Lock()  # several peers may offer a run at once
        self._entries: tuple[PeerId, ...] = ()  # the peers that gave the run's settings
        self._on_run: Callable[[str], Awaitable[None]] | None = None
        self._records: deque[Record] = deque(maxlen=RATE_RECORDS)
        card = first_card(transport.peer_id, time.time_ns(), transport.addresses(), config.device, PLAIN_CODECS)
        self._membership = Membership(card)
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # gets why this daemon is to end
        self.ending: Callable[[float], None] = lambda seconds: None  # hears that it drains, within so many seconds
        self._draining: asyncio.Task[Drained] | None = None
        self._links = Links(transport, self._membership, self._settings)

    def _settings(self) -> Settings | None:
        return Settings(to_plain(self._run), fingerprint(self._run)) if self._run else None

    # ---------------------------------------------------------------------------------------------- life

    async def live(self, run: RunConfig | None, *, idle: bool) -> None:
        """Founds a run, joins one, or waits to be told; then trains to its end. Raises ConfigError, SwarmError."""
        memory = await device_memory(self.config.device)
        self._membership.own = dataclasses.replace(self._membership.own, memory_bytes=memory)
        if run is not None:
            await self._begin(run)
        else:
            await self._find_run(idle=idle)
        assert self._run is not None
        if self._on_run is not None:
            await self._on_run(fingerprint(self._run))
        limits = self.config.limits
        self._store = LocalStore(self._home, copies_limit_bytes=limits.copies_bytes)
        rng = random.Random(f"{self._run.seed}/{self.transport.peer_id}")
        self._peer = Peer(
            self._run,
            limits,
            self._links,
            self._membership,
            self._store,
            self._open_stage,
            rng,
            stage=self.config.stage,
            used=self._known.stage if self._known is not None else None,
            entries=self._entries,
            resume=self._resume,
        )
        self._peer.history.on_commit(self._committed)
        watcher = asyncio.create_task(self._watch(self._peer))
        try:
            await self._peer.run()
        finally:
            watcher.cancel()
        log.log(NOTICE, "the run is over at version %d", self._peer.history.version)

    async def _begin(self, run: RunConfig) -> None:
        """Begins a run, or goes on with one from checkpoints; where others of it still live, joins them. Raises
        ConfigError.
        """
        self._check_home(run)
        if self._known is not None and self._resume:
            await self._look_for_living(self._known)
        elif self._known is not None and self._home.has_checkpoints():
            raise ConfigError(
                f"{self._home.path} holds checkpoints of this run: add --resume to go on from them, "
                "or choose another --home to begin anew."
            )
        if self._run is None:
            self._resume = self._resume and self._is_checkpointed()  # else it begins
            log.log(NOTICE, "run %s (%s): %d steps, %d stages", run.name, fingerprint(run), run.steps, run.model.stages)
            self._run = run

    def _is_checkpointed(self) -> bool:
        """Whether the run has come to a version that is on disks, as far as this home knows."""
        return self._home.has_checkpoints() or (self._known is not None and self._known.checkpointed)

    def _check_home(self, run: RunConfig) -> None:
        """A home with another run's checkpoints is left as it is. Raises ConfigError."""
        known = self._home.remembered_run()
        if known is not None and known.fingerprint != fingerprint(run):
            if self._home.has_checkpoints():
                raise ConfigError(
                    f"{self._home.path} holds checkpoints of run {known.fingerprint}, and this is run "
                    f"{fingerprint(run)} ({run.name}): choose another --home, or move {self._home.checkpoints} away."
                )
            known = None
        self._known = known

    async def _look_for_living(self, known: RememberedRun) -> None:
        """Joins the run if one of the peers that this home knew still works at it."""

        async def try_it(address: str) -> None:
            with contextlib.suppress(SwarmError, TimeoutError):
                await self._adopt(address, only=known.fingerprint)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIVING_SECONDS):
                await asyncio.gather(*(try_it(address) for address in known.peers))

    async def _find_run(self, *, idle: bool) -> None:
        """Takes the run's settings from the first peer that gives them; one that is silent keeps nobody waiting."""
        if idle:
            log.log(NOTICE, "idle: `swarmctl join --bootstrap MULTIADDR` makes this daemon join a swarm")
            await self._changed.until(lambda: self._run is not None)
            return
        remembered = self._home.remembered()
        addresses = self.config.bootstrap or (remembered.bootstrap if remembered and not self.config.mdns else ())
        patient = not self.config.bootstrap
        deadline = time.monotonic() + JOIN_PATIENCE_SECONDS
        while self._run is None:
            troubles = await self._try_all((*addresses, *self._found))
            if self._run is not None:
                return
            if not patient and time.monotonic() > deadline:
                raise PeerUnreachable(f"no bootstrap peer gave the run's settings: {'; '.join(troubles)}")
            await self._changed.wait(JOIN_RETRY_SECONDS)

    async def _try_all(self, addresses: Sequence[str]) -> list[str]:
        """Asks at all addresses at once, until one gives a run. Returns why the others didn't."""
        troubles = []
        tries = [asyncio.create_task(self._try_to_adopt(address)) for address in addresses]
        try:
            for attempt in asyncio.as_completed(tries):
                if not (trouble := await attempt):
                    break
                troubles.append(trouble)
        finally:
            for one in tries:
                one.cancel()
            await asyncio.gather(*tries, return_exceptions=True)
        return troubles

    async def _try_to_adopt(self, address: str) -> str:
        """Why the run's settings couldn't be had there, or nothing. Raises ConfigError for a bad address."""
        try:
            await self._adopt(address)
        except (PeerUnreachable, TimeoutError, Refused, PeerFault) as trouble:
            log.info("%s: %s", address, trouble)
            return f"{address}: {trouble}"
        return ""

    async def _adopt(self, address: str, only: str = "") -> None:
        """Asks the peer at an address for the run's settings and makes them this daemon's. `only`: a fingerprint."""
        from swarmd.settings import run_from_plain

        if self._run is not None:
            return
        peer = await self.transport.connect(address)
        settings = await self._links.ask_settings(peer)
        try:
            run = run_from_plain(settings.run, "the run's settings")
        except ConfigError as trouble:
            raise Refused(f"it gave settings that this version can't use: {trouble}") from None
        if fingerprint(run) != settings.fingerprint:
            raise Refused("its settings don't have the fingerprint it claims; one of the two is of another version")
        async with self._adopting:
            if only not in ("", settings.fingerprint) or self._run is not None:
                return
            self._check_home(run)
            self._run = run  # the greeting proves its fingerprint
            try:
                await self._links.greet(peer)
            except BaseException:
                self._run = None
                raise
            self._entries = (peer,)
        log.log(NOTICE, "joined run %s (%s) at %s", run.name, settings.fingerprint, address)
        self._changed.notify()

    async def _open_stage(self, stage: int) -> tuple[Compute, Data | None]:
        """Builds a stage on the device; the first one with the run's data. Raises ConfigError."""
        from swarmd.stage.worker import Worker

        assert self._run is not None
        if self._worker is not None:
            await self._worker.close()
        began = time.monotonic()
        data = await asyncio.to_thread(self._load_data) if stage == 0 else None
        self._worker = await Worker.start(self._run, stage, self.config.device, self.config.threads)
        settle()
        log.log(NOTICE, "stage %d is on %s after %.1f s", stage, self.config.device, time.monotonic() - began)
        self._remember(stage)
        return self._worker, data

    def _remember(self, stage: int | None) -> None:
        """Writes down whose checkpoints these are, and where others of the run were last."""
        assert self._run is not None and self._store is not None
        others = [card for card in self._membership.cards() if card.peer != self.transport.peer_id]
        peers = [address for card in others[:PEERS_REMEMBERED] for address in card.addresses[:1]]
        saved = self._peer is not None and self._peer.history.version >= self._run.checkpoint_every
        run = to_plain(self._run), fingerprint(self._run)
        self._known = RememberedRun(*run, stage, tuple(peers), saved or self._is_checkpointed())
        self._store.remember_run(self._known)

    def _load_data(self) -> Data:
        from swarmd.stage.data import load_data

        assert self._run is not None
        return load_data(self._run, self.config.data, cache_directory=self._home.path / "data")

    async def _watch(self, peer: Peer) -> None:
        """Says in the log what the swarm waits for, whenever that changes."""
        told = ""
        while True:
            await asyncio.sleep(PASSING_SECONDS)
            if (waiting := peer.view.waiting_for()) != told:
                log.warning("waiting for %s", waiting) if waiting else log.log(NOTICE, "the swarm is complete")
                told = waiting
            await peer.changed.wait()

    def _committed(self, record: Record) -> None:
        self._records.append(record)
        if self._run is not None and record.step % self._run.checkpoint_every == 0 and self._peer is not None:
            self._remember(self._peer.stage)
        said = "skipped: not finite" if record.skipped else f"loss {record.loss:.4f}"
        log.info("step %d: %s, %.0f tokens/s", record.step, said, record.tokens / max(1e-9, record.seconds))

    async def leave(self) -> None:
        """Says goodbye at once, whatever is under way; then the daemon is to end."""
        if self._peer is not None:
            log.log(NOTICE, "leaving, as told")
            try:
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self._peer.leave()
            except TimeoutError:
                log.warning("not everyone heard the goodbye")
        self.end("told to leave")

    async def close(self) -> None:
        """Lets go of the device."""
        if self._draining is not None:
            self._draining.cancel()
        if self._worker is not None:
            await self._worker.close()

    # ---------------------------------------------------------------------------------------------- discovery

    def addresses(self) -> tuple[str, ...]:
        return self.transport.addresses()

    def found(self, peer: PeerId, addresses: tuple[str, ...], run: str) -> None:
        """Another daemon on the local network; only one that has a run is of use."""
        new = [address for address in addresses if address not in self._found]
        if run and new and peer != self.transport.peer_id:
            self._found.extend(new)
            self._changed.notify()

    def on_run(self, callback: Callable[[str], Awaitable[None]]) -> None:
        """Calls back with the run's fingerprint once there is one."""
        self._on_run = callback

    # ---------------------------------------------------------------------------------------------- control

    async def join(self, bootstrap: str) -> None:
        """Makes an idle daemon join, and remember it. Raises ConfigError, ControlError, SwarmError."""
        if self._run is not None:
            raise ControlError(
                f"this daemon already trains run {self._run.name}; stop it first, or give another --home."
            )
        await self._adopt(bootstrap)
        self._home.remember(Remembered((bootstrap,), self.config.stage))

    async def switch(self, stage: int) -> None:
        """Goes to another stage; returns when it serves there. Raises ControlError, Refused."""
        peer = self._at_work()
        log.log(NOTICE, "going to stage %d, as told", stage)
        try:
            await peer.move(stage)
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
        if self._peer is None:
            raise ControlError("this daemon serves no stage yet; `swarmctl status` shows what it is at.")
        return self._peer

    async def end_soon(self, why: str) -> None:
        """This machine will be gone soon; until it drains others may prepare to take its place."""
        if self._peer is not None and self.config.grace_s > 0:
            log.log(NOTICE, "works on for %.0f s before it drains: %s", self.config.grace_s, why)
            await self._peer.end_soon()

    async def drain(self, why: str, bound_s: float | None = None) -> Drained:
        """Ends this daemon's work within a bound, so that nothing of it is lost; then the daemon is to end. Who asks
        again waits for the same drain.
        """
        if self._draining is None:
            bound_s = self.config.drain_s if bound_s is None else bound_s
            self._draining = asyncio.create_task(self._drain(why, bound_s), name="drain")
        return await asyncio.shield(self._draining)

    async def _drain(self, why: str, bound_s: float) -> Drained:
        drained = Drained()
        self.ending(bound_s + GOODBYE_SECONDS)
        if self._peer is not None:
            log.log(NOTICE, "draining within %.0f s: %s", bound_s, why)
            try:
                async with asyncio.timeout(bound_s + GOODBYE_SECONDS):
                    drained = await self._peer.drain(bound_s)
            except TimeoutError:
                log.warning("not everyone heard the goodbye")
            log.log(NOTICE, "drained: %s", drained.sentence())
        self.end(why)
        return drained

    def end(self, why: str) -> None:
        """The daemon is to end, with exit code 0."""
        if not self.ended.done():
            self.ended.set_result(why)

    def doing(self) -> str:
        """What it was told to do and is at, one sentence; "" when it was told nothing."""
        peer = self._peer
        if peer is None:
            return ""
        if peer.drainage is not None:
            return f"draining: {peer.drainage.doing}" if peer.drainage.doing else "draining"
        if peer.moving_to is None:
            return "works on until it drains: its machine will be gone soon" if peer.membership.own.ending else ""
        transfer = peer.view.transfer()
        if 0 < transfer.total > transfer.done:
            return f"moving to stage {peer.moving_to}: its state comes"
        doing = peer.switch.leaving or ("opening it" if peer.state == "joining" else "asking for it")
        return f"moving to stage {peer.moving_to}: {doing}"

    def peers(self) -> list[PeerRow]:
        return self._peer.view.peer_rows() if self._peer is not None else []

    def queues(self) -> list[HopRow]:
        return self._peer.view.rows() if self._peer is not None else []

    def status(self) -> Status:
        run, peer = self._run, self._peer
        version = peer.history.version if peer else 0
        last = self._records[-1] if self._records else None
        sent, received = self.transport.traffic()
        transfer = peer.view.transfer() if peer else None
        return Status(
            peer_id=self.transport.peer_id,
            run=run.name if run else "",
            fingerprint=fingerprint(run) if run else "",
            model=_describe(run) if run else "",
            stage=peer.stage if peer else None,
            stages=run.model.stages if run else 0,
            state=self._state(),
            waiting_for=peer.view.waiting_for() if peer else "",
            version=version,
            step=min(version + 1, run.steps) if run else 0,
            steps=run.steps if run else 0,
            loss=None if last is None or last.skipped else last.loss,
            validation_loss=self._validation_loss(),
            tokens_per_second=self._rate(),
            microbatches_per_second=peer.view.microbatches_per_second() if peer else 0.0,
            progress=peer.view.progress() if peer else 0.0,
            seconds_left=self._seconds_left(),
            queues=peer.view.queues() if peer else Queues(idle_because="this daemon is idle"),
            peers=self._replicas(),
            addresses=self.addresses(),
            device=self.config.device,
            bytes=Bytes(sent, received),
            uptime_seconds=time.monotonic() - self._started,
            conductor=self._conductor(),
            record=peer.history.record_hash if peer else "",
            ledger=dict(peer.history.totals) if peer else {},
            memory_bytes=self._process.memory_info().rss,
            open_files=self._process.num_fds(),
            tasks=len(asyncio.all_tasks()),
            opened=peer is not None and peer.compute is not None,
            microbatches_done=peer.view.microbatches_done() if peer else 0,
            state_bytes=transfer.done if transfer else 0,
            state_bytes_total=transfer.total if transfer else 0,
            state_donors=transfer.donors if transfer else 0,
            moving_to=peer.moving_to if peer else None,
            moved_because=peer.moved_because if peer else "",
            doing=self.doing(),
            warnings=tuple(filter(None, (self._store.trouble,))) if self._store else (),
        )

    def summary(self) -> str:
        """The daemon in one line."""
        run, peer = self._run, self._peer
        if run is None or peer is None:
            return self._state()
        stage = "no stage yet" if peer.stage is None else f"stage {peer.stage} of {run.model.stages}"
        step = min(peer.history.version + 1, run.steps)
        return f"{self._state()}, {stage}, step {step} of {run.steps} of run {run.name}"

    def _state(self) -> PeerState:
        if self._run is None:
            return "idle"
        if self._peer is None:
            return "joining"
        return "waiting" if self._peer.state == "serving" and self._peer.view.waiting_for() else self._peer.state

    def _replicas(self) -> dict[str, int]:
        if self._run is None:
            return {}
        live = [card.stage for card in self._membership.cards() if card.state in (*AT_WORK, "finished")]
        return {str(stage): live.count(stage) for stage in range(self._run.model.stages)}

    def _conductor(self) -> PeerId:
        peer = self._peer
        if peer is None or peer.conductor is None or peer.history.finished:
            return ""
        return peer.conductor.leader(peer.history.version + 1)

    def _validation_loss(self) -> float | None:
        return self._peer.view.validation_loss if self._peer else None

    def _rate(self) -> float:
        seconds = sum(record.seconds for record in self._records)
        return sum(record.tokens for record in self._records) / seconds if seconds > 0 else 0.0

    def _seconds_left(self) -> float | None:
        if self._run is None or not self._records or self._peer is None:
            return None
        mean = sum(record.seconds for record in self._records) / len(self._records)
        return mean * (self._run.steps - self._peer.history.version)


def _describe(run: RunConfig) -> str:
    model = run.model
    layers = f"{model.layers} layers of width {model.hidden} in {model.stages} stages"
    sharing = ", one block shared in each stage" if model.shared else ""
    return f"{layers}{sharing}, {run.sequences_per_step} sequences a step"
