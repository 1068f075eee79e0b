"""A microbatch's journey through this peer: admit, forward, pass on, backward, answer.

Each hop is one coroutine that reads top to bottom (`_travel`). This peer accumulates an index of a step at most once
and answers a repeated request from the record or joins the work in progress. What becomes of a hop at the next stage is
`custodian.py`'s business; what a round's leader wants done about it, `repair.py`'s.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from swarmd.config import LimitsConfig, RunConfig
from swarmd.errors import (
    DeviceLost,
    HopForgotten,
    HopGivenUp,
    NonFinite,
    PeerFault,
    PeerUnreachable,
    Refused,
    SwarmError,
)
from swarmd.swarm.history.history import History
from swarmd.swarm.hops.ailing import Ailing
from swarmd.swarm.hops.custodian import Custodian
from swarmd.swarm.hops.retention import Answer
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.hops.under_way import HopsUnderWay, HopUnderWay
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.ports import Compute
from swarmd.swarm.tasks import Tasks, joined
from swarmd.swarm.wire.links import Scope
from swarmd.swarm.wire.messages.common import Ack, check_stage
from swarmd.swarm.wire.messages.hop import (
    SOMEONE,
    Blame,
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
from swarmd.values import BackwardResult, Buffer, Encoded, HopId, PeerId

log = logging.getLogger(__name__)

VERSION_WAIT_SECONDS = 30.0  # a hop of the next step may come before the commit that starts it
EVALUATE_SECONDS = 900.0  # nobody asks for a validation loss any more by then: a holder that keeps one answers no more
ROOM_SECONDS = 5.0  # to tell someone that there is room

OpenTokens = Callable[[HopId], Awaitable[Buffer]]
"""A microbatch's tokens, at a head."""


