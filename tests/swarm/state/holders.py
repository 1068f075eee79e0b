"""Peers with a made-up state for the tests of a state's transfer: donors, holders of gradients, and a joiner."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from string import ascii_lowercase
from types import SimpleNamespace
from typing import Any, cast

from swarmd.config import LimitsConfig, ModelConfig, RunConfig, fingerprint
from swarmd.errors import Refused
from swarmd.sim.world.network import SimNetwork
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Record, build_record, genesis_hash
from swarmd.swarm.membership.standing import Standing
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.state.backlog import Backlog
from swarmd.swarm.state.donor import Donor
from swarmd.swarm.state.joiner import Joiner
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.commit import AskGradient, AskRecord, Commit, GradientPart
from swarmd.swarm.wire.messages.presence import Card, Settings
from swarmd.swarm.wire.messages.round import StageReport
from swarmd.swarm.wire.messages.state import AskChunk, AskSnapshot, Chunk, Snapshot
from swarmd.swarm.wire.own_card import OwnCard
from swarmd.values import Encoded, PeerId
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.no_disk import NoDisk
from tests.swarm.records import believe
from tests.swarm.wire.nodes import Lenient, hear

RUN = RunConfig(name="toy", model=ModelConfig(32, 8, 16, 2, 2, 1, 8), steps=60)
CHUNK = 1000
CHUNKS = 64
GRADIENT = 500  # bytes


def state_of(version: int) -> bytes:
    """A state; its first quarter never changes."""
    return random.Random(0).randbytes(CHUNK * CHUNKS // 4) + random.Random(version).randbytes(CHUNK * CHUNKS * 3 // 4)


def chain(length: int, holders: tuple[PeerId, ...] = ("a", "b")) -> list[Record]:
    """A history; the record of step n is at n - 1."""
    records: list[Record] = []
    for step in range(1, length + 1):
        parent = records[-1].hash if records else genesis_hash(RUN)
        report = StageReport(0, f"g{step}", 1.0, 64, 64.0, 8, 0, 0, 0, True, holders, holders)
        made = build_record(RUN, parent, step, [report], conductor="c", seconds=1.0, validation_loss=None)
        records.append(made)
    return records


CHAIN = chain(40, tuple(ascii_lowercase))


@dataclass
class FakeCompute:
    """A device with nothing but a state."""

    version: int = 0
    export_seconds: float = 0.0
    exports: int = 0
    imported: list[bytes] = field(default_factory=list)
    gradient_size = 1_000_000

    async def export_state(self) -> bytes:
        self.exports += 1
        await asyncio.sleep(self.export_seconds)
        return state_of(self.version)

    async def import_state(self, state: Any) -> str:
        self.imported.append(bytes(state))
        self.version = next(version for version in range(60) if state_of(version) == bytes(state))
        return "digest"

    async def apply(self, step: int, **_: Any) -> str:
        self.version = step
        return "digest"


class Node:
    """A peer that has a stage: a donor, if it is at a version."""

    def __init__(self, network: SimNetwork, name: PeerId, version: int = 0, *, ready: bool = True) -> None:
        self.name, self.network = name, network
        own = OwnCard(card(name))
        self.membership = Membership(own)
        self.links = Links(network.transport(name), own, self.membership, lambda: Settings({}, fingerprint(RUN)))
        self.links.judge_by(Lenient())
        self.links.on_card(lambda card: hear(self.membership, card))
        self.history = History(RUN, self.links, cast("Any", NoDisk()))
        self.history.confirm = believe
        self.compute = FakeCompute(version)
        self.donor = Donor(self.links.scope(), self.history, cast("Any", self.compute), 0)
        self.asked: list[AskChunk] = []
        self.at_once = self.most_at_once = 0
        if ready:
            self.history.replace(CHAIN[version - 1] if version else None, "digest")

    def commit(self) -> None:
        """One version further."""
        self.compute.version += 1
        self.history.replace(CHAIN[self.compute.version - 1], "digest")

    def chunks(self, give: Callable[[AskChunk, Callable[[], Awaitable[Chunk]]], Awaitable[Chunk]]) -> None:
        """Puts something between a question for a chunk and its answer."""

        async def answer(peer: PeerId, ask: AskChunk) -> Chunk:
            self.asked.append(ask)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                return await give(ask, lambda: self.donor._answer_chunk(peer, ask))
            finally:
                self.at_once -= 1

        self.links.handle(AskChunk, answer)

    def uplink(self, bytes_per_second: float) -> None:
        """All it gives goes through one thin wire."""
        wire = asyncio.Lock()

        async def give(ask: AskChunk, usual: Callable[[], Awaitable[Chunk]]) -> Chunk:
            async with wire:
                await asyncio.sleep(CHUNK / bytes_per_second)
            return await usual()

        self.chunks(give)

    def pause_after(self, chunks: int) -> None:
        """From some chunk on it says nothing more."""
        self.uplink(10 * CHUNK)
        inner = self.links._handlers[AskChunk]

        async def give(peer: PeerId, ask: AskChunk) -> Any:
            if len(self.asked) >= chunks:
                await asyncio.get_running_loop().create_future()
            return await inner(peer, ask)

        self.links.handle(AskChunk, give)


def meet(*nodes: Node) -> None:
    for one in nodes:
        for other in nodes:
            if one is not other:
                one.links.transport.learn(other.name, ())


async def seconds(work: Coroutine[Any, Any, Any]) -> float:
    began = asyncio.get_running_loop().time()
    await work
    return asyncio.get_running_loop().time() - began


def crowd(count: int, version: int = 5) -> tuple[Node, list[Node]]:
    network = SimNetwork()
    joiner = Node(network, "joiner", ready=False)
    donors: list[Node] = [Holder(network, name, version) for name in ascii_lowercase[:count]]
    meet(joiner, *donors)
    return joiner, donors


def joiner_of(node: Node, donors: list[Node], held: list[int] | None = None, *, opened: bool = True) -> Joiner:
    def newest() -> Card:
        live = [donor for donor in donors if donor.network.transports.get(donor.name)]
        first = max(live, key=lambda donor: donor.history.version, default=node)
        return card(first.name, version=first.history.version)

    membership = SimpleNamespace(
        newest=newest,
        kin=lambda: [card(node.name), newest()],
        own=card(node.name),
        get=node.membership.get,
        standing=Standing(),
    )
    context = peer_context(
        run=RUN, limits=LimitsConfig(), links=node.links, membership=membership, history=node.history
    )
    joiner = Joiner(context, 0)
    if opened:
        open_stage(joiner, node, held)
    return joiner


def open_stage(joiner: Joiner, node: Node, held: list[int] | None = None) -> None:
    joiner.opened(
        cast("Any", node.compute), lambda step, digest, parts: (held if held is not None else []).append(step)
    )


def names(donors: list[Node]) -> Callable[[], list[PeerId]]:
    return lambda: [donor.name for donor in donors if donor.name in donor.network.transports]


def ask(joiner: Node, donor: Node, version: int = 0) -> Coroutine[Any, Any, Snapshot]:
    return joiner.links.ask(donor.name, AskSnapshot(0, version), deadline_s=100)


class Holder(Node):
    """A donor that keeps the last gradients."""

    kept = 4

    def __init__(self, network: SimNetwork, name: PeerId, version: int) -> None:
        super().__init__(network, name, version)
        self.links.handle(AskRecord, self.record)
        self.links.handle(AskGradient, self.gradient)

    async def record(self, peer: PeerId, ask: AskRecord) -> Commit:
        if ask.step > self.history.version:
            raise Refused("not yet")
        return Commit(CHAIN[ask.step - 1].raw)

    async def gradient(self, peer: PeerId, ask: AskGradient) -> GradientPart:
        if not self.history.version - self.kept < ask.step <= self.history.version:
            raise Refused("not any more")
        return GradientPart(2, part_of(ask.step, ask.part))


def part_of(step: int, number: int) -> Encoded:
    return Encoded("fp32", (GRADIENT,), (bytes([step, number]) * (GRADIENT // 2),))


def holders(version: int = 5) -> tuple[Node, list[Node], Backlog]:
    network = SimNetwork()
    joiner = Node(network, "joiner", ready=False)
    nodes: list[Node] = [Holder(network, name, version) for name in "ab"]
    meet(joiner, *nodes)
    return joiner, nodes, backlog_of(joiner, nodes)


def backlog_of(joiner: Node, nodes: list[Node], limit: int = 1 << 20) -> Backlog:
    def newest() -> Card:
        first = max(nodes, key=lambda node: (node.history.version, node.name))
        return card(first.name, version=first.history.version)

    start = CHAIN[nodes[0].history.version - 1]
    limits = LimitsConfig(backlog_bytes=limit)
    membership = SimpleNamespace(newest=newest, get=joiner.membership.get)
    context = peer_context(run=RUN, limits=limits, links=joiner.links, membership=membership)
    return Backlog(context, 0, start, lambda: [node.name for node in nodes])
