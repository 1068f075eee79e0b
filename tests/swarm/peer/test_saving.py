"""Checkpoints: which versions are written, and what becomes of one that can't be."""

import asyncio
import dataclasses
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.errors import DeviceLost
from swarmd.swarm.peer.saving import Saving
from swarmd.swarm.wire.messages.disks import CheckpointName
from tests.swarm.contexts import peer_context
from tests.swarm.records import RUN, record, skipped

EVERY_3 = dataclasses.replace(RUN, checkpoint_every=3)


class Rig:
    """A peer of stage 1 at version 3."""

    def __init__(self) -> None:
        self.state: Any = b"state"
        self.disk_takes = True
        self.written, self.copied, self.lent, self.noted = list[Any](), list[int](), list[CheckpointName](), list[str]()
        self.started = list[Coroutine[Any, Any, None]]()
        self.history: Any = SimpleNamespace(
            record=record(step=3), ready=True, finished=False, version=3, lock=asyncio.Lock()
        )
        self.switch = SimpleNamespace(
            served=SimpleNamespace(stage=1, compute=SimpleNamespace(export_state=self._export))
        )
        parts: dict[str, Any] = {
            "context": peer_context(
                run=EVERY_3,
                links=SimpleNamespace(fence=SimpleNamespace(note=lambda what, trouble: self.noted.append(what))),
                history=self.history,
                tasks=SimpleNamespace(start=self.started.append),
            ),
            "switch": self.switch,
            "store": SimpleNamespace(save_checkpoint=self._write),
            "disks": SimpleNamespace(lend=lambda checkpoint, state, of: self.lent.append(checkpoint)),
            "copies": SimpleNamespace(keep=self._copy),
        }
        self.saving = Saving(**parts)

    async def _export(self) -> bytes:
        if isinstance(self.state, BaseException):
            raise self.state
        return bytes(self.state)

    async def _write(self, version: int, stage: int, state: bytes, plain: dict[str, Any]) -> bool:
        self.written.append((version, stage, state))
        return self.disk_takes

    async def _copy(self, of: Any) -> None:
        self.copied.append(of.step)

    async def finish_started(self) -> None:
        while self.started:
            await self.started.pop(0)


@pytest.mark.parametrize(
    ("step", "change", "is_written"),
    [
        (3, lambda it: None, True),
        (2, lambda it: None, False),
        (3, lambda it: setattr(it.history, "finished", True), False),
    ],
    ids=["due", "not due", "the last one"],
)
async def test_every_so_many_steps_a_version_is_written(step: int, change: Any, is_written: bool) -> None:
    it = Rig()
    change(it)
    it.saving.on_record(record(step=step))
    await it.finish_started()
    assert it.written == ([(3, 1, b"state")] if is_written else [])


async def test_a_skipped_step_is_no_version_to_write() -> None:
    it = Rig()
    it.saving.on_record(skipped(3))
    assert it.started == []


async def test_what_is_on_the_disk_is_copied_by_and_by() -> None:
    it = Rig()
    assert await it.saving.save()
    assert it.copied == []
    await it.finish_started()
    assert it.copied == [3]


async def test_a_last_state_that_the_disk_does_not_take_is_lent_from_memory() -> None:
    it = Rig()
    it.history.finished, it.disk_takes = True, False
    assert not await it.saving.save()
    assert it.lent == [CheckpointName(3, 1, it.history.record.state)]
    assert it.started == [], "copies of the final state are brought another way"


@pytest.mark.parametrize(
    "change",
    [
        lambda it: setattr(it.history, "record", None),
        lambda it: setattr(it.history, "ready", False),
        lambda it: setattr(it.switch, "served", None),
        lambda it: setattr(it, "state", MemoryError()),
        lambda it: setattr(it, "state", OSError("a bug")),
    ],
    ids=["untrained", "no state", "between two stages", "no memory", "unforeseen"],
)
async def test_without_a_state_nothing_is_written(change: Any) -> None:
    it = Rig()
    change(it)
    assert not await it.saving.save()
    assert it.written == []
    assert len(it.noted) == isinstance(it.state, OSError)


async def test_a_lost_device_is_told() -> None:
    it = Rig()
    it.state = DeviceLost("gone")
    with pytest.raises(DeviceLost):
        await it.saving.save()
