"""One peer of a run, from finding its place to the last step. Assembles the parts of `swarm/`; decides nothing itself.

The daemon (or the simulator) gives it the ports: links over a transport, a way to open a stage, a disk, chance. It owns
every task that runs for the peer.
"""

import asyncio
import dataclasses
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from swarmd.config import LimitsConfig, RunConfig, fingerprint
from swarmd.errors import ConfigError, SwarmError
from swarmd.status import HopRow, PeerRow, PeerState, Queues
from swarmd.swarm.averaging import Rounds
from swarmd.swarm.ballots import Ballots
from swarmd.swarm.beats import Beats
from swarmd.swarm.commit import Record
from swarmd.swarm.conductor import Conductor
from swarmd.swarm.donor import Donor
from swarmd.swarm.forks import Forks
from swarmd.swarm.gossip import Gossip
from swarmd.swarm.head import Head
from swarmd.swarm.history import History
from swarmd.swarm.joiner import Joiner, Progress
from swarmd.swarm.journey import Journeys
from swarmd.swarm.links import Links
from swarmd.swarm.liveness import Liveness
from swarmd.swarm.membership import AT_WORK, Membership, peer_rows
from swarmd.swarm.messages import Card
from swarmd.swarm.placing import Places
from swarmd.swarm.ports import Compute, Data, Store
from swarmd.swarm.signals import Signal
from swarmd.values import HopId, PeerId

log = logging.getLogger(__name__)

LINGER_SECONDS = 20.0  # at the end of the run, for peers that haven't heard of the last commit
KEEP_UP_SECONDS = 2.0  # between two looks at who is ahead, unless a card says so earlier
REFRESH_SECONDS = 2.0  # between two looks at this peer's own figures, unless someone is told of them earlier

OpenStage = Callable[[int], Awaitable[tuple[Compute, Data | None]]]
"""Builds a stage on this peer's device, untrained; with the run's data if it is the first. Raises ConfigError if it
can't.
"""


