"""Leases of a step, as its conductor gives them: heads ask for microbatches, and say what they have finished.

`leases.py` keeps the account. The microbatches of a head that is lost or silent are given again, and so are late ones
when nothing else is left. A conductor that takes over hears every head out before it gives anything.
"""

import asyncio
import logging
import math

from swarmd.errors import Refused
from swarmd.swarm.history.ballots import Alone
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.membership.reach import count_heads
from swarmd.swarm.membership.rhythm import Pulse
from swarmd.swarm.membership.states import ADMITTING, AT_WORK
from swarmd.swarm.signals import Signal
from swarmd.swarm.steps.leases import Leases
from swarmd.swarm.steps.succession import Succession
from swarmd.swarm.wire.messages.common import from_ranges, to_ranges
from swarmd.swarm.wire.messages.fields import SECONDS_LIMIT
from swarmd.swarm.wire.messages.hop import NOBODY, Blame
from swarmd.swarm.wire.messages.step import AskLease, Lease, Revoke
from swarmd.values import HopId, PeerId, short

log = logging.getLogger(__name__)

LEASE_POLL_SECONDS = 5.0  # a head that asks when nothing is free is answered after this at the latest
HEARING_SECONDS = 4.0  # a new conductor waits so long for every head to say what it holds
VERSION_WAIT_SECONDS = 30.0
START_SECONDS = 2.0  # a head may ask before the conductor has noticed that it comes first
LATE_LOOK_SECONDS = 1.0  # between two looks at whether a lease is late enough to be given to a head that waits
REVOKE_SECONDS = 5.0
PACE_SHARE = 0.25  # of a step that must be done before its own pace counts
HORIZON_FLOOR_SECONDS = 0.001  # 0 would mean unknown
RATE_FLOOR = 1e-9  # microbatches a second: a record's seconds are its conductor's word


def plan_horizon_s(leases: Leases, elapsed_s: float, last_step_s: float) -> float:
    """Seconds until the last index is given: at the pace since the first lease, `elapsed_s` ago, or, as long as that
    says little, at the last step's. Either is 0 when it is unknown, and so is the result.
    """
    if elapsed_s > 0 and leases.completed >= leases.microbatches * PACE_SHARE:
        rate = leases.completed / elapsed_s
    elif last_step_s > 0:
        rate = leases.microbatches / last_step_s
    else:
        return 0.0
    return min(max(HORIZON_FLOOR_SECONDS, leases.free / max(rate, RATE_FLOOR)), SECONDS_LIMIT)


