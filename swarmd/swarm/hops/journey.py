"""A microbatch's journey through this peer: admit, forward, pass on, backward, answer.

Each hop is one coroutine that reads top to bottom (`travel`). This peer accumulates an index of a step at most once
and answers a repeated request from the record or joins the work in progress. What becomes of a hop at the next stage is
`custodian.py`'s business; what a round's leader wants done once more, `rework.py`'s.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from swarmd.errors import (
    DeviceLost,
    HopForgotten,
    HopGivenUp,
    NonFinite,
    NotAllowed,
    OutOfRange,
    PeerFault,
    Refused,
    SwarmError,
)
from swarmd.swarm.hops.admission import Admission
from swarmd.swarm.hops.custodian import Custodian
from swarmd.swarm.hops.retention import Answer
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.hops.under_way import HopUnderWay
from swarmd.swarm.hops.validation import Validation
from swarmd.swarm.tasks import joined
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
    hop_id,
)
from swarmd.values import BackwardResult, Buffer, Encoded, HopId, PeerId, short

log = logging.getLogger(__name__)

VERSION_WAIT_SECONDS = 30.0  # a hop of the next step may come before the commit that starts it


class Journeys:
    """All journeys through this peer."""

    def __init__(
        self,
        context: StageContext,
        admission: Admission,
        custodian: Custodian,
        validation: Validation,
    ) -> None:
        peer, scope = context.peer, context.scope
        self._run, self._links, self._membership, self._history = peer.run, peer.links, peer.membership, peer.history
        self._sums, self.hops, self.admission, self.custodian = context.sums, context.hops, admission, custodian
        self._retention, self._validation, self._compute = custodian.retention, validation, context.compute
        self._stage, self._is_tail, self._handouts = context.stage, context.is_tail, peer.handouts
        scope.handle(Hop, self._answer_hop)
        scope.handle(Locate, self._answer_locate)
        scope.handle(Cancel, self._answer_cancel)

    # ---------------------------------------------------------------------------------------------- beginning

    async def _answer_hop(self, custodian: PeerId, hop: Hop) -> Gradient | NotFinite | Busy | Loss:
        if self._stage == 0:
            raise Refused("the first stage takes no hops")
        check_stage(hop.stage, self._stage)
        if hop.evaluate:
            return await self._evaluate(custodian, hop)
        if hop.step < 1 or not 0 <= hop.index < self._run.microbatches:
            raise OutOfRange(f"hop ({hop.step}, {hop.index}) is none of this run")
        await self._history.await_version(hop.step - 1, hop.record_hash, custodian, VERSION_WAIT_SECONDS)
        key = hop_id(hop)
        await self.hops.undisturbed(key)
        counts = self._has_from(custodian, key)
        if (answer := self._retention.answer(key)) is not None:
            return answer
        it = self.hops.get(key)
        if it is None:
            if not counts:
                raise NotAllowed("nobody has said that this hop was given to you, and it isn't here")
            if not self._is_admitted(key):
                return self.admission.refuse(custodian)
            it = self._begin(key, custodian, hop.tokens, hop.activation, hop.again, hop.codec)
            it.horizon_s = hop.horizon_s
        if counts:
            it.custodian = custodian
        assert it.task is not None
        try:
            answered: Answer = await joined(it.task, HopGivenUp())
            return answered
        except (HopForgotten, DeviceLost, MemoryError) as trouble:
            if it.given_up:
                raise HopGivenUp from None
            raise Refused(str(trouble) or "out of memory") from None

    async def _evaluate(self, custodian: PeerId, hop: Hop) -> Loss:
        last = self._run.microbatches + self._run.validation_microbatches
        if hop.step == self._history.version + 1 and self._run.microbatches <= hop.index < last:
            self._handouts.take(hop.step, self._stage, (hop.index,), custodian)
        return await self._validation.answer(hop)

    def _is_admitted(self, key: HopId) -> bool:
        """Tells if there is room for a hop. Raises Refused if this peer leaves."""
        if self.admission.closed:
            raise Refused("this peer takes no more hops")
        done_before = self.admission.paused and self._sums.has(*key)
        return done_before or self.admission.has_room()

    def _has_from(self, custodian: PeerId, key: HopId) -> bool:
        """Tells if a hop of a custodian counts, and notes that this peer has it from there. Of a newcomer that this
        peer doesn't have it from it doesn't: such a one only hears what became of the hop (`RecordJudge`).
        """
        if not self._history.chain.is_newcomer(custodian):
            self._handouts.take(key.step, self._stage, (key.index,), custodian)
        return self._handouts.source(key.step, self._stage, key.index) == custodian

    def train(self, key: HopId, tokens: Buffer, *, again: bool, horizon_s: float = 0.0) -> asyncio.Task[Answer]:
        """Starts a microbatch's journey at the head. Its task ends when the index is in this peer's sum. No side task
        may be at work with it (`HopsUnderWay.undisturbed`).
        """
        it = self.hops.get(key) or self._begin(key, "", tokens, None, again, "fp32")
        it.horizon_s = horizon_s
        assert it.task is not None
        return it.task

    def _begin(
        self, key: HopId, custodian: PeerId, tokens: Buffer, activation: Encoded | None, again: bool, codec: str
    ) -> HopUnderWay:
        now = asyncio.get_running_loop().time()
        it = HopUnderWay(key, custodian, activation.nbytes if activation else 0, admitted=now, since=now)
        self._sums.of(key.step).resent += again
        self.start(it, self.travel(it, tokens, activation, again=again, codec=codec))
        return it

    def start(self, it: HopUnderWay, journey: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Has a hop under way until a journey ends."""
        task = self.hops.begin(it, self._fenced(it, journey))
        task.add_done_callback(lambda task: self._finish(it, task))
        task.add_done_callback(lambda _: journey.close())  # it may not have begun
        return task

    async def _fenced(self, it: HopUnderWay, journey: Coroutine[Any, Any, Any]) -> Any:
        """An unforeseen exception fails the one hop, as if it was given up; several in a row make this peer rest."""
        try:
            result = await journey
        except (SwarmError, MemoryError):
            raise
        except Exception as trouble:  # noqa: BLE001 - one hop's failure ends nothing else
            self.admission.fail_at(f"hop {tuple(it.hop)}", trouble)
            raise HopForgotten(f"this peer failed at it: {type(trouble).__name__}") from None
        self.admission.ailing.succeeded()
        return result

    def _finish(self, it: HopUnderWay, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or (trouble := task.exception()) is not None:
            log.info("hop %s ends here unanswered: %s", tuple(it.hop), "cancelled" if task.cancelled() else trouble)
            self._compute.forget(it.hop)
            if not it.side_task:
                self._retention.drop(it.hop)
        self.admission.offer_room()
        self._sums.changed.notify()

    # ---------------------------------------------------------------------------------------------- the journey

    async def travel(
        self, it: HopUnderWay, tokens: Buffer, activation: Encoded | None, *, again: bool, codec: str
    ) -> Answer:
        """The whole life of a microbatch here; of one whose share is to be taken out of the sum, the same way again."""
        key, step_sum = it.hop, self._sums.of(it.hop.step)
        if codec not in self._compute.codecs:
            codec = "fp16"
        try:
            await self._while_frozen(it)
            if it.given_up:  # before the device has heard of it
                raise HopForgotten(str(HopGivenUp()))
            if self._is_tail:
                tail = await self._compute.tail(key, tokens, activation, codec=codec, subtract=it.subtract)
                gradient, counted, loss_sum = tail.gradient, tail.accumulated, tail.loss_sum
            else:
                wanted = self.custodian.codec(self._compute.codecs)
                out = await self._compute.forward(key, tokens, activation, codec=wanted)
                it.move("passed")
                self._retention.drop(key)  # of an earlier journey, whose answer was evicted or didn't count
                message = self.custodian.message(key, tokens, out, again=again, horizon_s=it.horizon_s)
                it.retained = self._retention.keep(key, message)
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
            blame = self._blame(it, trouble)
            self._check_origin(trouble, blame)
            return self._spoil(key, blame)
        answered = self._gradient(it, gradient)
        if it.subtract:
            self._retention.drop_answer(key)
            if counted:
                raise HopForgotten("the sum was frozen before the hop could be taken out")
            return answered
        if not counted:
            await self._while_frozen(it)
            if not step_sum.settled:  # not counted anywhere: it must come again
                raise HopForgotten("the sum was frozen before this hop could be added to it")
            return answered  # and not recorded: if the round begins anew, this hop must be accepted again
        return self._record(key, answered)

    async def _while_frozen(self, it: HopUnderWay) -> None:
        """Waits while a hop that should be in the step's sum can't be added to it.

        The wait ends in one of two ways. The round fails, and the sum takes in hops again; or it succeeds, and then the
        replica that had this hop before has brought its share. A hop that should be taken out doesn't wait: the leader
        that froze the sum counts on it as it is. Raises HopForgotten for it.
        """
        step_sum = self._sums.of(it.hop.step)
        if it.subtract and step_sum.frozen:
            raise HopForgotten("the sum is frozen")
        if not it.subtract and not step_sum.has(it.hop.index):
            await self._sums.changed.until(lambda: not step_sum.frozen or step_sum.settled)

    async def _backward(self, it: HopUnderWay, gradient: Encoded, codec: str) -> BackwardResult:
        """Backward with what the holder answered; a malformed gradient is the holder's fault, not our custodian's."""
        try:
            return await self._compute.backward(it.hop, gradient, codec=codec, subtract=it.subtract)
        except PeerFault as fault:
            holder = it.retained.holder if it.retained else ""
            log.warning("the gradient of hop %s from %s: %s", tuple(it.hop), short(holder), fault)
            await self._links.transport.drop(holder)
            raise HopForgotten("the next stage's gradient was malformed") from None

    def _blame(self, it: HopUnderWay, trouble: NonFinite) -> Blame:
        """Blames the peer that produced a number which isn't finite: this one, or the one that sent it."""
        stage, peer = self._stage, self._membership.own.peer
        if trouble.source is not None and trouble.what == "activation":
            stage, peer = self._stage - 1, it.custodian
        elif trouble.source is not None:
            stage, peer = self._stage + 1, it.retained.holder if it.retained is not None else ""
        return Blame(trouble.what, stage, peer, it.hop.index)

    def _check_origin(self, trouble: NonFinite, blame: Blame) -> None:
        """Numbers that came not finite from a newcomer, as honest peers send none, spoil nothing where others of its
        stage are not newcomers: these compute them anew. Raises HopForgotten.
        """
        is_newcomer, sender = self._history.chain.is_newcomer, blame.peer
        if trouble.source is None or not sender or not is_newcomer(sender):
            return
        if any(not is_newcomer(card.peer) for card in self._membership.stage(blame.stage)):
            log.warning("hop (%d) from %s: %s", blame.index, short(sender), trouble)
            if blame.stage > self._stage:
                self.custodian.custody.mute(sender, asyncio.get_running_loop().time())
            raise HopForgotten(f"the {trouble.what} of a newcomer is not finite")

    def _spoil(self, key: HopId, blame: Blame) -> Answer:
        """A microbatch whose numbers aren't finite is done with: nothing of it is in the sum."""
        blame = blame or SOMEONE
        self._compute.forget(key)
        step_sum = self._sums.of(key.step)
        # The first says it: a diverged model spoils them all.
        level = logging.INFO if step_sum.spoiled else logging.WARNING
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

    def _record(self, key: HopId, answer: Answer) -> Answer:
        self._retention.keep_answer(key, answer)
        return answer

    # ---------------------------------------------------------------------------------------------- giving up

    async def _answer_locate(self, peer: PeerId, locate: Locate) -> Located:
        check_stage(locate.stage, self._stage)
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

    def give_up_all(self) -> int:
        """Stops what is under way, as far as others finish it. Returns how many hops that are."""
        passed = [it.hop for it in self.hops if it.state == "passed"]
        for key in passed:
            self.give_up(key)
        return len(passed)

    # ---------------------------------------------------------------------------------------------- the end

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
        self.admission.close()
        for it in self.hops:
            if it.task is not None:
                it.task.cancel()
