"""A move: a peer's way from one stage to another, read top to bottom.

The peer serves its old stage while the state of the new one comes into host memory and is followed (`state/puller.py`).
Then it asks the conductor, step after step, whether the move still helps, and leaves with the first record that grants
it (`balance/grants.py`): its last sum is in there, and nothing of the next step was begun. If the end of the step is
far away it leaves early, and another replica takes its sum over (`early_exit.py`). It opens the new stage, loads the
state, repeats the commits since by their gradients, and goes on at the version at which it left. If the new stage can't
be opened, the peer goes the same way back to the old one. A grant obliges nobody: a peer that can't be spared any more
by then stays, and asks again.
"""

import asyncio
import logging
import math

from swarmd.errors import NO_ANSWER, ConfigError, PeerFault, Refused
from swarmd.swarm.balance.grants import able_alone
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Move, Record
from swarmd.swarm.membership.states import STAYING
from swarmd.swarm.peer.served_stage import ServedStage
from swarmd.swarm.peer.stage_switch import Switch
from swarmd.swarm.ports import Compute
from swarmd.swarm.state.backlog import Backlog, Entry, Missed
from swarmd.swarm.state.puller import Pulled, Puller
from swarmd.swarm.steps.conductor import Conductor
from swarmd.swarm.tasks import first_of
from swarmd.swarm.wire.messages.move import AskMove, MoveOutlook
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

ANSWER_SECONDS = 40.0  # for the conductor to answer: it may have to catch up first
ASK_AGAIN_SECONDS = 5.0  # a wish may be forgotten, by a conductor that was outranked for a while
RETRY_SECONDS = 1.0  # when nobody gives the state, or nobody leads


