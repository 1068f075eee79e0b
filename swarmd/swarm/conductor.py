"""Leading a step: leases, completions, close, commit. DESIGN section 6.

Every peer runs one `Conductor`; it is at work while this peer is first in the order of conductors. Whoever takes over
from a lost one first asks for a record of the step that others may have, then hears every head out before it gives
leases. Decides nothing about gradients: the rounds report, and the record follows from the reports.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from swarmd.config import RunConfig
from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.swarm.commit import Record, build_record, record_from_plain, record_to_plain
from swarmd.swarm.history import History
from swarmd.swarm.leases import Leases
from swarmd.swarm.links import Links
from swarmd.swarm.membership import AT_WORK, Membership, conductor_order, rendezvous
from swarmd.swarm.messages import (
    Ack,
    AskHoldings,
    AskLease,
    AskRecord,
    Close,
    Commit,
    Frozen,
    Lease,
    StageReport,
    from_ranges,
    to_ranges,
)
from swarmd.swarm.signals import Signal
from swarmd.values import PeerId

log = logging.getLogger(__name__)

LEASE_POLL_SECONDS = 5.0  # a head that asks when nothing is free is answered after this at the latest
HEARING_SECONDS = 4.0  # a new conductor waits so long for every head to say what it holds
VERSION_WAIT_SECONDS = 30.0
START_SECONDS = 2.0  # a head may ask before the conductor has noticed that it comes first
CLOSE_SECONDS = 900.0  # bound on a round; a lost leader ends the wait much sooner
COMMIT_SECONDS = 60.0  # to apply a record
RETRY_SECONDS = 0.5

Spawn = Callable[[Coroutine[Any, Any, None]], None]

Validate = Callable[[int], Awaitable[float | None]]
"""The validation loss of a version, None if it can't be had."""


