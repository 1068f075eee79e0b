"""The peers of the swarm, with their cards, and the belief about which of them are alive.

Relies on cards that others bring (heartbeats, hellos, summaries) and on the transport's word of broken connections;
decides by the clock it is given. The rules are free functions of plain data; `Membership` only remembers. Whose card
comes here, and whose is a rumour, `Liveness` decides.
"""

import dataclasses
import math
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field

from swarmd.status import PeerRow
from swarmd.swarm.membership.rhythm import Rhythm
from swarmd.swarm.membership.rumours import Rumours
from swarmd.swarm.membership.standing import Standing
from swarmd.swarm.membership.states import ADMITTING, AT_WORK, STAYING
from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.messages.fields import PEERS_LIMIT
from swarmd.swarm.wire.messages.presence import Card, Summary
from swarmd.swarm.wire.own_card import OwnCard
from swarmd.values import PeerId

HEARTBEAT_SECONDS = 2.0  # between heartbeats in a small swarm: a copy costs about 1 ms of CPU everywhere
HEARD_PER_SECOND = 2.0  # heartbeats of different peers in a small swarm
HEARD_SHARE = 0.25  # of that in the largest, where the mesh brings each of them about five times
SUMMARIES_PER_SECOND = 0.5  # of different stages; each is as long as several heartbeats
SILENCE_FLOOR_SECONDS = 12.0  # a peer silent for less is never dropped: a busy laptop stalls for seconds
SILENCE_FLOOR_HEARTBEATS = 3.0  # ... nor one that was to speak no more than so often meanwhile
SILENCE_CEILING_SECONDS = 120.0
SILENCE_CEILING_HEARTBEATS = 4.0
SILENCE_DEVIATIONS = 8.0
SMALL_SWARM = 48  # peers up to which everyone knows, and keeps in touch with, everyone
FEW = 3  # of a stage's peers that are known far from it in a large swarm: enough that one of them lives
MEMBERS_LIMIT = PEERS_LIMIT - 1  # cards remembered: with its own they fit in an answer
MOVERS_KEPT = 256  # movers in a stage's summary: a few at a time go


@dataclass
class Member:
    """The knowledge about one other peer."""

    card: Card
    heard: float  # loop time
    rhythm: Rhythm = field(default_factory=Rhythm)
    suspect: bool = False
    told: bool = False  # the card came from somebody else: the peer's own word replaces it, whatever its number
    fits: bool = True  # it was of this peer's history when that was last looked at


def heartbeat_interval(peers_heard: int) -> float:
    """Seconds between heartbeats, so that nobody receives more than HEARD_PER_SECOND of them."""
    many = SMALL_SWARM + (peers_heard - SMALL_SWARM) / HEARD_SHARE
    return max(HEARTBEAT_SECONDS, peers_heard / HEARD_PER_SECOND, many / HEARD_PER_SECOND)


def summary_interval(peers_heard: int, stages: int) -> float:
    """Seconds between summaries of a stage, so that nobody receives more than SUMMARIES_PER_SECOND of them."""
    return max(heartbeat_interval(peers_heard), stages / SUMMARIES_PER_SECOND)


