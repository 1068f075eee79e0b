"""A peer that drains hands its sum of the present step, with the indices in it, to one replica of its stage.

The sum goes in slices, so that rounds and frames stay as they are; with the last slice the replica adds all of them
at once, on its device, or nothing. While that answer is awaited the giver tells no leader what it has. Afterwards
exactly one of the two says that it has these indices; when the answer is lost both may, and the round's leader has one
of them subtract, as always. A frozen sum is neither given nor taken: its round has counted on it.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from swarmd.errors import NO_ANSWER, NonFinite, PeerFault, PeerUnreachable, Refused
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.membership.states import STAYING
from swarmd.swarm.rounds.exchange import unless_over
from swarmd.swarm.tasks import joined, start_shared
from swarmd.swarm.wire.messages.common import check_stage, from_ranges, to_ranges
from swarmd.swarm.wire.messages.drain import HandOver, SumTaken
from swarmd.swarm.wire.messages.fields import PEERS_LIMIT, Ranges
from swarmd.values import Encoded, PeerId, short

log = logging.getLogger(__name__)

SLICE_ELEMENTS = 4 << 20  # 16 MB of fp32: far below the limit of a frame
LAST_ELEMENTS = 16 << 10  # at most in the last one, so that its answer comes soon on any line
BYTES_PER_ELEMENT = 8  # at most, whatever the codec
SLICE_SECONDS = 60.0  # for one slice on a slow link
LAST_SECONDS = 4.0  # for the last one, while this peer tells no leader what it has: less than a leader's patience
LAST_TRIES = 2
VERSION_WAIT_SECONDS = 10.0
CODEC = "fp32"  # of the slices: a sum is handed over as it is


@dataclass(frozen=True)
class Estate:
    """The description of a sum that is handed over: all but its numbers."""

    step: int
    indices: Ranges
    spoiled: Ranges
    loss_sum: float
    resent: int
    subtracted: int


@dataclass
class Incoming:
    """An estate on its way here."""

    estate: Estate
    slices: list[Encoded] = field(default_factory=list)
    elements: int = 0


class HandOvers:
    """This peer's sum on its way to another, and those of others on their way here."""

    def __init__(self, context: StageContext, completed: Callable[[Iterable[int]], None]) -> None:
        peer = context.peer
        self._run, self._links, self._membership, self._history = peer.run, peer.links, peer.membership, peer.history
        self._sums, self._hops, self._compute, self._stage = context.sums, context.hops, context.compute, context.stage
        self._closed, self._handouts = False, peer.handouts
        self._completed = completed  # hears of indices that came here so: a head reports them
        self._incoming: dict[PeerId, Incoming] = {}  # one at a time: each may be as large as the stage's gradient
        self._taken: dict[PeerId, Estate] = {}  # of the present step
        self._taking: dict[asyncio.Task[None], tuple[PeerId, Estate]] = {}
        self.unsure: PeerId = ""  # has all of this peer's sum, and may have taken it: its answer is lost, or to come
        context.scope.handle(HandOver, self._answer)

    # ---------------------------------------------------------------------------------------------- giving

    async def give(self, siblings: Sequence[PeerId]) -> PeerId:
        """Hands this peer's sum to one of the siblings: who has it now, "" if nobody took it. Nothing may be on its
        way into the sum.
        """
        if self.unsure in siblings:  # the same one again, or two may have it
            siblings = [self.unsure]
        for sibling in siblings:
            try:
                if await self._give_to(sibling):
                    return sibling
            except (*NO_ANSWER, MemoryError) as trouble:
                log.info("%s doesn't take this peer's sum: %s", short(sibling), trouble)
            if self.unsure == sibling:
                break
        return ""

    def _estate(self, step: int) -> Estate:
        it = self._sums.of(step)
        return Estate(step, to_ranges(it.accumulated), to_ranges(it.spoiled), it.loss_sum, it.resent, it.subtracted)

    async def _give_to(self, sibling: PeerId) -> bool:
        step, size = self._history.version + 1, self._compute.gradient_size
        estate = self._estate(step)
        slices = cut(size)
        for start, stop in slices[:-1] if self.unsure != sibling else ():
            await self._send(sibling, estate, start, stop, SLICE_SECONDS)
        async with self._sums.lock:  # until the answer is here, nobody may read what is in the sum
            same = self._history.version + 1 == step and self._estate(step) == estate and not self._hops.busy
            if not same or self._sums.is_frozen(step):
                raise Refused("the sum has changed meanwhile, or is frozen")
            if not await self._send_last(sibling, estate, *slices[-1]):
                raise Refused("it has forgotten the first slices")
            self.unsure = ""
            self._sums.forget(step)
        log.info("step %d: %s has this peer's sum", step, short(sibling))
        return True

    async def _send_last(self, sibling: PeerId, estate: Estate, start: int, stop: int) -> bool:
        """Asks again if the answer is lost. Raises like `Links.ask`; then it may be there or not."""
        self.unsure = sibling
        for left in reversed(range(LAST_TRIES)):
            try:
                return await self._send(sibling, estate, start, stop, LAST_SECONDS / LAST_TRIES)
            except (PeerUnreachable, TimeoutError):
                if not left:
                    raise
            except (Refused, PeerFault, MemoryError):
                self.unsure = ""
                raise
        raise AssertionError("the last try returns or raises")

    def _sources(self, estate: Estate) -> tuple[PeerId, ...]:
        """Those who gave this peer what is in its sum."""
        indices = from_ranges(estate.indices, self._run.microbatches)
        sources = {self._handouts.source(estate.step, self._stage, index) for index in indices}
        return tuple(sorted(sources - {""}))[:PEERS_LIMIT]

    async def _send(self, sibling: PeerId, estate: Estate, start: int, stop: int, seconds: float) -> bool:
        """Sends one slice. Whether the whole has been taken."""
        try:
            with unless_over(estate.step):
                data = await self._compute.contribution(estate.step, start, stop, codec=CODEC)
        except NonFinite as trouble:
            raise Refused(f"this peer's sum can't be handed over: {trouble}") from None
        message = HandOver(
            estate.step,
            self._history.record_hash,
            self._stage,
            start,
            stop,
            data,
            estate.indices,
            estate.spoiled,
            estate.loss_sum,
            estate.resent,
            estate.subtracted,
            self._sources(estate),
        )
        answer = await self._links.ask(sibling, message, deadline_s=seconds, urgency="bulk")
        return answer.whole

    # ---------------------------------------------------------------------------------------------- taking

    async def _answer(self, giver: PeerId, message: HandOver) -> SumTaken:
        check_stage(message.stage, self._stage)
        await self._history.await_version(message.step - 1, message.record_hash, giver, VERSION_WAIT_SECONDS)
        estate = Estate(
            message.step, message.indices, message.spoiled, message.loss_sum, message.resent, message.subtracted
        )
        if self._taken.get(giver) == estate:  # it hasn't had the answer
            return SumTaken(True)
        for task, taking in self._taking.items():
            if taking == (giver, estate):  # the device takes its time
                return await self._taken_by(task)
        self._check(estate)
        incoming = self._collect(giver, estate, message)
        if incoming.elements < self._compute.gradient_size:
            return SumTaken(False)
        del self._incoming[giver]
        # A task of its own: once the device has begun, the sum must hear of its end, also if the giver is lost.
        task = start_shared(self._absorb(giver, incoming), f"take over from {short(giver)}")
        self._taking[task] = giver, estate
        task.add_done_callback(self._taking.pop)
        return await self._taken_by(task)

    async def _taken_by(self, task: "asyncio.Task[None]") -> SumTaken:
        """Once that has ended. Raises like `_absorb`, and Refused if it was called off."""
        await joined(task, Refused("the step is over"))
        return SumTaken(True)

    def _check(self, estate: Estate) -> None:
        """Raises Refused unless the sum can be taken as things are."""
        step, limit = estate.step, self._run.microbatches
        if self._membership.own.state not in STAYING or self._closed:
            raise Refused(f"this peer is {self._membership.own.state} itself")
        if self._sums.is_frozen(step):
            raise Refused("the sum is frozen")
        theirs = {*from_ranges(estate.indices, limit), *from_ranges(estate.spoiled, limit)}
        if both := theirs & {*self._sums.of(step).done, *self._hops.indices(step)}:
            raise Refused(f"{len(both)} of these microbatches are here already")

    def _collect(self, giver: PeerId, estate: Estate, message: HandOver) -> Incoming:
        """Keeps a slice. They come one after another. Raises Refused, PeerFault."""
        for other in [peer for peer in self._incoming if peer != giver and not self._membership.is_live(peer)]:
            del self._incoming[other]
        if any(peer != giver for peer in self._incoming):
            raise Refused("another peer hands its sum over")
        length, size = message.stop - message.start, self._compute.gradient_size
        if message.start == 0:
            self._incoming[giver] = Incoming(estate)
        incoming = self._incoming.get(giver)
        if incoming is None or incoming.estate != estate or message.start != incoming.elements:
            self._incoming.pop(giver, None)
            raise Refused("that is not the next slice; begin again")
        if not 0 < length <= SLICE_ELEMENTS or message.stop > size:
            raise PeerFault(f"a slice from {message.start} to {message.stop} of {size} elements")
        if message.data.nbytes > BYTES_PER_ELEMENT * length + BYTES_PER_ELEMENT:
            raise PeerFault(f"{message.data.nbytes} bytes came for {length} elements")
        incoming.slices.append(message.data)
        incoming.elements = message.stop
        return incoming

    async def _absorb(self, giver: PeerId, incoming: Incoming) -> None:
        """Adds a whole sum to this peer's, or nothing. Raises Refused, PeerFault, MemoryError."""
        estate, limit = incoming.estate, self._run.microbatches
        async with self._sums.lock:
            if self._history.version + 1 != estate.step:
                raise Refused(f"step {estate.step} is over")
            self._check(estate)
            indices = from_ranges(estate.indices, limit)
            with unless_over(estate.step):
                taken = await self._compute.absorb(estate.step, indices, incoming.slices)
            # No other coroutine may run between the device's word and this: a freeze reads what is in the sum.
            if not taken:
                raise Refused("the sum has some of these microbatches, or is frozen")
            self._sums.of(estate.step).inherit(
                indices, from_ranges(estate.spoiled, limit), estate.loss_sum, estate.resent, estate.subtracted
            )
            self._taken[giver] = estate
        log.info("step %d: %d microbatches taken over from %s", estate.step, len(indices), short(giver))
        self._completed([*indices, *from_ranges(estate.spoiled, limit)])
        self._sums.changed.notify()

    # ---------------------------------------------------------------------------------------------- the end

    def end_step(self) -> None:
        """The step is over: what is on its way belongs to no sum any more."""
        self._incoming.clear()
        self._taken.clear()
        self.unsure = ""

    def close(self) -> None:
        """Ends what is under way."""
        self._closed = True
        self.end_step()
        for task in self._taking:
            task.cancel()


def cut(size: int) -> list[tuple[int, int]]:
    """The slices of a sum of so many elements; the last one is short."""
    borders = [*range(0, max(0, size - LAST_ELEMENTS), SLICE_ELEMENTS), max(0, size - LAST_ELEMENTS), size]
    return [(start, stop) for start, stop in itertools.pairwise(borders) if stop > start]