class Conductor:
    """This peer as the leader of steps."""

    def __init__(
        self,
        run: RunConfig,
        links: Links,
        membership: Membership,
        history: History,
        validate: Validate,
        changed: Signal,
        spawn: Spawn,
    ) -> None:
        self._run, self._links, self._membership, self._history = run, links, membership, history
        self._validate, self._spawn = validate, spawn
        self._changed = changed  # of the membership, or of this peer's version
        self._leases: Leases | None = None
        self._step = 0
        self._heard: set[PeerId] = set()
        self._hearing_until = 0.0
        self._progress = Signal()
        self._began: float | None = None  # loop time of the step's first lease
        links.answers(AskLease, self._answer_lease)

    def leader(self, step: int) -> PeerId:
        """Who leads a step, in this peer's eyes; itself when it knows nobody at work."""
        order = conductor_order(step, self._membership.cards(), self._history.members())
        return order[0] if order else self._membership.own.peer

    def is_first(self, step: int) -> bool:
        return self.leader(step) == self._membership.own.peer

    def completed(self) -> int | None:
        """Microbatches of the present step that are done, if this peer leads it."""
        return self._leases.completed if self._leases is not None else None

    # ---------------------------------------------------------------------------------------------- a step

    async def run(self) -> None:
        """Leads every step for which this peer comes first, until the run is over."""
        while not self._history.finished:
            step = self._history.version + 1
            await self._until(lambda step=step: self._history.version >= step or self.is_first(step))  # type: ignore[misc]
            if self._history.version < step:
                await self._lead(step)

    async def _until(self, predicate: Callable[[], bool]) -> None:
        while not predicate():
            await self._changed.wait(LEASE_POLL_SECONDS)

    async def _lead(self, step: int) -> None:
        """Leads a step until it has committed, or someone else comes first."""
        work = asyncio.create_task(self._conduct(step), name=f"conduct {step}")
        over = asyncio.create_task(self._until(lambda: self._history.version >= step or not self.is_first(step)))
        try:
            await asyncio.wait({work, over}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not work.cancelled():
                work.result()
        finally:
            work.cancel()
            over.cancel()
            await asyncio.gather(work, over, return_exceptions=True)
            self._leases = None

    async def _conduct(self, step: int) -> None:
        loop = asyncio.get_running_loop()
        again = await self._takes_over(step)
        if again:
            everyone = [card.peer for card in self._membership.cards() if card.state in AT_WORK]
            question = AskHoldings(step, self._history.record_hash)  # ends rounds that the lost conductor had begun
            await self._links.tell_all(everyone, question, Frozen, deadline_s=HEARING_SECONDS)
            self._hearing_until = loop.time() + HEARING_SECONDS
        self._heard, self._step, self._leases = set(), step, Leases(self._run.microbatches, again=again)
        self._began = None
        self._progress.notify()
        validation = asyncio.create_task(self._validation(step - 1))
        try:
            reports = await self._conclude(step)
            record = build_record(
                self._run,
                self._history.record_hash,
                step,
                reports,
                conductor=self._membership.own.peer,
                seconds=loop.time() - (self._began or loop.time()),
                validation_loss=await validation,
                total_tokens=self._history.total_tokens,
            )
        finally:
            validation.cancel()
        self._spawn(self._distribute(record))
        await self._history.adopt(record, self._membership.own.peer)

    async def _takes_over(self, step: int) -> bool:
        """Whether someone else led this step before: then a record of it may exist, and leases are out."""
        members = self._history.members()
        if step == self._step:  # this peer led it before, and was thought lost meanwhile
            return True
        order = rendezvous(f"conductor/{step}", members)
        if not members or order == [self._membership.own.peer]:
            return False
        live = [card.peer for card in self._membership.cards()]
        lost = [peer for peer in members if peer not in live]
        if not lost:
            return False
        others = [peer for peer in live if peer != self._membership.own.peer]
        answers = await self._links.tell_all(others, AskRecord(step), Commit, deadline_s=HEARING_SECONDS)
        for peer, commit in answers.items():
            await self._history.adopt(record_from_plain(self._run, commit.record), peer)
        return True

    async def _validation(self, version: int) -> float | None:
        every = self._run.validate_every
        if every and version and version % every == 0:
            return await self._validate(version)
        return None

    async def _conclude(self, step: int) -> list[StageReport]:
        """Waits for all indices, then for every stage's round. Indices given again meanwhile delay only the first
        stage.
        """
        assert self._leases is not None
        await self._progress.until(lambda: self._leases is not None and self._leases.done)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._stage_report(step, stage)) for stage in range(self._run.model.stages)]
        return [task.result() for task in tasks]

    async def _stage_report(self, step: int, stage: int) -> StageReport:
        """Asks the stage's leader; when it is lost, the next in order."""
        close = Close(step, self._history.record_hash)
        while True:
            for leader in rendezvous(f"leader/{step}/{stage}", [card.peer for card in self._membership.stage(stage)]):
                try:
                    report = await self._links.ask(leader, close, StageReport, deadline_s=CLOSE_SECONDS)
                except (PeerUnreachable, TimeoutError, Refused, PeerFault) as trouble:
                    log.warning("round of stage %d, step %d: %s gives no report: %s", stage, step, leader[-8:], trouble)
                    continue
                if report.stage == stage:
                    return report
            await asyncio.sleep(RETRY_SECONDS)

    async def _distribute(self, record: Record) -> None:
        """Everyone who can be reached hears of the record; the others will ask for it."""
        commit = Commit(record_to_plain(record))
        own = self._membership.own.peer
        everyone = [card.peer for card in self._membership.cards() if card.peer != own]
        await self._links.tell_all(everyone, commit, Ack, deadline_s=COMMIT_SECONDS)

    # ---------------------------------------------------------------------------------------------- heads

    async def _answer_lease(self, head: PeerId, ask: AskLease) -> Lease:
        await self._history.await_version(ask.step - 1, ask.record, head, VERSION_WAIT_SECONDS)
        loop = asyncio.get_running_loop()
        leading = await self._progress.until(lambda: self._leases is not None and self._step == ask.step, START_SECONDS)
        leases = self._leases
        if leases is None or not leading:
            raise Refused(f"this peer doesn't lead step {ask.step}")
        leases.heard(head, from_ranges(ask.completed, leases.microbatches), from_ranges(ask.held, leases.microbatches))
        self._heard.add(head)
        self._progress.notify()
        if ask.want <= 0:
            return Lease(ask.step, (), False)
        deadline = loop.time() + LEASE_POLL_SECONDS
        while self._leases is leases and loop.time() < deadline:
            if leases.free and self._may_give():
                self._began = self._began or loop.time()
                indices, again = leases.give(head, ask.want, len(self._membership.stage(0)))
                return Lease(ask.step, to_ranges(indices), again)
            await self._progress.wait(min(RETRY_SECONDS, deadline - loop.time()))
        return Lease(ask.step, (), False)

    def _may_give(self) -> bool:
        """No leases while a stage is empty, nor, after taking over, before every head was heard."""
        if self._membership.missing_stages(self._run.model.stages):
            return False
        heads = {card.peer for card in self._membership.stage(0)}
        return heads <= self._heard or asyncio.get_running_loop().time() >= self._hearing_until

    def peer_lost(self, peer: PeerId) -> None:
        """A head is gone: what it had, finished or not, is given again."""
        if self._leases is not None and (lost := self._leases.lose(peer)):
            log.info("head %s is lost: %d microbatches of step %d are given again", peer[-8:], len(lost), self._step)
        self._progress.notify()
