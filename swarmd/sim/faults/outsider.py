"""An outsider: a peer that is greeted, takes no part in the run, and says whatever the schema lets it say.

It knows what anybody knows who greets: the run's settings, the cards that are told, what it is asked and answered. Of
that, and of what fields may hold, it draws messages (`drawn_messages.py`); it asks peers, gossips, and answers, and
goes when its time is over. It runs on a machine of the world, with no production code but the forms of messages.

Each message has a generator of its own, which follows from the seed and its number: with fewer `words` the others stay
what they were, as far as the answers do.
"""

import asyncio
import contextlib
import dataclasses
import random
from dataclasses import dataclass
from typing import ClassVar

from swarmd.config import fingerprint, to_plain
from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.sim.faults.course import Course, Fault
from swarmd.sim.faults.drawn_messages import Draw, Drawing, Heard
from swarmd.sim.faults.forged_records import Forger
from swarmd.sim.world.world import World
from swarmd.swarm.wire.framing import KINDS, from_frame, to_frame
from swarmd.swarm.wire.messages.commit import Accept, Prepare
from swarmd.swarm.wire.messages.common import PROTOCOL, Ballot, Message, Request
from swarmd.swarm.wire.messages.presence import Announce, AskSettings, Card, Hello, SayHello, Settings, Summary
from swarmd.swarm.wire.messages.step import TookOver
from swarmd.swarm.wire.own_card import first_card
from swarmd.values import Frame, PeerId

GOSSIPED = (Card.__name__, Summary.__name__)
ASKED = tuple(name for name, kind in KINDS.items() if issubclass(kind, Request))
ANSWERED = tuple(answer.__name__ for name in ASKED for answer in KINDS[name].answers())
EVERY_WORD = tuple(dict.fromkeys((*GOSSIPED, *ASKED, *ANSWERED)))
"""The kinds of messages that an outsider draws: it gossips and asks them at any time, and answers with them."""

ELSEWHERE = ("joining", "left")
"""States on the cards of one that doesn't pose as a peer of the run."""

GOSSIP_SHARE = 0.15  # of what it says unasked
AT_ONCE = 8  # questions of an outsider that wait for their answers: more are within a transport's bounds, and cost time
ANSWER_SECONDS = 5.0  # that it waits for an answer
OWN_NAME_SHARE = 0.85  # of its cards, greetings and ballots that are such as a peer may send
SILENT_SHARE = 0.15  # of questions that it never answers
REFUSING_SHARE = 0.15  # of questions that it refuses
ROOM = 4  # hops that its card offers to take


@dataclass(frozen=True)
class Outsider(Fault):
    """A greeted peer that has no part in the run says what it likes for a while, and goes."""

    peer: PeerId
    seconds: float
    stage: int  # that its card claims; -1: none
    state: str  # on its card
    rate: float  # messages a second
    poses: bool = True  # its cards say at times that it is at work, or has finished
    words: tuple[str, ...] = EVERY_WORD  # the kinds of messages that it draws
    kind: ClassVar[str] = "outsider"

    async def strike(self, course: Course) -> bool:
        course.count(self.kind)
        life = Life(self, course)
        try:  # the run may come to its last step before
            await asyncio.wait([life.begin()], timeout=self.seconds)
        finally:
            course.world.remove_stranger(self.peer)
        return False  # counted already


