"""Telling the swarm about oneself, and keeping in touch with those one works with.

A heartbeat on the own stage's topic at an interval that grows with the swarm; a summary of the stage for everyone, by
the first of its peers in rendezvous order; an announcement, as a request, of changes that neighbours must know at once.
Connections are kept to those near enough to matter: everyone in a small swarm, in a large one the own stage and its
neighbours. Of each other stage of a large swarm a few peers are known, and how many there are.
"""

import asyncio
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable
from typing import Protocol

from swarmd.config import RunConfig, fingerprint
from swarmd.errors import NO_ANSWER, PeerFault, Refused
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.reach import count_near, unmet
from swarmd.swarm.membership.shown import SHOWN_BYTES, shown
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.membership.table import (
    FEW,
    HEARTBEAT_SECONDS,
    SMALL_SWARM,
    Membership,
    heartbeat_interval,
    is_near,
    summary_interval,
)
from swarmd.swarm.wire.framing import from_frame, to_frame
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.presence import Announce, Card, Summary
from swarmd.values import Frame, PeerId, short

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 5.0
LOOKS_PER_HEARTBEAT = 8  # at who is near and not connected; at least every HEARTBEAT_SECONDS in a small swarm
SECOND_WORD_SECONDS = 10.0  # after a peer's first heartbeat at the latest; by then it has met those near
FIRST_SUMMARY_SECONDS = 20.0  # after the same; by then it knows its stage
SUMMARY_CARDS = 16  # of a stage's peers in its summary
CHANGE_SECONDS = 10.0  # between two summaries of a stage whose peers change
STRANGERS = 64  # peers to be met that are dialled at a time
SECOND_DIAL_SECONDS = 4.0  # the peer with the lower id dials; the other one steps in after this


def first_of(stage: int, cards: Iterable[Card], count: int) -> tuple[Card, ...]:
    """Those of a stage's peers that others know far from it, the one who speaks for it first."""
    known = {card.peer: card for card in cards}
    return tuple(known[peer] for peer in rendezvous(f"summary/{stage}", known)[:count])


def cards_for(stage: int, membership: Membership) -> tuple[Card, ...]:
    """The cards that a newcomer of a stage should know: in a large swarm those of near peers, and of a few others."""
    cards = membership.cards()
    if membership.population() <= SMALL_SWARM:
        return tuple(cards)
    far: dict[int, list[Card]] = {}
    for card in cards:
        if abs(card.stage - stage) > 1:
            far.setdefault(card.stage, []).append(card)
    few = (card for other, those in far.items() for card in first_of(other, those, FEW))
    return (*(card for card in cards if abs(card.stage - stage) <= 1), *few)


SumUp = Callable[[int, tuple[Card, ...], int], Summary]
"""A stage's summary, from the number of its peers and the cards of those that are to be shown."""


class Hear(Protocol):
    """Takes in cards."""

    def hear(self, card: Card) -> None:
        """A peer's own card came."""

    def hear_of(self, card: Card, *, believed: bool = False) -> None:
        """A card was passed on. `believed`: by somebody at work at its peer's stage."""


