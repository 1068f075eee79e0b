"""The gradient that a step's record names: assembled on the device, fetched where it is missing, kept for latecomers.

A round's attempts assemble what may become it (`member.py`); peers that took no part, or came late, ask for it after
the commit. What doesn't have the digest that the record names is never applied.
"""

import asyncio
import logging
import math
from typing import NoReturn

from swarmd.errors import NO_ANSWER, NonFinite, PeerFault, Refused
from swarmd.swarm.history.record import Record, StageEntry
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.rounds.averaged import AveragedGradients, Whole
from swarmd.swarm.rounds.exchange import unless_over
from swarmd.swarm.tasks import first_of
from swarmd.swarm.wire.messages.commit import AskGradient, GradientPart
from swarmd.values import Encoded, PeerId, short

log = logging.getLogger(__name__)

NORM_TOLERANCE = (
    1e-6  # relative: devices add the same squares in fp64 in another order; 1e10 of them are 1e-6 off at most
)
GRADIENT_SECONDS = 120.0  # for one part of a committed gradient
SILENT_SECONDS = 2.0  # between looks if the peer that was asked for one is silent


class Malformed(Refused):
    """A part came that is none."""


class CommittedGradients:
    """The whole gradients of this peer's stage."""

    def __init__(self, context: StageContext, averaged: AveragedGradients) -> None:
        self._links, self._membership, self._averaged = context.peer.links, context.peer.membership, averaged
        self._compute, self._stage = context.compute, context.stage
        self._offered: dict[int, tuple[str, Whole]] = {}  # step -> digest and parts, brought by `hold` and not checked
        self._assembled = (0, "")  # step and digest of what the device would apply
        self._norms: dict[str, tuple[int, float]] = {}  # digest of what was assembled for a step -> step, squared norm
        self._false: tuple[str, set[PeerId]] = "", set()  # a digest, and who gave something else for it
        self._spoiled = 0  # the newest step of which this peer was told in a round that there is no gradient
        self._decided = 0  # the step whose record is being applied: no attempt may replace its gradient any more
        context.scope.handle(AskGradient, self._answer_gradient)

    def has(self, step: int) -> bool:
        """True if a whole gradient of a step is here."""
        return self._assembled[0] == step or self._averaged.has(step)

    def is_decided(self, step: int) -> bool:
        """True if the step's record is being applied."""
        return self._decided == step

    async def assemble(self, step: int, averaged: Whole) -> tuple[str, float]:
        """Has the device put averaged parts together. Returns the gradient's digest and squared norm. Raises Refused,
        NonFinite.
        """
        self._assembled = (0, "")
        try:
            with unless_over(step):
                summary = await self._compute.assemble(step, averaged)
        except PeerFault as fault:  # an owner's, not the leader's
            self._averaged.forget_parts()  # or the next attempt would begin with the same bytes
            raise Malformed(f"an averaged part is malformed: {fault}") from None
        except MemoryError:
            raise Refused("this peer has no memory for the gradient") from None
        self._assembled = (step, summary.digest)
        self._norms = {digest: it for digest, it in self._norms.items() if it[0] == step}
        self._norms[summary.digest] = step, summary.squared_norm
        return summary.digest, summary.squared_norm

    def objection(self, record: Record) -> str:
        """A sentence if a record doesn't fit the gradient that it names, as it was assembled here; "" if it does."""
        norm = self._norm_of(record)
        if norm is None or self._has_norm(record, norm):
            return ""
        if self._decided == record.step:  # another record may still come
            self._decided = 0
        return (
            f"the squared norm of stage {self._stage} is {norm:.6g}, not {record.stages[self._stage].squared_norm:.6g}"
        )

    def _norm_of(self, record: Record) -> float | None:
        """The squared norm of the gradient that a record names, if it was assembled here for this step; else None."""
        step, norm = self._norms.get(record.stages[self._stage].digest, (0, 0.0))
        return norm if step == record.step and not record.skipped else None

    def _has_norm(self, record: Record, norm: float) -> bool:
        return math.isclose(norm, record.stages[self._stage].squared_norm, rel_tol=NORM_TOLERANCE)

    def spoil(self, step: int) -> None:
        """A round of this peer's has found that a step has no finite gradient."""
        self._spoiled = step

    def bears_out(self, record: Record) -> bool:
        """True if a record names the gradient of this stage that was assembled here, with its norm; of a step that is
        skipped, if this peer was told in a round that there is none.
        """
        if record.skipped:
            return self._spoiled == record.step
        norm = self._norm_of(record)
        return norm is not None and self._has_norm(record, norm)

    # ---------------------------------------------------------------------------------------------- having it

    def hold(self, step: int, digest: str, parts: Whole) -> None:
        """Keeps the averaged parts of a committed step that is still to be applied here, for `gather` to assemble."""
        self._offered[step] = (digest, parts)

    async def gather(self, record: Record) -> bool:
        """Makes sure that the gradient a record names is assembled, fetching it from a holder if need be. Who gave
        something else for it isn't asked again.
        """
        entry = record.stages[self._stage]
        self._decided = record.step
        if self._false[0] != entry.digest:
            self._false = entry.digest, set()
        if await self._is_here(record.step, entry.digest):
            return True
        offered, brought = self._offered.pop(record.step, ("", ()))
        if offered == entry.digest and await self._adopt(record.step, offered, brought):
            return True
        for source in self._givers(entry):
            if await self._fetch(record.step, entry.digest, source):
                return True
        if await self._is_here(record.step, entry.digest):  # the round's end came later than its record
            return True
        if false := self._false[1]:
            said = "of step %d no peer gives the gradient that its record names; something else came from %s"
            log.warning(said, record.step, ", ".join(short(peer) for peer in sorted(false)))
        return False

    async def _is_here(self, step: int, digest: str) -> bool:
        """True if this peer's own round has brought a gradient, which is assembled then."""
        here = self._averaged.whole(step, digest)
        if here is None:
            return False
        return self._assembled == (step, digest) or await self._adopt(step, digest, here)

    def _givers(self, entry: StageEntry) -> list[PeerId]:
        """The peers that may give the gradient of a record: holders before others, the living before the dead."""
        live = [card.peer for card in self._membership.stage(self._stage)]
        sources = [*entry.holders, *(peer for peer in live if peer not in entry.holders)]
        left_out, now = {self._membership.own.peer, *self._false[1]}, asyncio.get_running_loop().time()
        return sorted(
            (peer for peer in sources if peer not in left_out),
            key=lambda peer: (peer not in live, self._membership.is_silent(peer, now)),
        )

    async def _fetch(self, step: int, digest: str, source: PeerId) -> bool:
        """Fetches a committed gradient from one holder."""
        try:
            averaged = await self._bring(step, digest, source)
        except NO_ANSWER as trouble:
            log.info("no gradient of step %d from %s: %s", step, short(source), trouble)
            return False
        return await self._adopt(step, digest, averaged, source)

    async def _silence_of(self, source: PeerId) -> NoReturn:
        """Raises TimeoutError when nothing is heard of a peer: the next record waits for this one, and a run may end
        meanwhile.
        """
        while True:
            await asyncio.sleep(SILENT_SECONDS)  # before the first look, too: who was silent so far may yet answer
            if self._membership.is_silent(source, asyncio.get_running_loop().time()):
                raise TimeoutError(f"nothing was heard of {short(source)} for a while")

    async def _bring(self, step: int, digest: str, source: PeerId) -> Whole:
        """All parts of a gradient, as one peer gives them. Raises like `Links.ask`."""
        averaged: list[Encoded] = []
        parts = 1
        while len(averaged) < parts:
            question = AskGradient(step, digest, len(averaged))
            ask = self._links.ask(source, question, deadline_s=GRADIENT_SECONDS, urgency="bulk")
            answer = await first_of(ask, self._silence_of(source))
            if averaged and answer.parts != parts:
                raise PeerFault(f"it says that the gradient has {answer.parts} parts")
            parts = answer.parts
            averaged.append(answer.data)
        return tuple(averaged)

    async def _adopt(self, step: int, digest: str, averaged: Whole, source: PeerId = "") -> bool:
        """Assembles a committed gradient, which `source` gave, if it was one peer. False if it isn't what it should
        be.
        """
        try:
            found, _ = await self.assemble(step, averaged)
            right = found == digest
        except (Malformed, NonFinite) as trouble:
            log.warning("no gradient of step %d: %s", step, trouble)
            right = False
        except Refused as trouble:  # this peer's own trouble
            log.warning("no gradient of step %d: %s", step, trouble)
            return False
        if right:
            self._averaged.add(step, digest, averaged)
        else:
            who = short(source) if source else "others"
            log.warning("from %s came a gradient that isn't the one that the record of step %d names", who, step)
            self._false[1].update({source} - {""})
        return right

    async def _answer_gradient(self, peer: PeerId, ask: AskGradient) -> GradientPart:
        averaged = self._averaged.whole(ask.step, ask.digest)
        if averaged is None or not 0 <= ask.part < len(averaged):
            raise Refused(f"the gradient of step {ask.step} is not here any more")
        return GradientPart(len(averaged), averaged[ask.part])

    # ---------------------------------------------------------------------------------------------- the end

    def end_step(self, step: int, record: Record | None) -> None:
        """The step has committed: of its gradients only the one that the record names may be asked for."""
        self._averaged.end_step(step, record.stages[self._stage].digest if record is not None else "")
        self._offered = {known: it for known, it in self._offered.items() if known > step}

    def abandon(self, version: int) -> None:
        """The state was replaced: what was assembled for later steps is of no use any more."""
        self._averaged.abandon(version)
        self._decided = 0
        self._offered.clear()
