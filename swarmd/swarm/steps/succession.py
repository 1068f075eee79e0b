"""The conductor of a step, in a peer's eyes: the first in the order of conductors, unless another has taken over.

One that falls silent is not waited for until it is dropped: the next in order takes over, and says so to everyone once
the acceptors have given it the right. So the one that was silent, when it comes back, follows like all others, and a
step changes its conductor once. Which of two that both mean to lead may, the ballots decide; here it only matters whom
everybody asks.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from swarmd.swarm.history.ballots import Mandate
from swarmd.swarm.history.history import History
from swarmd.swarm.membership.order import conductor_order
from swarmd.swarm.membership.reach import is_founding, knows_all_of, leads_first, reaches_half
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.tasks import Tasks
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.fields import ARRIVALS_LIMIT
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.messages.step import TookOver
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

AHEAD = 2  # steps beyond this peer's version whose conductors it remembers: others may be a commit further
TELL_SECONDS = 3.0  # for a peer to hear who leads
NEAR_STAGES = 2  # whose peers every head knows, in a large swarm, too


class Succession:
    """The conductors of steps."""

    def __init__(
        self, links: Links, membership: Membership, history: History, tasks: Tasks, see: Callable[[int, int], None]
    ) -> None:
        """`see`: takes the number of the ballot under which another peer leads a step."""
        self._links, self._membership, self._history = links, membership, history
        self._tasks, self._see = tasks, see
        self._first: tuple[tuple[int, int, str], PeerId] = (0, 0, ""), ""  # what it follows from, and who it is
        self._leads: dict[tuple[int, str], dict[PeerId, TookOver]] = {}  # (step, parent) -> who said that it leads
        self._taking: tuple[int, str] = (0, "")  # the step that this peer takes over, without the right to as yet
        self._before: PeerId = ""  # and from whom
        self._told: set[PeerId] = set()  # who knows that this peer leads
        self._telling: set[PeerId] = set()
        links.handle(TookOver, self._answer_lead)

    def conductor_of(self, step: int) -> PeerId:
        """The peer that leads a step; this peer itself when it knows nobody at work; "" when it is too far from the
        heads of a large swarm to tell: it knows few of them, and that these are gone doesn't mean that all are.
        """
        place = (step, self._history.record_hash)
        if self._taking == place:
            return self._membership.own.peer
        living = [lead for lead in self._leads.get(place, {}).values() if self._is_alive(lead)]
        if living:
            return max(living, key=lambda lead: lead.ballot).ballot.peer
        seen = (step, self._membership.generation, self._history.record_hash)
        if self._first[0] != seen:  # it is asked for at every change of anything
            order = self._order(step)
            self._first = seen, "" if order is None else (order[0] if order else self._membership.own.peer)
        return self._first[1]

    def _is_alive(self, lead: TookOver) -> bool:
        card = self._membership.get(lead.ballot.peer)
        if card is None or card.incarnation != lead.incarnation or not self._membership.is_live(card.peer):
            return False
        return not self._comes_after_founder(card.peer)

    def _comes_after_founder(self, peer: PeerId) -> bool:
        """True if a peer has taken the first step over from the run's founder, and that is back: nobody follows another
        one's orders as long as the founder speaks.
        """
        if self._history.record is not None or peer == (founder := self._history.origin.founder):
            return False
        return leads_first(self._membership, founder, asyncio.get_running_loop().time())

    def _order(self, step: int) -> list[PeerId] | None:
        """The peers that may lead a step, the first one first; None when this peer can't know."""
        # Heads of the record come before all others; so one that arrives from another stage changes nothing.
        members, first = frozenset(self._history.chain.members()), frozenset(self._history.chain.members(stage=0))
        heads = [card for card in self._membership.stage(0) if card.peer in first or not members]
        if heads or knows_all_of(self._membership, 0):
            order = conductor_order(step, heads or self._membership.kin(), members)
            return order if members else self._founder_first(order)
        return None

    def _founder_first(self, order: list[PeerId]) -> list[PeerId]:
        """An order of conductors of the first step, which the founder alone can decide."""
        founder = self._history.origin.founder
        if not is_founding(self._membership, founder):
            return order
        return [founder, *(peer for peer in order if peer != founder)]

    def cede(self) -> None:
        """Ends this peer's right to lead the first step as the run's founder, as a whole stage follows somebody else:
        from now on it comes after those who are there, like a newcomer.
        """
        peer = self._membership.own.peer
        if self._history.record is not None or self._history.origin.founder != peer:
            return
        if not is_founding(self._membership, peer):  # it has done so already
            return
        log.warning("a stage doesn't follow this peer, which founded the run: it leaves the first step to others")
        own, last = self._links.own, max(card.arrival for card in self._membership.cards())
        own.card = dataclasses.replace(own.card, arrival=min(last + 1, ARRIVALS_LIMIT))
        self._tasks.start(own.announce())

    # ---------------------------------------------------------------------------------------------- taking over

    def take_over(self, now: float) -> None:
        """Leads the present step from now on if its conductor is silent, and this peer is the next in order. Not if
        most of those near are silent, too: then it is this peer that is cut off, or was stopped.
        """
        step, own = self._history.version + 1, self._membership.own.peer
        if self._taking[0] == step and not self._membership.is_silent(self._before, now):  # it is back in time
            self._taking = (0, "")
            self._membership.changed.notify()
        conductor = self.conductor_of(step)
        if conductor in ("", own) or not self._membership.is_silent(conductor, now):
            return
        order = self._order(step) or []
        speaking = [peer for peer in order if peer == own or not self._membership.is_silent(peer, now)]
        if speaking[:1] == [own] and not self.is_cut_off(now):
            log.info("step %d: %s, who leads it, is silent; this peer takes over", step, short(conductor))
            self._taking, self._before = (step, self._history.record_hash), conductor
            self._membership.changed.notify()

    def speaking(self, now: float) -> list[Card]:
        """Those of the kin that were heard of lately: nobody waits for the others."""
        return [card for card in self._membership.kin() if not self._membership.is_silent(card.peer, now)]

    def is_cut_off(self, now: float) -> bool:
        """True if most of those near are silent, and not given up yet: someone else may lead for them."""
        if (record := self._history.record) is None:
            return False
        near = [peer for entry in record.stages[:NEAR_STAGES] for peer in entry.members]
        silent = any(self._membership.is_silent(peer, now) for peer in near)
        return silent and not reaches_half(self._membership, near, now)

    def lead(self, mandate: Mandate) -> None:
        """Has everyone follow this peer, which has the right to lead a step that another led, or may have led."""
        self._told.clear()
        self._note(TookOver(mandate.step, mandate.parent, mandate.ballot, self._membership.own.incarnation))
        self.tell(asyncio.get_running_loop().time())

    def tell(self, now: float) -> None:
        """Tells those who don't know yet that this peer leads the present step."""
        own, step = self._membership.own.peer, self._history.version + 1
        lead = self._leads.get((step, self._history.record_hash), {}).get(own)
        if lead is None or self.conductor_of(step) != own:
            return
        for card in self._membership.kin():
            peer = card.peer
            if peer not in (own, *self._told, *self._telling) and not self._membership.is_silent(peer, now):
                self._telling.add(peer)
                self._tasks.start(self._tell(peer, lead))

    async def _tell(self, peer: PeerId, lead: TookOver) -> None:
        try:
            if await self._links.tell_all([peer], lead, deadline_s=TELL_SECONDS):
                self._told.add(peer)
        finally:
            self._telling.discard(peer)

    async def _answer_lead(self, peer: PeerId, lead: TookOver) -> Ack:
        known = self._membership.get(peer) is not None
        if known and peer == lead.ballot.peer and 0 < lead.step - self._history.version <= AHEAD:
            self._see(lead.step, lead.ballot.number)
            self._note(lead)
        return Ack()

    def _note(self, lead: TookOver) -> None:
        """Remembers who leads: of each known peer its last word about a step, so that nobody fills the memory."""
        for place, leads in list(self._leads.items()):
            if place[0] == lead.step:
                leads.pop(lead.ballot.peer, None)
            elif place[0] <= self._history.version:
                leads.clear()
            for peer in [peer for peer in leads if self._membership.get(peer) is None]:
                del leads[peer]
            if not leads:
                del self._leads[place]
        self._leads.setdefault((lead.step, lead.record_hash), {})[lead.ballot.peer] = lead
        if self._taking == (lead.step, lead.record_hash):  # the ballots decide from now on
            self._taking = (0, "")
        self._membership.changed.notify()
