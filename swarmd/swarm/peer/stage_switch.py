"""Which stage this peer is at, and the change from one to another: opens stages, assembles what belongs to them.

`Mover` is the way; what happens at its ends is here: the old stage's assembly is closed in the turn of the event loop
in which the record that grants the move was applied, or nothing of the step is left here (`early_exit.py`), and the new
one's is built when the device is free. If the new stage can't be opened, the peer goes back to the old one, like a
newcomer.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from swarmd.config import LimitsConfig, RunConfig
from swarmd.errors import ConfigError, Refused
from swarmd.swarm.balance.grants import objection
from swarmd.swarm.balance.places import Places
from swarmd.swarm.balance.sizes import lacking
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Move, Record
from swarmd.swarm.membership.states import ADMITTING, AT_WORK
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.move import Mover
from swarmd.swarm.peer.served_stage import Assembly
from swarmd.swarm.ports import Compute, Data
from swarmd.swarm.state.joiner import Joiner
from swarmd.swarm.steps.conductor import Conductor
from swarmd.swarm.tasks import Tasks, joined, start_shared
from swarmd.swarm.wire.links import Links
from swarmd.values import PeerId

log = logging.getLogger(__name__)

OpenStage = Callable[[int], Awaitable[tuple[Compute, Data | None]]]
"""Builds a stage on this peer's device, untrained; with the run's data if it is the first. Raises ConfigError if it
can't.
"""


class Switch:
    """This peer's stage."""

    def __init__(
        self,
        run: RunConfig,
        limits: LimitsConfig,
        links: Links,
        membership: Membership,
        history: History,
        conductor: Conductor,
        open_stage: OpenStage,
        rng: random.Random,
        places: Places,
        tasks: Tasks,
        *,
        set_card: Callable[..., None],
        announce: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._run, self._limits, self._links, self._membership = run, limits, links, membership
        self._history, self._conductor, self._open_stage, self._rng = history, conductor, open_stage, rng
        self._places, self._tasks = places, tasks
        self._set_card, self._announce = set_card, announce
        self.assembly: Assembly | None = None  # None: between two stages, or before the first
        self.joiner: Joiner | None = None  # of the stage that is open, or being opened
        self.mover: Mover | None = None
        self.arrived = -math.inf  # loop time of the last move
        self._left: Assembly | None = None  # what the stage before was, until that has ended
        self._moving: asyncio.Task[None] | None = None

    @property
    def between(self) -> bool:
        """Whether this peer has left a stage and doesn't serve the next one yet."""
        return self.mover is not None and self.mover.departed

    @property
    def leaving(self) -> str:
        """What is still to be done at the old stage, one sentence; "" when nothing is."""
        return self.assembly.departures.doing if self.assembly is not None and self.mover is not None else ""

    async def open(self, stage: int, *, pull: bool = False) -> Assembly:
        """Opens a stage and makes it this peer's; heads must have the same data. `pull`: its state is pulled meanwhile.
        Raises ConfigError.
        """
        self._set_card(stage=stage)
        joiner = self.joiner = Joiner(
            self._run, self._limits, self._links, self._history, stage, self._membership.newest
        )
        if pull:
            joiner.begin(lambda: self.donors(stage))
        try:
            return await self._assemble(stage, joiner)
        except BaseException:
            await joiner.ended()
            raise

    async def _assemble(self, stage: int, joiner: Joiner) -> Assembly:
        compute, data = await self._open_stage(stage)
        own = self._membership.own.peer
        others = {card.data for card in self._membership.stage(0) if card.peer != own} - {""}
        if data is not None and others and data.digest not in others:
            raise ConfigError(
                f"this machine's copy of the data ({data.digest}) is not the run's ({others.pop()}): "
                "use the same source with --data, or another stage with --stage"
            )
        self.assembly = Assembly(
            self._run,
            self._limits,
            self._links,
            self._membership,
            self._history,
            self._conductor,
            compute,
            data,
            stage,
            self._rng,
            joiner,
            self._tasks.child(),
        )
        self._set_card(data=data.digest if data else "", codecs=compute.codecs)
        return self.assembly

    def donors(self, stage: int) -> list[PeerId]:
        """Replicas of a stage, newest version first; a finished one gives its state, too."""
        own, able = self._membership.own.peer, (*AT_WORK, "finished")
        cards = [card for card in self._membership.kin() if card.stage == stage and card.state in able]
        return [card.peer for card in sorted(cards, key=lambda card: (-card.version, card.peer)) if card.peer != own]

    def close(self) -> None:
        """This peer leaves."""
        if self._moving is not None:
            self._moving.cancel()
        if self.assembly is not None:
            self.assembly.close()

    async def give_up(self) -> None:
        """Stays at the old stage, unless it has left that already. What it had begun to leave there stays as it is."""
        if self._moving is not None and not self.between:
            self._moving.cancel()
            await asyncio.wait([self._moving])
        if self.assembly is not None:
            await self.assembly.departures.cease()

    async def enter(self, stage: int) -> Assembly:
        """Opens a stage, for whoever returns to an earlier version there: what was going on at the one before is void.
        If it can't be opened, the one before is entered again. Raises ConfigError if that can't be opened either.
        """
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)
        if self.assembly is not None and self.assembly.stage == stage:
            return self.assembly
        before = self._membership.own.stage
        if self.assembly is not None:
            self._history.detach()
            self._left, self.assembly = self.assembly, None
            self._left.leave()
        try:
            return await self._arrive(stage)
        except ConfigError as trouble:
            if stage == before:
                raise
            log.warning("back to stage %d: stage %d can't be opened here: %s", before, stage, trouble)
            self._places.has_data = self._places.has_data and stage > 0
            return await self._arrive(before)

    # ---------------------------------------------------------------------------------------------- moving

    async def move(self, stage: int, *, balance: bool = False) -> None:
        """Goes to another stage; returns when it serves there. Raises Refused, with a sentence, if it stays. Cancelling
        it gives the move up, unless a record has granted it. `balance`: the move is refused if it helps no more.
        """
        self._check(stage)
        mover = self.mover = self._mover_to(stage, balance=balance)
        self._set_card(moving=stage)
        self._tasks.start(self._announce())
        task = self._moving = start_shared(self._move(mover), f"move to {stage}")
        try:
            await joined(task, "this peer leaves")
        except asyncio.CancelledError:
            if not mover.departed:
                task.cancel()
            raise

    def _check(self, stage: int) -> None:
        """Raises Refused for a move that is out of the question."""
        own, stages = self._membership.own, range(self._run.model.stages)
        if self.mover is not None:
            raise Refused(f"this peer is on its way to stage {self.mover.target} already")
        if own.state not in ADMITTING:
            raise Refused(f"this peer is {own.state}; it can go to another stage only while it serves one")
        if stage == 0 and not self._places.has_data:
            raise Refused("the first stage needs the run's data, and this peer has no copy of it that fits")
        if stage in stages and (why := lacking(self._run, stage, own.memory_bytes)):
            raise Refused(why)
        replicas = {it: [card.peer for card in self._membership.staying(it)] for it in stages}
        if why := objection(Move(own.peer, own.stage, stage), replicas):
            raise Refused(why)

    def _mover_to(self, stage: int, *, balance: bool = False) -> Mover:
        return Mover(
            self._run,
            self._limits,
            self._links,
            self._membership,
            self._history,
            self._conductor,
            stage,
            balance=balance,
            newest=self._membership.newest,
            donors=lambda: self.donors(stage),
            arrive=self._arrive,
            leave=self._leave,
        )

    async def _move(self, mover: Mover) -> None:
        """From the download to the new stage, or back to the old one."""
        why = ""
        try:
            try:
                assembly = await mover.go()
            except ConfigError as trouble:
                why = f"stage {mover.target} can't be opened here: {trouble}"
                log.warning("back to stage %d: %s", mover.move.source, why)
                self._places.has_data = self._places.has_data and mover.target > 0
                self.mover = self._mover_to(mover.move.source)
                self.mover.departed = True
                assembly = await self.mover.go()
            assembly.serve()
            if not self._history.finished:
                self._set_card(state="serving")
        finally:
            self.mover = self._moving = None
            self._set_card(moving=-1, heir="")
        await self._announce()
        if why:
            raise Refused(why)

    def hear(self, record: Record) -> None:
        """A record was applied. If it takes this peer away from its stage, that is over now."""
        stays = self.assembly.departures.stays if self.assembly is not None else 0
        if self.mover is not None and stays < record.step and self.mover.hear(record):
            self._depart(self.mover)

    async def _leave(self, mover: Mover) -> bool:
        """Leaves the old stage in the middle of a step, if that is possible now."""

        def depart(heir: PeerId) -> None:
            mover.departed = True
            self._depart(mover, heir)

        assert self.assembly is not None, "whoever wants to leave is somewhere"
        return await self.assembly.departures.leave(depart, self._set_state)

    def _set_state(self, state: str) -> None:
        self._set_card(state=state)
        self._tasks.start(self._announce())

    def _depart(self, mover: Mover, heir: PeerId = "") -> None:
        """The old stage is over for this peer. `heir`: who has its sum, if the step isn't over."""
        assert self.assembly is not None, "whoever departs is somewhere"
        self._history.detach()
        self._left, self.assembly = self.assembly, None
        self._left.leave()
        self.arrived = asyncio.get_running_loop().time()
        self._set_card(stage=mover.target, state="joining", moving=-1, rested=False, heir=heir)
        self._tasks.start(self._announce())

    async def _arrive(self, stage: int) -> Assembly:
        """The device is free as soon as nothing of the old stage runs any more. Raises ConfigError."""
        if self._left is not None:
            await self._left.tasks.ended()
            self._left = None
        return await self.open(stage)
