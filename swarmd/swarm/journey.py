"""A microbatch's journey through this peer: admit, forward, pass on, backward, answer. DESIGN section 5.

Each hop is one coroutine that reads top to bottom (`_travel`). As holder this peer accumulates an index of a step at
most once and answers a repeated request from the record or joins the work in progress; as custodian it keeps what it
passed on until the commit, and sends the same bytes to another replica when a holder is lost, also after the answer
(`_repair`).
"""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

from swarmd.config import LimitsConfig, RunConfig
from swarmd.errors import HopForgotten, NonFinite, PeerFault, PeerUnreachable, Refused
from swarmd.status import HopRow
from swarmd.swarm.custody import Custody
from swarmd.swarm.history import History
from swarmd.swarm.links import Links
from swarmd.swarm.membership import Membership
from swarmd.swarm.messages import (
    Ack,
    Busy,
    Cancel,
    Gradient,
    Hop,
    Locate,
    Located,
    Loss,
    NotFinite,
    Room,
    hop_id,
)
from swarmd.swarm.ports import Compute
from swarmd.swarm.retention import Answer, Retained, Retention
from swarmd.swarm.routing import Router
from swarmd.swarm.signals import Signal
from swarmd.values import BackwardResult, Buffer, Encoded, HopId, PeerId

log = logging.getLogger(__name__)

VERSION_WAIT_SECONDS = 30.0  # a hop of the next step may come before the commit that starts it
LOCATE_SECONDS = 3.0  # asking replicas who has a hop: one round trip and a busy loop
RECHECK_SECONDS = 5.0  # bound on waiting for a word (room, a new peer) that may have been lost
CANCEL_SECONDS = 5.0
AGAIN_SECONDS = 0.3  # between this peer's own tries to get a hop into its sum

Spawn = Callable[[Coroutine[Any, Any, None]], None]


@dataclass
class Book:
    """What this peer has in its sum of one step."""

    accumulated: set[int] = field(default_factory=set)
    spoiled: set[int] = field(default_factory=set)  # answered with NotFinite
    loss_sum: float = 0.0
    resent: int = 0
    uncounted: dict[int, tuple[Buffer, Encoded | None, str]] = field(default_factory=dict)
    """Hops that came while the sum was frozen: tokens, activation, and the codec their gradient was wanted in."""


@dataclass
class Work:
    """A hop under way at this peer."""

    hop: HopId
    custodian: PeerId  # "" at the head
    nbytes: int
    admitted: float  # loop time
    state: str = "waiting"
    since: float = 0.0
    holder: PeerId = ""  # whom it was passed to
    given_up: bool = False  # its custodian cancelled it: it will not be accumulated
    task: asyncio.Task[Answer] | None = None

    def move(self, state: str) -> None:
        self.state, self.since = state, asyncio.get_running_loop().time()


