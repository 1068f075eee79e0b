"""A stage's round as its leader asks the members: who answers in time, who is left out, why the step is to be skipped.

Members of the round are those that answer; everyone else's sum counts for nothing in it.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TypeVar

from swarmd.errors import Overruled, PeerFault, PeerUnreachable, Refused
from swarmd.swarm.history.handouts import Handouts
from swarmd.swarm.membership.table import Membership, nan_to_zero
from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Request, to_ranges
from swarmd.swarm.wire.messages.hop import NOBODY, Blame
from swarmd.swarm.wire.messages.round import AskHoldings, Close, Freeze, Holdings
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

A = TypeVar("A")

PATIENCE_FACTOR = 10.0  # a member may take so many times the stage's slowest microbatch to answer ...
PATIENCE_FLOOR_SECONDS = 5.0  # ... but no less than this: a loaded machine stalls for seconds ...
PATIENCE_CEILING_SECONDS = 60.0  # ... and no more, or a hung device would hold up the swarm
HASTY_SECONDS = 0.5  # for one that nothing was heard of lately: if it is coming back, it answers at once
SILENCES = 2  # questions in a row that a member may leave unanswered: after a stall of our own all come late at once


class Round:
    """One round, as its leader at this peer knows it."""

    def __init__(
        self, links: Links, membership: Membership, changed: Signal, close: Close, stage: int, handouts: Handouts
    ) -> None:
        self.links, self.membership, self.changed, self.handouts = links, membership, changed, handouts
        self.own = membership.own.peer
        self.stage, self.step, self.record, self.ballot = stage, close.step, close.record_hash, close.ballot
        self.blame = NOBODY  # why the step is to be skipped, once that is known
        self.left_out: set[PeerId] = set()  # they don't answer, or hold the round up
        self.asked: set[PeerId] = set()  # whose sums this leader may have frozen
        self._silences: dict[PeerId, int] = {}

    def skip(self, blame: Blame) -> None:
        """The step is to be skipped: nobody needs its gradient, and nothing must be whole for it."""
        self.blame = self.blame or blame
        self.changed.notify()

    def leave_out(self, peer: PeerId, why: str) -> None:
        """The round goes on without a member: its sum counts for nothing."""
        log.warning("round of step %d goes on without %s: %s", self.step, short(peer), why)
        self.left_out.add(peer)

    # ---------------------------------------------------------------------------------------------- questions

    def freeze(self, *, watch: bool = False) -> Freeze:
        """Asks how a frozen sum stands."""
        return Freeze(self.step, self.record, self.ballot, self.stage, watch=watch)

    def thaw(self, spared: Iterable[int] = (), blame: Blame = NOBODY) -> AskHoldings:
        """Asks how far a sum is, which takes in hops again. `blame`: the step is to be skipped for that."""
        return AskHoldings(self.step, self.record, self.ballot, self.stage, to_ranges(spared), blame)

    # ---------------------------------------------------------------------------------------------- asking

    def patience(self) -> float:
        """Seconds that a member may take to answer, by what its stage's microbatches take."""
        slowest = max((nan_to_zero(card.service_seconds) for card in self.membership.stage(self.stage)), default=0.0)
        return min(PATIENCE_CEILING_SECONDS, max(PATIENCE_FLOOR_SECONDS, PATIENCE_FACTOR * slowest))

    async def ask(self, peer: PeerId, question: Request[A], seconds: float) -> A | None:
        """The answer, None if there is none. Raises Overruled. Counts silences."""
        try:
            async with asyncio.timeout(seconds):
                answer = await self.links.ask(peer, question, deadline_s=seconds)
        except TimeoutError:
            self._silences[peer] = self._silences.get(peer, 0) + 1
            log.info("%s doesn't answer %s of step %d", short(peer), type(question).__name__, self.step)
            return None
        except Overruled:
            raise
        except (PeerUnreachable, Refused, PeerFault) as trouble:
            log.info("%s to %s of step %d: %s", type(question).__name__, short(peer), self.step, trouble)
            return None
        self._silences.pop(peer, None)
        return answer

    async def ask_all(self, peers: list[PeerId], question: Request[A], hasty: Sequence[PeerId] = ()) -> dict[PeerId, A]:
        """The answers of these peers, asked at once. Leaves those out that stay silent. `hasty`: they get less time.
        Raises Overruled, and Refused if this peer itself is silent.
        """
        patience = self.patience()
        limits = {peer: min(patience, HASTY_SECONDS) if peer in hasty else patience for peer in peers}
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {peer: group.create_task(self.ask(peer, question, limits[peer])) for peer in peers}
        except* Overruled as troubles:
            raise troubles.exceptions[0] from None
        self._leave_out_the_silent()
        return {peer: answer for peer, task in tasks.items() if (answer := task.result()) is not None}

    async def ask_members(self, question: Request[Holdings]) -> dict[PeerId, Holdings]:
        """The holdings of every member that answers. Raises Overruled, Refused if this peer can't lead the round."""
        now = asyncio.get_running_loop().time()
        peers = [card.peer for card in self.membership.stage(self.stage) if card.peer not in self.left_out]
        silent = [peer for peer in peers if peer != self.own and self.membership.is_silent(peer, now)]
        peers = [peer for peer in peers if peer not in silent or peer not in self.asked]  # silent ones only once
        if self.own not in peers:
            raise Refused("this peer isn't at work")
        self.asked.update(peers)
        return await self.ask_all(peers, question, hasty=silent)

    def _leave_out_the_silent(self) -> None:
        for peer, times in self._silences.items():
            if times >= SILENCES and peer not in self.left_out:
                if peer == self.own:
                    raise Refused("the device of this peer doesn't answer")
                self.leave_out(peer, "it doesn't answer")
