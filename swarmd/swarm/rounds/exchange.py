"""One attempt at averaging, as a peer takes part in it: its parts go to their owners, the averaged ones come back.

An owner collects a part's contributions, adds them in the plan's order, divides by the tokens, encodes, and answers
everyone with the same bytes. Averaged parts are kept even if the attempt fails.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from swarmd.errors import NO_ANSWER, NonFinite, PeerFault, Refused
from swarmd.swarm.fence import is_of_device
from swarmd.swarm.ports import Compute
from swarmd.swarm.rounds.averaged import AveragedGradients, part_digest
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import to_ranges
from swarmd.swarm.wire.messages.fields import Ranges
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.swarm.wire.messages.round import Averaged, Contribution, OpenPart, Part, Plan, Standing
from swarmd.values import Encoded, PeerId

EXCHANGE_SECONDS = 600.0  # for a part on a slow link; lost and silent peers end an attempt much sooner
PARTS_AT_ONCE = 4  # at least; bounds the memory and the bytes in flight of one member's exchange ...
PARTS_AT_ONCE_LIMIT = 32  # ... which is one part per owner, up to this many: 256 MB in fp16
NOTHING = Encoded("fp32", (0,), (b"",))


class Spoiled(Exception):
    """A number of the round isn't finite: there is nothing to be averaged."""

    def __init__(self, blame: Blame) -> None:
        super().__init__(blame.words())
        self.blame = blame


@dataclass
class Bucket:
    """An owner's collection of one part."""

    contributions: dict[PeerId, Encoded] = field(default_factory=dict)
    result: asyncio.Future[Averaged] | None = None
    reducing: asyncio.Task[None] | None = None

    def settle(self, result: Averaged) -> None:
        """Everyone gets this."""
        if self.result is not None and not self.result.done():
            self.result.set_result(result)

    def fail(self, why: str) -> None:
        """Tells those that wait for the result why there is none."""
        if self.result is not None and not self.result.done():
            self.result.set_exception(Refused(why))
            self.result.exception()  # nobody may be waiting for it


