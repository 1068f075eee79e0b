"""Copies of other stages' checkpoints: so that a stage can lose all its replicas, disks included, and yet go on.

Everyone works out alike who keeps a copy of which stage (`plan_copies`). A copy is brought from the disks of the stage
once its checkpoint is there, behind all else on the wire, one stage a peer. Training has no use for it until a return
does (`returns.py`).
"""

import asyncio
import logging
from collections.abc import Mapping

from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Record
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.membership.table import SMALL_SWARM
from swarmd.swarm.ports import Store
from swarmd.swarm.state.disks import Disks
from swarmd.swarm.state.download import OutOfDonors
from swarmd.swarm.wire.messages.disks import CheckpointName
from swarmd.values import PeerId

log = logging.getLogger(__name__)

COPIES = 2  # of each stage outside its replicas, where there are peers enough
RETRY_SECONDS = 0.5  # before the second try to have a copy: its stage may be writing it still; doubles each time
TRIES = 10  # the last after some eight minutes


def plan_copies(stages: int, places: Mapping[PeerId, int]) -> dict[PeerId, int]:
    """The stage of which each peer keeps a copy, never its own. Every stage gets as many as it can up to COPIES; the
    peers that are left are spread evenly. A matching of stages with peers (Kuhn 1955), from the same order everywhere.
    """
    order = rendezvous("copies", places)
    chosen: dict[PeerId, int] = {}

    def find(stage: int, tried: set[PeerId]) -> bool:
        """Gives a stage one more peer, if need be by giving others other stages."""
        for peer in order:
            if places[peer] == stage or peer in tried or chosen.get(peer) == stage:
                continue
            tried.add(peer)
            if peer not in chosen or find(chosen[peer], tried):
                chosen[peer] = stage
                return True
        return False

    for _ in range(COPIES):
        for stage in range(stages):
            find(stage, set())
    for peer in order:
        if peer not in chosen and stages > 1:
            counts = {stage: list(chosen.values()).count(stage) for stage in range(stages) if stage != places[peer]}
            chosen[peer] = min(counts, key=lambda stage: (counts[stage], stage))
    return chosen


class Copies:
    """The copies that this peer keeps for other stages."""

    def __init__(self, context: PeerContext, disks: Disks, store: Store) -> None:
        self._run, self._limits, self._membership = context.run, context.limits, context.membership
        self._history = context.history
        self._disks, self._store = disks, store
        self._turn = 0  # of the newest version that was asked for: older ones are not worth the while any more

    def stage(self) -> int | None:
        """The stage of which this peer should have a copy. In a large swarm, where nobody knows all, everyone keeps the
        next stage's: its peers are known.
        """
        own, stages = self._membership.own, self._run.model.stages
        if stages == 1 or self._limits.copies_bytes <= 0 or own.state not in AT_WORK:
            return None
        if self._membership.population() > SMALL_SWARM:
            return (own.stage + 1) % stages
        cards = [card for card in self._membership.kin() if card.state in AT_WORK]
        return plan_copies(stages, {card.peer: card.stage for card in cards}).get(own.peer)

    async def keep(self, record: Record) -> None:
        """Brings a copy of the checkpoint of this record's version, unless that is on this disk already."""
        stage = self.stage()
        if stage is None or self._is_old(record, stage):
            return
        self._turn = record.step
        checkpoint = CheckpointName(record.step, stage, record.state)
        for number in range(TRIES):
            if self._is_old(record, stage) or await self._disks.load(checkpoint) is not None:
                return
            try:
                state, found = await self._disks.bring(checkpoint, lambda: self._sources(stage), record.replicas())
            except OutOfDonors:
                await asyncio.sleep(RETRY_SECONDS * 2**number)
                continue
            except MemoryError as trouble:
                log.warning("no copy of version %d of stage %d: %s", record.step, stage, trouble)
                return
            saved = self._is_old(record, stage) or await self._store.save_checkpoint(
                record.step, stage, state, found.raw, copy=True
            )
            if not saved:
                log.warning("this disk takes no copy of version %d of stage %d", record.step, stage)
            return
        log.info("nobody of stage %d gave a copy of version %d", stage, record.step)

    def _is_old(self, record: Record, stage: int) -> bool:
        """Tells if a copy isn't to be written any more: the version isn't of our history, or something newer of the
        stage may be on this disk by now, and would be removed as of a history that was given up.
        """
        history = self._history
        known = history.chain.hash_at(record.step)
        final = history.finished and not history.failure  # the final state's copies: `peer/ending.py`
        own = self._membership.own.stage == stage  # this peer has moved, and writes its own
        return self._turn > record.step or final or own or known not in ("", record.hash)

    def _sources(self, stage: int) -> list[PeerId]:
        """The stage's peers, a different one first for each of those who ask."""
        peers = [card.peer for card in self._membership.kin() if card.stage == stage]
        return rendezvous(f"source/{self._membership.own.peer}", peers)
