"""Averaged gradients as their owners encoded them: parts of the present step, and whole ones of the newest steps.

A part is kept as soon as it is there, because a round that begins again needn't average it again. Until the step
commits a peer may hold several whole gradients of it, since any of them may be the one that the record names.
"""

import asyncio
import hashlib
from collections import OrderedDict

from swarmd.swarm.wire.messages.round import AveragedPart, Part
from swarmd.values import Encoded

CANDIDATES = 4  # whole gradients of the present step: one per attempt that succeeded here and led to no report

Whole = tuple[Encoded, ...]


def part_digest(data: Encoded) -> str:
    """Names an averaged part by its bytes."""
    digest = hashlib.blake2b(f"{data.codec}{data.shape}".encode(), digest_size=16)
    for piece in data.data:
        digest.update(piece)
    return digest.hexdigest()


class AveragedGradients:
    """The parts and whole gradients of its stage that this peer holds."""

    def __init__(self, steps: int) -> None:
        self._steps = steps  # so many committed gradients are kept for those who come late
        self._step = 0  # the present one
        self._parts: dict[tuple[int, int], dict[int, Encoded]] = {}  # borders -> versions, by number
        self._digests: dict[tuple[int, int, int], str] = {}
        self._wholes: OrderedDict[int, OrderedDict[str, Whole]] = OrderedDict()  # step -> digest -> its parts

    # ---------------------------------------------------------------------------------------------- parts

    def keep(self, step: int, part: Part, data: Encoded) -> None:
        """An averaged part of the present step, of sums that together had every index once."""
        if step < self._step:
            return
        if step > self._step:
            self.forget_parts()
            self._step = step
        versions = self._parts.setdefault((part.start, part.stop), {})
        if all(data is not other for other in versions.values()) and len(versions) < CANDIDATES:
            versions[len(versions)] = data

    async def parts(self, step: int) -> tuple[AveragedPart, ...]:
        """Every part that is here, by its bytes' name; named only when somebody asks, as a round seldom begins
        again.
        """
        if step != self._step:
            return ()
        for start, stop in list(self._parts):
            for number, data in list(self._parts.get((start, stop), {}).items()):
                if (start, stop, number) not in self._digests:
                    self._digests[start, stop, number] = part_digest(data)
                    await asyncio.sleep(0)
        return tuple(AveragedPart(start, stop, digest) for (start, stop, _), digest in sorted(self._digests.items()))

    async def find(self, step: int, part: Part) -> Encoded | None:
        """The bytes of a part that a plan names by its digest."""
        await self.parts(step)
        if step == self._step:
            for number, data in self._parts.get((part.start, part.stop), {}).items():
                if self._digests.get((part.start, part.stop, number)) == part.digest:
                    return data
        return None

    def forget_parts(self) -> None:
        self._parts.clear()
        self._digests.clear()

    # ---------------------------------------------------------------------------------------------- whole gradients

    def add(self, step: int, digest: str, whole: Whole) -> None:
        """A whole gradient, which may become the step's."""
        known = self._wholes.setdefault(step, OrderedDict())
        known[digest] = whole
        known.move_to_end(digest)
        while len(known) > CANDIDATES:
            known.popitem(last=False)
        while len(self._wholes) > self._steps:
            self._wholes.popitem(last=False)

    def has(self, step: int) -> bool:
        """True if any whole gradient of a step is here."""
        return step in self._wholes

    def counts(self) -> dict[int, int]:
        """Number of whole gradients of each step."""
        return {step: len(known) for step, known in self._wholes.items()}

    def whole(self, step: int, digest: str) -> Whole | None:
        return self._wholes.get(step, OrderedDict()).get(digest)

    def abandon(self, version: int) -> None:
        """The state was replaced: what was averaged for later steps belongs to another history."""
        self.forget_parts()
        self._step = version + 1
        for step in [step for step in self._wholes if step > version]:
            del self._wholes[step]

    def end_step(self, step: int, digest: str) -> None:
        """The step has committed with this gradient: no other is asked for again."""
        if step >= self._step:
            self.forget_parts()
            self._step = step + 1
        whole = self.whole(step, digest)
        self._wholes.pop(step, None)
        if whole is not None:
            self.add(step, digest, whole)
