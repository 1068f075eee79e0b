"""The Store port of a simulated machine: its disk is in memory, and outlives the machine."""

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from swarmd.chunks import state_root
from swarmd.sim.world.machine import Machine
from swarmd.swarm.ports import SavedCheckpoint
from swarmd.values import Buffer

CHECKPOINTS_KEPT = 2  # versions of a stage on a disk


@dataclass
class MemoryStore:
    """A disk, which keeps its content over a restart."""

    ledger: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: dict[tuple[int, int], tuple[bytes, bytes]] = field(default_factory=dict)  # version, stage
    voided: list[dict[str, Any]] = field(default_factory=list)
    full: bool = False  # no checkpoint can be written
    damaged: list[tuple[int, int]] = field(default_factory=list)  # of the checkpoints: version, stage


class SimStore:
    """The Store port of one machine on its disk. Writes of a dying machine are lost."""

    def __init__(self, disk: MemoryStore, machine: Machine) -> None:
        self._disk, self._machine = disk, machine

    def _reach(self, point: str, step: int) -> bool:
        """Lets the faults planned here strike; True if the machine is still there to write."""
        if self._machine.points.armed:
            self._machine.points.reached(self._machine, point, step)
        return self._machine.alive

    def append_ledger(self, line: dict[str, Any]) -> None:
        if self._reach("ledger", line["step"]):
            self._disk.ledger.append(line)

    def ledger_tail(self, count: int) -> dict[int, str]:
        self._reach("tail", 0)
        return {line["step"]: line["record"] for line in self._disk.ledger[-count:]}

    def void_ledger(self, version: int, records: Container[str] | None = None) -> None:
        if not self._reach("void", version):
            return
        kept: list[dict[str, Any]] = []
        for line in self._disk.ledger:
            void = line["step"] > version and (records is None or line["record"] in records)
            (self._disk.voided if void else kept).append(line)
        self._disk.ledger = kept

    async def save_checkpoint(
        self, version: int, stage: int, state: Buffer, record: Buffer, *, copy: bool = False
    ) -> bool:
        assert version > 0, "the initial state is no checkpoint"
        if self._machine.points.armed:
            await self._machine.at("save", version)
        if not self._machine.alive or self._disk.full:
            return False
        kept = self._disk.checkpoints
        kept[version, stage] = bytes(state), bytes(record)
        ours = sorted(version for version, at in kept if at == stage)
        newer = [it for it in ours if it > version]  # of a history that was given up
        for old in (*newer, *[it for it in ours if it <= version][:-CHECKPOINTS_KEPT]):
            del kept[old, stage]
        return True

    async def list_checkpoints(self) -> list[SavedCheckpoint]:
        if self._machine.points.armed:
            await self._machine.at("list_checkpoints", None)
        kept, damaged = self._disk.checkpoints, self._disk.damaged
        whole = [(key, *kept[key]) for key in sorted(kept, reverse=True) if key not in damaged]
        return [SavedCheckpoint(*key, record, state_root(state)) for key, state, record in whole]

    def damaged(self) -> list[tuple[int, int]]:
        return sorted(self._disk.damaged, reverse=True)

    async def load_checkpoint(self, version: int, stage: int, root: str = "") -> tuple[Buffer, Buffer] | None:
        if self._machine.points.armed:
            await self._machine.at("load", version)
        found = self._disk.checkpoints.get((version, stage))
        if found is None or (version, stage) in self._disk.damaged or root not in ("", state_root(found[0])):
            return None
        return found

    async def read_checkpoint(self, version: int, stage: int, start: int, stop: int) -> Buffer | None:
        if self._machine.points.armed:
            await self._machine.at("read", version)
        found = self._disk.checkpoints.get((version, stage))
        return found[0][start:stop] if found is not None else None