class Membership:
    """The cards of everyone else, and one's own."""

    def __init__(self, own: OwnCard) -> None:
        self._own_card = own
        self.standing, self.rumours = Standing(), Rumours()
        own.on_change(self._hear_own)
        self.fits: Callable[[Card], bool] = lambda card: True  # whether it is of this peer's history; `Forks` sets it
        self.last_version: float = math.inf  # of the run; no card can be past it
        self._heartbeat_seconds = self._summary_seconds = HEARTBEAT_SECONDS  # how often others speak
        self._members: dict[PeerId, Member] = {}
        self._reported: dict[int, Summary] = {}  # of each stage
        self.changed = Signal()  # who is there, at which version, or leads; oneself included
        self.generation = 0  # grows whenever someone comes, goes, or changes stage, state or history
        # What follows is asked for with every hop; all sorted, and changed with each peer that changes.
        self._live: list[PeerId] = []  # everyone not suspect
        self._kin: list[PeerId] = []  # of those, who is of this peer's history
        self._at_work: dict[int, list[PeerId]] = {}  # of those, who is at work, by stage
        self._stage_cards: dict[int, list[Card]] = {}  # of those, until one of them changes
        self._newest: PeerId | None = None  # of the kin, who has the highest version; None: not known
        self._look_at = math.inf  # loop time until which nobody can have become silent
        self._change(own.peer)

    @property
    def own(self) -> Card:
        """This peer's own card."""
        return self._own_card.card

    def _hear_own(self, before: Card) -> None:
        """This peer's own card has changed."""
        card = self.own
        self._stage_cards.pop(card.stage, None)
        if card.stage != before.stage:
            self._look_at = -math.inf  # others are near now
        if card.version != before.version:
            self._newest = None
        if _role(card) != _role(before):
            self._change(card.peer)
            self.changed.notify()

    def _change(self, peer: PeerId) -> None:
        """A peer came, went, or counts elsewhere than before: it is put into its place among the others."""
        self.generation += 1
        self._stage_cards.clear()
        self._remove(peer)
        member = self._members.get(peer)
        if peer != self.own.peer and (member is None or member.suspect):
            return
        insort(self._live, peer)
        if member is not None:
            member.fits = self.fits(member.card)
        if member is None or member.fits:
            self._add_kin(peer)

    def _remove(self, peer: PeerId) -> None:
        for peers in (self._live, self._kin, *self._at_work.values()):
            place = bisect_left(peers, peer)
            if place < len(peers) and peers[place] == peer:
                del peers[place]
        if peer == self._newest:
            self._newest = None

    def _add_kin(self, peer: PeerId) -> None:
        card = self._card(peer)
        insort(self._kin, peer)
        if card.state in AT_WORK:
            insort(self._at_work.setdefault(card.stage, []), peer)
        self._advance(card)

    def _advance(self, card: Card) -> None:
        """A card of our history may be the newest."""
        if self._newest is not None:
            newest = self._card(self._newest)
            if (card.version, card.peer) > (newest.version, newest.peer):
                self._newest = card.peer

    def judge_again(self) -> None:
        """Other cards than before may be of this peer's history."""
        for peer, member in self._members.items():
            if not member.suspect and member.fits != self.fits(member.card):
                self._change(peer)

    def _card(self, peer: PeerId) -> Card:
        return self.own if peer == self.own.peer else self._members[peer].card

    def is_news(self, card: Card, *, told: bool = False) -> bool:
        """Tells if a card is newer than what is known of its peer, and of a version that there can be. `told`: it came
        from somebody else.
        """
        if card.version > self.last_version:
            return False
        member = self._members.get(card.peer)
        if member is None:
            return card.peer != self.own.peer
        if member.told and not told:
            return True
        return (card.incarnation, card.sequence) > (member.card.incarnation, member.card.sequence)

    def hear(self, card: Card, now: float, *, told: bool = False) -> bool:
        """Takes in a card. False if we knew a newer one. A newer one lifts suspicion. `told`: see `is_news`."""
        if not self.is_news(card, told=told):
            return False
        member = self._members.get(card.peer)
        if member is None:
            self._make_room()
            member = self._members[card.peer] = Member(card, now, told=told)
            self._expect(member)
            self._change(card.peer)
            return True
        silence = now - member.heard  # longer than patience: one of the two was stopped, and that is no rhythm
        if card.incarnation == member.card.incarnation and not member.suspect and silence <= self._patience(member):
            if not member.rhythm.mean:  # one long silence, as before a stage's first summary, is no rhythm yet
                member.rhythm = Rhythm(min(silence, self._usual(card)))
            member.rhythm.observe(silence)
        before = member.card
        changed = member.suspect or _role(card) != _role(before)
        member.card, member.heard, member.suspect, member.told = card, now, False, told
        self._stage_cards.pop(card.stage, None)
        if changed or member.fits != self.fits(card):
            self._change(card.peer)
        elif card.version < before.version:
            self._newest = None
        elif member.fits:
            self._advance(card)
        self._expect(member)
        return True

    def report(self, summary: Summary) -> None:
        """A stage's summary says how many peers it has, and what they can do."""
        before = self._reported.get(summary.stage)
        self._reported[summary.stage] = dataclasses.replace(summary, cards=(), moving=summary.moving[:MOVERS_KEPT])
        self.generation += before is None or before.peers != summary.peers

    def summaries(self) -> dict[int, Summary]:
        """The last of each stage."""
        return self._reported

    def _expect(self, member: Member) -> None:
        """A card came: by when the next word is due. A word that comes without a card only puts that off."""
        due = member.heard if member.card.state == "left" else member.heard + self._patience(member)
        self._look_at = min(self._look_at, due)

    def expect_every(self, heartbeat_seconds: float, summary_seconds: float) -> None:
        """Sets the rhythm in which near peers are to speak, and stages far away to be spoken of."""
        if heartbeat_seconds < self._heartbeat_seconds or summary_seconds < self._summary_seconds:
            self._look_at = -math.inf  # who was not late before may be now
        self._heartbeat_seconds, self._summary_seconds = heartbeat_seconds, summary_seconds

    def _make_room(self) -> None:
        """Forgets a peer if there are too many: one that has never worked, if there is one, the longest unheard."""
        if len(self._members) >= MEMBERS_LIMIT:
            counted = self.standing.is_counted
            oldest = min(self._members, key=lambda peer: (counted(peer), self._members[peer].heard, peer))
            del self._members[oldest]
            self._change(oldest)

    def touch(self, peer: PeerId, now: float) -> None:
        """Any word from a peer is a sign of life."""
        if (member := self._members.get(peer)) is not None:
            was_suspect, member.heard, member.suspect = member.suspect, now, False
            if was_suspect:
                self._change(peer)

    def suspect(self, peer: PeerId) -> None:
        """Its connection broke or it fell silent: use it no more until it is heard again."""
        if (member := self._members.get(peer)) is not None and not member.suspect:
            member.suspect = True
            self._change(peer)

    def sweep(self, now: float) -> list[Card]:
        """Drops peers silent beyond their own rhythm, or who said goodbye. Returns their cards."""
        if now < self._look_at:
            return []
        dropped = [
            member.card
            for member in self._members.values()
            if member.card.state == "left" or now - member.heard > self._patience(member)
        ]
        for card in dropped:
            del self._members[card.peer]
            self._change(card.peer)
        self._look_at = min((it.heard + self._patience(it) for it in self._members.values()), default=math.inf)
        return dropped

    def _patience(self, member: Member) -> float:
        usual = self._usual(member.card)
        ceiling = max(SILENCE_CEILING_SECONDS, SILENCE_CEILING_HEARTBEATS * usual)
        return member.rhythm.limit(SILENCE_DEVIATIONS, self._floor(usual), ceiling)

    def _usual(self, card: Card) -> float:
        """Seconds between words of its peer."""
        near = is_near(card, self.own.stage)
        return self._heartbeat_seconds if near else self._summary_seconds

    def _floor(self, usual_s: float) -> float:
        return max(SILENCE_FLOOR_SECONDS, SILENCE_FLOOR_HEARTBEATS * usual_s)

    def get(self, peer: PeerId) -> Card | None:
        if peer == self.own.peer:
            return self.own
        member = self._members.get(peer)
        return member.card if member else None

    def life_of(self, peer: PeerId) -> int:
        """The incarnation in which a peer itself has spoken here; 0: in none."""
        member = self._members.get(peer)
        return member.card.incarnation if member is not None and not member.told else 0

    def members(self) -> dict[PeerId, Member]:
        """Everyone else, dropped ones excepted."""
        return dict(self._members)

    def cards(self) -> list[Card]:
        """One's own card and those of everyone not suspect, by peer id."""
        return [self._card(peer) for peer in self._live]

    def kin(self) -> list[Card]:
        """`cards` without those of another history: they neither lead nor count, and get no hops."""
        return [self._card(peer) for peer in self._kin]

    def foreign(self) -> list[Card]:
        """The cards of those who are of another history."""
        if len(self._kin) == len(self._live):
            return []
        kin = frozenset(self._kin)
        return [self._card(peer) for peer in self._live if peer not in kin]

    def newest(self) -> Card:
        """The card of the kin's peer with the highest version, without those that say so and show no record of it."""
        if doubted := self.standing.doubted:
            return max((it for it in self.kin() if it.peer not in doubted), key=lambda it: (it.version, it.peer))
        if self._newest is None:
            self._newest = max((card.version, card.peer) for card in self.kin())[1]
        return self._card(self._newest)

    def stage(self, stage: int) -> list[Card]:
        """The cards of a stage's peers at work, oneself included."""
        if stage not in self._stage_cards:
            self._stage_cards[stage] = [self._card(peer) for peer in self._at_work.get(stage, ())]
        return list(self._stage_cards[stage])

    def admitting(self, stage: int) -> list[Card]:
        """The cards of a stage's peers that take hops."""
        return [card for card in self.stage(stage) if card.state in ADMITTING]

    def staying(self, stage: int) -> list[Card]:
        """The cards of a stage's peers at work that neither drain nor will do so soon."""
        return [card for card in self.stage(stage) if card.state in STAYING and not card.ending]

    def unseen(self, stage: int) -> int:
        """The number of peers at work that a stage has, by its summary, besides those that are known here."""
        known = len(self._at_work.get(stage, ()))
        summary = self._reported.get(stage)
        return max(0, summary.peers - known) if known and summary is not None else 0

    def population(self) -> int:
        """The number of peers at work in the whole swarm, without those here that have never worked."""
        counted, own = self.standing.is_counted, self.own.peer
        return sum(
            sum(1 for peer in peers if peer == own or counted(peer)) + self.unseen(stage)
            for stage, peers in self._at_work.items()
        )

    def is_live(self, peer: PeerId) -> bool:
        if peer == self.own.peer:
            return True
        member = self._members.get(peer)
        return member is not None and not member.suspect and member.card.state in AT_WORK and self.fits(member.card)

    def is_silent(self, peer: PeerId, now: float) -> bool:
        """Tells if a live peer has been silent for half the time after which it may be dropped."""
        member = self._members.get(peer)
        return member is not None and now - member.heard >= self._floor(self._usual(member.card)) / 2

    def missing_stages(self, stages: int) -> list[int]:
        """Stages without a single peer at work."""
        return [stage for stage in range(stages) if not self._at_work.get(stage)]


