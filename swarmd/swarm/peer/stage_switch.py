"""The stage that is open at this peer: opens one, closes it for another, with all that belongs to it.

A stage is closed in one turn of the event loop: `move.py` and `recovery/` say in which. The next one is opened when the
device is free. What may speak against a stage, as far as this peer's machine goes, is known here, too.
"""

import asyncio
import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection

from swarmd.errors import ConfigError
from swarmd.sizes import lacking
from swarmd.swarm.balance.places import Places
from swarmd.swarm.history.parting import ask_record
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.peer.served_stage import ServedStage
from swarmd.swarm.ports import Compute, Data
from swarmd.swarm.state.joiner import Joiner
from swarmd.swarm.steps.conductor import Conductor
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

OpenStage = Callable[[int], Awaitable[tuple[Compute, Data | None]]]
"""Builds a stage on this peer's device, untrained; with the run's data if it is the first. Raises ConfigError if it
can't.
"""


class Switch:
    """This peer's stage."""

    def __init__(self, context: PeerContext, conductor: Conductor, open_stage: OpenStage, places: Places) -> None:
        self._context, self._run, self._membership = context, context.run, context.membership
        self._history, self._tasks, self._own = context.history, context.tasks, context.own
        self._conductor, self._open_stage, self._places = conductor, open_stage, places
        self.served: ServedStage | None = None  # None: between two stages, or before the first
        self.joiner: Joiner | None = None  # of the stage that is open, or being opened
        self.left_at = -math.inf  # loop time at which this peer last left a stage for another
        self._left: ServedStage | None = None  # what the stage before was, until that has ended

    async def open(self, stage: int, *, pull: bool = False) -> ServedStage:
        """Opens a stage and makes it this peer's; heads must have the same data. `pull`: its state is pulled meanwhile.
        Raises ConfigError.
        """
        self._own.card = dataclasses.replace(self._own.card, stage=stage)
        joiner = self.joiner = Joiner(self._context, stage)
        if pull:
            joiner.begin(lambda: self.donors(stage))
        try:
            return await self._serve(stage, joiner)
        except BaseException as trouble:
            if stage == 0 and isinstance(trouble, ConfigError):
                self._places.has_data = False
            await joiner.ended()
            raise

    async def _serve(self, stage: int, joiner: Joiner) -> ServedStage:
        compute, data = await self._open_stage(stage)
        if data is not None:
            await self._check_data(data.digest)
        self.served = ServedStage(self._context, self._conductor, compute, data, stage, joiner)
        digest = data.digest if data else ""
        self._own.card = dataclasses.replace(self._own.card, data_digest=digest, codecs=compute.codecs)
        return self.served

    async def _check_data(self, digest: str) -> None:
        """Compares this machine's copy of the data with those of other heads. Raises ConfigError if most of the heads
        whose word counts have another one; what strangers say is logged.
        """
        own = self._membership.own.peer
        said = {it.peer: it.data_digest for it in self._membership.stage(0) if it.peer != own and it.data_digest}
        if not {*said.values()} - {digest}:
            return
        words = Counter(said[peer] for peer in await self._known_heads() if peer in said)
        others, count = words.most_common(1)[0] if words else ("", 0)
        if others != digest and 2 * count > words.total():
            raise ConfigError(
                f"this machine's copy of the data ({digest}) is not the run's ({others}): "
                "use the same source with --data, or another stage with --stage"
            )
        different = ", ".join(sorted(short(peer) for peer in said if said[peer] != digest))
        log.warning("%s have another copy of the data than this machine (%s)", different, digest)

    async def _known_heads(self) -> Collection[PeerId]:
        """The heads of the last record, which the peer that gave this one its place tells a newcomer; before the first
        record that peer, and the run's founder.
        """
        origin, record = self._history.origin, self._history.record
        if record is None and (guide := self._membership.get(origin.guide)) is not None and guide.version:
            record = await ask_record(self._context, guide.peer, guide.version)
        return record.stages[0].members if record is not None else (origin.guide, origin.founder)

    def donors(self, stage: int) -> list[PeerId]:
        """Replicas of a stage, newest version first; a finished one gives its state, too."""
        own, able = self._membership.own.peer, (*AT_WORK, "finished")
        cards = [card for card in self._membership.kin() if card.stage == stage and card.state in able]
        return [card.peer for card in sorted(cards, key=lambda card: (-card.version, card.peer)) if card.peer != own]

    def obstacle(self, stage: int) -> str:
        """Says why this peer's machine can't serve a stage; "" if nothing is known to speak against it."""
        if stage == 0 and not self._places.has_data:
            return "the first stage needs the run's data, and this peer has no copy of it that fits"
        return lacking(self._run, stage, self._membership.own.memory_bytes)

    def close(self) -> None:
        """This peer leaves."""
        if self.served is not None:
            self.served.close()

    # ---------------------------------------------------------------------------------------------- changing

    def leave_for(self, target: int, heir: PeerId) -> None:
        """Leaves the stage for another one, in this turn of the event loop. `heir`: has this peer's sum; "" if it has
        none, or is in a record.
        """
        self._leave_stage()
        self.left_at = asyncio.get_running_loop().time()
        self._own.card = dataclasses.replace(
            self._own.card, stage=target, state="joining", moving=-1, rested=False, heir=heir
        )
        self._tasks.start(self._own.announce())

    async def arrive(self, stage: int) -> ServedStage:
        """Opens a stage as soon as nothing of the one before runs any more: the device is free then. Raises
        ConfigError.
        """
        if self._left is not None:
            await self._left.tasks.ended()
            self._left = None
        return await self.open(stage)

    async def enter(self, stage: int) -> ServedStage:
        """Opens a stage to return to an earlier version there, if it isn't open: what was going on at the one before is
        void. If it can't be opened, that one is opened again. Raises ConfigError if it can't be opened either.
        """
        if self.served is not None and self.served.stage == stage:
            return self.served
        before = self._membership.own.stage
        if self.served is not None:
            self._leave_stage()
        try:
            return await self.arrive(stage)
        except ConfigError as trouble:
            if stage == before:
                raise
            log.warning("back to stage %d: stage %d can't be opened here: %s", before, stage, trouble)
            return await self.arrive(before)

    def _leave_stage(self) -> None:
        """Closes the present stage."""
        assert self.served is not None, "a stage is open"
        self._history.detach()
        self._left, self.served = self.served, None
        self._left.leave()
