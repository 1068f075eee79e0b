"""Checkpoints of the stage that this peer serves: on the way, every so many steps, and at the end of the run.

A version that was skipped is none, nor is the untrained one. What is written is the state at one version, taken while
no record can be applied; the disk is written to afterwards.
"""

import logging

from swarmd.errors import DeviceLost
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Record, is_checkpointed
from swarmd.swarm.peer.served_stage import ServedStage
from swarmd.swarm.peer.stage_switch import Switch
from swarmd.swarm.ports import Store
from swarmd.swarm.state.copies import Copies
from swarmd.swarm.state.disks import Disks
from swarmd.swarm.wire.messages.disks import CheckpointName
from swarmd.values import Buffer

log = logging.getLogger(__name__)


class Saving:
    """Writes this peer's checkpoints."""

    def __init__(self, context: PeerContext, switch: Switch, store: Store, disks: Disks, copies: Copies) -> None:
        self._run, self._links, self._history = context.run, context.links, context.history
        self._tasks, self._switch = context.tasks, switch
        self._store, self._disks, self._copies = store, disks, copies

    def on_record(self, record: Record) -> None:
        """Begins a checkpoint if a record's version is to be one; the last version's is part of the run's end."""
        if is_checkpointed(self._run, record) and not self._history.finished:
            self._tasks.start(self._save_on_the_way())

    async def _save_on_the_way(self) -> None:
        await self.save()

    async def save(self) -> bool:
        """Writes a checkpoint of the present version. Whether it is on the disk now."""
        async with self._history.lock:
            record, served = self._history.record, self._switch.served
            if record is None or served is None or not self._history.ready:
                return False
            state = await self._state(served)
        if state is None:
            return False
        saved = await self._store.save_checkpoint(record.step, served.stage, state, record.raw)
        if not self._history.finished:
            self._tasks.start(self._copies.keep(record))  # from others, who may be slow or gone: nobody waits for it
        elif not saved:
            self._disks.lend(CheckpointName(record.step, served.stage, record.state), state, record)
        return saved

    async def _state(self, served: ServedStage) -> Buffer | None:
        """The stage's state; None if it can't be had: a checkpoint less, and the next one may do."""
        try:
            return await served.compute.export_state()
        except MemoryError:
            log.warning("no checkpoint of version %d: out of memory", self._history.version)
        except DeviceLost:
            raise
        except Exception as trouble:  # noqa: BLE001 - a checkpoint isn't worth the peer
            self._links.fence.note(f"the checkpoint of version {self._history.version}", trouble)
        return None
