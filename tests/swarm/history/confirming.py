"""Six members of a record, and a peer that is to confirm the next one."""

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any, cast

from swarmd.swarm.history.confirmation import (
    Confirmation,
)
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Record, build_return, genesis_hash
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.messages.commit import AskVote
from swarmd.swarm.wire.messages.common import Ballot
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.fake_links import FakeLinks
from tests.swarm.no_disk import NoDisk
from tests.swarm.records import RUN, record, report

FORK_SECONDS = 30.0


SIX = tuple(report(stage, members=tuple(f"{letter}{stage}" for letter in "mno")) for stage in (0, 1))


FIRST = record(*SIX, step=1, parent=genesis_hash(RUN))


BALLOT = Ballot(1, "m0")


SECOND = dataclasses.replace(record(*SIX, step=2, parent=FIRST.hash), ballot=(1, "m0"))


FORKED = dataclasses.replace(SECOND, forked=True)


ACCEPTORS = ("m0", "n0", "o0", "m1", "n1", "o1")  # all six: four are a majority


RETURN = dataclasses.replace(
    build_return(FIRST, (("m0",), ("m1",)), {"m0": 1, "m1": 1}, after=FIRST.hash, after_version=1, conductor="m0"),
    ballot=(1, "m0"),
)


class Peer:
    """A peer at version 1; a member has taken part in its round."""

    def __init__(self, name: str, everyone: dict[str, FakeLinks], *, version: int = 1, member: bool = True) -> None:
        self.links = FakeLinks(name, everyone)
        stage = int(name[1]) if name[1:].isdigit() else 0
        self.card = card(name, stage=stage, version=version, record_hash=FIRST.hash if version else "")
        self.membership = Membership(OwnCard(self.card))
        self.history = History(RUN, cast("Any", self.links), cast("Any", NoDisk()))
        self.history.replace(FIRST if version else None, "digest")
        if member and version:
            self.history.took_part(version)
        self.confirmation = Confirmation(cast("Any", self.links), self.membership, self.history, 2, FORK_SECONDS)

    def bear_out(self, borne_out: bool) -> None:
        """A round that this peer was in came out as every record says, or as none does."""
        gradients = SimpleNamespace(bears_out=lambda it: borne_out, objection=lambda it: "")
        self.history.attach(self.card.stage, cast("Any", None), cast("Any", gradients))

    def accept(self, it: Record = SECOND) -> None:
        self.history.votes.accept(it.hash, BALLOT)

    async def confirms(self, it: Record = SECOND, source: str = "x", voters: tuple[str, ...] = ()) -> bool:
        return await self.history.confirms(it, source, voters)

    @property
    def asked(self) -> list[str]:
        return [peer for peer, ask in self.links.asked if isinstance(ask, AskVote)]


class Swarm:
    """Six members, and one that asks."""

    def __init__(self, own: str = "p0", **changes: Any) -> None:
        everyone: dict[str, FakeLinks] = {}
        self.peers = {name: Peer(name, everyone) for name in ACCEPTORS}
        self.me = self.peers.get(own) or Peer(own, everyone, **{"member": False, **changes})
        for it in self.peers.values():
            self.me.membership.hear(it.card, 0.0)

    def accept(self, *names: str, it: Record = SECOND) -> "Swarm":
        for name in names:
            self.peers[name].accept(it)
        return self

    def go_on(self, *names: str) -> None:
        """They are past the step, with a forked record of it, and their cards say so."""
        for name in names:
            self.peers[name].history.replace(FORKED, "digest")
            ahead = dataclasses.replace(self.peers[name].card, version=2, record_hash=SECOND.hash, sequence=9)
            self.me.membership.hear(ahead, now())

    def kill(self, *names: str) -> "Swarm":
        """They are gone; only the network says so."""
        for name in names:
            del self.me.links.everyone[name]
        return self


def now() -> float:
    return asyncio.get_running_loop().time()
