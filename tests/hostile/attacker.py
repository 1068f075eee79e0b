"""A peer that lies: greetings as they should be, and then its own words, over the project's own transport or in a
simulated world (`virtual.py`).
"""

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from swarmd.config import RunConfig
from swarmd.errors import NO_ANSWER, Refused
from swarmd.net.limits import TransportLimits
from swarmd.settings import run_from_plain
from swarmd.swarm.ports import Handler
from swarmd.swarm.wire.framing import to_frame
from swarmd.swarm.wire.own_card import first_card
from swarmd.values import Frame, PeerId, Urgency
from tests.hostile import words
from tests.net.peers import Peer

GREETING_S = 20.0  # for an answer to a greeting, on a busy machine
ANSWER_S = 8.0  # for an answer; an attack goes on without it
CODECS = ("fp32", "fp16", "bf16", "int8")

Answer = Callable[[PeerId, Frame], Frame | Awaitable[Frame]]
"""Answers a question. It runs where the attacker's transport does."""


class Access(Protocol):
    """A way onto the network."""

    @property
    def id(self) -> PeerId: ...

    @property
    def address(self) -> str: ...

    def serve(self, handler: Handler) -> None: ...

    async def connect(self, address: str) -> PeerId: ...

    async def request(self, peer: PeerId, frame: Frame, *, deadline_s: float, urgency: Urgency) -> Frame: ...

    async def subscribe(self, topic: str) -> None: ...

    async def publish(self, topic: str, frame: Frame) -> None: ...

    async def stop(self) -> None: ...


class OwnThread:
    """The project's own transport, on a thread of its own."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    @property
    def id(self) -> PeerId:
        return self._peer.id

    @property
    def address(self) -> str:
        return self._peer.address

    def serve(self, handler: Handler) -> None:
        self._peer.transport.serve(handler)

    async def connect(self, address: str) -> PeerId:
        return await self._peer.do(self._peer.transport.connect(address))

    async def request(self, peer: PeerId, frame: Frame, *, deadline_s: float, urgency: Urgency) -> Frame:
        return await self._peer.request(peer, frame, deadline_s=deadline_s, urgency=urgency)

    async def subscribe(self, topic: str) -> None:
        await self._peer.subscribe(topic)

    async def publish(self, topic: str, frame: Frame) -> None:
        await self._peer.do(self._peer.transport.publish(topic, frame))

    async def stop(self) -> None:
        await self._peer.stop()


class Attacker:
    """One liar. Its methods are called from the test's loop."""

    run: RunConfig
    fingerprint: str

    def __init__(self, access: Access, incarnation: int) -> None:
        self._access = access
        self._answers: dict[str, Answer] = {
            "Hello": lambda *_: words.hello(self.fingerprint, self.card()),
            "AskVote": lambda *_: words.vote(),
        }
        self._incarnation, self._sequence = incarnation, 0
        self.says: dict[str, Any] = {}  # what its card says, besides what it must
        self.heard = Counter[str]()  # the answers to its questions, refusals as sentences
        self.asked = Counter[str]()  # what it was asked, by kind
        self.machine = ""
        access.serve(self._serve)

    @classmethod
    async def start(cls, directory: Path, name: str = "attacker") -> "Attacker":
        limits = TransportLimits(dials_per_s=1000.0, dial_spacing_s=0.0)
        return cls(OwnThread(await Peer.start(directory / f"{name}.key", limits=limits)), time.time_ns())

    async def stop(self) -> None:
        await self._access.stop()

    @property
    def id(self) -> PeerId:
        return self._access.id

    @property
    def address(self) -> str:
        return self._access.address

    @property
    def incarnation(self) -> int:
        return self._incarnation

    # ---------------------------------------------------------------------------------------------- its own card

    def card(self, **fields: Any) -> words.Card:
        """Its card as it is now; each one counts as newer than those before."""
        self._sequence += 1
        own = first_card(self.id, self._incarnation, (self.address,), "cpu", CODECS, self.machine)
        card: words.Card = to_frame(own).body
        return words.changed(card, **{"sequence": self._sequence, **self.says, **fields})

    # ---------------------------------------------------------------------------------------------- asking

    async def learn(self, address: str) -> PeerId:
        """Takes a run's settings from a peer of it, and greets that peer."""
        peer = await self._access.connect(address)
        answer = await self._request(peer, words.ask_settings())
        plain, self.fingerprint = words.settings_in(answer)
        self.run = run_from_plain(plain)
        self.machine = (await self.greet(peer)).get("machine", "")
        return peer

    async def meet(self, address: str) -> PeerId:
        """Connects to a peer and greets it."""
        peer = await self._access.connect(address)
        await self.greet(peer)
        return peer

    async def greet(self, peer: PeerId) -> words.Card:
        """Greets a peer, once more if it likes. Returns its card. Raises like a request."""
        return words.card_in(await self._request(peer, words.hello(self.fingerprint, self.card())))

    async def stand(self, peer: PeerId) -> words.Stand:
        """The place in history at which a peer is."""
        return words.stand_of(await self.greet(peer))

    async def _request(
        self, peer: PeerId, frame: Frame, seconds: float = GREETING_S, urgency: Urgency = "control"
    ) -> Frame:
        return await self._access.request(peer, frame, deadline_s=seconds, urgency=urgency)

    async def ask(
        self, peer: PeerId, frame: Frame, *, seconds: float = ANSWER_S, urgency: Urgency = "control"
    ) -> Frame | None:
        """The answer, None if there is none; counted either way. It greets once more where it is told to."""
        try:
            answer = await self._request(peer, frame, seconds, urgency)
            if words.is_to_greet(answer):
                await self.greet(peer)
                answer = await self._request(peer, frame, seconds, urgency)
        except Refused as refusal:
            self.heard[f"{frame.kind}: refused: {refusal}"[:110]] += 1
        except NO_ANSWER as trouble:
            self.heard[f"{frame.kind}: {type(trouble).__name__}"] += 1
        else:
            self.heard[f"{frame.kind}: {answer.kind}"] += 1
            return answer
        return None

    async def tell_all(self, peers: "list[PeerId]", frame: Frame, *, seconds: float = ANSWER_S) -> list[Frame]:
        """The answers of those that gave one."""
        answers = await asyncio.gather(*(self.ask(peer, frame, seconds=seconds) for peer in peers))
        return [answer for answer in answers if answer is not None]

    async def subscribe(self, topic: str) -> None:
        await self._access.subscribe(topic)

    async def publish(self, topic: str, frame: Frame) -> None:
        await self._access.publish(topic, frame)

    # ---------------------------------------------------------------------------------------------- answering

    def answer(self, kind: str, answer: Answer) -> None:
        """Has it answer a kind of question so."""
        self._answers[kind] = answer

    async def _serve(self, peer: PeerId, frame: Frame) -> Frame:
        self.asked[frame.kind] += 1
        if frame.kind in self._answers:
            answer = self._answers[frame.kind](peer, frame)
            return await answer if inspect.isawaitable(answer) else answer
        if frame.kind in words.NOTES:
            return words.ack()
        raise Refused("no")