def is_near(card: Card, stage: int) -> bool:
    """Tells if a peer is of a stage or its neighbours. One that has no place yet is near nobody."""
    return card.stage >= 0 and abs(card.stage - stage) <= 1


def not_admitting(membership: Membership, stages: int) -> str:
    """A sentence on a stage whose peers at work all take no hops; "" if there is none."""
    for stage in range(stages):
        if membership.stage(stage) and not membership.admitting(stage):
            return f"a peer of stage {stage} that takes work: all of them are paused or draining"
    return ""


def _role(card: Card) -> tuple[int, int, int, str, bool, tuple[int, ...], bool]:
    """The part of a card that decides where its peer is counted, when it leads, and what it keeps at the end."""
    return card.incarnation, card.arrival, card.stage, card.state, card.ending, card.final, card.spare


def nan_to_zero(value: float) -> float:
    """Rates that strangers report are only used if they are numbers."""
    return value if math.isfinite(value) and value > 0 else 0.0


def peer_rows(membership: Membership, now: float) -> list[PeerRow]:
    """Everyone, oneself first, as they are shown."""
    members = membership.members()
    order = sorted(members, key=lambda peer: (members[peer].card.stage, peer))
    others = [(members[peer].card, now - members[peer].heard, members[peer].suspect) for peer in order]
    return [
        PeerRow(
            peer_id=card.peer,
            stage=card.stage if card.stage >= 0 else None,
            state=card.state,
            version=card.version,
            forward=card.forward,
            backward=card.backward,
            in_flight=card.in_flight,
            microbatches_per_second=nan_to_zero(card.microbatches_per_second),
            device=card.device,
            addresses=card.addresses,
            last_heard_seconds=heard,
            is_self=card is membership.own,
            suspect=suspect,
            software=card.software,
        )
        for card, heard, suspect in [(membership.own, 0.0, False), *others]
    ]