class Life:
    """An outsider at work."""

    def __init__(self, outsider: Outsider, course: Course) -> None:
        self._it, self._course = outsider, course
        self._world: World = course.world
        self._machine, self._transport = self._world.add_stranger(outsider.peer)
        self._heard = Heard()
        self._forger = Forger(self._world.run, self._heard, outsider.peer)
        first = first_card(outsider.peer, 1, self._transport.addresses(), "sim", ("fp32",))
        self._card = dataclasses.replace(first, stage=outsider.stage, state=outsider.state, room=ROOM)
        self._settings = Settings(to_plain(self._world.run), fingerprint(self._world.run), PROTOCOL)
        self._greeted: set[PeerId] = set()
        self._said = self._answers = self._waiting = 0
        self._transport.serve(self._answer)
        self._transport.on_disconnected(self._greeted.discard)

    def begin(self) -> "asyncio.Task[None]":
        """Starts it on its machine."""
        return self._machine.spawn(self._live(), name=self._it.peer)

    async def _live(self) -> None:
        pace = self._rng("pace")
        async with asyncio.TaskGroup() as group:
            for peer in self._others():
                group.create_task(self._meet(peer))
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(pace.expovariate(self._it.rate))
                self._said += 1
                if self._waiting < AT_ONCE:
                    group.create_task(self._say(self._rng(f"word {self._said}")))

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{self._world.seed}/{self._it.peer}/{what}")

    def _others(self) -> list[PeerId]:
        """The peers of the run, where it finds them all. It hears what they gossip, too."""
        others = list(self._world.peers)
        for peer in others:
            self._transport.learn(peer, ())
        for topic in self._topics():
            if topic not in self._transport.listeners:
                self._transport.subscribe(topic, self._hear)
        return others

    def _topics(self) -> list[str]:
        return sorted({topic for it in self._world.peers.values() for topic in it.transport.listeners})

    def _hear(self, author: PeerId, frame: Frame) -> None:
        try:
            self._heard.take(from_frame(frame))
        except PeerFault:  # it came damaged
            return

    def _drawing(self, rng: random.Random) -> Drawing:
        draws: dict[str, Draw] = {"record": self._forger.record, "run": lambda rng: to_plain(self._world.run)}
        return Drawing(rng, self._heard, self._it.peer, draws)

    # ------------------------------------------------------------------------------------------------- saying

    async def _say(self, rng: random.Random) -> None:
        """Draws a message and says it, to everyone or to somebody."""
        word, others = rng.choice(GOSSIPED if rng.random() < GOSSIP_SHARE else ASKED), self._others()
        if word not in self._it.words or not others:
            return
        peer = rng.choice(others)
        message = self._own(rng, self._drawing(rng).message(KINDS[word]))
        if word in GOSSIPED:
            if topics := self._topics():
                with contextlib.suppress(ValueError):  # too large for any gossip
                    await self._transport.publish(rng.choice(topics), to_frame(message))
                    self._count(word, "gossiped")
            return
        self._waiting += 1
        try:
            if await self._meet(peer):
                self._count(word, await self._ask(peer, message))
        finally:
            self._waiting -= 1

    def _own(self, rng: random.Random, message: Message) -> Message:
        """Mostly makes a card, greeting or ballot such as a peer may send: another one costs it the connection."""
        if isinstance(message, Hello | Announce):
            message = dataclasses.replace(message, card=self._own_card(rng, message.card))
        if isinstance(message, Card):
            return self._own_card(rng, message)
        if rng.random() >= OWN_NAME_SHARE:
            return message
        if isinstance(message, Prepare | Accept | TookOver):
            return dataclasses.replace(message, ballot=Ballot(message.ballot.number, self._it.peer))
        if isinstance(message, Hello):
            return dataclasses.replace(message, protocol=PROTOCOL, fingerprint=self._settings.fingerprint)
        return message

    def _own_card(self, rng: random.Random, card: Card) -> Card:
        """Mostly makes a card one of its own, as it is now; one that doesn't pose says nowhere that it is at work."""
        if rng.random() < OWN_NAME_SHARE:
            sequence = self._card.sequence + 1
            self._card = dataclasses.replace(self._card, sequence=sequence)
            card = dataclasses.replace(card, peer=self._it.peer, incarnation=self._card.incarnation, sequence=sequence)
        if card.peer == self._it.peer and card.state not in ELSEWHERE and not self._it.poses:
            card = dataclasses.replace(card, state=self._it.state)
        return card

    async def _meet(self, peer: PeerId) -> bool:
        """Greets a peer, once a connection. True if it has."""
        if peer not in self._greeted:
            hello = Hello(PROTOCOL, self._settings.fingerprint, self._card)
            if await self._ask(peer, hello) == "answered":
                self._greeted.add(peer)
        return peer in self._greeted

    async def _ask(self, peer: PeerId, message: Message) -> str:
        """Asks, and learns from the answer. Returns what became of the question, in a word."""
        try:
            answer = from_frame(await self._transport.request(peer, to_frame(message), deadline_s=ANSWER_SECONDS))
        except Refused as refusal:
            return refusal.code or "refused"
        except TimeoutError:
            return "not answered"
        except (PeerFault, PeerUnreachable):
            return "cut off"
        if isinstance(answer, SayHello):
            self._greeted.discard(peer)
            return "not greeted"
        self._heard.take(answer)
        return "answered"

    # ------------------------------------------------------------------------------------------------- answering

    async def _answer(self, peer: PeerId, frame: Frame) -> Frame:
        message, self._answers = from_frame(frame), self._answers + 1
        self._heard.take(message)
        rng = self._rng(f"answer {self._answers}")
        if isinstance(message, Hello):
            self._greeted.add(peer)
            return to_frame(Hello(PROTOCOL, self._settings.fingerprint, self._card))
        if isinstance(message, AskSettings):
            return to_frame(self._settings)
        word, way = rng.choice(type(message).answers()).__name__, rng.random()
        if way < SILENT_SHARE:
            await asyncio.Event().wait()  # until the asker, or this outsider, goes
        if way < SILENT_SHARE + REFUSING_SHARE or word not in self._it.words:
            raise Refused("so it goes")
        self._count(word, "given as an answer")
        return to_frame(self._drawing(rng).message(KINDS[word]))

    def _count(self, word: str, fate: str) -> None:
        self._course.count_word(word, fate)