class Exchange:
    """The present attempt of a step's round."""

    def __init__(
        self, plan: Plan, own: PeerId, links: Links, compute: Compute, averaged: AveragedGradients, *, whole: bool
    ) -> None:
        self.plan, self._own, self._links, self._compute, self._averaged = plan, own, links, compute, averaged
        self.buckets: dict[int, Bucket] = {}
        self._has: set[int] = set()  # numbers of the parts whose averages are here
        self._whole = whole  # its sums have every index once: what is averaged needn't be averaged again

    def is_of(self, step: int, attempt: str) -> bool:
        """True if it is this attempt."""
        return (self.plan.step, self.plan.attempt) == (step, attempt)

    def standing(self) -> Standing:
        """The standing of this attempt here."""
        own = [number for number, part in enumerate(self.plan.parts) if part.owner == self._own and not part.digest]
        open_parts = [OpenPart(number, self._given(number)) for number in own if not self._is_averaged(number)]
        return Standing(self.plan.attempt, to_ranges(self._has), tuple(open_parts))

    def _is_averaged(self, number: int) -> bool:
        bucket = self.buckets.get(number)
        return bucket is not None and bucket.result is not None and bucket.result.done()

    def _given(self, number: int) -> Ranges:
        bucket = self.buckets.get(number)
        given = bucket.contributions if bucket is not None else {}
        return to_ranges(place for place, member in enumerate(self.plan.members) if member in given)

    # ---------------------------------------------------------------------------------------------- member

    async def take_part(self, check: Callable[[], None]) -> tuple[Encoded, ...]:
        """Sends every part to its owner and brings the averaged ones. `check` raises when the sum is another than the
        plan is for. Raises Refused when an owner fails, Spoiled.
        """
        pace = asyncio.Semaphore(plan_pace(self.plan.parts))

        async def one(number: int) -> Encoded:
            async with pace:
                averaged = await self._average(number, check)
                self._has.add(number)
                return averaged

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {number: group.create_task(one(number)) for number in plan_turns(self.plan.parts)}
        except* (Spoiled, *NO_ANSWER, MemoryError) as troubles:
            found = [trouble for trouble in troubles.exceptions if isinstance(trouble, Spoiled)]
            raise found[0] if found else Refused(f"an owner failed: {troubles.exceptions[0]}") from None
        return tuple(tasks[number].result() for number in sorted(tasks))

    async def _average(self, number: int, check: Callable[[], None]) -> Encoded:
        plan, part, data = self.plan, self.plan.parts[number], NOTHING
        if part.digest:
            if (here := await self._averaged.find(plan.step, part)) is not None:
                return here
        elif self._own in plan.members:
            check()
            data = await self._contribution(part)
        message = Contribution(plan.step, plan.attempt, number, data)
        answer = await self._links.ask(part.owner, message, deadline_s=EXCHANGE_SECONDS, urgency="bulk")
        if answer.blame:
            raise Spoiled(answer.blame)
        if part.digest and part_digest(answer.data) != part.digest:
            raise Refused(f"part {number} is not what its owner said it had")
        if self._whole:
            self._averaged.keep(plan.step, part, answer.data)
        return answer.data

    async def _contribution(self, part: Part) -> Encoded:
        """This peer's share of a part. Raises Refused, Spoiled."""
        plan = self.plan
        try:
            with unless_over(plan.step):
                return await self._compute.contribution(plan.step, part.start, part.stop, codec=plan.codec)
        except NonFinite as trouble:
            raise Spoiled(Blame(trouble.what, plan.stage, self._own)) from None

    # ---------------------------------------------------------------------------------------------- owner

    async def contribute(self, member: PeerId, contribution: Contribution) -> Averaged:
        """Collects a part; the last contribution sets off the reduction, and everyone gets its result."""
        plan, number = self.plan, contribution.part
        if not 0 <= number < len(plan.parts) or plan.parts[number].owner != self._own:
            raise PeerFault("that part has another owner")
        part = plan.parts[number]
        if part.digest:
            if (here := await self._averaged.find(plan.step, part)) is None:
                raise Refused("that part isn't here any more")
            return Averaged(here)
        bucket = self.buckets.setdefault(number, Bucket())
        if bucket.result is None:
            bucket.result = asyncio.get_running_loop().create_future()
        if member in plan.members and bucket.reducing is None:
            bucket.contributions[member] = contribution.data
        if len(bucket.contributions) == len(plan.members) and bucket.reducing is None:
            # A task of its own: everyone waits for it, also when the last to contribute is lost meanwhile.
            bucket.reducing = asyncio.create_task(self._reduce(number, bucket), name="reduce")
        return await asyncio.shield(bucket.result)

    async def _reduce(self, number: int, bucket: Bucket) -> None:
        """Adds a part's contributions in member order and divides by the tokens."""
        plan, part = self.plan, self.plan.parts[number]
        assert bucket.result is not None
        ordered = [bucket.contributions[peer] for peer in plan.members]
        try:
            if not ordered:  # nobody has anything: the gradient is zero
                ordered = [await self._contribution(part)]
            reduced = await self._compute.reduce(ordered, plan.tokens, codec=plan.codec)
        except (PeerFault, Refused, MemoryError) as trouble:
            bucket.fail(f"a part can't be reduced: {trouble}")
            return
        except (NonFinite, Spoiled) as trouble:
            bucket.settle(Averaged(NOTHING, self._blame(trouble)))
            return
        except Exception as trouble:  # noqa: BLE001 - everyone waits for this part: nobody may wait in vain
            if not is_of_device(trouble):
                self._links.fence.note("reducing a part", trouble)
            bucket.fail(f"a part can't be reduced: {type(trouble).__name__}")
            return
        bucket.contributions = dict.fromkeys(bucket.contributions, NOTHING)  # their bytes are done with
        if self._whole:
            self._averaged.keep(plan.step, part, reduced)
        bucket.settle(Averaged(reduced))

    def _blame(self, trouble: NonFinite | Spoiled) -> Blame:
        """For what can't be reduced: whose contribution is not finite, or this peer, at which only the sum isn't."""
        if isinstance(trouble, Spoiled):
            return trouble.blame
        members = self.plan.members
        known = trouble.source is not None and trouble.source < len(members)
        peer = members[trouble.source] if known and trouble.source is not None else self._own
        return Blame(trouble.what, self.plan.stage, peer)

    def end(self, why: str, *, over: bool = False) -> None:
        """Nobody waits here any more. What is being reduced may come to its end, unless the step is `over`: all its
        contributions were in, so it counts.
        """
        for bucket in self.buckets.values():
            bucket.fail(why)
            if over and bucket.reducing is not None:
                bucket.reducing.cancel()


def plan_turns(parts: Sequence[Part]) -> tuple[int, ...]:
    """The order in which every member goes through the parts: each owner's first, each owner's second, and so on.

    It must be the same everywhere, as a part waits for all. Owner by owner, all would send to one of them at a time,
    and the round would take as long as that one's link takes for everything.
    """
    seen: Counter[PeerId] = Counter()
    turns = []
    for number, part in enumerate(parts):
        turns.append((seen[part.owner], number))
        seen[part.owner] += 1
    return tuple(number for _, number in sorted(turns))


def plan_pace(parts: Sequence[Part]) -> int:
    """The number of parts that a member has under way: one for each owner, so that none is idle."""
    owners = len({part.owner for part in parts})
    return min(PARTS_AT_ONCE_LIMIT, max(PARTS_AT_ONCE, owners))


@contextlib.contextmanager
def unless_over(step: int) -> Iterator[None]:
    """The step may commit while a task of its round waits for the device, which then refuses it."""
    try:
        yield
    except KeyError:
        raise Refused(f"step {step} is over") from None
