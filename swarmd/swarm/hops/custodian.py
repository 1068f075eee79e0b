"""Passing microbatches on: chooses a holder, waits while it lives, sends the same bytes elsewhere when it is lost.

Custody lasts until the step commits: what a lost holder had answered is sent again, too. Where a round's leader named
the members whose sums count, a hop goes to one of them.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Container
from typing import Any

from swarmd.errors import NO_ANSWER, HopForgotten, HopGivenUp, NotAllowed, PeerUnreachable
from swarmd.swarm.hops.custody import Custody, IsStalled
from swarmd.swarm.hops.retention import Answer, Retained, Retention
from swarmd.swarm.hops.routing import Router
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.hops.trials import Trials
from swarmd.swarm.membership.reach import reaches_half
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.hop import Busy, Cancel, Gradient, Hop, Locate, Loss, NotFinite, Room, hop_id
from swarmd.values import Buffer, Encoded, HopId, PeerId, short

log = logging.getLogger(__name__)

LOCATE_SECONDS = 3.0  # asking replicas who has a hop: one round trip and a busy loop
RECHECK_SECONDS = 5.0  # bound on waiting for a word (room, a new peer) that may have been lost
SILENCE_LOOK_SECONDS = 1.0  # between looks at whether a holder has fallen silent
CANCEL_SECONDS = 5.0
NOT_ALLOWED_SECONDS = 0.5  # before a holder that knows nobody who has given this peer a hop hears of it again
HEED_SECONDS = 0.5  # for a holder to know that it is given up, before the hop goes elsewhere: two slow round trips


class Custodian:
    """The hops that this peer passed on."""

    def __init__(self, context: StageContext) -> None:
        peer = context.peer
        self._codecs, self._links, self._membership = peer.run.codecs, peer.links, peer.membership
        self._history, self._changed, self._tasks = peer.history, context.sums.changed, context.tasks
        self._handouts = peer.handouts
        self._next = context.stage + 1
        self.router = Router(peer.rng, peer.run.routing)
        self.custody = Custody()
        self._trials = Trials()
        self.retention = Retention(peer.limits.retained_bytes)
        self._full: set[PeerId] = set()  # peers that answered Busy and haven't said Room since
        self._members: dict[HopId, tuple[PeerId, ...]] = {}  # to whom a hop must go: a round's leader said so, or a
        # newcomer's word on it needs a second opinion
        self._doubted: dict[HopId, PeerId] = {}  # whose word that is
        context.scope.handle(Room, self._answer_room)

    # ---------------------------------------------------------------------------------------------- sending

    def codec(self, own: Container[str]) -> str:
        """The run's codec for activations, if this peer has it as its `own`, as every replica of the next stage does;
        else fp16.
        """
        wanted = self._codecs.activations
        common = wanted in own and all(wanted in card.codecs for card in self._membership.stage(self._next))
        return wanted if common else "fp16"

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
        record, codec = self._history.record_hash, self._codecs.gradients
        return Hop(key.step, key.index, record, again, evaluate, codec, tokens, out, horizon_s, self._next)

    def address(self, hop: Hop, holder: PeerId) -> Hop:
        """The hop for a holder, which will be asked for it: it says from whom this peer has it."""
        self._handouts.give(hop.step, self._next, (hop.index,), holder)
        return dataclasses.replace(hop, source=self._handouts.source(hop.step, self._next - 1, hop.index))

    async def pass_on(self, retained: Retained) -> Answer:
        """Sends a retained hop to the next stage until one replica answers with its gradient. Raises HopForgotten when
        it was retained anew meanwhile.
        """
        retained.sending = True
        try:
            while True:
                retained.holder = ""
                retained.holder = await self.choose(retained.hop)
                self._check_retained(retained)
                answer = await self._send(retained)
                if answer is not None:
                    self.retention.mark_answered(retained)
                    return answer
        finally:
            retained.sending = False

    def _check_retained(self, retained: Retained) -> None:
        if self.retention.retained(hop_id(retained.hop)) is not retained:
            raise HopForgotten("the hop is on its way by another journey")

    async def _send(self, retained: Retained) -> Answer | None:
        """One attempt with one holder. None: it must go to another."""
        hop, holder, now = retained.hop, retained.holder, asyncio.get_running_loop().time()
        key = hop_id(hop)
        self.router.sent(holder)
        try:
            answer = await self._watched(key, holder, hop)
        except NO_ANSWER as trouble:
            self._check_retained(retained)
            log.info("hop %s comes back from %s: %s", tuple(key), short(holder), trouble)
            if isinstance(trouble, HopGivenUp):
                self._members.pop(key, None)  # the holder that has it answers again, and wasn't among these
            elif not isinstance(trouble, NotAllowed):
                self._failed(holder, now)
            retained.hop = sent_again(hop)
            await self._cancel(holder, key)
            if isinstance(trouble, NotAllowed):  # whoever needs the hop gives it to this peer anew, and is asked, then
                await asyncio.sleep(NOT_ALLOWED_SECONDS)
            return None
        finally:
            self.router.returned(holder)
        if isinstance(answer, Busy):
            self._full.add(holder)
            return None
        if isinstance(answer, NotFinite) and self.doubts(retained):
            return None
        if isinstance(answer, Gradient):
            self._answered(key, holder, now, answer)
        return answer

    def _answered(self, key: HopId, holder: PeerId, sent: float, answer: Gradient) -> None:
        """A holder has done what it was given."""
        now = asyncio.get_running_loop().time()
        if (doubted := self._doubted.pop(key, holder)) != holder:
            log.warning("%s called hop %s not finite, and is given none for a while", short(doubted), tuple(key))
            self.custody.mute(doubted, now)
        self.router.measured(holder, answer.compute_seconds)
        if not self._membership.standing.has_worked(holder):
            self._trials.passed()
            self._membership.standing.note_work(holder)
            self._changed.notify()  # it is on trial no more
        self.custody.answered(key, holder, sent, now)

    def _failed(self, holder: PeerId, sent: float) -> None:
        """A holder hasn't done what it was given."""
        self.router.failed(holder, sent)
        if self._is_new(holder):
            self._trials.failed(asyncio.get_running_loop().time())

    def _is_new(self, peer: PeerId) -> bool:
        """True for a peer that has done no work yet, as far as this one knows."""
        return not self._membership.standing.is_counted(peer)

    def doubts(self, retained: Retained) -> bool:
        """Tells if a number that isn't finite needs a second opinion, as its holder is a newcomer and others of its
        stage are not: one of these gets the hop, and its word counts.
        """
        is_newcomer, key = self._history.chain.is_newcomer, hop_id(retained.hop)
        others = tuple(card.peer for card in self._membership.admitting(self._next) if not is_newcomer(card.peer))
        if not others or not is_newcomer(retained.holder):
            return False
        log.info("hop %s isn't finite, says %s: another one is asked", tuple(key), short(retained.holder))
        self._members[key], self._doubted[key] = others, retained.holder
        retained.hop = sent_again(retained.hop)
        return True

    async def _watched(self, key: HopId, holder: PeerId, hop: Hop) -> Gradient | NotFinite | Busy:
        """Asks a holder, and stops waiting when its beats do. Raises like `Links.ask`."""
        lost = self.custody.track(key, holder, trial=self._is_new(holder))
        question: asyncio.Future[Gradient | NotFinite | Busy] = asyncio.ensure_future(self._ask_hop(holder, hop))
        both: set[asyncio.Future[Any]] = {question, lost}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if question.done():
                return question.result()
            raise PeerUnreachable(lost.result())
        finally:
            question.cancel()
            self.custody.done(key, lost)

    async def _ask_hop(self, holder: PeerId, hop: Hop) -> Gradient | NotFinite | Busy:
        answer = await self._links.ask(holder, self.address(hop, holder), deadline_s=None, urgency="hop")
        assert not isinstance(answer, Loss)
        return answer

    async def _cancel(self, holder: PeerId, key: HopId) -> None:
        """Tells a holder that it is given up. It is to know before others are asked who has the hop: this one has not,
        then. But nobody waits long for the word of one that may be silent. It travels behind the hop: one that goes on
        after a stop would begin with what it was told before to give up.
        """
        if holder not in self._links.transport.connected():
            return
        heard = asyncio.Event()

        async def tell() -> None:
            cancel = Cancel(((key.step, key.index),))
            with contextlib.suppress(*NO_ANSWER):
                await self._links.ask(holder, cancel, deadline_s=CANCEL_SECONDS, urgency="hop")
            heard.set()

        self._tasks.start(tell())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEED_SECONDS):
                await heard.wait()

    # ---------------------------------------------------------------------------------------------- choosing

    async def choose(self, hop: Hop) -> PeerId:
        """The replica of the next stage for this hop; waits until there is one. Raises HopForgotten when its step is
        over.
        """
        loop, key = asyncio.get_running_loop(), hop_id(hop)
        if hop.again and (holder := await self.locate(key, self._next, self._members.get(key))):
            return holder
        while hop.evaluate or hop.record_hash == self._history.record_hash:
            live = [card.peer for card in self._membership.admitting(self._next)]
            self._full.intersection_update(live)
            members = self._members.get(key, ())
            counting = [peer for peer in live if peer in members] or live
            counting = self._speaking(counting) or counting
            counting = [peer for peer in counting if not self.custody.is_mute(peer, loop.time())] or counting
            candidates = [peer for peer in self._trusted(counting, hop, loop.time()) if peer not in self._full]
            for card in self._membership.stage(self._next):
                self.router.hint(card.peer, card.service_seconds, card.forward + card.backward)
            choice = self.router.choose(candidates, loop.time(), hop.horizon_s or math.inf)
            if choice is not None:
                return choice
            wait = RECHECK_SECONDS
            if candidates:
                wait = min(wait, max(0.01, self.router.next_unban(candidates) - loop.time()))
            if not await self._changed.wait(wait) and not candidates:
                self._full.clear()
        raise HopForgotten(f"step {hop.step} is over")

    def _trusted(self, peers: list[PeerId], hop: Hop, now: float) -> list[PeerId]:
        """Those that may have one more hop: who has worked, and newcomers as far as their trials go. What was sent
        before is no trial.
        """
        if not any(map(self._is_new, peers)):
            return peers
        alone = all(map(self._is_new, peers))
        if hop.again and not alone:
            return [peer for peer in peers if not self._is_new(peer)]
        away = self.custody.waiting().values()
        held = {passed.holder: passed.sent for passed in away}
        new = [card.peer for card in self._membership.stage(self._next) if self._is_new(card.peer)]
        tried = self._trials.plan(new, held, len(away), now, alone=alone)
        return [peer for peer in peers if peer in tried or not self._is_new(peer)]

    def _speaking(self, peers: list[PeerId]) -> list[PeerId]:
        """Those that were heard of lately."""
        now = asyncio.get_running_loop().time()
        return [peer for peer in peers if not self._membership.is_silent(peer, now)]

    def look_for_late(self, now: float, is_stalled: IsStalled = lambda: False) -> float:
        """Gives up on holders that are late. Returns the loop time at which more may be."""
        is_silent = functools.partial(self._membership.is_silent, now=now)
        due = self.custody.look_for_late(now, self.rival_seconds, is_silent, is_stalled)
        return due if due == math.inf else min(due, now + SILENCE_LOOK_SECONDS)

    def rival_seconds(self, holder: PeerId) -> float | None:
        """Seconds per microbatch of the fastest idle replica of the next stage besides a holder, if there is one of
        which that is known.
        """
        idle = [
            card.peer
            for card in self._membership.admitting(self._next)
            if card.peer != holder and card.in_flight == 0 and self.router.outstanding(card.peer) == 0
        ]
        return min((self.router.seconds(peer) for peer in idle if self.router.knows(peer)), default=None)

    async def locate(self, key: HopId, stage: int, among: tuple[PeerId, ...] | None = None) -> PeerId | None:
        """The replica of a stage (one `among` these, if given) that has this hop already, if any says so. Nobody waits
        for those that are silent, or believes those that let hops wait for ever.
        """
        now = asyncio.get_running_loop().time()
        replicas = [card.peer for card in self._membership.stage(stage) if not self.custody.is_mute(card.peer, now)]
        asked = [peer for peer in self._speaking(replicas) if among is None or peer in among]
        answers = await self._links.tell_all(asked, Locate(*key, stage), deadline_s=LOCATE_SECONDS)
        return next((peer for peer, located in answers.items() if located.here), None)

    # ---------------------------------------------------------------------------------------------- sending again

    def peer_lost(self, peer: PeerId, heir: PeerId = "") -> None:
        """Gives the hops of a lost peer to other replicas: those that it holds, and those that it had answered, since
        they were in its sum.

        With an `heir` the answered ones are in the heir's sum, and go elsewhere only if the heir is lost, too. A peer
        that is cut off from most of its neighbours sends no answered hop again: it is more likely that their sums are
        fine, and if one isn't the round asks for what it lacks.
        """
        self.custody.disconnected(peer)
        self.router.drop(peer)
        self._full.discard(peer)
        for _, retained in self.retention.answered_by(peer):
            if heir:
                retained.holder = heir
            elif not self._is_cut_off():
                self.send_again(retained)
        self._changed.notify()

    def _is_cut_off(self) -> bool:
        stages = range(max(0, self._next - 2), self._next + 1)  # one's own is `_next` - 1
        if self._history.record is None:
            return False
        near = [peer for entry in self._history.record.stages if entry.stage in stages for peer in entry.members]
        return not reaches_half(self._membership, near, asyncio.get_running_loop().time())

    def send_again(self, retained: Retained) -> None:
        """Sends an answered hop once more, so that its index is in the next stage's sum after all."""
        if not retained.sending:
            self._begin_again(retained)
            self._tasks.start(self._repair(retained))

    def _begin_again(self, retained: Retained) -> None:
        retained.sending, retained.answered = True, False
        retained.hop = sent_again(retained.hop)

    async def _repair(self, retained: Retained) -> None:
        try:
            await self.pass_on(retained)
        except HopForgotten as trouble:
            log.info("hop (%d, %d) is not sent again: %s", retained.hop.step, retained.hop.index, trouble)

    def bring_to(self, key: HopId, members: tuple[PeerId, ...]) -> bool:
        """A round lacks this index: it goes to one of the members whose sums count. False if nothing of it is
        retained here.
        """
        self._members[key] = members
        retained = self.retention.retained(key)
        if retained is None:
            return False
        if not retained.sending:
            self.send_again(retained)
        elif retained.holder and retained.holder not in members:
            self.custody.give_up(key, "its sum doesn't count in this round")
        return True

    async def bring_anew(self, key: HopId, hop: Hop, members: tuple[PeerId, ...]) -> None:
        """Brings a message that was evicted and is computed again; returns once it is answered, or over."""
        if self.bring_to(key, members) or key.step <= self._history.version:
            return
        retained = self.retention.keep(key, hop)
        self._begin_again(retained)
        await self._repair(retained)

    async def _answer_room(self, holder: PeerId, room: Room) -> Ack:
        self.peer_has_room(holder)
        return Ack()

    def peer_has_room(self, peer: PeerId) -> None:
        """A replica of the next stage takes hops again."""
        self._full.discard(peer)
        self.router.lift(peer)
        self._changed.notify()

    def end_step(self, step: int) -> None:
        self.retention.end_step(step)
        self.custody.end_step(step)
        self._members = {key: members for key, members in self._members.items() if key.step > step}
        self._doubted = {key: peer for key, peer in self._doubted.items() if key.step > step}


def sent_again(hop: Hop) -> Hop:
    """The same hop with again=True: its holder first asks the stage after which replica already has this index."""
    return dataclasses.replace(hop, again=True)