class Gossip:
    """This peer's voice in the swarm."""

    def __init__(
        self,
        run: RunConfig,
        links: Links,
        membership: Membership,
        heard: Hear,
        sum_up: SumUp,
    ) -> None:
        self._run, self._stages, self._links, self._membership = fingerprint(run), run.model.stages, links, membership
        self._heard, self._sum_up = heard, sum_up
        self._spoke = self._summed_up = -math.inf  # loop time of the last heartbeat and summary
        self._told: tuple[int, ...] = ()  # of the stage's peers, in the last summary
        self._generation = -1  # of the membership, when it was last looked at
        self._heard_from = 0  # peers whose heartbeats come here
        self._topics: set[str] = set()
        self._seen: dict[PeerId, float] = {}  # loop time since when we know of an unconnected peer
        self._dialling: dict[PeerId, asyncio.Task[None]] = {}
        links.own.on_announce(self._announce)
        links.handle(Announce, self._answer_announce)

    async def run(self) -> None:
        """Speaks and keeps in touch until cancelled."""
        try:
            while True:
                if self._membership.generation != self._generation or self._seen or self._membership.rumours:
                    self._generation = self._membership.generation
                    self._follow()
                    self._keep_in_touch()
                await self._publish()
                await asyncio.sleep(self._pause())
        finally:
            for task in self._dialling.values():
                task.cancel()
            for topic in self._topics:
                self._links.transport.unsubscribe(topic)
            self._topics, self._generation = set(), -1  # should it begin again

    def _pause(self) -> float:
        """Seconds until something may be due. In a large swarm, where everything is slower, one looks less often."""
        if self._seen:
            return HEARTBEAT_SECONDS
        pause = heartbeat_interval(self._heard_from)
        due = min(self._spoke + pause, self._summed_up + summary_interval(self._heard_from, self._stages))
        wait = min(due - asyncio.get_running_loop().time(), pause / LOOKS_PER_HEARTBEAT)
        return max(HEARTBEAT_SECONDS, wait)

    def _stage_topic(self, stage: int) -> str:
        return f"swarmd/{self._run}/stage/{stage}"

    def _swarm_topic(self) -> str:
        return f"swarmd/{self._run}/swarm"

    def _follow(self) -> None:
        """Subscribes to the own stage, its neighbours and the swarm."""
        stage = self._membership.own.stage
        wanted = {self._swarm_topic()}
        if stage >= 0:
            wanted |= {self._stage_topic(near) for near in (stage - 1, stage, stage + 1) if near >= 0}
        for topic in sorted(wanted - self._topics):
            self._links.transport.subscribe(topic, self._hear)
        for topic in sorted(self._topics - wanted):
            self._links.transport.unsubscribe(topic)
        self._topics = wanted
        self._heard_from = count_near(self._membership, stage)

    def _hear(self, author: PeerId, frame: Frame) -> None:
        """Takes in a gossip message. One that can't be used is dropped: the peer that passed it on may not know it."""
        try:
            message = from_frame(frame)
        except (PeerFault, Refused) as trouble:
            log.debug("gossip of %s dropped: %s", short(author), trouble)
            return
        if isinstance(message, Card) and message.peer == author:
            self._links.fence.call(self._heard.hear, message)
            self._meet_at_once(message)
        elif isinstance(message, Summary) and message.stage < self._stages:
            self._hear_summary(author, message)

    def _hear_summary(self, author: PeerId, summary: Summary) -> None:
        """A peer speaks for a stage: that counts if the peer does. Else it is met first, if it is far away."""
        for card in summary.cards[:SUMMARY_CARDS]:
            if card.peer == author:
                self._links.fence.call(self._heard.hear, card)
        believed = self._is_at_work(author, summary.stage)
        if believed:
            self._links.fence.call(self._membership.report, summary)
        elif self._must_meet(author, summary.stage) and self._room() > 0:
            self._begin_dial(author, summary)
        for card in summary.cards[:SUMMARY_CARDS]:
            if card.peer != author:
                told = functools.partial(self._heard.hear_of, believed=believed and card.stage == summary.stage)
                self._links.fence.call(told, card)

    def _must_meet(self, speaker: PeerId, stage: int) -> bool:
        """True if who speaks for a stage far away must be met to be believed, since no record names it yet. It has
        shown its own card: so many strangers are dialled as are known, whatever names summaries bear.
        """
        known = speaker in self._membership.rumours or self._membership.get(speaker) is not None
        far = abs(stage - self._membership.own.stage) > 1
        return known and far and not self._membership.standing.begun

    def _meet_at_once(self, card: Card) -> None:
        """Greets a peer of the own stage that speaks for itself and doesn't count yet: it may wait for the state that
        only this peer has, or have it, and the run may end in a moment.
        """
        near = card.stage == self._membership.own.stage >= 0
        if near and card.peer in self._membership.rumours and self._room() > 0:
            self._begin_dial(card.peer)

    def _room(self) -> int:
        """The number of strangers that may be dialled besides those that are."""
        rumours = self._membership.rumours
        return max(0, STRANGERS - sum(peer in rumours for peer in self._dialling))

    def _is_at_work(self, peer: PeerId, stage: int) -> bool:
        """True for a peer that may speak for a stage: the last record names it there, or it says so and has worked."""
        standing, card = self._membership.standing, self._membership.get(peer)
        if standing.stage_by_record(peer) == stage:
            return True
        says = card is not None and card.stage == stage and card.state in AT_WORK
        return says and standing.admits(peer) and standing.is_counted(peer)

    async def _publish(self) -> None:
        """Says what is due."""
        stage, now = self._membership.own.stage, asyncio.get_running_loop().time()
        if stage < 0:
            return
        pause, long_pause = heartbeat_interval(self._heard_from), summary_interval(self._heard_from, self._stages)
        edge = self._stages > 2 and stage in (0, self._stages - 1)  # those near hear one stage more
        usual = heartbeat_interval(self._heard_from * 3 // 2) if edge else pause
        self._membership.expect_every(usual, max(usual, long_pause))
        first = self._spoke == -math.inf
        if now - self._spoke >= pause:
            self._spoke = now
            if first:  # those who came at the same time may not hear it; nor is it known yet who sums up
                self._spoke -= max(0.0, pause - SECOND_WORD_SECONDS)
                self._summed_up = now + FIRST_SUMMARY_SECONDS - min(long_pause, CHANGE_SECONDS)  # it is news
            await self._links.transport.publish(self._stage_topic(stage), to_frame(self._links.own.next()))
        mine = self._membership.stage(stage)
        news = (len(mine), sum(card.moving >= 0 for card in mine), len(self._finished(stage)))
        if now - self._summed_up >= (long_pause if news == self._told else min(long_pause, CHANGE_SECONDS)):
            self._summed_up, self._told = now, news
            await self._speak_for(stage)

    async def _speak_for(self, stage: int) -> None:
        """Tells the swarm of this stage, if it is this peer that does: also of those who have finished, so that at a
        run's end nobody is taken for dead who has a final state.
        """
        peers, finished = self._membership.stage(stage), self._finished(stage)
        counted = [it for it in (*peers, *finished) if self._membership.standing.is_counted(it.peer)]
        count = SUMMARY_CARDS if self._membership.population() <= SMALL_SWARM else FEW
        cards = first_of(stage, counted, count)  # a newcomer isn't believed far away, and could keep silent
        if cards and cards[0].peer == self._membership.own.peer:
            summary = self._sum_up(stage, shown(cards, SUMMARY_CARDS * SHOWN_BYTES), len(peers))
            summary = dataclasses.replace(summary, finished=len(finished))
            await self._links.transport.publish(self._swarm_topic(), to_frame(summary))

    def _finished(self, stage: int) -> list[Card]:
        return [it for it in self._membership.kin() if it.stage == stage and it.state == "finished"]

    async def _announce(self, card: Card) -> None:
        """Tells those near that this peer's card changed: with a greeting, if there was none yet, or as a request."""
        announcement = Announce(card)
        await asyncio.gather(*(self._announce_to(peer, announcement) for peer in self._near()))

    async def _announce_to(self, peer: PeerId, announcement: Announce) -> None:
        try:
            async with asyncio.timeout(ANNOUNCE_SECONDS):
                if not await self._links.introduce(peer):
                    await self._links.ask(peer, announcement, deadline_s=None)
        except NO_ANSWER as trouble:
            log.debug("not announced to %s: %s", short(peer), trouble)

    async def _answer_announce(self, peer: PeerId, announce: Announce) -> Ack:
        if announce.card.peer != peer:
            raise PeerFault("it announced somebody else")
        self._heard.hear(announce.card)
        return Ack()

    def _near(self) -> list[PeerId]:
        """The peers to keep in touch with, of those that count: everyone in a small swarm, else the own stage and its
        neighbours; those that have worked come first.
        """
        own, counted = self._membership.own, self._membership.standing.is_counted
        cards = [card for card in self._membership.cards() if card.peer != own.peer and card.state != "left"]
        if sum(counted(card.peer) for card in cards) > SMALL_SWARM:  # newcomers alone make no swarm a large one
            cards = [card for card in cards if is_near(card, own.stage)]
        return sorted((card.peer for card in cards), key=lambda peer: not counted(peer))[: 4 * SMALL_SWARM]

    def _strangers(self) -> list[PeerId]:
        """Gives those to be met, as they count only then: whoever is said to be near, and a few of each stage far away
        of which too few are known. The latest heard of come first, and not many at a time: nobody need be there.
        """
        near, found = {card.peer for card in unmet(self._membership)}, list[PeerId]()
        rumours = self._membership.rumours
        lacking = {at: FEW - len(self._membership.stage(at)) for at in range(self._stages)} if len(rumours) else {}
        for card in reversed(rumours.cards()):
            if card.peer not in near:
                if lacking.get(card.stage, 0) <= 0:
                    continue
                lacking[card.stage] -= 1
            if card.peer not in self._dialling:
                found.append(card.peer)
        return found[: self._room()]

    def _keep_in_touch(self) -> None:
        """Dials those near that aren't connected; of two peers the lower id goes first."""
        now = asyncio.get_running_loop().time()
        connected = set(self._links.transport.connected())
        near = [peer for peer in self._near() if peer not in connected]
        near += self._strangers()  # connected or not: perhaps they haven't greeted
        self._seen = {peer: self._seen.get(peer, now) for peer in near}
        for peer in near:
            ours = self._membership.own.peer < peer or now - self._seen[peer] >= SECOND_DIAL_SECONDS
            if ours:
                self._begin_dial(peer)

    def _begin_dial(self, peer: PeerId, summary: Summary | None = None) -> None:
        """Dials a peer, unless that is under way. `summary`: what it has said, to be heard once it is met."""
        if peer not in self._dialling:
            task = self._dialling[peer] = asyncio.create_task(self._dial(peer, summary), name=f"dial {short(peer)}")
            task.add_done_callback(lambda _: self._dialling.pop(peer, None))

    async def _dial(self, peer: PeerId, summary: Summary | None) -> None:
        try:
            await self._links.greet(peer)
            if summary is not None and self._is_at_work(peer, summary.stage):
                self._hear_summary(peer, summary)
        except NO_ANSWER as trouble:
            if self._membership.rumours.drop(peer) is not None:  # the next one's turn
                self._membership.changed.notify()  # nobody waits for it any more
            log.debug("not in touch with %s: %s", short(peer), trouble)
