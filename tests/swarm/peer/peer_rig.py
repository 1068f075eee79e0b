"""A peer whose parts note what they are told."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

from swarmd.config import LimitsConfig, fingerprint
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import SimNetwork
from swarmd.swarm.balance.places import Entrance
from swarmd.swarm.fence import Fence
from swarmd.swarm.history.history import History
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.peer import Peer
from swarmd.swarm.tasks import Tasks
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.presence import Card, Settings
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.no_disk import NoDisk
from tests.swarm.peer.parts import AsyncPart, Part
from tests.swarm.records import RUN

JOINS = Entrance(entries=("q",))


class Rig:
    """Peer `p`, whose parts note what they are told, and its log: that, and what it says of itself."""

    def __init__(self, entrance: Entrance = JOINS, *, run: Any = RUN) -> None:
        self.log: list[Any] = []
        self.own = OwnCard(card("p", stage=1))
        self.membership = Membership(self.own)
        transport = SimNetwork().transport("p")
        self.links = Links(transport, self.own, self.membership, lambda: Settings({}, fingerprint(RUN)))
        store: Any = NoDisk()
        self.history = History(run, self.links, store)
        tasks: Any = Tasks(Fence())
        context = PeerContext(run, LimitsConfig(), self.links, self.membership, self.history, tasks, random.Random(0))
        self.places: list[int] = [1]
        self.cannot: set[int] = set()
        self.lost = ""
        self.peer = Peer(context, store, cast("Any", None), entrance)
        self.refreshed = 0  # so often its card was drawn up anew
        self.own.on_refresh(self._refresh)
        self.own.on_announce(self._announce)
        self.peer.tasks = cast("Any", SimpleNamespace(start=self._start, keep=lambda begin: None))
        self.served = SimpleNamespace(
            admission=Part("admission", self.log),
            journeys=SimpleNamespace(admission=Part("admission", self.log)),
            compute=SimpleNamespace(progress=lambda: SimpleNamespace(lost=self.lost)),
            sums="sums",
            sweep=Part("served", self.log, sweep=5.0).sweep,
            data="data",
            validation=AsyncPart("validation", self.log, mean_loss=1.5),
        )
        for name in ("on_card", "suspect", "peer_lost", "serve", "abandon", "end_step"):
            setattr(self.served, name, getattr(Part("served", self.log), name))
        for name in ("mover", "saving", "returns", "places", "ending", "figures", "ballots", "arriving"):
            setattr(self.peer, name, Part(name, self.log))
        self.peer.ending = cast("Any", SimpleNamespace(over=False, hear=lambda it: self.log.append("ending.hear")))
        self.serve()

    def serve(self) -> None:
        self.peer.switch.served = cast("Any", self.served)

    def _refresh(self) -> None:
        self.refreshed += 1

    def _start(self, work: Any) -> None:
        asyncio.ensure_future(work)  # noqa: RUF006

    async def _announce(self, told: Card) -> None:
        self.log.append(told.state)

    def hear(self, peer: str, **changes: Any) -> None:
        self.membership.hear(card(peer, **changes), 0.0)


def try_it(events: Callable[[Rig], Awaitable[None]], entrance: Entrance = JOINS, run: Any = RUN) -> None:
    async def main() -> None:
        await events(Rig(entrance, run=run))

    run_virtual(main())


def calls(it: Rig) -> list[Any]:
    """What happened since the last look."""
    log, it.log[:] = list(it.log), []
    return log
