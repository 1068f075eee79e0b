"""A head: takes leases from the conductor and sends their microbatches on their journeys.

Keeps just enough under way to feed the swarm, reports what is finished, and begins the next step when this one has
committed.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Iterable

from swarmd.errors import NO_ANSWER, HopForgotten, SwarmError
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.membership.reach import count_heads
from swarmd.swarm.ports import Data
from swarmd.swarm.signals import Signal
from swarmd.swarm.steps.conductor import Conductor
from swarmd.swarm.tasks import first_of
from swarmd.swarm.wire.messages.common import Ack, from_ranges, to_ranges
from swarmd.swarm.wire.messages.step import AskLease, Lease, Revoke
from swarmd.values import HopId, PeerId, short

log = logging.getLogger(__name__)

HOPS_PER_PEER = 2  # microbatches under way per peer of the swarm: one being computed, one on its way
SLOTS_FLOOR = 2
PULSE_SECONDS = 1.0  # a head with leases says so this often, as holders do: it is found silent as fast
LEASE_SECONDS = 60.0  # the conductor answers after a few seconds at most; this covers a wait for its version
FOLLOW_SECONDS = 1.0  # between looks at whether the one that was asked still leads
RETRY_SECONDS = 0.3


def plan_slots(peers: int, heads: int, limit: int, away_seconds: float, service_seconds: float) -> int:
    """The microbatches that a head keeps under way: its share of what keeps every peer busy, within its own limit.

    And no more than its own device can keep up with (Little's law): while one is away for `away_seconds`, the device
    does away_seconds / service_seconds others. So a slow head doesn't hoard what the others would finish sooner.
    """
    share = -(-HOPS_PER_PEER * peers // max(1, heads))
    if away_seconds > 0 and service_seconds > 0:
        share = min(share, SLOTS_FLOOR + math.ceil(away_seconds / service_seconds))
    return min(limit, max(SLOTS_FLOOR, share))


class Head:
    """This peer as a source of microbatches."""

    def __init__(self, context: StageContext, journeys: Journeys, conductor: Conductor, data: Data) -> None:
        peer = context.peer
        self._run, self._limits, self._links = peer.run, peer.limits, peer.links
        self._membership, self._history, self._sums = peer.membership, peer.history, context.sums
        self._handouts = peer.handouts
        self._journeys, self._conductor, self._data = journeys, conductor, data
        self._pool: deque[tuple[int, Lease]] = deque()
        self._running: dict[int, asyncio.Task[None]] = {}
        self._completed: set[int] = set()
        self._changed = Signal()
        self._retired = False
        context.scope.handle(Revoke, self._answer_revoke)

    @property
    def busy(self) -> bool:
        """True if anything of its leases is to be done."""
        return bool(self._pool or self._running)

    def inherit(self, indices: Iterable[int]) -> None:
        """Another head's sum is part of this one's: from now on this head reports what is in it."""
        self._completed.update(indices)
        self._changed.notify()

    def retire(self) -> None:
        """Gives up what isn't done yet, and begins nothing any more: the conductor gives it to others."""
        self._retired = True
        self._drop(self._history.version + 1, [*self._running, *(index for index, _ in self._pool)])

    def go_on(self) -> None:
        """Undoes `retire`."""
        self._retired = False
        self._changed.notify()

    async def run(self) -> None:
        """Trains step after step until the run is over."""
        while not self._history.finished:
            await self._train(self._history.version + 1)

    async def _train(self, step: int) -> None:
        self._pool.clear()
        self._completed = self._sums.of(step).done  # none, unless this begins the step for the second time
        await first_of(self._step(step), self._history.left(step))

    async def _step(self, step: int) -> None:
        """Runs until cancelled, which happens when the step has committed. Where this peer has no state of the version
        before, it takes no leases.
        """
        await self._history.changed.until(lambda: self._history.ready)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._fetch_leases(step))
                group.create_task(self._report(step))
                while True:
                    while self._pool and len(self._running) < self._slots():
                        index, lease = self._pool.popleft()
                        if index not in self._running and index not in self._completed:
                            self._running[index] = group.create_task(self._journey(HopId(step, index), lease))
                    await self._changed.wait()
        finally:
            self._running.clear()

    def _slots(self) -> int:
        peers, heads = self._membership.population(), count_heads(self._membership)
        away, service = self._journeys.custodian.custody.away_seconds, self._membership.own.service_seconds
        return plan_slots(peers, heads, self._limits.in_flight_hops, away, service)

    async def _journey(self, key: HopId, lease: Lease) -> None:
        """One microbatch, from its tokens to its place in this head's sum. A failed one is begun again.

        One that comes back after the sum was frozen is done with, too: the round has settled without it, and should
        it begin anew, its leader asks for whatever is missing.
        """
        step_sum, again = self._sums.of(key.step), lease.again
        while not step_sum.has(key.index):
            try:
                await self._send_off(key, lease, again=again)
                break
            except (SwarmError, MemoryError) as trouble:
                log.warning("microbatch %s starts anew: %s", tuple(key), trouble)
            if self._journeys.admission.resting:
                self._give_back(key)
                return
            again = True
            await asyncio.sleep(RETRY_SECONDS)
        self._completed.add(key.index)
        self._running.pop(key.index, None)
        self._changed.notify()
        self._sums.changed.notify()  # some wait until nothing is under way

    async def _send_off(self, key: HopId, lease: Lease, *, again: bool) -> None:
        """Has a microbatch make its journey. Raises SwarmError, MemoryError."""
        try:
            tokens = await self._data.microbatch(*key)
        except (SwarmError, MemoryError):
            raise
        except Exception as trouble:
            self._journeys.admission.fail_at(f"reading microbatch {tuple(key)}", trouble)
            raise HopForgotten("its tokens can't be read") from trouble
        await self._journeys.hops.undisturbed(key)
        await asyncio.shield(self._journeys.train(key, tokens, again=again, horizon_s=lease.horizon_s))

    def _give_back(self, key: HopId) -> None:
        """Too much fails here: what this head no longer says that it has, the conductor gives to others."""
        log.warning("microbatch %s is left to other heads: %s", tuple(key), self._journeys.admission.ailing.why)
        self._running.pop(key.index, None)
        self._pool.clear()
        self._changed.notify()

    # ---------------------------------------------------------------------------------------------- conductor

    async def _fetch_leases(self, step: int) -> None:
        while True:
            want = self._slots() - len(self._running) - len(self._pool)
            if want <= 0 or self._journeys.admission.paused or self._journeys.admission.resting:
                await self._changed.wait(PULSE_SECONDS)
                continue
            lease = await self._ask(step, want)
            if lease is not None and lease.indices and not self._retired:
                self._pool.extend((index, lease) for index in from_ranges(lease.indices, self._run.microbatches))
                self._changed.notify()

    async def _report(self, step: int) -> None:
        """Says what is finished, again to a new conductor; and, as a pulse, what is still under way."""
        told, pulse, loop = (0, ""), 0.0, asyncio.get_running_loop()
        while True:
            news = (len(self._completed), self._conductor.conductor_of(step))
            if (news != told and self._completed) or (self._running and loop.time() - pulse >= PULSE_SECONDS):
                pulse = loop.time()
                if await self._ask(step, 0) is not None:
                    told = news
                continue
            await self._changed.wait(PULSE_SECONDS)

    async def _ask(self, step: int, want: int) -> Lease | None:
        conductor = self._conductor.conductor_of(step)
        held = {*self._running, *(index for index, _ in self._pool)} - self._completed
        away = held & {key.index for key in self._journeys.custodian.custody.waiting() if key.step == step}
        blame = self._sums.of(step).blame
        question = AskLease(
            step, self._history.record_hash, want, to_ranges(self._completed), to_ranges(held), to_ranges(away), blame
        )
        asking = asyncio.ensure_future(self._links.ask(conductor, question, deadline_s=LEASE_SECONDS))
        try:
            while not (await asyncio.wait({asking}, timeout=FOLLOW_SECONDS))[0]:
                if self._conductor.conductor_of(step) != conductor:  # it is silent, and another leads by now
                    return None
            lease = asking.result()
            # Of indices that the run has, or it is no answer.
            self._handouts.take(step, 0, from_ranges(lease.indices, self._run.microbatches), conductor)
            return lease
        except NO_ANSWER as trouble:
            log.debug("no lease of step %d from %s: %s", step, short(conductor), trouble)
            await asyncio.sleep(RETRY_SECONDS)
            return None
        finally:
            asking.cancel()

    async def _answer_revoke(self, conductor: PeerId, revoke: Revoke) -> Ack:
        """Others were faster with these: what isn't in the sum yet needn't come there."""
        if revoke.step == self._history.version + 1:
            self._drop(revoke.step, from_ranges(revoke.indices, self._run.microbatches))
        return Ack()

    def _drop(self, step: int, indices: list[int]) -> None:
        for index in indices:
            if (journey := self._running.pop(index, None)) is not None:
                journey.cancel()
                self._journeys.give_up(HopId(step, index))
        self._pool = deque(it for it in self._pool if it[0] not in indices)
        self._changed.notify()
