"""A whole swarm in virtual time: production peers over an in-memory network, training a toy model with real torch, or
any other engine.

Everything random comes from one seed. Peers are named so that their order is theirs, not the hash function's. What can
befall a peer in the real world is a method here; what can befall it at one exact place is in `points.py`.
"""

import asyncio
import contextvars
import functools
import inspect
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from swarmd.config import LimitsConfig, RunConfig, fingerprint, to_plain
from swarmd.errors import NO_ANSWER
from swarmd.sim.world.compute import OpenEngine, SimCompute, torch_engine
from swarmd.sim.world.device import Speed
from swarmd.sim.world.machine import Machine
from swarmd.sim.world.network import LinkSpec, SimNetwork
from swarmd.sim.world.points import Points
from swarmd.sim.world.store import MemoryStore, SimStore
from swarmd.sim.world.trace import Trace
from swarmd.sim.world.transport import SimTransport
from swarmd.swarm.balance.places import Entrance
from swarmd.swarm.fence import is_of_device
from swarmd.swarm.history.history import History
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.peer import Peer
from swarmd.swarm.peer.status_view import StatusView
from swarmd.swarm.ports import Data
from swarmd.swarm.tasks import Tasks
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.presence import Settings
from swarmd.swarm.wire.own_card import OwnCard, first_card
from swarmd.values import PeerId

CODECS = ("fp32", "fp16", "bf16", "int8")
ENTRIES = 8  # living peers that a newcomer knows, so that a wave of deaths doesn't strand it
START_SECONDS = 15.0  # `start` waits so long for the first greeting; the peer goes on trying by itself
POLL_SECONDS = 0.05  # how often `until` looks


@dataclass(frozen=True)
class Setup:
    """The settings that a peer was started with, for its restart."""

    stage: int | None
    speed: Speed
    limits: LimitsConfig
    uplink: float | None
    downlink: float | None
    machine: str  # the same for those on one host


@dataclass
class SimPeer:
    """One machine of the world, and the peer on it."""

    name: PeerId
    peer: Peer
    store: MemoryStore
    task: asyncio.Task[None]
    machine: Machine
    transport: SimTransport
    setup: Setup
    compute: SimCompute | None = None

    @property
    def view(self) -> StatusView:
        """The status that the peer shows."""
        return StatusView(self.peer)

    @property
    def stage_at_work(self) -> int | None:
        """The stage that the peer serves, if it does."""
        return self.peer.stage if self.peer.state in AT_WORK else None


@dataclass(frozen=True)
class Death:
    """The loss of a peer."""

    stage: int | None  # where it was at work
    at: float  # virtual time
    power: bool  # nobody was told


Action = Callable[["World", PeerId], Any]
"""Is done to a peer at a point. May return `points.DROP`, or a coroutine, which then runs beside the peers."""


