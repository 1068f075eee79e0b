"""This peer's moves, one at a time: begun if nothing speaks against them, heard of records, given up.

`move.py` is the way itself. It goes on when the one who asked for it waits no longer, once the old stage is left.
"""

import asyncio
import dataclasses

from swarmd.errors import Refused
from swarmd.swarm.balance.grants import objection
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Move, Record
from swarmd.swarm.membership.states import ADMITTING
from swarmd.swarm.peer.move import MoveUnderWay
from swarmd.swarm.peer.stage_switch import Switch
from swarmd.swarm.steps.conductor import Conductor
from swarmd.swarm.tasks import joined, start_shared


class Mover:
    """Moves this peer."""

    def __init__(self, context: PeerContext, conductor: Conductor, switch: Switch) -> None:
        self._context, self._run, self._membership = context, context.run, context.membership
        self._history, self._tasks, self._own = context.history, context.tasks, context.own
        self._conductor, self._switch = conductor, switch
        self.under_way: MoveUnderWay | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def target(self) -> int | None:
        """The stage that this peer is on its way to."""
        return self.under_way.target if self.under_way is not None else None

    @property
    def between(self) -> bool:
        """True if this peer has left a stage and doesn't serve the next one yet."""
        return self.under_way is not None and self.under_way.has_left

    @property
    def doing(self) -> str:
        """Says what the move is at once the state is here; "" if none is under way."""
        if self.under_way is None:
            return ""
        if self.under_way.has_left or self._switch.served is None:
            return "opening it"
        return self._switch.served.early_exit.doing or "asking for it"

    async def move(self, stage: int, *, balance: bool = False) -> None:
        """Goes to another stage; returns when it serves there. Raises Refused, with a sentence, if it stays. Cancelling
        it gives the move up, unless the old stage is left already. `balance`: the move is refused if it helps no more.
        """
        self._check(stage)
        move = self.under_way = MoveUnderWay(self._context, self._conductor, self._switch, stage, balance=balance)
        self._own.card = dataclasses.replace(self._own.card, moving=stage)
        self._tasks.start(self._own.announce())
        task = self._task = start_shared(self._run_to_its_end(move), f"move to {stage}")
        try:
            await joined(task, Refused("this peer leaves"))
        except asyncio.CancelledError:
            if not move.has_left:
                task.cancel()
            raise

    def _check(self, stage: int) -> None:
        """Raises Refused for a move that is out of the question."""
        own, stages = self._membership.own, range(self._run.model.stages)
        if self.under_way is not None:
            raise Refused(f"this peer is on its way to stage {self.under_way.target} already")
        if own.state not in ADMITTING:
            raise Refused(f"this peer is {own.state}; it can go to another stage only while it serves one")
        if stage in stages and (why := self._switch.obstacle(stage)):
            raise Refused(why)
        replicas = {it: [card.peer for card in self._membership.staying(it)] for it in stages}
        if why := objection(Move(own.peer, own.stage, stage), replicas):
            raise Refused(why)

    async def _run_to_its_end(self, move: MoveUnderWay) -> None:
        """Raises Refused if the peer is at its old stage afterwards."""
        try:
            why = await move.run()
            if not self._history.finished:
                self._own.become("serving")
        finally:
            self._forget()
        await self._own.announce()
        if why:
            raise Refused(why)

    def _forget(self) -> None:
        self.under_way = self._task = None
        self._own.card = dataclasses.replace(self._own.card, moving=-1, heir="")

    def on_record(self, record: Record) -> None:
        """A record was applied: it may grant the move."""
        if self.under_way is not None:
            self.under_way.on_record(record)

    async def drain(self) -> None:
        """Stays at the old stage, unless it is left already. What had begun to leave there stays as it is."""
        if self._switch.served is not None:
            self._switch.served.early_exit.close()
        if not self.between:
            await self.end()

    async def end(self) -> None:
        """Gives the move up, whether or not the old stage is left."""
        if (task := self._task) is None:
            return
        task.cancel()
        await asyncio.wait([task])
        if self._task is task:  # it was cancelled before it began
            self._forget()

    def close(self) -> None:
        """Ends what is under way: this peer leaves."""
        if self._task is not None:
            self._task.cancel()