class MoveUnderWay:
    """One move of this peer. `balance`: the conductor refuses it if it helps no more."""

    def __init__(
        self,
        context: PeerContext,
        conductor: Conductor,
        switch: Switch,
        target: int,
        *,
        balance: bool,
    ) -> None:
        self._context, self._limits, self._links = context, context.limits, context.links
        self._membership, self._history = context.membership, context.history
        self._conductor, self._switch, self._balance = conductor, switch, balance
        self._move = Move(context.membership.own.peer, context.membership.own.stage, target)
        self.has_left = False  # it has left its old stage
        self._backlog: Backlog | None = None  # while the state is here: what is committed at the new stage since
        self._opened: ServedStage | None = None
        self._aim(target)

    def _aim(self, stage: int) -> None:
        """Makes a stage the one to go to."""
        self.target, self.puller = stage, Puller(self._context, stage)

    async def run(self) -> str:
        """Returns "" when this peer serves the new stage; when it is back at its old one, because the new one can't be
        opened, the sentence that says so. Raises Refused if it stays, and ConfigError if there is no way back either.
        """
        why = ""
        try:
            opened = await self._go()
        except ConfigError as trouble:
            why = f"stage {self.target} can't be opened here: {trouble}"
            log.warning("back to stage %d: %s", self._move.source, why)
            self._aim(self._move.source)
            opened = await self._go()
        opened.serve()
        return why

    async def _go(self) -> ServedStage:
        """Follows the state of a stage until it is here, leaves the old stage, and opens this one."""
        while not await self.puller.bring(lambda: self._switch.donors(self.target), self._change):
            self._check_able()
            await self._membership.changed.wait(RETRY_SECONDS)
        assert self._opened is not None, "a state was made use of"
        return self._opened

    async def _change(self, pulled: Pulled) -> None:
        """Leaves the old stage, with a state of the new one at hand, and makes that state this peer's."""
        self._backlog = pulled.backlog
        try:
            if not self.has_left:
                await self._leave(pulled.backlog)
            if self._opened is None:  # else another version's state was of no use there
                self._opened = await self._switch.arrive(self.target)
            await self._catch_up(self._opened, pulled)
        finally:
            self._backlog = None

    # ---------------------------------------------------------------------------------------------- leaving

    async def _leave(self, backlog: Backlog) -> None:
        """Asks conductors until a record has granted the move, or this peer has left early. Raises Refused, Missed."""
        while not self.has_left:
            self._check_able()
            if backlog.missed:
                raise Missed("what was committed since can't be had any more")
            step = self._history.version + 1
            conductor = self._conductor.conductor_of(step)
            answer = await self._ask(step, conductor)
            if answer is not None and not self.has_left:
                if not answer.likely:
                    raise Refused(answer.why)
                if self._step_left() > self._limits.move_wait_s:
                    await first_of(self._membership.changed.until(lambda: self.has_left), self._leave_early())

            def news(step: int = step, conductor: str = conductor) -> bool:
                changed = self._history.version >= step or self._conductor.conductor_of(step) != conductor
                return changed or self.has_left or backlog.missed

            await self._membership.changed.until(news, RETRY_SECONDS if answer is None else ASK_AGAIN_SECONDS)

    def _check_able(self) -> None:
        """Raises Refused when, at its old stage, there is no sense in moving any more."""
        if self.has_left:
            return
        if self._history.finished:
            raise Refused("the run is over")
        if self._membership.own.state not in STAYING or self._history.behind:
            raise Refused(f"this peer has lost touch with stage {self._move.source} itself; try again later")

    async def _ask(self, step: int, conductor: PeerId) -> MoveOutlook | None:
        """Asks a step's conductor for the move. None if there is no answer."""
        question = AskMove(step, self._history.record_hash, self._move.source, self.target, self._balance)
        try:
            return await self._links.ask(conductor, question, deadline_s=ANSWER_SECONDS)
        except NO_ANSWER as trouble:
            log.info("no word on a move to stage %d from %s: %s", self.target, short(conductor), trouble)
            return None

    def _step_left(self) -> float:
        """Seconds until the present step is over, if it takes as long as the one before."""
        now, record = asyncio.get_running_loop().time(), self._history.record
        return record.seconds - (now - self._history.entered) if record is not None else math.inf

    async def _leave_early(self) -> None:
        """Leaves in the middle of the step, if another replica takes over what this peer has of it."""
        assert self._switch.served is not None, "it has not left"
        if heir := await self._switch.served.early_exit.leave():
            self._leave_now(heir)  # in the turn of the event loop in which nothing of the step was left here

    def on_record(self, record: Record) -> None:
        """A record was applied. If it grants the move, the old stage is left in the same turn of the event loop."""
        if self._backlog is None:
            return
        self._backlog.hear(record, "")
        if not self.has_left and self._move in record.moves and self._may_leave(record):
            self._leave_now()

    def _may_leave(self, record: Record) -> bool:
        """True if this peer can still be spared, and isn't needed to finish: the record was decided some time ago."""
        if self._membership.own.state not in STAYING or self._history.crosses_at is not None or self._history.finished:
            return False
        assert self._switch.served is not None, "it has not left"
        return self._switch.served.early_exit.stays < record.step and self._keeps_one(record)

    def _keeps_one(self, record: Record) -> bool:
        """True if the old stage keeps a replica that can go on alone and was heard of lately; of several that go with
        the same record, each further one needs one more, lest a death that nobody has noticed yet empties the stage.
        """
        source, now = self._move.source, asyncio.get_running_loop().time()
        movers = [move.peer for move in record.moves if move.source == source]  # in an order that all of them know
        able = able_alone(self._membership.staying(source), record.step, record.stages[source])
        heard = [peer for peer in able if peer not in movers and not self._membership.is_silent(peer, now)]
        return len(heard) > movers.index(self._move.peer)

    def _leave_now(self, heir: PeerId = "") -> None:
        """Leaves the old stage, in this turn of the event loop. `heir`: has this peer's sum, if the step isn't over."""
        self.has_left = True
        self._switch.leave_for(self.target, heir)

    # ---------------------------------------------------------------------------------------------- arriving

    async def _catch_up(self, opened: ServedStage, pulled: Pulled) -> None:
        """Makes the state this peer's: that of the version at which it left, or of a later one."""
        history, backlog, record = self._history, pulled.backlog, pulled.manifest.record
        digest = await opened.compute.import_state(pulled.state)
        for step in range(pulled.manifest.version + 1, history.version + 1):
            digest = await repeat(opened.compute, opened.stage, await backlog.reach(step))
        if pulled.manifest.version > history.version:
            async with history.lock:
                history.replace(record, digest)
        else:
            history.settle(digest)
        backlog.drop(history.version)
        backlog.hand_over(opened.committed.hold)
        self.puller.loaded(pulled.manifest.version)


async def repeat(compute: Compute, stage: int, entry: Entry) -> str:
    """Takes a stage one version further, by a commit that this peer has applied at another stage. Returns the
    parameters' digest. Raises ValueError if the gradient isn't the one that the record names.
    """
    record = entry.record
    if record.skipped:
        return await compute.skip(record.step)
    try:
        found = await compute.assemble(record.step, entry.parts or ())
    except PeerFault as fault:
        raise ValueError(f"the gradient of step {record.step} is malformed: {fault}") from None
    if found.digest != record.stages[stage].digest:
        raise ValueError(f"a gradient came that isn't the one that the record of step {record.step} names")
    return await compute.apply(record.step, learning_rate=record.learning_rate, clip_factor=record.clip_factor)
