"""A peer that may return to a version on disks; its neighbours, their disks and all else are stand-ins."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.record import Record, build_return
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.recovery.returns import Returns
from swarmd.swarm.signals import Signal
from swarmd.swarm.state.download import OutOfDonors
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.disks import CheckpointList, CheckpointName
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import RUN, record

TIMEOUT_S = 60.0
VERSION = 6
CHAIN = {step: record(step=step) for step in range(1, VERSION + 1)}
NEWEST = CHAIN[VERSION]


def back_to(version: int, **changes: Any) -> Record:
    """A return to a version that follows version 6."""
    plain = {"after": NEWEST.hash, "after_version": VERSION, "conductor": "c"}
    return build_return(CHAIN[version], (("me",), ("p",)), {"me": 1, "p": 1}, **{**plain, **changes})


class Rig:
    """A peer of stage 0 at version 6; "p" of stage 1 is there, too. Version 4 is on their disks."""

    def __init__(self, run: Any = RUN) -> None:
        self.everyone: dict[str, FakeLinks] = {}
        self.commits: list[str] = []
        self.membership = Membership(OwnCard(card("me", version=VERSION, record_hash=NEWEST.hash)))
        self._sequence = 1
        self.lists = {"me": listed((4, 0)), "p": listed((4, 1))}
        self.asked, self.answer_s = 0, 0.0
        self.gone_meanwhile = ""
        self.on_disks: dict[CheckpointName, Record] = {}
        self.loaded: bytes | None = None
        self.brought: list[bytes] = []
        self.tries = 0
        self.holders: list[str] = []
        self.ended: list[Record] = []
        self.listeners: list[Any] = []
        self.records = dict(CHAIN)
        chain = SimpleNamespace(
            at=self.records.get, hash_at=lambda step: self.records[step].hash if step in self.records else ""
        )
        self.history: Any = SimpleNamespace(
            version=VERSION,
            record=NEWEST,
            record_hash=NEWEST.hash,
            chain=chain,
            returned=None,
            ready=True,
            behind=False,
            changed=Signal(),
            listen=self.listeners.append,
            end=self.ended.append,
        )
        disks: Any = SimpleNamespace(
            ask_around=self._ask_around,
            record_of=self._record_of,
            settle=self._settle,
            load=self._load,
            bring=self._bring,
        )
        context = peer_context(
            run=run,
            limits=SimpleNamespace(stage_lost_timeout_s=TIMEOUT_S),
            links=FakeLinks("me", self.everyone),
            membership=self.membership,
            history=self.history,
        )
        self.returns = Returns(context, disks)
        self.hear("p")

    def hear(self, peer: str, **changes: Any) -> None:
        """A card comes."""
        self._sequence += 1
        if peer not in self.everyone:

            async def commit(_: str, told: Commit) -> Ack:
                self.commits.append(peer)
                return Ack()

            FakeLinks(peer, self.everyone).handle(Commit, commit)
        plain = {"stage": 1, "version": VERSION, "record_hash": NEWEST.hash, "sequence": self._sequence}
        self.membership.hear(card(peer, **{**plain, **changes}), 0.0)
        self.membership.changed.notify()

    def untrained(self) -> None:
        """A run of which nothing is left but disks: nobody has a state."""
        self.history.version, self.history.record, self.history.record_hash = 0, None, "genesis"
        self.records.clear()
        own = self.membership._own_card
        own.card = dataclasses.replace(own.card, version=0, state="joining", record_hash="")
        self.hear("p", state="joining", version=0, record_hash="")
        self.on_disks = {CheckpointName(4, 1, CHAIN[4].state): CHAIN[4]}

    async def _ask_around(self, peers: Sequence[str]) -> dict[str, CheckpointList]:
        self.asked += 1
        await asyncio.sleep(self.answer_s)
        if self.gone_meanwhile:
            self.membership.suspect(self.gone_meanwhile)
        return {peer: self.lists[peer] for peer in peers if peer in self.lists}

    async def _record_of(self, checkpoint: CheckpointName, holders: Sequence[str]) -> Record | None:
        self.holders = list(holders)
        return self.on_disks.get(checkpoint)

    async def _load(self, checkpoint: CheckpointName) -> tuple[bytes, Record] | None:
        return (self.loaded, CHAIN[4]) if self.loaded is not None else None

    async def _settle(self, checkpoint: CheckpointName, *_: Any) -> CheckpointName:
        return checkpoint

    async def _bring(
        self, checkpoint: CheckpointName, candidates: Callable[[], list[str]], members: Sequence[str]
    ) -> tuple[bytes, Record]:
        self.tries += 1
        self.holders = candidates()
        if not self.brought:
            raise OutOfDonors("nobody gives it")
        return self.brought.pop(), CHAIN[4]


def listed(*names: tuple[int, int]) -> CheckpointList:
    return CheckpointList(tuple(CheckpointName(version, stage, CHAIN[version].state) for version, stage in names), True)


def try_it(events: Callable[[Rig], Awaitable[None]], **changes: Any) -> None:
    async def main() -> None:
        await events(Rig(dataclasses.replace(RUN, **changes)))

    run_virtual(main())


async def seconds(work: Awaitable[Record]) -> tuple[Record, float]:
    before = asyncio.get_running_loop().time()
    return await work, asyncio.get_running_loop().time() - before


async def never(work: Awaitable[Record], seconds: float = 10 * TIMEOUT_S) -> None:
    """Nothing is decided."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(work, seconds)