class Journeys:
    """All hops at this peer."""

    def __init__(
        self,
        run: RunConfig,
        limits: LimitsConfig,
        links: Links,
        membership: Membership,
        history: History,
        compute: Compute,
        stage: int,
        rng: random.Random,
        spawn: Spawn,
    ) -> None:
        self._run, self._limits, self._links, self._membership = run, limits, links, membership
        self._history, self._compute, self._stage, self._spawn = history, compute, stage, spawn
        self.is_tail = stage == run.model.stages - 1
        self.router = Router(rng)
        self.custody = Custody()
        self.retention = Retention(limits.retained_bytes)
        self.changed = Signal()  # something finished, someone came or has room
        self.frozen_step = 0  # whose sum takes nothing more at present: its hops wait
        self.settled_step = 0  # whose round has a whole result here
        self.closed = False  # draining: nothing new is admitted
        self._work: dict[HopId, Work] = {}
        self._books: dict[int, Book] = {}
        self._full: set[PeerId] = set()  # peers that answered Busy and haven't said Room since
        self._told_busy: dict[PeerId, None] = {}
        links.answers(Hop, self._answer_hop)
        links.answers(Room, self._answer_room)
        links.answers(Locate, self._answer_locate)
        links.answers(Cancel, self._answer_cancel)

    # ---------------------------------------------------------------------------------------------- holder

    async def _answer_hop(self, custodian: PeerId, hop: Hop) -> Gradient | NotFinite | Busy | Loss:
        if self._stage == 0:
            raise Refused("the first stage takes no hops")
        if hop.evaluate:
            return await self._evaluate(hop_id(hop), hop.tokens, hop.activation)
        if hop.step < 1 or not 0 <= hop.index < self._run.microbatches:
            raise PeerFault(f"hop ({hop.step}, {hop.index}) is none of this run")
        await self._history.await_version(hop.step - 1, hop.record, custodian, VERSION_WAIT_SECONDS)
        key = hop_id(hop)
        if (answer := self.retention.answer(key)) is not None:
            return answer
        work = self._work.get(key)
        if work is None:
            if not self.has_room():
                self._told_busy[custodian] = None
                return Busy(len(self._work))
            work = self._begin(key, custodian, hop.tokens, hop.activation, hop.again, hop.codec)
        work.custodian = custodian
        assert work.task is not None
        try:
            return await asyncio.shield(work.task)
        except asyncio.CancelledError:
            if work.task.cancelled():
                raise Refused("the hop was cancelled") from None
            raise
        except (HopForgotten, MemoryError) as trouble:
            raise Refused(str(trouble) or "out of memory") from None

    def train(self, key: HopId, tokens: Buffer, *, again: bool) -> asyncio.Task[Answer]:
        """Starts a microbatch's journey at the head. Its task ends when the index is in this peer's sum."""
        work = self._work.get(key) or self._begin(key, "", tokens, None, again, "fp32")
        assert work.task is not None
        return work.task

    def _begin(
        self, key: HopId, custodian: PeerId, tokens: Buffer, activation: Encoded | None, again: bool, codec: str
    ) -> Work:
        now = asyncio.get_running_loop().time()
        nbytes = activation.nbytes if activation else 0
        work = Work(key, custodian, nbytes, admitted=now, since=now)
        self._work[key] = work
        work.task = asyncio.create_task(self._travel(work, tokens, activation, again, codec), name=f"hop {key}")
        work.task.add_done_callback(lambda task: self._finish(work, task))
        return work

    def _finish(self, work: Work, task: asyncio.Task[Answer]) -> None:
        if self._work.get(work.hop) is work:
            del self._work[work.hop]
        if task.cancelled() or (trouble := task.exception()) is not None:
            log.info("hop %s ends here unanswered: %s", tuple(work.hop), "cancelled" if task.cancelled() else trouble)
            self._compute.forget(work.hop)
            self.retention.drop(work.hop)
        if self.has_room():
            for custodian in list(self._told_busy):
                del self._told_busy[custodian]
                self._spawn(self._tell_room(custodian))
        self.changed.notify()

    async def _tell_room(self, custodian: PeerId) -> None:
        await self._links.tell_all([custodian], Room(self.room()), Ack, deadline_s=RECHECK_SECONDS)

    async def _travel(self, work: Work, tokens: Buffer, activation: Encoded | None, again: bool, codec: str) -> Answer:
        """The whole life of a microbatch here."""
        key, book = work.hop, self.book(work.hop.step)
        if codec not in self._compute.codecs:
            codec = "fp16"
        try:
            await self._while_frozen(key)
            if self.is_tail:
                tail = await self._compute.tail(key, tokens, activation, codec=codec)
                gradient, accumulated, loss_sum = tail.gradient, tail.accumulated, tail.loss_sum
            else:
                out = await self._compute.forward(key, tokens, activation, codec=self._codec(self._stage + 1))
                work.move("passed")
                answer = await self._pass_on(work, tokens, out, again)
                if isinstance(answer, NotFinite):
                    raise NonFinite("a later stage's loss or gradient is not finite")
                work.move("backward")
                await self._while_frozen(key)
                back = await self._backward(work, answer.gradient, codec)
                gradient, accumulated, loss_sum = back.gradient, back.accumulated, 0.0
        except NonFinite as trouble:
            log.warning("hop %s: %s", tuple(key), trouble)
            self._compute.forget(key)
            book.spoiled.add(key.index)
            return self._record(key, NotFinite())
        if not accumulated:
            book.uncounted[key.index] = (tokens, activation, codec)
            await self._while_frozen(key)
            if self.settled_step != key.step:  # not counted anywhere: it must come again
                raise HopForgotten("the sum was frozen before this hop could be added to it")
        elif key.index not in book.accumulated:
            book.accumulated.add(key.index)
            book.loss_sum += loss_sum
        if gradient is None:
            return Gradient(Encoded("fp32", (0,), (b"",)), 0.0, 0.0)
        seconds = self._compute.progress()
        service = seconds.forward_seconds + seconds.backward_seconds
        waited = asyncio.get_running_loop().time() - work.admitted
        return self._record(key, Gradient(gradient, max(0.0, waited - service), service))

    async def _backward(self, work: Work, gradient: Encoded, codec: str) -> BackwardResult:
        """Backward with what the holder answered; a malformed gradient is the holder's fault, not our custodian's."""
        try:
            return await self._compute.backward(work.hop, gradient, codec=codec)
        except PeerFault as fault:
            log.warning("the gradient of hop %s from %s: %s", tuple(work.hop), work.holder[-8:], fault)
            await self._links.transport.drop(work.holder)
            raise HopForgotten("the next stage's gradient was malformed") from None

    async def _while_frozen(self, key: HopId) -> None:
        """Waits while a hop that should be in the step's sum can't be added to it.

        Either the round fails and the sum takes in hops again, or it succeeds, with the share of whoever had this hop
        before.
        """

        def may_go_on() -> bool:
            return key.step != self.frozen_step or key.step == self.settled_step

        if key.index not in self.book(key.step).accumulated:
            await self.changed.until(may_go_on)

    def freeze(self, step: int, *, settled: bool = False) -> None:
        """The step's sum takes in nothing more; `settled`: and its round has a whole result here."""
        self.frozen_step, self.settled_step = step, step if settled else 0
        self.changed.notify()

    def thaw(self) -> None:
        """The sum takes in hops again, first of all those that came in vain."""
        book, step = self.book(self.frozen_step), self.frozen_step
        self.frozen_step = self.settled_step = 0
        for index, came in book.uncounted.items():
            self._spawn(self._count(HopId(step, index), *came))
        book.uncounted = {}
        self.changed.notify()

    async def _count(self, key: HopId, tokens: Buffer, activation: Encoded | None, codec: str) -> None:
        """Gets a hop into the sum after all. It was answered, as the round was settled with another replica's share of
        it; then the round began anew without that replica. If it is still there, it still has the hop.
        """
        book = self.book(key.step)
        while key.step > self._history.version and key.index not in book.accumulated | book.spoiled:
            if key not in self._work and await self._locate(key, self._stage):
                return
            work = self._work.get(key) or self._begin(key, "", tokens, activation, again=True, codec=codec)
            assert work.task is not None
            await asyncio.wait([work.task])
            await asyncio.sleep(AGAIN_SECONDS)

    def _record(self, key: HopId, answer: Answer) -> Answer:
        self.retention.keep_answer(key, answer)
        return answer

    async def _answer_locate(self, peer: PeerId, locate: Locate) -> Located:
        key = hop_id(locate)
        book, work = self._books.get(key.step), self._work.get(key)
        under_way = work is not None and not work.given_up
        return Located(under_way or (book is not None and key.index in book.accumulated | book.spoiled))

    async def _answer_cancel(self, custodian: PeerId, cancel: Cancel) -> Ack:
        """The custodian gave us up. What is accumulated already stays, and the round will see it."""
        for step, index in cancel.hops:
            key = HopId(step, index)
            work = self._work.get(key)
            if work is not None and work.custodian == custodian and work.task is not None:
                self._compute.forget(key)
                work.given_up = True
                if work.state == "passed":  # a task on the device ends by itself: it knows whether it counted
                    work.task.cancel()
        return Ack()

    # ---------------------------------------------------------------------------------------------- custodian

    async def _pass_on(self, work: Work, tokens: Buffer, out: Encoded, again: bool) -> Answer:
        """Sends an activation to the next stage until one replica answers with its gradient."""
        key = work.hop
        self.retention.drop(key)  # of an earlier journey, whose answer was evicted or didn't count
        kept = self.retention.keep(key, self._hop(key, tokens, out, again=again, evaluate=False))
        while True:
            holder = await self._choose(kept.hop)
            work.holder = kept.holder = holder
            answer = await self._send(kept, holder)
            if answer is not None:
                kept.answered = True
                return answer

    def _hop(self, key: HopId, tokens: Buffer, out: Encoded, *, again: bool, evaluate: bool) -> Hop:
        return Hop(
            key.step, key.index, self._history.record_hash, again, evaluate, self._run.codecs.gradients, tokens, out
        )

    async def _send(self, kept: Retained, holder: PeerId) -> Answer | None:
        """One attempt with one holder. None: it must go to another."""
        hop, key, now = kept.hop, hop_id(kept.hop), asyncio.get_running_loop().time()
        self.router.sent(holder)
        try:
            answer = await self._watched(key, holder, hop)
        except (PeerUnreachable, TimeoutError, Refused, PeerFault) as trouble:
            log.info("hop %s comes back from %s: %s", tuple(key), holder[-8:], trouble)
            self.router.failed(holder, now)
            self.book(key.step).resent += 1
            kept.hop = _sent_again(hop)
            await self._cancel(holder, key)  # before asking who has the hop: this one has not, then
            return None
        finally:
            self.router.returned(holder)
        if isinstance(answer, Busy):
            self._full.add(holder)
            return None
        if isinstance(answer, Gradient):
            self.router.measured(holder, max(answer.compute_seconds, 1e-6))
        return answer

    async def _watched(self, key: HopId, holder: PeerId, hop: Hop) -> Gradient | NotFinite | Busy:
        """Asks a holder, and stops waiting when its beats do. Raises like `Links.ask`."""
        lost = self.custody.track(key, holder)
        question: asyncio.Future[Gradient | NotFinite | Busy] = asyncio.ensure_future(self._ask_hop(holder, hop))
        both: set[asyncio.Future[Any]] = {question, lost}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if question.done():
                return question.result()
            raise PeerUnreachable(lost.result())
        finally:
            question.cancel()
            self.custody.done(key)

    async def _ask_hop(self, holder: PeerId, hop: Hop) -> Gradient | NotFinite | Busy:
        answer = await self._links.ask(holder, hop, Gradient, NotFinite, Busy, deadline_s=None, urgency="hop")
        return cast("Gradient | NotFinite | Busy", answer)

    async def _cancel(self, holder: PeerId, key: HopId) -> None:
        if holder in self._links.transport.connected():
            await self._links.tell_all([holder], Cancel(((key.step, key.index),)), Ack, deadline_s=CANCEL_SECONDS)

    async def _choose(self, hop: Hop) -> PeerId:
        """The replica of the next stage for this hop; waits until there is one."""
        loop = asyncio.get_running_loop()
        if hop.again and (holder := await self._locate(hop_id(hop), self._stage + 1)):
            return holder
        while True:
            live = [card.peer for card in self._membership.stage(self._stage + 1)]
            self._full.intersection_update(live)
            candidates = [peer for peer in live if peer not in self._full]
            choice = self.router.choose(candidates, loop.time())
            if choice is not None:
                return choice
            wait = RECHECK_SECONDS
            if candidates:
                wait = min(wait, max(0.01, self.router.next_unban(candidates) - loop.time()))
            if not await self.changed.wait(wait) and not candidates:
                self._full.clear()

    async def _locate(self, key: HopId, stage: int) -> PeerId | None:
        """The replica of a stage that has this hop already, if any says so."""
        replicas = [card.peer for card in self._membership.stage(stage)]
        answers = await self._links.tell_all(replicas, Locate(*key), Located, deadline_s=LOCATE_SECONDS)
        return next((peer for peer, located in answers.items() if located.here), None)

    def peer_lost(self, peer: PeerId) -> None:
        """A peer is gone: hops it holds go elsewhere, and so do those it had answered, whose sums are lost with it."""
        self.custody.disconnected(peer)
        self.router.drop(peer)
        self._full.discard(peer)
        self._told_busy.pop(peer, None)
        for key, kept in self.retention.answered_by(peer):
            kept.answered = False
            kept.hop = _sent_again(kept.hop)
            self.book(key.step).resent += 1
            self._spawn(self._repair(key, kept))
        self.changed.notify()

    async def _repair(self, key: HopId, kept: Retained) -> None:
        """Sends an answered hop again, so that its index is in the next stage's sum after all."""
        while key.step > self._history.version:
            kept.holder = await self._choose(kept.hop)
            if await self._send(kept, kept.holder) is not None:
                kept.answered = True
                return

    async def _answer_room(self, holder: PeerId, room: Room) -> Ack:
        self.peer_has_room(holder)
        return Ack()

    def peer_has_room(self, peer: PeerId) -> None:
        self._full.discard(peer)
        self.router.lift(peer)
        self.changed.notify()

    # ---------------------------------------------------------------------------------------------- validation

    async def evaluate(self, key: HopId, tokens: Buffer) -> Loss:
        """Loss of held-out tokens, from the head on: forward only, nothing kept. Raises like `Links.ask`."""
        return await self._evaluate(key, tokens, None)

    async def _evaluate(self, key: HopId, tokens: Buffer, activation: Encoded | None) -> Loss:
        if self.is_tail:
            tail = await self._compute.tail(key, tokens, activation, codec="fp32", evaluate=True)
            return Loss(tail.loss_sum, tail.tokens)
        codec = self._codec(self._stage + 1)
        out = await self._compute.forward(key, tokens, activation, codec=codec, evaluate=True)
        hop = self._hop(key, tokens, out, again=False, evaluate=True)
        holder = await self._choose(hop)
        return await self._links.ask(holder, hop, Loss, deadline_s=None, urgency="hop")

    # ---------------------------------------------------------------------------------------------- bookkeeping

    def book(self, step: int) -> Book:
        """This peer's book of a step."""
        return self._books.setdefault(step, Book())

    def end_step(self, step: int) -> None:
        """The step has committed: forget its hops, and cancel what is still under way for it."""
        for work in list(self._work.values()):
            if work.hop.step <= step and work.task is not None:
                self._compute.forget(work.hop)
                work.task.cancel()
        for old in [known for known in self._books if known <= step]:
            del self._books[old]
        self.retention.end_step(step)
        self.changed.notify()

    def close(self) -> None:
        """Cancels everything under way: this peer leaves."""
        self.closed = True
        for work in self._work.values():
            if work.task is not None:
                work.task.cancel()

    def under_way(self, step: int) -> int:
        return sum(1 for key in self._work if key.step == step)

    def has_room(self) -> bool:
        """Whether one more hop fits within the bounds on count and bytes."""
        held = sum(work.nbytes for work in self._work.values())
        return not self.closed and self.room() > 0 and held < self._limits.in_flight_bytes

    def room(self) -> int:
        return max(0, self._limits.in_flight_hops - len(self._work))

    def held_for(self) -> dict[PeerId, list[Work]]:
        """The hops of each custodian, for beats."""
        held: dict[PeerId, list[Work]] = {}
        for work in self._work.values():
            if work.custodian:
                held.setdefault(work.custodian, []).append(work)
        return held

    def rows(self) -> list[HopRow]:
        now = asyncio.get_running_loop().time()
        running = self._compute.progress().running
        return [
            HopRow(
                work.hop.step,
                work.hop.index,
                "computing" if work.hop == running else work.state,
                work.custodian,
                work.holder if work.state == "passed" else "",
                now - work.since,
            )
            for work in self._work.values()
        ]

    def _codec(self, stage: int) -> str:
        """The run's codec for activations, if this peer and every replica of the stage have it, else fp16."""
        wanted = self._run.codecs.activations
        replicas = self._membership.stage(stage)
        common = wanted in self._compute.codecs and all(wanted in card.codecs for card in replicas)
        return wanted if common else "fp16"


def _sent_again(hop: Hop) -> Hop:
    return Hop(hop.step, hop.index, hop.record, True, hop.evaluate, hop.codec, hop.tokens, hop.activation)
