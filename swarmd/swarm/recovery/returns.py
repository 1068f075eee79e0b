"""Returns to a version that is on disks: when nobody is left who has a stage's state, or when a whole swarm starts
again.

A *return* is a record that decides an earlier version anew: the same state, other members. It is decided like any other
record, by the acceptors of the step that can't be done (`conductor.py`), or by the founder alone where all peers have
only just started. Everyone loads its stage of that version, from its own disk or from others (`disks.py`), voids what
its ledger has of later steps, and goes on from there. Who doesn't hear of it is of another history then (`forks.py`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from swarmd.errors import ConfigError
from swarmd.swarm.history.listener import HistoryListener
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Record, build_end, build_return, founding, total_of
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.recovery.return_plan import NoReturn, ReturnPlan, plan_return
from swarmd.swarm.state.disks import Disks
from swarmd.swarm.state.download import OutOfDonors
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.disks import CheckpointName
from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import Buffer, PeerId

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # between looks at who is there and what is on disks
QUIET_SECONDS = 5.0  # a founder that could go on waits so long for someone else to come, who may have a newer version
TELL_SECONDS = 10.0  # for a return to be heard; and between two times that those who don't show it are told
FETCH_SECONDS = 2.0  # between tries to have a checkpoint
FETCHES = 30  # tries, once others are ahead; then one of those gives its state

CAN_RETURN = ("joining", "waiting", "serving")
"""States of those who can take part in a return: a joining peer may hold a stage that nobody else has."""


def _quiet(plan: ReturnPlan) -> str:
    """Says what a founder waits for that has a plan."""
    first = f"others of the run, for {QUIET_SECONDS:.0f} s, to go on from version {plan.version}"
    return "; ".join([first, *map(str, plan.passed)])


def _warn_passed_over(plan: ReturnPlan) -> None:
    """Says which newer versions are not returned to, and why."""
    for passed in plan.passed:
        log.warning("going back to version %d: %s", plan.version, passed)


class Returns(HistoryListener):
    """This peer's part in returns."""

    def __init__(self, context: PeerContext, disks: Disks) -> None:
        self._run, self._links, self._membership = context.run, context.links, context.membership
        self._history, self._disks, self._timeout_s = context.history, disks, context.limits.stage_lost_timeout_s
        self.due: Record | None = None  # a return that this peer has yet to make
        self.waiting = ""  # what a return waits for, in words
        self.under_way = False  # this peer is on its way to `due`
        self._lost_since: float | None = None  # loop time
        self._nothing_whole = False  # all who are there were asked, and no version is whole
        self._history.listen(self)

    # ---------------------------------------------------------------------------------------------- deciding

    async def found(self) -> Record:
        """The return with which a run goes on of which nothing is left but disks; waits until it can be made. Those
        who are there then, and who come later, are told. Raises ConfigError if more steps are done than it has.
        """
        loop, own = asyncio.get_running_loop(), self._membership.own
        came, seen = loop.time(), frozenset[PeerId]()
        while True:
            places = self._places()
            if frozenset(places) != seen:
                seen, came = frozenset(places), loop.time()
            plan = await self._plan(max(self._run.totals), spares=loop.time() - came > self._timeout_s)
            if isinstance(plan, ReturnPlan) and plan.version > self._run.steps:
                raise ConfigError(
                    f"the run has come to version {plan.version}, on its peers' disks, which is more than "
                    f"--steps {self._run.steps}: give --steps {plan.version} or more."
                )
            if isinstance(plan, ReturnPlan) and loop.time() - came >= QUIET_SECONDS:
                record = await self._record(plan, lambda it: founding(own.peer, own.incarnation, it))
                if record is not None:
                    _warn_passed_over(plan)
                    return record
            elif isinstance(plan, ReturnPlan):
                self._wait_for(_quiet(plan))
            await self._membership.changed.wait(LOOK_SECONDS)

    async def lost(self) -> Record:
        """The return that should be proposed as what follows this peer's version, once a stage has been without a peer
        for too long and there is a way back; at once if its parameters came out not finite, and where there is no way
        back from that, the end of the run.
        """
        history = self._history
        while True:
            if (stage := self.broken_stage()) is not None:
                record = await self._mend(stage)
                if record is not None:
                    return record
            elif history.version and self._is_lost():
                plan = await self._plan(history.version, spares=True)
                if isinstance(plan, ReturnPlan):
                    record = await self._record(plan, lambda _: history.record_hash, history.version)
                    if record is not None and self._is_lost():
                        _warn_passed_over(plan)
                        return record
            await self._membership.changed.wait(LOOK_SECONDS)

    def broken_stage(self) -> int | None:
        """A stage of which no replica has a state of this peer's version, since its parameters came out not finite."""
        missing, version = self._membership.missing_stages(self._run.model.stages), self._history.version
        cards = [card for card in self._membership.kin() if version and card.broken == version]
        return next((card.stage for card in cards if card.stage in missing), None)

    async def _mend(self, stage: int) -> Record | None:
        """Makes the record that follows a version of which a stage has no finite parameters: a return to the newest
        whole one; if that was no help the first time, or there is none, the end of the run. None if an answer lacks.
        """
        record, after = self._history.record, self._history.record_hash
        assert record is not None, "an untrained version isn't broken"
        why = f"the parameters of stage {stage} came out not finite at step {record.step}"
        if record.broke_at >= record.step:
            return self._end(record, f"{why}, also after the swarm had returned to a checkpoint")
        plan = await self._plan(record.step - 1, spares=True)
        if isinstance(plan, ReturnPlan):
            made = await self._record(plan, lambda _: after, record.step, broke_at=record.step, why=why)
            if made is not None:
                _warn_passed_over(plan)
            return made
        return self._end(record, f"{why}, and there is no checkpoint to return to") if self._nothing_whole else None

    def _end(self, record: Record, why: str) -> Record:
        lives = {card.peer: card.incarnation for card in self._membership.cards()}
        return build_end(record, lives, conductor=self._membership.own.peer, why=why)

    def _is_lost(self) -> bool:
        """True if a stage has been empty for too long."""
        now = asyncio.get_running_loop().time()
        if not self._membership.missing_stages(self._run.model.stages):
            self._lost_since, self.waiting = None, ""
        elif self._lost_since is None:
            self._lost_since = now
        return self._lost_since is not None and now - self._lost_since >= self._timeout_s

    def sweep(self) -> None:
        """Looks whether a stage is empty, so that the time counts from when it was lost."""
        self._is_lost()

    def _places(self) -> dict[PeerId, int]:
        return {card.peer: card.stage for card in self._membership.kin() if card.state in CAN_RETURN}

    async def _plan(self, upto: int, *, spares: bool) -> ReturnPlan | NoReturn:
        """Asks everyone what is on their disks."""
        places = self._places()
        lists = await self._disks.ask_around(sorted(places))
        places = {peer: stage for peer, stage in places.items() if peer in lists}
        everyone = len(places) == len(self._places())
        plan = plan_return(lists, places, self._run.model.stages, upto, self._state_at, spares=spares)
        self._nothing_whole = everyone and isinstance(plan, NoReturn) and not plan.whole
        if isinstance(plan, NoReturn) or self._lost_since is not None:
            self._wait_for(plan.wanted if isinstance(plan, NoReturn) else "")
        return plan

    def _wait_for(self, words: str) -> None:
        if words != self.waiting:
            self.waiting = words
            self._membership.changed.notify()

    def _state_at(self, version: int) -> str:
        record = self._history.chain.at(version)
        return record.state if record is not None else ""

    async def _record(
        self,
        plan: ReturnPlan,
        after: Callable[[Record], str],
        version: int | None = None,
        *,
        broke_at: int = 0,
        why: str = "",
    ) -> Record | None:
        """Makes the return of a plan; None if it can't be made any more. `after` gives the hash of what it follows,
        from the record that it leads to. `version`: of what it follows; None where a run is founded again. `broke_at`,
        `why`: as in the record.
        """
        newest = self._history.record
        record = self._history.chain.at(plan.version)
        if record is None or record.state != plan.state:
            holders = [peer for peers in plan.members for peer in peers]
            for stage in range(self._run.model.stages):
                record = await self._disks.record_of(CheckpointName(plan.version, stage, plan.state), holders)
                if record is not None:
                    break
        if record is None:
            return None
        lives = {card.peer: card.incarnation for card in self._membership.cards()}
        if not all(peer in lives for peers in plan.members for peer in peers):  # someone has gone meanwhile
            return None
        prolonged = version is None and record.total_steps != total_of(self._run)
        return build_return(
            record,
            plan.members,
            lives,
            after=after(record),
            after_version=plan.version if version is None else version,
            conductor=self._membership.own.peer,
            continues=record.hash if prolonged else "",
            broke_at=broke_at or (newest.broke_at if newest is not None else 0),
            why=why,
        )

    async def tell(self, record: Record) -> None:
        """Tells those of a return who don't show that they have made it, until another one is made."""
        while (
            self._history.returned is None or self._history.returned.after in ("", record.after) or self.due is record
        ):
            if late := [card.peer for card in self._membership.cards() if self._is_late(card, record)]:
                await self._links.tell_all(late, Commit(record.raw), deadline_s=TELL_SECONDS)
            await asyncio.sleep(TELL_SECONDS)

    def _is_late(self, card: Card, record: Record) -> bool:
        """True for a peer that may not have heard of a return."""
        if card.peer == self._membership.own.peer or card.version > record.after_version or card.state == "left":
            return False
        if record.ends:
            return card.state != "finished"
        on_its_way = card.version >= record.step and self._history.chain.hash_at(card.version) == card.record_hash
        return not on_its_way or self.due is record

    # ---------------------------------------------------------------------------------------------- returning

    def on_return(self, record: Record) -> None:
        """Makes a return due that concerns this peer, or ends its run."""
        if not self._concerns(record):
            return
        if record.ends:
            log.error("the run ends at version %d: %s", record.step, record.why)
            self._history.end(record)
        else:
            because = f": {record.why}" if record.why else ""
            said = "the swarm returns from version %d to version %d, which is on disks%s"
            log.warning(said, self._history.version, record.step, because)
            self.due = record
            self._membership.changed.notify()
            self._history.changed.notify()

    def _concerns(self, record: Record) -> bool:
        """True for a return that is for this peer: it follows its version, or one that it would have come to."""
        history = self._history
        if any(it is not None and it.hash == record.hash for it in (history.record, self.due, history.returned)):
            return False
        if record.after == history.record_hash:
            return True
        if self.due is not None and record.after == self.due.hash:
            return True
        if not history.ready or history.behind:
            return record.after_version >= history.version
        torn = bool(self._membership.missing_stages(self._run.model.stages))
        return torn and history.version < record.after_version

    async def state(self, record: Record, stage: int) -> Buffer | None:
        """Brings this stage's state of the version that everyone returns to. None if it can't be had any more, or
        another return was decided meanwhile.
        """
        plain, bad = CheckpointName(record.step, stage, record.state), 0
        while self.due is record:
            checkpoint = await self._disks.settle(plain, self._holders(), record.replicas())
            if (found := await self._disks.load(checkpoint)) is not None:
                return found[0]
            try:
                return (await self._disks.bring(checkpoint, self._holders, record.replicas()))[0]
            except OutOfDonors as trouble:
                bad += 1
                log.warning("%s", trouble)
            self.waiting = f"version {record.step} of stage {stage}, on a disk of anyone who is there"
            if bad >= FETCHES and self._is_passed(record.step):
                log.warning("version %d of stage %d is passed over: nobody gives it", record.step, stage)
                break
            await self._membership.changed.wait(FETCH_SECONDS)
        return None

    def _is_passed(self, version: int) -> bool:
        """True if somebody who gives its state is ahead of a version."""
        giving = (*AT_WORK, "finished")
        return any(card.version > version for card in self._membership.cards() if card.state in giving)

    def _holders(self) -> list[PeerId]:
        """Peers to ask for a checkpoint: everyone."""
        own = self._membership.own.peer
        return [card.peer for card in self._membership.cards() if card.peer != own and card.state != "left"]

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Shows that this peer is on its way to `due`."""
        self.under_way = True
        try:
            yield
        finally:
            self.under_way = False

    def done(self, record: Record) -> None:
        """Ends a return that this peer has made, or given up."""
        if self.due is record:
            self.due = None
        self.waiting, self._lost_since = "", None
        self._membership.changed.notify()