class World:
    """N peers of one run."""

    def __init__(
        self,
        run: RunConfig,
        data: Data,
        *,
        seed: int = 0,
        link: LinkSpec | None = None,
        engine: OpenEngine | None = None,
        trace: bool = False,
    ) -> None:
        self.run, self.seed = run, seed
        self.trace = Trace(trace)
        self.network = SimNetwork(link, rng=random.Random(f"{seed}/network"), trace=self.trace, failed=self._failed)
        self.points = Points()
        self.peers: dict[PeerId, SimPeer] = {}
        self.strangers: dict[PeerId, Machine] = {}  # machines on the network that are no peers of the run
        self.dead: dict[PeerId, SimPeer] = {}  # by their last death; those that live again are in `past`
        self.past: list[SimPeer] = []  # former lives of peers that live again
        self.deaths: list[Death] = []  # in the order they happened
        self.failures: list[tuple[PeerId, BaseException]] = []  # what must not happen, in the order it did
        self._data = data
        self._engine = engine or torch_engine
        self._incarnation = 0
        self._beside: dict[asyncio.Task[Any], None] = {}

    # ------------------------------------------------------------------------------------------------- coming

    async def start(
        self,
        name: PeerId,
        *,
        stage: int | None = None,
        speed: Speed | None = None,
        limits: LimitsConfig | None = None,
        uplink: float | None = None,
        downlink: float | None = None,
        machine: str = "",
        entries: Sequence[PeerId] | None = None,
    ) -> SimPeer:
        """Adds a peer that knows the first few of the living, or those that are named, and waits until it has greeted
        one of them; if that is nobody, as for the first of a world, it founds the run. Rates in bytes/s. `machine`:
        what others on the same host are given, too; otherwise it has one of its own.
        """
        setup = Setup(stage, speed or Speed(), limits or LimitsConfig(), uplink, downlink, machine or name)
        return await self._start(name, setup, MemoryStore(), through=entries)

    async def restart(
        self,
        name: PeerId,
        *,
        disk: bool = True,
        incarnation: int | None = None,
        entries: Sequence[PeerId] | None = None,
    ) -> SimPeer:
        """The same peer again, crashed first if it lives; without its disk if need be, or with another incarnation than
        the next, as where a clock was set back. It joins through any of the living, or those that are named; if that is
        nobody, it founds the run.
        """
        if name in self.peers:
            self.crash(name)
        before = self.dead.pop(name)
        self.past.append(before)
        return await self._start(name, before.setup, before.store if disk else MemoryStore(), incarnation, entries)

    async def _start(
        self,
        name: PeerId,
        setup: Setup,
        store: MemoryStore,
        incarnation: int | None = None,
        through: Sequence[PeerId] | None = None,
    ) -> SimPeer:
        assert name not in self.peers, f"{name} lives"
        asyncio.get_running_loop().set_exception_handler(self._heard)
        machine = Machine(name, self.points)
        transport = self.network.transport(name, machine, uplink=setup.uplink, downlink=setup.downlink)
        self._incarnation += 1
        incarnation = self._incarnation if incarnation is None else incarnation
        own = OwnCard(first_card(name, incarnation, transport.addresses(), "sim", CODECS, setup.machine))
        membership = Membership(own)
        settings = Settings(to_plain(self.run), fingerprint(self.run))
        links = Links(transport, own, membership, lambda: settings)
        links.fence.heard = lambda trouble: self._failed(name, trouble)

        async def open_stage(stage: int) -> tuple[SimCompute, Data | None]:
            if setup.speed.open_s:
                await asyncio.sleep(setup.speed.open_s)
            rng = random.Random(f"{self.seed}/{name}/device")
            it.compute = SimCompute(self._engine(self.run, stage), setup.speed, machine, rng=rng, trace=self.trace)
            return it.compute, self._data if stage == 0 else None

        rng = random.Random(f"{self.seed}/{name}")
        running = [other for other, it in self.peers.items() if it.machine.state == "running"]
        entries = (running or list(self.peers))[:ENTRIES] if through is None else list(through)
        resume = any(it.store.checkpoints for it in (*self.past, *self.dead.values()))  # nobody begins it anew then
        disk = SimStore(store, machine)
        history, tasks = History(self.run, links, disk), Tasks(links.fence)
        context = PeerContext(self.run, setup.limits, links, membership, history, tasks, rng)
        peer = Peer(context, disk, open_stage, Entrance(setup.stage, entries=tuple(entries), resume=resume))
        machine.step = lambda: peer.history.version + 1
        machine.failed = lambda trouble: self._failed(name, trouble)
        met = asyncio.get_running_loop().create_future()
        task = machine.spawn(_live(peer, transport, entries, met), name=name)
        it = self.peers[name] = SimPeer(name, peer, store, task, machine, transport, setup)
        task.add_done_callback(lambda done: self._over(it, done), context=contextvars.Context())
        self._note(name, "starts", f"incarnation {incarnation}")
        await asyncio.wait({met, task}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return it

    def _over(self, it: SimPeer, task: asyncio.Task[None]) -> None:
        """Takes note that a peer's task ended. One that lost its device ends by itself; its process is gone then."""
        if not task.cancelled() and (trouble := task.exception()) is not None and is_of_device(trouble):
            if self.peers.get(it.name) is it:
                self.crash(it.name)
            return
        self._ended(it.name, task)

    def _ended(self, name: PeerId, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (trouble := task.exception()) is not None:
            self._failed(name, trouble)

    def _failed(self, name: PeerId, trouble: BaseException) -> None:
        self.failures.append((name, trouble))
        self._note(name, "fails", repr(trouble))

    def _heard(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Takes note of an exception that nobody caught: of a callback, or of a task that nobody awaits."""
        loop.default_exception_handler(context)
        if (trouble := context.get("exception")) is not None:
            self._failed("", trouble)

    def add_stranger(self, name: PeerId) -> tuple[Machine, SimTransport]:
        """Adds a machine that is no peer of the run, and its access to the network. No fault waits for it at points."""
        machine = self.strangers[name] = Machine(name)
        machine.failed = lambda trouble: self._failed(name, trouble)
        self._note(name, "comes as a stranger")
        return machine, self.network.transport(name, machine)

    def remove_stranger(self, name: PeerId) -> None:
        """Ends a stranger; its connections are reset."""
        self._note(name, "goes")
        self.network.kill(name)
        self.strangers.pop(name).crash()

    # ------------------------------------------------------------------------------------------------- faults

    def crash(self, name: PeerId, *, power: bool = False) -> None:
        """Kills a process, whose connections are reset; with `power` its whole machine, which is only
        silent.
        """
        it = self.dead[name] = self.peers.pop(name)
        self.deaths.append(Death(it.stage_at_work, asyncio.get_running_loop().time(), power))
        self._note(name, "loses power" if power else "crashes")
        self.network.kill(name, power=power)
        it.machine.crash()

    def preempt(self, names: Iterable[PeerId]) -> None:
        """Kills many processes at once."""
        for name in list(names):
            self.crash(name)

    def pause(self, name: PeerId) -> None:
        """Stops a machine; nobody is told."""
        self._note(name, "pauses")
        self.peers[name].machine.pause()

    def resume(self, name: PeerId) -> None:
        self._note(name, "goes on")
        self.peers[name].machine.resume()

    def slow(self, name: PeerId, factor: float) -> None:
        """Makes a device so many times slower than at its start."""
        self._note(name, "slows", f"{factor:g}")
        self.peers[name].machine.slowdown = factor

    def hang(self, name: PeerId) -> None:
        """Hangs a device in its present task, while the rest goes on."""
        if (compute := self.peers[name].compute) is not None:
            self._note(name, "hangs")
            compute.device.hung = True

    def lose_device(self, name: PeerId) -> None:
        """Kills the thread that works with a device, while the rest goes on: the peer is to notice, and to end."""
        if (compute := self.peers[name].compute) is not None:
            self._note(name, "loses its device")
            compute.device.lose("the thread that works with the device has died")

    def unhang(self, name: PeerId) -> None:
        if (compute := self.peers[name].compute) is not None and compute.device.hung:
            self._note(name, "unhangs")
            compute.device.hung = False

    def heal(self) -> None:
        """Ends all faults: every way is open, everyone goes on at full speed. The dead stay dead, and faults
        planned for points that nobody has reached are called off.
        """
        self.points.armed.clear()
        self.network.heal()
        for name, it in self.peers.items():
            it.machine.slowdown = 1.0
            if it.machine.paused:
                self.resume(name)
            self.unhang(name)

    def fail_at(self, peer: PeerId, step: int | None, point: str, action: Action, *, skip: int = 0) -> None:
        """Plans a fault for the moment at which a peer ("*": any) is at a point of `points.GROUPS` in a step (None: in
        any), for the `skip + 1`st time. It happens once.
        """
        self.points.fail_at(peer, step, point, functools.partial(self._befall, action), skip=skip)

    def _befall(self, action: Action, name: PeerId) -> object:
        """Carries a planned fault out."""
        self._note(name, "fault at a point")
        result = action(self, name)
        if inspect.iscoroutine(result):
            self.spawn(result)
        return result

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something beside the peers, until it or the world ends. What it raises is a failure of the world."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._beside[task] = None

        def ended(done: asyncio.Task[None]) -> None:
            del self._beside[done]
            self._ended("", done)

        task.add_done_callback(ended)

    async def sleep(self, seconds: float) -> None:
        """Lets virtual time pass."""
        await asyncio.sleep(seconds)

    def _note(self, name: PeerId, what: str, detail: str = "") -> None:
        if self.trace.on:
            self.trace.add(asyncio.get_running_loop().time(), name, what, detail=detail)

    # ------------------------------------------------------------------------------------------------- watching

    def check(self) -> None:
        """Raises the first thing that must not have happened."""
        if self.failures:
            raise self.failures[0][1]

    async def until(self, predicate: Callable[[], bool], seconds: float) -> None:
        """Lets virtual time pass until something holds. Raises TimeoutError, and the failure of a peer."""
        async with asyncio.timeout(seconds):
            self.check()
            while not predicate():
                await asyncio.sleep(POLL_SECONDS)
                self.check()

    async def finish(self, seconds: float = 3600.0) -> None:
        """Lets the run come to its end at every living peer. Raises what `until` does."""
        async with asyncio.timeout(seconds):
            while working := [it.task for it in self.peers.values() if not it.task.done()]:
                await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                self.check()
        await self._end()

    async def stop(self) -> None:
        """Ends every peer that is still alive."""
        for it in self.peers.values():
            it.machine.resume()
            it.task.cancel()
        await asyncio.gather(*(it.task for it in self.peers.values()), return_exceptions=True)
        await self._end()

    async def _end(self) -> None:
        """Ends everything that still runs. The peers themselves stay to be looked at."""
        beside = list(self._beside)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        for it in self.peers.values():
            it.transport.die()
            it.machine.crash()
        machines = [it.machine for it in (*self.peers.values(), *self.dead.values(), *self.past)]
        while any(machine.state == "dying" for machine in machines):  # noqa: ASYNC110 - virtual time stands still
            await asyncio.sleep(0)
        self.check()


async def _live(peer: Peer, transport: SimTransport, entries: list[PeerId], met: asyncio.Future[None]) -> None:
    """Runs a peer's life on its machine: it greets those it knows, and works."""
    for entry in entries:
        transport.learn(entry, (f"/sim/{entry}",))

    async def meet(entry: PeerId) -> None:
        try:
            await peer.links.greet(entry)
        except NO_ANSWER:
            return  # the peer asks it again, and others
        if not met.done():
            met.set_result(None)

    async with asyncio.TaskGroup() as group:
        for entry in entries:
            group.create_task(meet(entry))
    if not met.done():
        met.set_result(None)
    await peer.run()
