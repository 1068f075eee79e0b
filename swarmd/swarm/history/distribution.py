"""Ways of a decided record to everyone.

In a small swarm the conductor tells everyone. In a large one it tells the acceptors and one replica of each stage, who
tells the others of its stage. A peer that hears nothing sees from the cards that it is late, and asks: so nothing here
has to be certain.
"""

import dataclasses
import logging

from swarmd.swarm.history.consensus import plan_acceptors
from swarmd.swarm.history.history import History
from swarmd.swarm.history.listener import HistoryListener
from swarmd.swarm.history.record import Record
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.membership.table import SMALL_SWARM, Membership
from swarmd.swarm.tasks import Tasks
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

COMMIT_SECONDS = 60.0  # to apply a record
RELAYS_TRIED = 3  # replicas of a stage asked one after the other to pass a record on


def plan_relays(step: int, cards: list[Card], own: PeerId) -> list[list[PeerId]]:
    """The replicas of each stage that may pass a record on to the others, in the order in which they are asked."""
    stages: dict[int, list[PeerId]] = {}
    for card in cards:
        if card.state in AT_WORK and card.peer != own:
            stages.setdefault(card.stage, []).append(card.peer)
    return [rendezvous(f"relay/{step}/{stage}", stages[stage])[:RELAYS_TRIED] for stage in sorted(stages)]


class Distribution(HistoryListener):
    """This peer's part in handing records out, and on."""

    def __init__(self, links: Links, membership: Membership, history: History, tasks: Tasks) -> None:
        self._links, self._membership, self._history, self._tasks = links, membership, history, tasks
        history.listen(self)

    async def spread(self, record: Record, voters: tuple[PeerId, ...]) -> None:
        """Tells the swarm of a record, as its conductor; `voters` have accepted it."""
        own = self._membership.own.peer
        cards = [card for card in self._membership.kin() if card.peer != own]
        if len(cards) <= SMALL_SWARM:
            await self._tell([card.peer for card in cards], Commit(record.raw, voters=voters))
            return
        known = {card.peer for card in cards}
        before = self._history.chain.at(record.step - 1)
        acceptors = plan_acceptors(record.step, before, self._history.origin.founder)
        self._tasks.start(self._tell([peer for peer in acceptors if peer in known], Commit(record.raw, voters=voters)))
        for relays in plan_relays(record.step, cards, own):
            self._tasks.start(self._relay(relays, Commit(record.raw, relay=True, voters=voters)))

    async def _tell(self, peers: list[PeerId], commit: Commit) -> None:
        await self._links.tell_all(peers, commit, deadline_s=COMMIT_SECONDS)

    async def _relay(self, relays: list[PeerId], commit: Commit) -> None:
        """Has the first that answers tell its stage."""
        for peer in relays:
            if await self._links.tell_all([peer], commit, deadline_s=COMMIT_SECONDS):
                return
            log.info("%s passes no record on", short(peer))

    def on_relay(self, source: PeerId, commit: Commit) -> None:
        """Tells the other replicas of this stage."""
        own = self._membership.own
        replicas = [card.peer for card in self._membership.kin() if card.stage == own.stage]
        others = [peer for peer in replicas if peer not in (own.peer, source)]
        self._tasks.start(self._tell(others, dataclasses.replace(commit, relay=False)))
