"""Finds out who is alive: takes in cards, suspects peers whose connection broke, looks again, drops the silent.

What a peer says of itself counts once it was met (`standing.py`); what others say of it is a rumour until then.

Peers that were dropped without a goodbye are looked for now and then: the network may have been cut in two, and both
halves trained on. Relies on `Membership` for the rules and on `Links` to look again. Says `gone` once for a peer whose
work is lost.
"""

import asyncio
import logging
from collections.abc import Callable

from swarmd.errors import NO_ANSWER
from swarmd.swarm.membership.reach import is_spare
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.membership.table import Membership, is_near
from swarmd.swarm.tasks import Tasks
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

SWEEP_SECONDS = 0.5  # how often lateness is looked at, while something may be late
CALM_SWEEP_SECONDS = 2.0  # the same while nothing can be
STALL_SECONDS = 2.0  # of one's own, after which others' words, which are waiting, are heard before anyone is judged
SEEK_SECONDS = 5.0  # between two tries to reach one that was dropped
SOUGHT_AT_ONCE = 16
SOUGHT_LIMIT = 256  # dropped peers that are looked for; the longest sought are given up first
LOOK_AGAIN_SECONDS = 3.0  # to reach a peer whose connection broke; a dead one refuses in milliseconds


class Liveness:
    """This peer's belief about which others are alive."""

    def __init__(
        self,
        links: Links,
        membership: Membership,
        tasks: Tasks,
        *,
        suspected: Callable[[PeerId], None],
        gone: Callable[[PeerId], None],
        heard: Callable[[Card], None],
    ) -> None:
        self._links, self._membership, self._tasks = links, membership, tasks
        self._suspected, self._gone, self._heard = suspected, gone, heard
        self._standing = membership.standing
        self._sought: dict[PeerId, None] = {}  # dropped without a goodbye, in the order of their turns
        self._seeking: set[PeerId] = set()
        self._sought_at = 0.0
        links.on_card(self._met)
        links.on_lost(self._lost)

    def hear(self, card: Card) -> None:
        """A peer's own card came, by handshake, announcement or gossip. It counts once its peer was met."""
        if self._membership.get(card.peer) is not None or self._standing.admits(card.peer):
            self._take_in(card)
        else:
            self._note_rumour(card)

    def hear_of(self, card: Card, *, believed: bool = False) -> None:
        """A card was passed on. It counts only if it is `believed`, as somebody at work with its peer gave it, and its
        peer is far away: those near say themselves what they are; and only if its peer has worked, or nobody can have.
        Nothing is lost, or said goodbye to, by such a word.
        """
        known, own = self._membership.get(card.peer), self._membership.own
        if card.peer == own.peer:
            return
        far = not any(is_near(it, own.stage) for it in (known, card) if it is not None)
        there = card.state in (*AT_WORK, "finished")
        known_here = self._standing.admits(card.peer) or not self._standing.begun
        if believed and far and there and known_here:
            self._take_in(card, told=True)
        elif known is None:
            self._note_rumour(card)

    def _note_rumour(self, card: Card) -> None:
        if card.state != "left" and self._membership.rumours.hear(card, asyncio.get_running_loop().time()):
            self._links.transport.learn(card.peer, card.addresses)

    def _take_in(self, card: Card, *, told: bool = False) -> None:
        """A card counts. `told`: by somebody else than its peer."""
        self._membership.rumours.drop(card.peer)
        own = self._membership.own
        if card.peer == own.peer and (card.incarnation, card.sequence) > (own.incarnation, own.sequence):
            self._tasks.start(self._rise_above(card.incarnation))
        if not self._membership.is_news(card, told=told):
            return
        worked, before = self._membership.is_live(card.peer), self._membership.get(card.peer)
        generation = self._membership.generation
        self._membership.hear(card, asyncio.get_running_loop().time(), told=told)
        self._links.transport.learn(card.peer, card.addresses, card.machine)
        self._heard(card)
        foreign = worked and not self._membership.fits(card)  # it goes over to another history
        if card.state == "left" or (worked and card.state == "joining") or foreign:
            self._gone(card.peer)
        self._found(card)
        if self._membership.generation != generation or before is None or before.version != card.version:
            self._membership.changed.notify()  # figures alone change nothing for those who wait

    async def _rise_above(self, incarnation: int) -> None:
        """Others have a card of this peer that is newer than any it has given in this life."""
        before = self._membership.own.incarnation
        if incarnation >= before and await self._links.incarnation.rise_above(incarnation):
            await self._links.own.announce()

    def _found(self, card: Card) -> None:
        """A card came of someone who was looked for: the network may be whole again, so the others are called, too."""
        if card.peer not in self._sought:
            return
        del self._sought[card.peer]
        for peer in list(self._sought)[:SOUGHT_AT_ONCE]:
            self._tasks.start(self._seek(peer))

    async def _seek(self, peer: PeerId) -> None:
        if peer in self._seeking:
            return
        self._seeking.add(peer)
        try:
            async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                await self._links.greet(peer)
        except NO_ANSWER as trouble:
            log.debug("peer %s is still lost: %s", short(peer), trouble)
        finally:
            self._seeking.discard(peer)

    def _seek_one(self, now: float) -> None:
        """Tries to reach the one whose turn it is."""
        if self._sought and now - self._sought_at >= SEEK_SECONDS:
            self._sought_at = now
            peer = next(iter(self._sought))
            del self._sought[peer]
            self._sought[peer] = None  # at the end of the line
            self._tasks.start(self._seek(peer))

    def _met(self, card: Card) -> None:
        """Someone's card came with a handshake: it is alive."""
        now = asyncio.get_running_loop().time()
        self._standing.meet(card.peer, self._links.transport.network_of(card.peer), now)
        self.hear(card)
        self._membership.touch(card.peer, now)

    def _let_in(self, now: float) -> None:
        """Those that waited for their turn count from now on."""
        for peer in self._standing.admit_waiting(now):
            if (card := self._membership.rumours.drop(peer)) is not None:
                self._take_in(card)

    def _lost(self, peer: PeerId) -> None:
        """Its connection broke: it is used no more, and gone unless it can be reached again at once."""
        self._standing.gone(peer)
        self._suspected(peer)
        if self._membership.get(peer) is None:
            self._gone(peer)  # it doesn't count, and nobody dials strangers because they break off
            return
        self._membership.suspect(peer)
        self._membership.changed.notify()
        self._tasks.start(self._look_again(peer))

    async def _look_again(self, peer: PeerId) -> None:
        known = self._membership.get(peer)
        try:
            async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                await self._links.greet(peer)
            again = self._membership.get(peer)
            if known is not None and again is not None and known.incarnation == again.incarnation:
                return
        except NO_ANSWER as trouble:
            log.info("peer %s is lost: %s", short(peer), trouble)
        self._gone(peer)

    async def run(self, sweep: Callable[[float], float]) -> None:
        """Drops the silent, and calls `sweep`, until cancelled: with the time, for the time at which it must be called
        again.
        """
        loop = asyncio.get_running_loop()
        for card in self._links.greeted():  # before there was anyone to hear them
            self._met(card)
        due = 0.0
        while True:
            slept, began = min(max(due - loop.time(), SWEEP_SECONDS), CALM_SWEEP_SECONDS), loop.time()
            await asyncio.sleep(slept)
            if loop.time() - began > slept + STALL_SECONDS:  # it was this peer that was stopped, and not the others
                await asyncio.sleep(SWEEP_SECONDS)
            for card in self._membership.sweep(loop.time()):
                peer = card.peer
                if is_spare(self._membership, card):
                    continue  # it is somebody else's business
                log.info("peer %s is dropped: silent or gone", short(peer))
                if card.state not in ("left", "finished"):
                    self._sought[peer] = None
                    while len(self._sought) > SOUGHT_LIMIT:
                        del self._sought[next(iter(self._sought))]
                await self._links.transport.drop(peer)
                self._gone(peer)
            self._standing.forget_doubts(loop.time())
            self._membership.rumours.forget_old(loop.time())
            self._let_in(loop.time())
            self._seek_one(loop.time())
            due = sweep(loop.time())
