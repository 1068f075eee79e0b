"""A peer's way from one stage to another: the state first, then the grant, then the change.

The peer serves its old stage while the other one's state comes into host memory and is followed (`puller.py`). Then it
asks the conductor, step after step, whether the move still helps, and leaves with the first record that grants it
(`grants.py`): its last sum is in there, and nothing of the next step was begun. If the end of the step is far away, it
leaves before, and another replica takes its sum over (`early_exit.py`). It opens the new stage, loads the state,
repeats the commits since by their gradients, and goes on at the version at which it left. A grant obliges nobody: a
mover that can't leave any more by then stays, and asks again or gives up.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from swarmd.config import LimitsConfig, RunConfig
from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Move, Record
from swarmd.swarm.membership.states import STAYING
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.served_stage import Assembly
from swarmd.swarm.ports import Compute
from swarmd.swarm.state.backlog import Backlog, Entry, Missed
from swarmd.swarm.state.download import Candidates
from swarmd.swarm.state.manifest import model_elements
from swarmd.swarm.state.puller import Pulled, Puller
from swarmd.swarm.steps.conductor import Conductor
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.move import AskMove, Wished
from swarmd.swarm.wire.messages.presence import Card

log = logging.getLogger(__name__)

ANSWER_SECONDS = 40.0  # for the conductor to answer: it may have to catch up first
ASK_AGAIN_SECONDS = 5.0  # a wish may be forgotten, by a conductor that was outranked for a while
RETRY_SECONDS = 1.0  # when nobody gives the state, or nobody leads

Arrive = Callable[[int], Awaitable[Assembly]]
"""Opens a stage on this peer's device. Raises ConfigError if it can't."""

Leave = Callable[["Mover"], Awaitable[bool]]
"""Leaves the old stage before the step is over, if that is possible now."""


class Mover(Puller):
    """One move of this peer."""

    def __init__(
        self,
        run: RunConfig,
        limits: LimitsConfig,
        links: Links,
        membership: Membership,
        history: History,
        conductor: Conductor,
        target: int,
        *,
        balance: bool,
        newest: Callable[[], Card],
        donors: Candidates,
        arrive: Arrive,
        leave: Leave,
    ) -> None:
        super().__init__(run, limits, links, history, target, model_elements(run.model), newest)
        self._membership, self._conductor = membership, conductor
        self._donors, self._arrive, self._leave = donors, arrive, leave
        self.target, self._balance = target, balance
        self.move = Move(membership.own.peer, membership.own.stage, target)
        self.departed = False  # it has left its old stage
        self._wishing = False  # a grant would be made use of
        self._backlog: Backlog | None = None
        self._assembly: Assembly | None = None

    async def go(self) -> Assembly:
        """Moves. Raises Refused while at its old stage, ConfigError when it has left and can't open the new one."""
        while not await self.bring(self._donors, self._change):
            self._check_able()
            await self._membership.changed.wait(RETRY_SECONDS)
        assert self._assembly is not None
        return self._assembly

    def hear(self, record: Record) -> bool:
        """A record was applied. Whether it takes this peer away from its stage."""
        if self._backlog is not None:
            self._backlog.hear(record, "")
        if self._wishing and not self.departed and self.move in record.moves and self._may_leave(record):
            self.departed = True
            return True
        return False

    def _may_leave(self, record: Record) -> bool:
        """Whether it can still be spared, and isn't needed to finish: the record was decided some time ago."""
        own, gone = self._membership.own, [move.peer for move in record.moves]
        gone.append(own.peer)
        staying = [card.peer for card in self._membership.staying(self.move.source) if card.peer not in gone]
        return (
            bool(staying) and own.state in STAYING and self._history.crosses_at is None and not self._history.finished
        )

    def _check_able(self) -> None:
        """Raises Refused when, at its old stage, there is no sense in moving any more."""
        if self.departed:
            return
        if self._history.finished:
            raise Refused("the run is over")
        if self._membership.own.state not in STAYING or self._history.behind:
            raise Refused(f"this peer has lost touch with stage {self.move.source} itself; try again later")

    # ---------------------------------------------------------------------------------------------- the grant

    async def _change(self, pulled: Pulled) -> None:
        """Leaves the old stage, with the state of the new one at hand, and opens that one."""
        backlog = self._backlog = pulled.backlog
        try:
            if not self.departed:
                await self._wish(backlog)
            if self._assembly is None:
                self._assembly = await self._arrive(self.target)
            await self._settle(self._assembly, pulled)
        finally:
            self._backlog = None

    async def _wish(self, backlog: Backlog) -> None:
        """Asks whoever leads until a record has granted the move. Raises Refused, Missed."""
        self._wishing = True
        try:
            while not self.departed:
                self._check_able()
                if backlog.missed:
                    raise Missed("what was committed since can't be had any more")
                step = self._history.version + 1
                leader = self._conductor.leader(step)
                answer = await self._ask_for_it(step, leader)
                if answer is not None and not answer.likely and not self.departed:
                    raise Refused(answer.why)
                far = answer is not None and self._step_left() > self._limits.move_wait_s
                if far and not self.departed and await self._leave(self):
                    return

                def news(step: int = step, leader: str = leader) -> bool:
                    changed = self._history.version >= step or self._conductor.leader(step) != leader
                    return changed or self.departed or backlog.missed

                await self._membership.changed.until(news, RETRY_SECONDS if answer is None else ASK_AGAIN_SECONDS)
        finally:
            self._wishing = False

    def _step_left(self) -> float:
        """Seconds until the present step is over, if it takes as long as the one before."""
        now, record = asyncio.get_running_loop().time(), self._history.record
        return record.seconds - (now - self._history.entered) if record is not None else math.inf

    async def _ask_for_it(self, step: int, leader: str) -> Wished | None:
        question = AskMove(step, self._history.record_hash, self.move.source, self.target, self._balance)
        try:
            return await self._links.ask(leader, question, deadline_s=ANSWER_SECONDS)
        except (PeerUnreachable, TimeoutError, Refused, PeerFault) as trouble:
            log.info("no word on a move to stage %d from %s: %s", self.target, leader[-8:], trouble)
            return None

    # ---------------------------------------------------------------------------------------------- the change

    async def _settle(self, assembly: Assembly, pulled: Pulled) -> None:
        """Makes the state this peer's: that of the version at which it left, or of a later one."""
        history, manifest, backlog = self._history, pulled.manifest, pulled.backlog
        digest = await assembly.compute.import_state(pulled.state)
        for step in range(manifest.version + 1, history.version + 1):
            digest = await repeat(assembly.compute, self.target, await backlog.reach(step))
        if manifest.version > history.version:
            async with history.lock:
                history.restore(manifest.record, digest)
        else:
            history.settle(digest)
        backlog.drop(history.version)
        backlog.hand_over(assembly.rounds.hold)
        self.loaded(manifest.version)


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