class LeaseDesk:
    """The leases of the step that this peer leads; closed while it leads none."""

    def __init__(self, context: PeerContext, succession: Succession) -> None:
        self._run, self._links, self._membership = context.run, context.links, context.membership
        self._history, self._tasks, self._succession = context.history, context.tasks, succession
        self._handouts = context.handouts
        self._leases: Leases | None = None
        self.step = 0  # the one that it was opened for last
        self.began: float | None = None  # loop time of the step's first lease
        self._hearing_until = 0.0
        self._progress = Signal()
        self._pulses: dict[PeerId, Pulse] = {}  # of heads, as they ask
        self._unheeded = Alone()  # while heads are there and don't ask
        self._blames: dict[PeerId, Blame] = {}  # by head: of indices that are done, but with numbers that aren't finite
        self._links.handle(AskLease, self._answer)

    def open(self, step: int, *, again: bool) -> None:
        """Gives leases of a step from now on. `again`: another conductor has given some before."""
        if again:
            self._hearing_until = asyncio.get_running_loop().time() + HEARING_SECONDS
        self._pulses, self.step, self._leases = {}, step, Leases(self._run.microbatches, again=again)
        self.began, self._blames = None, {}
        self._progress.notify()

    def close(self) -> None:
        """Gives no more leases: this peer leads the step no longer."""
        self._leases = None

    @property
    def completed(self) -> int | None:
        """Microbatches of the present step that are done, if this peer leads it."""
        return self._leases.completed if self._leases is not None else None

    @property
    def all_done(self) -> bool:
        """True while this peer leads a step whose indices are all done."""
        return self._leases is not None and self._leases.done

    @property
    def blame(self) -> Blame:
        """The first number that isn't finite, of those that heads told of."""
        return next(iter(self._blames.values()), NOBODY)

    async def until_all_done(self) -> None:
        """Waits until the heads have finished all indices."""
        await self._progress.until(lambda: self.all_done)

    async def leases_of(self, step: int, record_hash: str, asker: PeerId) -> Leases:
        """The leases of a step that someone asks about. Raises Refused if this peer doesn't lead it."""
        await self._history.await_version(step - 1, record_hash, asker, VERSION_WAIT_SECONDS)
        leading = await self._progress.until(lambda: self._leases is not None and self.step == step, START_SECONDS)
        if self._leases is None or not leading:
            raise Refused(f"this peer doesn't lead step {step}")
        return self._leases

    def leased_to(self, head: PeerId) -> set[HopId]:
        """The microbatches that a head has yet to finish."""
        return {HopId(self.step, index) for index in self._leases.held_by(head)} if self._leases else set()

    # ---------------------------------------------------------------------------------------------- heads

    async def _answer(self, head: PeerId, ask: AskLease) -> Lease:
        leases = await self.leases_of(ask.step, ask.record_hash, head)
        card = self._membership.get(head)
        if card is None:  # what is kept of heads is bounded as the membership is
            raise Refused("this peer doesn't know you any more")
        if card.state == "left":  # its sum goes with it: an index that it is believed to have is nobody's
            raise Refused("a peer that has said goodbye gets no leases")
        self._take_in(head, ask, leases)
        if ask.want <= 0:
            return Lease(ask.step, (), False)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LEASE_POLL_SECONDS
        while self._leases is leases and loop.time() < deadline:
            if self._may_give():
                horizon = self._horizon_s(leases)
                heads = count_heads(self._membership)
                indices, again = leases.give(head, ask.want, heads, loop.time(), horizon or math.inf)
                if indices:
                    self._handouts.give(ask.step, 0, indices, head)
                    self.began = self.began or loop.time()
                    return Lease(ask.step, to_ranges(indices), again, horizon)
            await self._progress.wait(min(LATE_LOOK_SECONDS, deadline - loop.time()))
        return Lease(ask.step, (), False)

    def _take_in(self, head: PeerId, ask: AskLease, leases: Leases) -> None:
        """Notes what a head has finished, and revokes what others work on in vain."""
        now = asyncio.get_running_loop().time()
        claimed, away = (from_ranges(ranges, leases.microbatches) for ranges in (ask.leased, ask.passed_on))
        completed = self._borne_out(head, ask, from_ranges(ask.completed, leases.microbatches))
        if ask.blame and self._is_believed(head):  # and nothing of what can't be read
            self._blames.setdefault(head, ask.blame)
        held = self._borne_out(head, ask, claimed)
        if len(held) < len(claimed):  # of a conductor before this one: others get them
            self._tasks.start(self._revoke(head, Revoke(ask.step, to_ranges({*claimed} - {*held}))))
        before = leases.completed, leases.free
        for late, indices in leases.heard(head, completed, held, now, away).items():
            self._tasks.start(self._revoke(late, Revoke(ask.step, to_ranges(indices))))
        if head not in self._pulses or (leases.completed, leases.free) != before:  # nobody waits for a mere pulse
            self._progress.notify()
        self._pulses.setdefault(head, Pulse()).beat(now)

    def _is_believed(self, head: PeerId) -> bool:
        """Tells if a head's word is enough that numbers aren't finite. A newcomer's is where no other head is at work:
        else others compute its microbatches anew, as the round leaves it out, and find out. Before the first record
        only this peer's own is, as in the round.
        """
        if self._history.record is None:
            return head == self._membership.own.peer
        is_newcomer = self._history.chain.is_newcomer
        return not is_newcomer(head) or all(is_newcomer(card.peer) for card in self._membership.stage(0))

    def _borne_out(self, head: PeerId, ask: AskLease, indices: list[int]) -> list[int]:
        """Those of the indices that a head may have: a newcomer has what was given to it here, and nothing else."""
        if not self._history.chain.is_newcomer(head):
            return indices
        return self._handouts.given(ask.step, 0, indices, head)

    async def _revoke(self, head: PeerId, revoke: Revoke) -> None:
        """Tells a head at once: what it adds to its sum before it hears must be subtracted again."""
        await self._links.tell_all([head], revoke, deadline_s=REVOKE_SECONDS)

    def _horizon_s(self, leases: Leases) -> float:
        now, record = asyncio.get_running_loop().time(), self._history.record
        elapsed = max(1e-6, now - self.began) if self.began is not None else 0.0
        return plan_horizon_s(leases, elapsed, record.seconds if record is not None else 0.0)

    def _may_give(self) -> bool:
        """True unless a stage is empty, or the others may have another conductor by now, or, after a takeover, some
        head has yet to be heard.
        """
        now = asyncio.get_running_loop().time()
        if self._membership.missing_stages(self._run.model.stages) or self._succession.is_cut_off(now):
            return False
        if now >= self._hearing_until:
            return True
        speaking = self._succession.speaking(now)
        return {card.peer for card in speaking if card.stage == 0 and card.state in AT_WORK} <= self._pulses.keys()

    def sweep(self, now: float) -> float:
        """Gives leases of silent heads to others; a head is as quickly found silent as a holder of hops. It may follow
        another conductor, or not reach this one. What it has completed stays: it is in its sum. Returns the loop
        time at which more may be silent.
        """
        if self._leases is None:
            return math.inf
        for head in sorted(self._leases.holders()):
            pulse = self._pulses.get(head)
            if pulse is not None and pulse.silent(now) and (withdrawn := self._leases.withdraw(head)):
                log.info("head %s is silent: %d microbatches are given to others", short(head), len(withdrawn))
                self._progress.notify()
        return now

    def unheeded_s(self, now: float) -> float:
        """Seconds, without a break, for which heads were at work and none of them had asked for leases of the step that
        this peer leads: they follow somebody else.
        """
        unasked = self._leases is not None and not self._pulses
        there = unasked and any(it.stage == 0 and it.state in ADMITTING for it in self._succession.speaking(now))
        return self._unheeded.seconds(now, complete=there)

    def peer_lost(self, peer: PeerId, heir: PeerId = "") -> None:
        """Gives again what a head had that is gone; what it had finished only if no heir has it."""
        if self._leases is not None and (lost := self._leases.lose(peer, heir)):
            log.info("head %s is lost: %d microbatches of step %d are given again", short(peer), len(lost), self.step)
        if not heir:  # or its heir says the same
            self._blames.pop(peer, None)
        self._progress.notify()