class Journeys:
    """All hops at this peer."""

    def __init__(
        self,
        run: RunConfig,
        limits: LimitsConfig,
        scope: Scope,
        membership: Membership,
        history: History,
        sums: StepSums,
        compute: Compute,
        stage: int,
        rng: random.Random,
        tasks: Tasks,
    ) -> None:
        self._run, self._limits, self._links, self._membership = run, limits, scope.links, membership
        self._history, self._sums, self._compute, self.stage, self.tasks = history, sums, compute, stage, tasks
        self.is_tail = stage == run.model.stages - 1
        self.hops = HopsUnderWay()
        self.custodian = Custodian(
            scope.links, membership, history, sums.changed, stage, rng, tasks,
            routing=run.routing, retained_bytes=limits.retained_bytes,
        )  # fmt: skip
        self.router, self.custody = self.custodian.router, self.custodian.custody
        self.retention = self.custodian.retention
        self.tokens: OpenTokens | None = None  # at a head
        self.held_back = False  # paused or draining: nothing new is admitted
        self.retiring = False  # draining: nothing is begun for rounds either
        self.closed = False  # this peer leaves: whoever asks is refused
        self.ailing = Ailing()
        self._recovery: asyncio.TimerHandle | None = None  # at the end of a rest
        self._told_busy: dict[PeerId, None] = {}
        scope.handle(Hop, self._answer_hop)
        scope.handle(Room, self._answer_room)
        scope.handle(Locate, self._answer_locate)
        scope.handle(Cancel, self._answer_cancel)

    # ---------------------------------------------------------------------------------------------- holder

    async def _answer_hop(self, custodian: PeerId, hop: Hop) -> Gradient | NotFinite | Busy | Loss:
        if self.stage == 0:
            raise Refused("the first stage takes no hops")
        check_stage(hop.stage, self.stage)
        if hop.evaluate:
            try:
                return await self._evaluate(hop_id(hop), hop.tokens, hop.activation)
            except (PeerUnreachable, TimeoutError, HopForgotten, NonFinite) as trouble:
                raise Refused(f"no validation loss from the next stage: {trouble}") from None
        if hop.step < 1 or not 0 <= hop.index < self._run.microbatches:
            raise PeerFault(f"hop ({hop.step}, {hop.index}) is none of this run")
        await self._history.await_version(hop.step - 1, hop.record, custodian, VERSION_WAIT_SECONDS)
        key = hop_id(hop)
        await self.hops.undisturbed(key)
        if (answer := self.retention.answer(key)) is not None:
            return answer
        it = self.hops.get(key)
        if it is None:
            if self.closed:
                raise Refused("this peer takes no more hops")
            if not self.has_room() and not (self.held_back and self._sums.of(key.step).has(key.index)):
                self._told_busy[custodian] = None
                return Busy(len(self.hops))
            it = self._begin(key, custodian, hop.tokens, hop.activation, hop.again, hop.codec)
            it.horizon_s = hop.horizon_s
        it.custodian = custodian
        assert it.task is not None
        try:
            answered: Answer = await joined(it.task, HopGivenUp())
            return answered
        except (HopForgotten, DeviceLost, MemoryError) as trouble:
            if it.given_up:
                raise HopGivenUp from None
            raise Refused(str(trouble) or "out of memory") from None

    def train(self, key: HopId, tokens: Buffer, *, again: bool, horizon_s: float = 0.0) -> asyncio.Task[Answer]:
        """Starts a microbatch's journey at the head. Its task ends when the index is in this peer's sum. Nothing may
        be under way with it on the side (`HopsUnderWay.undisturbed`).
        """
        it = self.hops.get(key) or self._begin(key, "", tokens, None, again, "fp32")
        it.horizon_s = horizon_s
        assert it.task is not None
        return it.task

    def _begin(
        self, key: HopId, custodian: PeerId, tokens: Buffer, activation: Encoded | None, again: bool, codec: str
    ) -> HopUnderWay:
        now = asyncio.get_running_loop().time()
        nbytes = activation.nbytes if activation else 0
        it = HopUnderWay(key, custodian, nbytes, admitted=now, since=now)
        self._sums.of(key.step).resent += again
        self._enter(it, self._travel(it, tokens, activation, again, codec))
        return it

    def _enter(self, it: HopUnderWay, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self.hops.begin(it, self._fenced(it, coroutine))
        task.add_done_callback(lambda task: self._finish(it, task))
        task.add_done_callback(lambda _: coroutine.close())  # it may not have begun

    async def _fenced(self, it: HopUnderWay, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What nobody foresaw fails the one hop, as if it had been given up; several in a row make this peer rest."""
        try:
            result = await coroutine
        except (SwarmError, MemoryError):
            raise
        except Exception as trouble:  # noqa: BLE001 - one hop's failure ends nothing else
            self.fail_at(f"hop {tuple(it.hop)}", trouble)
            raise HopForgotten(f"this peer failed at it: {type(trouble).__name__}") from None
        self.ailing.succeeded()
        return result

    def fail_at(self, what: str, trouble: Exception) -> None:
        """A hop, or something of it, failed here though nobody foresaw it."""
        self._links.fence.note(what, trouble)
        loop = asyncio.get_running_loop()
        if not (seconds := self.ailing.failed(f"{type(trouble).__name__}: {trouble}", loop.time())):
            return
        log.warning("no more microbatches are taken for %.0f s: %d failed in a row", seconds, self.ailing.failures)
        if self._recovery is not None:
            self._recovery.cancel()
        self._recovery = loop.call_later(seconds, self._recover)

    def _recover(self) -> None:
        self._offer_room()
        self._sums.changed.notify()

    @property
    def resting(self) -> bool:
        """Whether too many hops have failed here for more to be taken at present."""
        return self.ailing.rests(asyncio.get_running_loop().time())

    def _finish(self, it: HopUnderWay, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or (trouble := task.exception()) is not None:
            log.info("hop %s ends here unanswered: %s", tuple(it.hop), "cancelled" if task.cancelled() else trouble)
            self._compute.forget(it.hop)
            if not it.side_task:
                self.retention.drop(it.hop)
        self._offer_room()
        self._sums.changed.notify()

    def hold_back(self, *, retiring: bool = False) -> None:
        """From now on nothing new is admitted; what is under way comes to its end."""
        self.held_back, self.retiring = True, retiring
        self._sums.changed.notify()

    def go_on(self) -> None:
        """Undoes `hold_back`."""
        self.held_back = self.retiring = False
        self._offer_room()
        self._sums.changed.notify()

    def _offer_room(self) -> None:
        """Whoever was told that there is no room is told that there is."""
        if self.has_room():
            for custodian in list(self._told_busy):
                del self._told_busy[custodian]
                self.tasks.start(self._tell_room(custodian))

    async def _tell_room(self, custodian: PeerId) -> None:
        await self._links.tell_all([custodian], Room(self.room()), deadline_s=ROOM_SECONDS)

    async def _travel(
        self, it: HopUnderWay, tokens: Buffer, activation: Encoded | None, again: bool, codec: str
    ) -> Answer:
        """The whole life of a microbatch here."""
        key, step_sum = it.hop, self._sums.of(it.hop.step)
        if codec not in self._compute.codecs:
            codec = "fp16"
        try:
            await self._while_frozen(it)
            if it.given_up:  # before the device has heard of it
                raise HopForgotten(HopGivenUp.SENTENCE)
            if self.is_tail:
                tail = await self._compute.tail(key, tokens, activation, codec=codec, subtract=it.subtract)
                gradient, counted, loss_sum = tail.gradient, tail.accumulated, tail.loss_sum
            else:
                out = await self._compute.forward(key, tokens, activation, codec=self._codec(self.stage + 1))
                it.move("passed")
                self.retention.drop(key)  # of an earlier journey, whose answer was evicted or didn't count
                it.retained = self.retention.keep(
                    key, self.message(key, tokens, out, again=again, horizon_s=it.horizon_s)
                )
                answer = await self.custodian.pass_on(it.retained)
                if isinstance(answer, NotFinite):
                    return self._spoil(key, answer.blame)
                it.move("backward")
                await self._while_frozen(it)
                back = await self._backward(it, answer.gradient, codec)
                gradient, counted, loss_sum = back.gradient, back.accumulated, 0.0
            # No other coroutine may run between the device's word and this: a freeze reads what is in the sum.
            if counted:
                step_sum.add(key.index, loss_sum, it.custodian)
            elif it.subtract:
                step_sum.take_out(key.index, loss_sum)
        except NonFinite as trouble:
            return self._spoil(key, self._blame(it, trouble))
        answered = self._gradient(it, gradient)
        if it.subtract:
            self.retention.drop_answer(key)
            if counted:
                raise HopForgotten("the sum was frozen before the hop could be taken out")
            return answered
        if not counted:
            await self._while_frozen(it)
            if not step_sum.settled:  # not counted anywhere: it must come again
                raise HopForgotten("the sum was frozen before this hop could be added to it")
            return answered  # and not recorded: should the round begin anew, whoever lacks the hop must get it in
        return self._record(key, answered)

    def _blame(self, it: HopUnderWay, trouble: NonFinite) -> Blame:
        """Who produced a number that isn't finite: this peer, or who sent it."""
        stage, peer = self.stage, self._membership.own.peer
        if trouble.source is not None and trouble.what == "activation":
            stage, peer = self.stage - 1, it.custodian
        elif trouble.source is not None:
            stage, peer = self.stage + 1, it.retained.holder if it.retained is not None else ""
        return Blame(trouble.what, stage, peer, it.hop.index)

    def _spoil(self, key: HopId, blame: Blame) -> Answer:
        """A microbatch whose numbers aren't finite is done with: nothing of it is in the sum."""
        blame = blame or SOMEONE
        self._compute.forget(key)
        step_sum = self._sums.of(key.step)
        level = (
            logging.INFO if step_sum.spoiled else logging.WARNING
        )  # the first says it; a diverged model spoils them all
        log.log(level, "step %d is to be skipped: %s", key.step, blame.words())
        step_sum.spoil(key.index, blame)
        return self._record(key, NotFinite(blame))

    def _gradient(self, it: HopUnderWay, gradient: Encoded | None) -> Gradient:
        if gradient is None:
            return Gradient(Encoded("fp32", (0,), (b"",)), 0.0, 0.0)
        seconds = self._compute.progress()
        service = seconds.forward_seconds + seconds.backward_seconds
        waited = asyncio.get_running_loop().time() - it.admitted
        return Gradient(gradient, max(0.0, waited - service), service)

    async def _backward(self, it: HopUnderWay, gradient: Encoded, codec: str) -> BackwardResult:
        """Backward with what the holder answered; a malformed gradient is the holder's fault, not our custodian's."""
        try:
            return await self._compute.backward(it.hop, gradient, codec=codec, subtract=it.subtract)
        except PeerFault as fault:
            holder = it.retained.holder if it.retained else ""
            log.warning("the gradient of hop %s from %s: %s", tuple(it.hop), holder[-8:], fault)
            await self._links.transport.drop(holder)
            raise HopForgotten("the next stage's gradient was malformed") from None

    async def _while_frozen(self, it: HopUnderWay) -> None:
        """Waits while a hop that should be in the step's sum can't be added to it.

        Either the round fails and the sum takes in hops again, or it succeeds, with the share of whoever had this hop
        before. What should be taken out doesn't wait: whoever froze the sum counts on it as it is.
        """
        step_sum = self._sums.of(it.hop.step)
        if it.subtract and step_sum.frozen:
            raise HopForgotten("the sum is frozen")
        if not it.subtract and it.hop.index not in step_sum.accumulated:
            await self._sums.changed.until(lambda: not step_sum.frozen or step_sum.settled)

    # ---------------------------------------------------------------------------------------------- on the side

    async def _side_task(self, key: HopId, coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Does something with a hop on the side, when it isn't under way; hops that come meanwhile wait."""
        await self.hops.absent(key)
        now = asyncio.get_running_loop().time()
        it = HopUnderWay(key, "", 0, admitted=now, since=now, side_task=True)
        self._enter(it, coroutine())
        assert it.task is not None
        return await asyncio.shield(it.task)

    async def subtract(self, key: HopId, tokens: Buffer, activation: Encoded | None) -> None:
        """Takes an index out of the sum again, by the way it came in. Raises what a journey can fail with."""
        await self.hops.absent(key)
        if key.index not in self._sums.of(key.step).accumulated:
            return
        now = asyncio.get_running_loop().time()
        it = HopUnderWay(key, "", 0, admitted=now, since=now, subtract=True, side_task=True)
        self._enter(it, self._travel(it, tokens, activation, True, "fp32"))
        assert it.task is not None
        await asyncio.shield(it.task)

    async def recompute(self, key: HopId, tokens: Buffer, activation: Encoded | None) -> Hop:
        """The message to the next stage once more, after it was evicted."""

        async def forward() -> Hop:
            try:
                out = await self._compute.forward(key, tokens, activation, codec=self._codec(self.stage + 1))
            finally:
                self._compute.forget(key)  # no backward follows
            return self.message(key, tokens, out, again=True)

        hop: Hop = await self._side_task(key, forward)
        return hop

    def _record(self, key: HopId, answer: Answer) -> Answer:
        self.retention.keep_answer(key, answer)
        return answer

    async def _answer_locate(self, peer: PeerId, locate: Locate) -> Located:
        check_stage(locate.stage, self.stage)
        key = hop_id(locate)
        it = self.hops.get(key)
        leaving = it is not None and it.subtract
        return Located(self.hops.is_under_way(key) or (self._sums.has(*key) and not leaving))

    async def _answer_cancel(self, custodian: PeerId, cancel: Cancel) -> Ack:
        """The custodian gave us up. What is accumulated already stays, and the round will see it."""
        for step, index in cancel.hops:
            it = self.hops.get(HopId(step, index))
            if it is not None and it.custodian == custodian:
                self.give_up(it.hop)
        return Ack()

    def spare(self, key: HopId) -> None:
        """Another replica has this index in its sum: who waits here for its gradient gets it there."""
        if self.hops.is_under_way(key) and key.index not in self._sums.of(key.step).accumulated:
            self.give_up(key)

    def give_up(self, key: HopId) -> None:
        """Stops a hop that others finish, unless it is in the sum already."""
        it = self.hops.get(key)
        if it is None or it.task is None:
            return
        self._compute.forget(key)
        it.given_up = True
        if it.state == "passed":  # a task on the device ends by itself: it knows whether it counted
            it.task.cancel()

    # ---------------------------------------------------------------------------------------------- custodian

    def message(
        self,
        key: HopId,
        tokens: Buffer,
        out: Encoded,
        *,
        again: bool,
        evaluate: bool = False,
        horizon_s: float = 0.0,
    ) -> Hop:
        """A hop for the next stage."""
        record, codec = self._history.record_hash, self._run.codecs.gradients
        return Hop(key.step, key.index, record, again, evaluate, codec, tokens, out, horizon_s, self.stage + 1)

    def peer_lost(self, peer: PeerId, heir: PeerId = "") -> None:
        """A peer is gone, and its sum with it, unless it has an heir."""
        self._told_busy.pop(peer, None)
        self.custodian.peer_lost(peer, heir)

    async def _answer_room(self, holder: PeerId, room: Room) -> Ack:
        self.peer_has_room(holder)
        return Ack()

    def peer_has_room(self, peer: PeerId) -> None:
        self.custodian.peer_has_room(peer)

    # ---------------------------------------------------------------------------------------------- validation

    async def evaluate(self, key: HopId, tokens: Buffer) -> Loss:
        """Loss of held-out tokens, from the head on: forward only, nothing kept. Raises like `Links.ask`."""
        return await self._evaluate(key, tokens, None)

    async def _evaluate(self, key: HopId, tokens: Buffer, activation: Encoded | None) -> Loss:
        if self.is_tail:
            tail = await self._compute.tail(key, tokens, activation, codec="fp32", evaluate=True)
            return Loss(tail.loss_sum, tail.tokens)
        codec = self._codec(self.stage + 1)
        out = await self._compute.forward(key, tokens, activation, codec=codec, evaluate=True)
        hop = self.message(key, tokens, out, again=False, evaluate=True)
        holder = await self.custodian.choose(hop)
        loss = await self._links.ask(holder, hop, deadline_s=EVALUATE_SECONDS, urgency="hop")
        assert isinstance(loss, Loss)
        return loss

    # ---------------------------------------------------------------------------------------------- bookkeeping

    def give_up_all(self) -> int:
        """Stops what is under way, as far as others finish it. Returns how many hops that are."""
        passed = [it.hop for it in self.hops if it.state == "passed"]
        for key in passed:
            self.give_up(key)
        return len(passed)

    def end_step(self, step: int) -> None:
        """The step has committed: forget its hops, and cancel what is still under way for it."""
        for it in self.hops:
            if it.hop.step <= step and it.task is not None:
                self._compute.forget(it.hop)
                it.task.cancel()
        self._sums.end_step(step)
        self.custodian.end_step(step)
        self._sums.changed.notify()

    def abandon(self) -> None:
        """The state was replaced: what is under way or in the sum belongs to another history or to an earlier step."""
        self.end_step(self._run.steps)

    def close(self) -> None:
        """Cancels everything under way: this peer leaves."""
        self.closed = True
        if self._recovery is not None:
            self._recovery.cancel()
        for it in self.hops:
            if it.task is not None:
                it.task.cancel()

    def has_room(self) -> bool:
        """Whether one more hop fits within the bounds on count and bytes."""
        if self.closed or self.room() <= 0:
            return False
        return self.hops.nbytes < self._limits.in_flight_bytes

    def room(self) -> int:
        return 0 if self.held_back or self.resting else max(0, self._limits.in_flight_hops - len(self.hops))

    def _codec(self, stage: int) -> str:
        """The run's codec for activations, if this peer and every replica of the stage have it, else fp16."""
        wanted = self._run.codecs.activations
        replicas = self._membership.stage(stage)
        common = wanted in self._compute.codecs and all(wanted in card.codecs for card in replicas)
        return wanted if common else "fp16"