class Peer:
    """One peer of one run."""

    def __init__(
        self,
        run: RunConfig,
        limits: LimitsConfig,
        links: Links,
        membership: Membership,
        store: Store,
        open_stage: OpenStage,
        rng: random.Random,
        *,
        stage: int | None,
        entries: Sequence[PeerId] = (),
    ) -> None:
        self.run_config, self._limits, self.links, self.membership = run, limits, links, membership
        self._store, self._open_stage, self._rng, self._wanted = store, open_stage, rng, stage
        self._entries = tuple(entries)  # peers through which this one came; none: it founds the run
        self.changed = Signal()
        self.history = History(run, links, store)
        self.forks = Forks(run, links, membership, self.history, rng)
        self.liveness = Liveness(
            links,
            membership,
            self.changed,
            suspected=self._suspected,
            gone=self._gone,
            heard=self._heard,
            spawn=self.spawn,
        )
        self.gossip = Gossip(fingerprint(run), run.model.stages, links, membership, self.liveness.hear, self._refresh)
        self._places = Places(run, links, membership, self.history, self.liveness.hear, self._entries)
        self.stage: int | None = None
        self.state: PeerState = "joining"
        self.began: float | None = None  # loop time when this peer began to serve
        self.journeys: Journeys | None = None
        self.ballots: Ballots | None = None
        self.conductor: Conductor | None = None
        self.head: Head | None = None
        self._rounds: Rounds | None = None
        self._donor: Donor | None = None
        self._joiner: Joiner | None = None
        self._compute: Compute | None = None
        self._data: Data | None = None
        self._group: asyncio.TaskGroup | None = None
        self.validation_loss: float | None = None  # the newest
        self._beside: set[asyncio.Task[None]] = set()  # what `spawn` started
        self._done = 0  # microbatches accumulated here
        self._refreshed = 0.0  # loop time at which the figures on this peer's card were brought up to date
        if not entries:
            self.history.founder, self.history.founded = membership.own.peer, True
        self.history.on_commit(self._committed)
        self.history.on_restore(self._restored)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something beside; it ends with the peer at the latest."""
        if self._group is None:
            work.close()
            return
        task = self._group.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    # ---------------------------------------------------------------------------------------------- life

    async def run(self) -> None:
        """From joining to the end of the run. Raises ConfigError if this peer can't take part. Cancel it to leave at
        once.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            for work in (self.gossip.run(), self.liveness.run(self._sweep)):
                self.spawn(work)
            try:
                await self._join()
                await self._serve()
            finally:
                self._group = None
                self._close()
                for task in list(self._beside):
                    task.cancel()

    async def _join(self) -> None:
        """Finds a stage and brings it to the swarm's version."""
        stage = await self._places.find(self._wanted, self.changed)
        self._set(stage=stage)
        try:
            self._compute, self._data = await self._open_stage(stage)
            self._check_data()
        except ConfigError as trouble:
            if (
                stage > 0
                or self._wanted is not None
                or self.run_config.model.stages == 1
                or not self.membership.members()
            ):
                raise
            log.warning("not a head: %s", trouble)
            self._places.has_data = False
            stage = await self._places.find(self._wanted, self.changed)
            self._set(stage=stage)
            self._compute, self._data = await self._open_stage(stage)
        self._assemble(stage)
        self._set(data=self._data.digest if self._data else "", codecs=self._compute.codecs)
        await self.gossip.announce()
        assert self._joiner is not None
        await self._joiner.reach_version(self._donors, self.changed)

    def _check_data(self) -> None:
        """Heads must have the same data. Raises ConfigError."""
        if self._data is None:
            return
        others = {card.data for card in self.membership.stage(0) if card.peer != self.membership.own.peer} - {""}
        if others and self._data.digest not in others:
            raise ConfigError(
                f"this machine's copy of the data ({self._data.digest}) is not the run's ({others.pop()}): "
                "use the same source with --data, or another stage with --stage"
            )

    def _assemble(self, stage: int) -> None:
        assert self._compute is not None
        run, limits, links, members, history = self.run_config, self._limits, self.links, self.membership, self.history
        journeys = Journeys(run, limits, links, members, history, self._compute, stage, self._rng, self.spawn)
        self._rounds = Rounds(run, limits, links, members, history, journeys, self._compute, stage)
        self._donor = Donor(links, history, self._compute, stage)
        self._joiner = Joiner(
            run, limits, links, history, self._compute, stage, newest=self._newest, hold=self._rounds.hold
        )
        self.ballots = Ballots(run, links, members, history, self._rng, limits.fork_timeout_s)
        self.conductor = Conductor(
            run, links, members, history, self._validate, self.changed, self.spawn, self.ballots, self._rng
        )
        if stage == 0:
            assert self._data is not None, "a first stage is opened with its data"
            self.head = Head(run, limits, links, members, history, journeys, self.conductor, self._data)
        history.attach(stage, self._compute, self._rounds.gather)
        self.journeys = journeys

    async def _rejoin(self) -> None:
        """Fetches the whole state anew. Meanwhile this peer is in no plan, like a newcomer."""
        assert self._joiner is not None
        self._set(state="joining")
        await self.gossip.announce()
        await self._joiner.reach_version(self._donors, self.changed)
        if not self.history.finished:
            self._set(state="serving")
            await self.gossip.announce()

    def _newest(self) -> Card:
        return self.membership.newest()

    def _donors(self) -> list[PeerId]:
        """Replicas of this stage, newest version first; a finished one gives its state, too."""
        own = self.membership.own
        able = (*AT_WORK, "finished")
        cards = [card for card in self.membership.kin() if card.stage == own.stage and card.state in able]
        return [
            card.peer for card in sorted(cards, key=lambda card: (-card.version, card.peer)) if card.peer != own.peer
        ]

    async def _serve(self) -> None:
        assert self.conductor is not None
        self.began = asyncio.get_running_loop().time()
        self._set(state="serving")
        await self.gossip.announce()
        assert self.journeys is not None and self._compute is not None
        self.spawn(Beats(self.links, self.journeys, self._compute, self.spawn).run())
        self.spawn(self.conductor.run())
        self.spawn(self._keep_up())
        if self.head is not None:
            self.spawn(self.head.run())
        await self.history.reached(self.run_config.steps)
        self._set(state="finished")
        await self._save()
        await self.gossip.announce()
        await self._linger()

    async def _linger(self) -> None:
        """Stays for those who haven't the last commit yet."""

        def everyone_has_it() -> bool:
            others = [member.card for member in self.membership.members().values() if not member.suspect]
            return all(card.version >= self.run_config.steps for card in others if card.state in (*AT_WORK, "joining"))

        await self.changed.until(everyone_has_it, LINGER_SECONDS)

    async def _keep_up(self) -> None:
        """Asks for records when others are ahead, and for the whole state when gradients are gone."""
        while not self.history.finished:
            if self.history.behind:
                await self._rejoin()
            newest = self._newest()
            if newest.version > self.history.version:
                await self.history.catch_up(newest.peer, newest.version)
            await self._cross_over()
            await self.changed.wait(KEEP_UP_SECONDS)

    async def _cross_over(self) -> None:
        """If another history wins over this peer's, it goes on in that one."""
        if (way := await self.forks.look()) is None:
            return
        assert self._joiner is not None and self._compute is not None
        state = self.state
        self._set(state="joining")
        await self.gossip.announce()
        await self.forks.cross(way, self._joiner, self._compute)
        newest = self._newest()
        await self.history.catch_up(newest.peer, newest.version)
        self._set(state=state)
        self._refresh()
        await self.gossip.announce()

    async def leave(self) -> None:
        """Says goodbye."""
        if self.journeys is not None:
            self.journeys.closed = True
        self._set(state="left")
        await self.gossip.announce()

    def _close(self) -> None:
        if self.journeys is not None:
            self.journeys.close()
        if self._rounds is not None:
            self._rounds.close()
        self.history.close()

    def _set(self, **changes: Any) -> None:
        """Changes this peer's card."""
        if "stage" in changes:
            self.stage = changes["stage"]
        if "state" in changes:
            self.state = changes["state"]
        self.membership.own = dataclasses.replace(self.membership.own, **changes)
        self.changed.notify()

    # ---------------------------------------------------------------------------------------------- others

    def _heard(self, card: Card) -> None:
        if self.journeys is not None and card.room > 0 and self.membership.is_live(card.peer):
            self.journeys.peer_has_room(card.peer)

    def _suspected(self, peer: PeerId) -> None:
        if self.journeys is not None:
            self.journeys.custody.disconnected(peer)

    def _gone(self, peer: PeerId) -> None:
        if self.journeys is not None:
            self.journeys.peer_lost(peer)
        if self.conductor is not None:
            self.conductor.peer_lost(peer)
        self.changed.notify()

    def _sweep(self, now: float) -> None:
        """What is looked at twice a second."""
        if self.journeys is not None:
            self.journeys.custody.sweep(now, self.journeys.custodian.rival_seconds)
        if self.conductor is not None:
            self.conductor.sweep(now)
        if self._donor is not None:
            self._donor.sweep(now)
        self.forks.sweep(now)
        if now - self._refreshed >= REFRESH_SECONDS:
            self._refresh()

    def _refresh(self) -> None:
        """Keeps the figures on this peer's card current, for handshakes and heartbeats."""
        if self._compute is None or self.journeys is None:
            return
        self._refreshed = asyncio.get_running_loop().time()
        progress, queues = self._compute.progress(), self.journeys.queues()
        self.membership.own = dataclasses.replace(
            self.membership.own,
            addresses=self.links.transport.addresses(),
            version=self.history.version,
            record=self.history.record_hash,
            tokens=self.history.total_tokens,
            forward=queues["waiting"],
            backward=queues["backward"],
            in_flight=queues.total(),
            room=self.journeys.room(),
            service_seconds=progress.forward_seconds + progress.backward_seconds,
            microbatches_per_second=self.microbatches_per_second(),
        )

    # ---------------------------------------------------------------------------------------------- commits

    def _restored(self) -> None:
        """Another version, or another history, is this peer's state now."""
        if self.journeys is not None and self._rounds is not None and self.ballots is not None:
            self.journeys.abandon()
            self._rounds.abandon()
            self.ballots.forget()
        if self._donor is not None:
            self._donor.forget()
        self._refresh()
        self.changed.notify()

    def _committed(self, record: Record) -> None:
        assert self.journeys is not None and self._rounds is not None
        self.validation_loss = record.validation_loss if record.validation_loss is not None else self.validation_loss
        self._done += len(self.journeys.book(record.step).accumulated)
        self.journeys.end_step(record.step)
        self._rounds.end_step(record.step)
        self._refresh()
        every = self.run_config.checkpoint_every
        if every and record.step % every == 0 and not self.history.finished:
            self.spawn(self._save())
        if record.forked:  # so that the others see soon which history this is
            self.spawn(self.gossip.announce())
        self.changed.notify()

    async def _save(self) -> None:
        """Writes a checkpoint of this peer's stage at its present version."""
        assert self._compute is not None and self.stage is not None
        async with self.history.lock:
            try:
                state = await self._compute.export_state()
            except MemoryError:
                log.warning("no checkpoint of version %d: out of memory", self.history.version)
                return
            version, record = self.history.version, self.history.plain_record()
        await self._store.save_checkpoint(version, self.stage, state, record)

    async def _validate(self, version: int) -> float | None:
        """Mean loss of the held-out microbatches, None if it can't be had."""
        if self._data is None or self.journeys is None:
            return None
        total, tokens = 0.0, 0
        try:
            for index in range(self.run_config.validation_microbatches):
                key = HopId(version + 1, self.run_config.microbatches + index)
                loss = await self.journeys.evaluate(key, await self._data.held_out(index))
                total, tokens = total + loss.loss_sum, tokens + loss.tokens
        except (SwarmError, TimeoutError, MemoryError) as trouble:
            log.warning("no validation loss of version %d: %s", version, trouble)
            return None
        return total / tokens

    # ---------------------------------------------------------------------------------------------- to be shown

    def microbatches_per_second(self) -> float:
        """This peer's own, since it began to serve."""
        if self.began is None or self.journeys is None:
            return 0.0
        done = self._done + len(self.journeys.book(self.history.version + 1).accumulated)
        return done / max(1e-9, asyncio.get_running_loop().time() - self.began)

    def transfer(self) -> Progress:
        """How much of the stage's state has come, while it does."""
        return self._joiner.progress if self._joiner is not None else Progress()

    def progress(self) -> float:
        """Fraction of the present step that is done: as its conductor knows, or as one's own sum suggests."""
        if self.journeys is None or self.stage is None:
            return 0.0
        done = self.conductor.completed() if self.conductor is not None else None
        if done is None:
            replicas = max(1, len(self.membership.stage(self.stage)))
            done = replicas * len(self.journeys.book(self.history.version + 1).accumulated)
        return min(1.0, done / self.run_config.microbatches)

    def queues(self) -> Queues:
        states = self.journeys.queues() if self.journeys is not None else Counter[str]()
        held, passed = states.total(), states["passed"]
        retained = self.journeys.retention.nbytes if self.journeys else 0
        busy = self._compute is not None and self._compute.progress().running is not None
        reason = "" if busy else self._idle_reason(held, passed)
        return Queues(states["waiting"], states["backward"], held, passed, retained, reason)

    def _idle_reason(self, held: int, passed: int) -> str:
        if self.state != "serving":
            return f"this peer is {self.state}"
        if self.waiting_for():
            return self.waiting_for()
        if passed:
            return f"{passed} microbatches are with the next stage"
        return "" if held else "no microbatch has come"

    def rows(self) -> list[HopRow]:
        return self.journeys.rows() if self.journeys is not None else []

    def waiting_for(self) -> str:
        """What the swarm lacks, as far as this peer knows."""
        missing = self.membership.missing_stages(self.run_config.model.stages)
        if self.state == "joining" and self.stage is None and self._entries:
            return "a peer of the run that answers: those it came by don't"
        if self._joiner is not None and self._joiner.pulling and not self._donors():
            return f"a live replica of stage {self.stage}, to take its state from"
        if missing and not self.history.finished and self.state != "joining":
            names = ", ".join(map(str, missing))
            return (
                f"a peer for stage{'s' if len(missing) > 1 else ''} {names}: start one with `swarmd start --bootstrap`"
            )
        return self.ballots.waiting if self.ballots is not None else ""

    def peer_rows(self) -> list[PeerRow]:
        """Everyone this peer knows, itself first."""
        now = asyncio.get_running_loop().time()
        self._refresh()
        return peer_rows(self.membership, now)
