"""The course of a scenario's faults: what they may do to its world without taking what the scenario must not lose."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from swarmd.sim.campaign.bounds import gradients_of
from swarmd.sim.campaign.watch import SymbolicWatch, Watch
from swarmd.sim.engines.stamps import SymbolicData
from swarmd.sim.engines.symbolic import Factory
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.recovery.return_plan import NoReturn, ReturnPlan, plan_return
from swarmd.swarm.wire.messages.disks import CheckpointList, CheckpointName
from swarmd.values import PeerId


class ScenarioCourse:
    """The `Course` of one scenario's faults: its world, and what the faults may do to it."""

    def __init__(self, scenario: Scenario, *, trace: bool) -> None:
        self.scenario = scenario
        self.run = scenario.run_config()
        self.world, self.watch = self.build(trace=trace)
        self.struck: Counter[str] = Counter()
        self.words: dict[str, Counter[str]] = {}  # of outsiders: fates by kind of message
        self._moved: set[int] = set()  # lives, by incarnation, that were told to move
        self.leaving = self.watch.leaving
        self.down: list[PeerId] = []
        self.lost: int | None = None  # a stage that has lost its state
        self.tasks: asyncio.TaskGroup | None = None

    def build(self, *, trace: bool) -> tuple[World, Watch]:
        """Makes a world that computes with symbols, and its watch."""
        it, factory = self.scenario, Factory(self.run, self.scenario.symbols)
        data = SymbolicData(self.run, it.symbols)
        world = World(self.run, data, seed=it.seed, link=it.link, engine=factory, trace=trace)
        return world, SymbolicWatch(world, factory=factory)

    def may_lose(self, peers: Sequence[PeerId]) -> bool:
        """True if all of these live, and each leaves behind a replica that has all that the stage has."""
        living = self.world.peers
        if any(peer not in living for peer in peers) or self.lost is not None:
            return False
        newest = max(it.peer.history.version for it in (*self.watch.everyone, *living.values()))
        others = self._others(peers)
        return all(any(has_all_of(other, living[peer], newest) for other in others) for peer in peers)

    def _others(self, peers: Sequence[PeerId]) -> list[SimPeer]:
        return [it for name, it in self.world.peers.items() if name not in peers and name not in self.leaving]

    def may_move(self, peer: PeerId) -> bool:
        if peer not in self.world.peers:
            return False
        own = self.world.peers[peer].peer.membership.own
        told = own.incarnation in self._moved
        self._moved.add(own.incarnation)
        return not told and own.rested and own.moving < 0

    def may_start(self, peer: PeerId) -> bool:
        if self.lost is not None or not self.world.peers:  # a newcomer could only wait, or found another run
            return False
        return peer not in self.world.peers and self.version() < self.run.steps - 1

    async def start(self, peer: PeerId, stage: int | None) -> None:
        it = self.scenario
        up, down = it.uplink(peer), it.downlink(peer)
        await self.world.start(peer, stage=stage, speed=it.speed(peer), limits=it.limits, uplink=up, downlink=down)
        self.watch.listen()  # the world has its own ear since a peer came

    async def restart(self, peer: PeerId, *, disk: bool, entries: Sequence[PeerId] | None = None) -> None:
        await self.world.restart(peer, disk=disk, entries=entries)
        self.watch.listen()

    async def come_up(self) -> None:
        name = self.down.pop(0)
        if name in self.world.dead:
            await self.restart(name, disk=True)

    def lose_stage(self, stage: int, *, power: bool) -> bool:
        if self.lost is not None or not self.version():  # before the first commit anyone can begin it anew
            return False
        gone = [name for name, it in self.world.peers.items() if stage in (it.peer.stage, it.setup.stage)]
        self.lost = stage
        for name in gone:
            self.world.crash(name, power=power)
        return bool(gone)

    def may_stop(self) -> bool:
        common = self.way_back()
        paused = any(it.machine.paused for it in self.world.peers.values())
        whole = isinstance(common, ReturnPlan) and self.lost is None and not paused
        return whole and not self.leaving and 0 < self.version() < self.run.steps - 1

    def way_back(self) -> ReturnPlan | NoReturn:
        """The plan of a return to a checkpoint on the disks of the living; or the reason why there is none."""
        living = {name: it for name, it in self.world.peers.items() if it.peer.stage is not None}
        lists = {name: CheckpointList(tuple(self._kept(it)), has_data=True) for name, it in living.items()}
        places = {name: it.peer.stage or 0 for name, it in living.items()}
        newest = max((it.peer.history for it in living.values()), key=lambda it: it.version, default=None)

        def known(version: int) -> str:
            record = newest.chain.at(version) if newest is not None else None
            return record.state if record is not None else ""

        return plan_return(lists, places, self.run.model.stages, self.version(), known)

    def _kept(self, it: SimPeer) -> Iterator[CheckpointName]:
        for (version, stage), (_, record) in it.store.checkpoints.items():
            yield CheckpointName(version, stage, record_from_raw(self.run, record).state)

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        if self.tasks is None:
            work.close()
        else:
            self.tasks.create_task(work)

    def count(self, kind: str) -> None:
        self.struck[kind] += 1

    def count_word(self, word: str, fate: str) -> None:
        self.words.setdefault(word, Counter())[fate] += 1

    def version(self) -> int:
        """The newest version of any living peer."""
        return max((it.peer.history.version for it in self.world.peers.values()), default=0)


def has_all_of(other: SimPeer, it: SimPeer, newest: int) -> bool:
    """True if a stage that has the other loses nothing with `it`: neither state nor the gradients of
    rounds that are done and of steps up to `newest`, which is decided.
    """
    theirs = other.peer.history
    stage = it.setup.stage if it.peer.stage is None else it.peer.stage
    if stage is not None and other.peer.stage != stage:
        return False
    if other.peer.mover.target is not None:  # it leaves as soon as it may
        return False
    common = min(theirs.version, it.peer.history.version)
    if theirs.chain.hash_at(common) != it.peer.history.chain.hash_at(common):  # another history's, which may lose
        return False
    if not theirs.ready or theirs.behind or other.task.done() or other.peer.state not in (*AT_WORK, "joining"):
        return False
    held, known = gradients_of(other), gradients_of(it)
    return all(step in held for step in range(theirs.version + 1, max(newest, *known, 0) + 1))
