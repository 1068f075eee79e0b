"""One peer of a run, from finding its place to the last step. Assembles the parts of `swarm/`; decides nothing itself.

The daemon (or the simulator) gives it the ports: links over a transport, a way to open a stage, a disk, chance. It owns
every task that runs for the peer.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
from typing import NoReturn

from swarmd.errors import ConfigError, DeviceLost, Refused
from swarmd.status import PeerState
from swarmd.swarm.balance.balancer import Balancer
from swarmd.swarm.balance.outlook import Outlook
from swarmd.swarm.balance.places import Entrance, Places
from swarmd.swarm.history.ballots import Ballots
from swarmd.swarm.history.chain import RECORDS_KEPT
from swarmd.swarm.history.confirmation import Confirmation
from swarmd.swarm.history.judge import RecordJudge
from swarmd.swarm.history.listener import HistoryListener
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Record
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.membership.gossip import Gossip
from swarmd.swarm.membership.liveness import Liveness
from swarmd.swarm.membership.states import ADMITTING, AT_WORK, STAYING
from swarmd.swarm.peer.arriving import Arriving
from swarmd.swarm.peer.drain import Drain, Drained
from swarmd.swarm.peer.ending import Ending
from swarmd.swarm.peer.failing import fail
from swarmd.swarm.peer.figures import Figures
from swarmd.swarm.peer.mover import Mover
from swarmd.swarm.peer.saving import Saving
from swarmd.swarm.peer.served_stage import ServedStage
from swarmd.swarm.peer.stage_switch import OpenStage, Switch
from swarmd.swarm.ports import Compute, Store
from swarmd.swarm.recovery.forks import Forks
from swarmd.swarm.recovery.past_life import mend_ledger
from swarmd.swarm.recovery.returns import Returns
from swarmd.swarm.state.copies import Copies
from swarmd.swarm.state.disks import Disks
from swarmd.swarm.state.joiner import Joiner
from swarmd.swarm.steps.conductor import Conductor
from swarmd.swarm.wire.messages.presence import Announce, Card
from swarmd.values import PeerId

log = logging.getLogger(__name__)

GOODBYE_SECONDS = 5.0  # to tell the neighbours that the device is lost; who doesn't hear it sees the broken connection
TELL_SECONDS = 5.0  # for the next step's conductor to hear that this peer has no state for it


class Peer(HistoryListener):
    """One peer of one run."""

    def __init__(self, context: PeerContext, store: Store, open_stage: OpenStage, entrance: Entrance) -> None:
        self.run_config, self.links, self.membership = context.run, context.links, context.membership
        self.history, self.own, self.tasks = context.history, context.own, context.tasks
        self._context, self._store, self.entrance = context, store, entrance
        self.membership.last_version = context.run.steps
        fork_timeout_s = context.limits.fork_timeout_s
        self.confirmation = Confirmation(
            context.links, context.membership, context.history, context.run.model.stages, fork_timeout_s
        )
        self.forks = Forks(context, self.confirmation)
        self.liveness = Liveness(
            self.links, self.membership, self.tasks, suspected=self._suspected, gone=self._gone, heard=self._heard
        )
        outlook = Outlook(context.run, context.membership)
        self.gossip = Gossip(context.run, context.links, context.membership, self.liveness, outlook.sum_up)
        self.places = Places(context, entrance, outlook, self.liveness.hear_of)
        self.disks = Disks(context.run, context.links, context.membership, store)
        self.returns = Returns(context, self.disks)
        self.copies = Copies(context, self.disks, store)
        self.ending = Ending(context, self.disks, store, self._pullers)
        self.ballots = Ballots(
            context.run, context.links, context.membership, context.history, context.rng, fork_timeout_s
        )
        self.conductor = Conductor(context, self.ballots, self.returns, outlook, self._validate)
        self.switch = Switch(context, self.conductor, open_stage, self.places)
        self.mover = Mover(context, self.conductor, self.switch)
        self.saving = Saving(context, self.switch, store, self.disks, self.copies)
        self.balancer = Balancer(context, outlook, functools.partial(self.mover.move, balance=True))
        self.arriving = Arriving(context, self.returns, self.forks, self.switch, self.mover)
        self.figures = Figures(context, self.switch, self.places)
        self.drainage: Drain | None = None  # this peer leaves
        self._device_lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # gets the reason
        self.links.judge_by(RecordJudge(context))
        if not entrance.entries:
            self.history.origin.found(self.own.peer, resumes=entrance.resume)
        self.history.listen(self)

    def lacks_data(self) -> None:
        """Notes that this peer has no copy of the run's text: it can't be a head."""
        self.places.has_data = self.disks.has_data = False

    # ---------------------------------------------------------------------------------------------- its stage's parts

    @property
    def state(self) -> PeerState:
        """This peer's state. One that says goodbye at the run's end has finished."""
        return "finished" if self.own.state == "left" and self.ending.over else self.own.state

    @property
    def stage(self) -> int | None:
        """This peer's stage, once it has one."""
        return self.own.stage

    @property
    def served(self) -> ServedStage | None:
        return self.switch.served

    @property
    def sums(self) -> StepSums | None:
        return self.served.sums if self.served is not None else None

    @property
    def journeys(self) -> Journeys | None:
        return self.served.journeys if self.served is not None else None

    @property
    def joiner(self) -> Joiner | None:
        return self.switch.joiner

    @property
    def compute(self) -> Compute | None:
        return self.served.compute if self.served is not None else None

    # ---------------------------------------------------------------------------------------------- life

    async def run(self) -> None:
        """Joins, and takes part until the end of the run. Raises ConfigError if this peer can't take part, DeviceLost.
        Cancel it to leave at once.
        """
        try:
            async with self.tasks.running(self._fail_with_device()):
                self.tasks.keep(self.gossip.run)
                self.tasks.keep(lambda: self.liveness.run(self._sweep))
                try:
                    await self._join()
                    await self._serve()
                finally:
                    self.mover.close()
                    self.switch.close()
                    self.history.close()
        except* DeviceLost as troubles:
            log.error("leaving: %s", troubles.exceptions[0])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self.leave()
            raise

    async def _fail_with_device(self) -> NoReturn:
        """Raises DeviceLost once there is no device any more."""
        raise DeviceLost(await self._device_lost)

    async def _join(self) -> None:
        """Finds a stage and brings it to the swarm's version."""
        tail = self._store.ledger_tail(RECORDS_KEPT)
        places = self.places
        stage = await places.find()
        try:
            served = await self._open(stage)
        except ConfigError as trouble:
            others = self.membership.members() or self.membership.rumours.cards()
            alone = self.run_config.model.stages == 1 or not others
            if stage > 0 or self.entrance.stage is not None or alone:
                raise
            log.warning("not a head: %s", trouble)
            served = await self._open(await places.find())
        if self.history.origin.resumes or self._has_begun():  # else it serves at once, and says so
            await self.own.announce()
        if self.history.origin.resumes and self._founds():
            record = await self.returns.found()
            await self.history.adopt(record, self.membership.own.peer)
            self.tasks.start(self.returns.tell(record))
        await self.arriving.reach(served)
        await mend_ledger(self._context, self._store, tail)

    async def _open(self, stage: int) -> ServedStage:
        """Opens a newcomer's first stage. If the run has begun, its state comes meanwhile. Raises ConfigError."""
        return await self.switch.open(stage, pull=not self.history.origin.resumes and self._has_begun())

    def _has_begun(self) -> bool:
        """True if the run is beyond version 0, as far as this newcomer has heard."""
        return self.membership.newest().version > 0 or self.history.origin.heard > 0

    def _founds(self) -> bool:
        """True if a run that is to be resumed waits for this peer to decide from where: it was told to resume it, and
        nobody else does.
        """
        told = (*self.membership.cards(), *self.membership.rumours.cards())
        others = {card.peer for card in told} - {self.membership.own.peer}
        return self.entrance.resume and self.history.origin.founder not in others

    async def _serve(self) -> None:
        self.figures.begin()
        self.own.become("serving")
        await self.own.announce()
        assert self.served is not None
        self.served.serve()
        for begin in (self.conductor.run, self.arriving.keep_up, self.balancer.run):
            self.tasks.keep(begin)
        await self.history.changed.until(lambda: self.history.finished)
        if self.history.failure:
            self.own.become("finished")
            await self.own.announce()
            await fail(self.membership, self.history, self.disks)
        await self.ending.run(await self.saving.save())
        await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        """Tells the others that this peer leaves; its disk still counts."""
        self.own.become("left")
        await self.own.announce()

    # ---------------------------------------------------------------------------------------------- told by its user

    async def pause(self) -> None:
        """Takes no more hops, finishes those it has, and goes on taking part in rounds. Raises Refused."""
        if self.journeys is None or self.mover.target is not None or self.state not in (*ADMITTING, "paused"):
            raise Refused(f"this peer is {self.state}, or moves; only one that stays where it serves can pause")
        self.journeys.admission.pause()
        self.own.become("paused")
        await self.own.announce()

    async def resume(self) -> None:
        """Takes hops again. Raises Refused."""
        if self.journeys is None or self.state != "paused":
            raise Refused(f"this peer is not paused: it is {self.state}")
        self.journeys.admission.resume()
        self.own.become("serving")
        await self.own.announce()

    async def drain(self, bound_s: float) -> Drained:
        """Ends its work here within a bound, so that nothing of it is lost, and says goodbye. With the last version it
        doesn't take the only copy of a stage's final state along, as long as another machine can take one.
        """
        deadline = asyncio.get_running_loop().time() + bound_s
        await self.mover.drain()
        drained = Drained()
        if self.served is not None and self.state in AT_WORK and not self.history.behind:
            self.served.admission.pause(retiring=True)
            self.own.become("draining")
            self.tasks.start(self.own.announce())
            self.drainage = Drain(self._context, self.conductor, self.served, self.saving, bound_s)
            drained = await self.drainage.run()
        if self.history.finished:
            await self.ending.released(max(0.0, deadline - asyncio.get_running_loop().time()))
        await self.leave(drained.heir)
        return drained

    async def end_soon(self) -> None:
        """Says that this peer's machine will be gone soon: it works on, and others may take its place meanwhile."""
        self.own.card = dataclasses.replace(self.own.card, ending=True)
        await self.own.announce()

    async def leave(self, heir: PeerId = "") -> None:
        """Says goodbye, and who has this peer's sum, if anyone has."""
        if self.served is not None:
            self.served.admission.close()
        self.own.card = dataclasses.replace(self.own.card, state="left", heir=heir or self.own.card.heir)
        await self.own.announce()

    # ---------------------------------------------------------------------------------------------- others

    def _pullers(self, since: float) -> set[PeerId]:
        return self.served.donor.pullers(since) if self.served is not None else set()

    def _heard(self, card: Card) -> None:
        self.ending.hear(card)
        if self.served is not None:
            self.served.on_card(card)

    def _suspected(self, peer: PeerId) -> None:
        self.places.lost(peer)
        if self.served is not None:
            self.served.suspect(peer)

    def _gone(self, peer: PeerId) -> None:
        """Gives up a peer that has left the swarm, or its stage; its sum is lost unless it has named an heir."""
        card = self.membership.get(peer)
        heir = card.heir if card is not None and card.state in ("left", "joining") else ""
        heir = heir if self.membership.is_live(heir) else ""  # the peer itself is not, in these states
        if self.served is not None:
            self.served.peer_lost(peer, heir)
        self.conductor.desk.peer_lost(peer, heir)
        if heir:
            self._context.handouts.inherit(peer, heir)
        self.membership.changed.notify()

    def _sweep(self, now: float) -> float:
        """Looks at everything that may be late. Returns the loop time at which more may be."""
        due = math.inf
        if self.served is not None:
            lost = self.served.compute.progress().lost
            if lost and not self._device_lost.done():
                self._device_lost.set_result(lost)
            due = self.served.sweep(now)
        due = min(due, self.conductor.sweep(now))
        self.forks.sweep(now)
        self.returns.sweep()
        self.figures.sweep(now)
        return due

    # ---------------------------------------------------------------------------------------------- commits

    def on_replaced(self) -> None:
        """Voids what was under way for the state that was given up."""
        self._context.handouts.forget()
        if self.served is not None:
            self.served.abandon()
            self.ballots.forget()
        self._note_members()
        self.figures.on_replaced()
        self.own.refresh()
        self.membership.changed.notify()

    def on_record(self, record: Record) -> None:
        """Ends the step everywhere, and begins what follows from it."""
        assert self.served is not None, "a record is applied to a stage"
        self._note_members()
        self.figures.on_record(record)
        self.served.end_step(record.step)
        self._context.handouts.end_step(record.step)
        self.own.refresh()
        self.mover.on_record(record)
        self.saving.on_record(record)
        if self.history.broken:
            self.tasks.start(self._say_broken(record))
        if record.forked:  # so that the others see soon which history this is
            self.tasks.start(self.own.announce())
        self.membership.changed.notify()

    def on_unshown(self, peer: PeerId) -> None:
        """Somebody says that it is ahead, and shows no record of it: others are asked."""
        self.membership.standing.doubt(peer, asyncio.get_running_loop().time())
        self.membership.changed.notify()

    def _note_members(self) -> None:
        """Those that the newest record names have worked."""
        if (record := self.history.record) is None:
            self.membership.standing.note_no_record()
            return
        self.membership.standing.note_record({peer: entry.stage for entry in record.stages for peer in entry.members})

    async def _say_broken(self, record: Record) -> None:
        """Says that this peer has no state any more: to the next step's conductor, too, which may be far away."""
        if self.state in STAYING:
            self.own.become("joining")
        await self.own.announce()
        conductor = self.conductor.conductor_of(record.step + 1)
        if conductor not in ("", self.membership.own.peer):
            await self.links.tell_all([conductor], Announce(self.membership.own), deadline_s=TELL_SECONDS)

    async def _validate(self, version: int) -> float | None:
        """Mean loss of the held-out microbatches, None if it can't be had."""
        served = self.served
        if served is None or served.data is None:
            return None
        return await served.validation.mean_loss(served.data, version)
