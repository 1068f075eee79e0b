"""Two histories of a run, and the peers that have them."""

import asyncio
import dataclasses
import random
from types import SimpleNamespace
from typing import Any, cast

from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Record, genesis_hash
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.recovery.forks import (
    MEET_SECONDS,
    Forks,
)
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.fake_links import FakeLinks
from tests.swarm.no_disk import NoDisk
from tests.swarm.records import RUN, record, report

# ------------------------------------------------------------------------------------------------- two histories


def following(before: list[Record], count: int, **changes: Any) -> list[Record]:
    """Records that follow others; `changes` make them another history's."""
    made = list(before)
    for step in range(len(made) + 1, len(made) + count + 1):
        parent = made[-1].hash if made else genesis_hash(RUN)
        made.append(record(report(0), report(1, **changes), step=step, parent=parent))
    return made


COMMON = following([], 2)


OURS, THEIRS = following(COMMON, 2), following(COMMON, 4, digest="other")


def now() -> float:
    return asyncio.get_running_loop().time()


class Peer:
    """One peer with its own history of the run."""

    def __init__(self, name: str, stage: int, records: list[Record], everyone: dict[str, FakeLinks]) -> None:
        self.links = FakeLinks(name, everyone)
        newest = records[-1]
        self.card = card(name, stage=stage, version=newest.step, record_hash=newest.hash)
        self.membership = Membership(OwnCard(self.card))
        self.history = History(RUN, cast("Any", self.links), cast("Any", NoDisk()))
        self.history.replace(newest, "digest")
        self.history.chain.learn({it.step: it for it in records})
        context: Any = SimpleNamespace(
            run=RUN, links=self.links, membership=self.membership, history=self.history, rng=random.Random(0)
        )
        self.denied: set[str] = set()  # records that their acceptors deny
        self.forks = Forks(context, cast("Any", SimpleNamespace(denies=self._denies)))

    async def _denies(self, it: Record) -> bool:
        return it.hash in self.denied

    def foreign(self) -> list[str]:
        return [it.peer for it in self.membership.foreign()]


class Meeting:
    """Two histories of two stages each: a and b here, x and y there."""

    def __init__(self, ours: list[Record] = OURS, theirs: list[Record] = THEIRS, *, without: str = "") -> None:
        everyone: dict[str, FakeLinks] = {}
        sides = {"a": (0, ours), "b": (1, ours), "x": (0, theirs), "y": (1, theirs)}
        self.peers = {name: Peer(name, *it, everyone) for name, it in sides.items() if name != without}
        for it in self.peers.values():
            for other in self.peers.values():
                if other is not it:
                    it.membership.hear(other.card, 0.0)

    def shown(self, name: str) -> Peer:
        """A peer to which those that are ahead have shown their records."""
        for other in ("x", "y"):
            self.peers[name].forks.on_foreign(other)
        return self.peers[name]

    async def way(self, name: str) -> Any:
        """The history that a peer would cross to, and whether it may meanwhile be counted on."""
        it = self.peers[name]
        await asyncio.sleep(2 * MEET_SECONDS)
        async with it.forks.look() as way:
            assert (it.history.crosses_at is not None) == (way is not None)
        assert it.history.crosses_at is None
        return way


async def looks(it: Peer) -> bool:
    """Whether a peer asks anyone about the foreign histories that it sees now."""
    it.links.asked.clear()
    async with it.forks.look():
        pass
    return bool(it.links.asked)


def forked_at(records: list[Record], step: int) -> list[Record]:
    """The same records, of which one was decided without a majority."""
    return [dataclasses.replace(it, forked=it.step == step) for it in records]


def by_hash(length: int) -> tuple[list[Record], list[Record]]:
    """Two histories that part after version 2 and are as long; the first one wins."""
    first, second = sorted(
        (following(COMMON, length, digest=digest) for digest in ("d1", "other")), key=lambda made: made[2].hash
    )
    return first, second
