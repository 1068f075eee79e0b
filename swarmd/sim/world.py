"""A whole swarm in virtual time: production peers over an in-memory network, training a toy model with real torch.

Everything random comes from one seed. Peers are named so that their order is theirs, not the hash function's.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from swarmd.config import LimitsConfig, RunConfig, fingerprint, to_plain
from swarmd.sim.compute import SimCompute, Speed
from swarmd.sim.network import Link, SimNetwork
from swarmd.swarm.links import Links
from swarmd.swarm.membership import Membership, first_card
from swarmd.swarm.messages import Settings
from swarmd.swarm.peer import Peer
from swarmd.swarm.ports import Data
from swarmd.values import Buffer, PeerId

CODECS = ("fp32", "fp16", "bf16", "int8")


@dataclass
class MemoryStore:
    """The Store port on a list."""

    ledger: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: dict[int, bytes] = field(default_factory=dict)

    def append_ledger(self, line: dict[str, Any]) -> None:
        self.ledger.append(line)

    def void_ledger(self, version: int) -> None:
        self.ledger = [line for line in self.ledger if line["step"] <= version]

    async def save_checkpoint(self, version: int, stage: int, state: Buffer, record: dict[str, Any]) -> None:
        self.checkpoints[version] = bytes(state)


@dataclass
class SimPeer:
    """One machine of the world."""

    name: PeerId
    peer: Peer
    store: MemoryStore
    task: asyncio.Task[None]
    compute: SimCompute | None = None


class World:
    """N peers of one run."""

    def __init__(self, run: RunConfig, data: Data, *, seed: int = 0, link: Link | None = None) -> None:
        self.run, self.seed = run, seed
        self.network = SimNetwork(link)
        self.peers: dict[PeerId, SimPeer] = {}
        self.dead: dict[PeerId, SimPeer] = {}
        self._data = data
        self._incarnation = 0

    async def start(
        self,
        name: PeerId,
        *,
        stage: int | None = None,
        speed: Speed | None = None,
        limits: LimitsConfig | None = None,
    ) -> SimPeer:
        """Adds a peer, bootstrapped from the first one alive."""
        transport = self.network.transport(name)
        self._incarnation += 1
        card = first_card(name, self._incarnation, transport.addresses(), "sim", CODECS)
        membership = Membership(card)
        settings = Settings(to_plain(self.run), fingerprint(self.run))
        links = Links(transport, membership, lambda: settings)
        store = MemoryStore()

        async def open_stage(stage: int) -> tuple[SimCompute, Data | None]:
            compute = SimCompute(self.run, stage, speed or Speed())
            self.peers[name].compute = compute
            return compute, self._data if stage == 0 else None

        rng = random.Random(f"{self.seed}/{name}")
        bootstrap = next(iter(self.peers), None)
        entries = [bootstrap] if bootstrap else []
        peer = Peer(
            self.run, limits or LimitsConfig(), links, membership, store, open_stage, rng, stage=stage, entries=entries
        )
        if bootstrap is not None:
            await links.greet(await transport.connect(f"/sim/{bootstrap}"))
        self.peers[name] = SimPeer(name, peer, store, asyncio.create_task(peer.run(), name=name))
        return self.peers[name]

    def kill(self, name: PeerId) -> None:
        """The machine is gone, mid-sentence."""
        it = self.dead[name] = self.peers.pop(name)
        self.network.kill(name)
        it.task.cancel()

    async def until(self, predicate: Callable[[], bool], seconds: float) -> None:
        """Lets virtual time pass until something holds. Raises TimeoutError, and whatever a peer failed with."""
        async with asyncio.timeout(seconds):
            while not predicate():
                for it in self.peers.values():
                    if it.task.done() and not it.task.cancelled():
                        it.task.result()
                await asyncio.sleep(0.05)

    async def finish(self, seconds: float = 3600.0) -> None:
        """Lets the run come to its end."""
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(it.task for it in self.peers.values()))

    async def stop(self) -> None:
        """Ends every peer that is still alive."""
        for it in self.peers.values():
            it.task.cancel()
        await asyncio.gather(*(it.task for it in self.peers.values()), return_exceptions=True)
