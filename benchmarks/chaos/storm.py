"""A trial of faults in virtual time: production code on simulated machines whose devices take as long as those of the
real trial, and compute with symbols.
"""

import asyncio
import bisect
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.chaos.figures import capacity, last_commit, rate_between
from benchmarks.chaos.plan import FRESH_PROCESS, Bag, Fault, plan_fault
from benchmarks.chaos.recorder import Sample
from swarmd.sim.engines.stamps import SymbolicData
from swarmd.sim.engines.symbolic import Factory
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.device import Speed
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.world.world import World

STAGES, REPLICAS = 3, 3
SPEED = Speed(0.2, 0.4, 0.002, open_s=4.0)  # per microbatch, and until a stage is on the device, as in the real trial
LINK, SLOW = LinkSpec(delay_s=0.0005, bytes_per_second=50e6), LinkSpec(delay_s=0.05, bytes_per_second=1e6)
PROCESS_S = 2.0  # from a start to the first word
CALM = Scenario(replicas=(REPLICAS,) * STAGES, microbatches=48, steps=1_000_000, link=LINK, checkpoint_every=5)
NAMES_OF_PEERS = tuple(f"{name}{number}" for number in range(1, REPLICAS + 1) for name in ("head", "middle", "tail"))
DRAIN_BOUND_S = 60.0
CONNECTIONS_DAMAGED = 2
LOOK_S = 0.5  # between two looks at everyone
PEACE_S = 60.0
SETTLE_S = 120.0  # for the last faults to be over
BOUND_S = 1_200.0  # for a step: something is wrong when it takes longer
AT_ONCE_S = 0.5  # a fault this long before a commit belongs to the step after it


@dataclass(frozen=True)
class Step:
    """One committed step under faults."""

    seconds: float
    capacity: float  # alive, mean
    faults: str  # kinds that began in it, and how many were cut off; "" for none


@dataclass(frozen=True)
class Trial:
    """The result of a run."""

    usual_rate: float  # microbatches per second in peace
    rate: float
    alive: float
    steps: list[Step]
    counts: dict[str, int]

    @property
    def kept(self) -> float:
        """Share of the living capacity's throughput that is kept."""
        return self.rate / (self.usual_rate * self.alive)


class Storm:
    """One run: peace, then faults."""

    def __init__(self, seed: int, kinds: Sequence[str], every_s: tuple[float, float], faults_s: float) -> None:
        self._rng = random.Random(f"chaos/{seed}")
        self._kinds, self._every_s, self._faults_s = kinds, every_s, faults_s
        run = CALM.run_config()
        factory = Factory(run, CALM.symbols)
        data = SymbolicData(run, CALM.symbols)
        self._world = World(run, data, seed=seed, link=LINK, engine=factory)
        self._commits: dict[int, float] = {}  # version -> loop time
        self._samples: list[Sample] = []
        self._struck: dict[int, int | None] = {}  # victims: microbatches done when the fault ended; None before
        self._kept_from_work: set[int] = set()
        self._began: list[tuple[float, Fault]] = []

    async def run(self) -> Trial:
        """Plays it all."""
        loop = asyncio.get_running_loop()
        for number, name in enumerate(NAMES_OF_PEERS):
            await self._world.start(name, stage=number % STAGES, speed=SPEED)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            await self._world.until(lambda: len(self._commits) > 1, BOUND_S)
            peace = await self._next_commit(), await self._next_commit(PEACE_S)
            began, end = loop.time(), loop.time() + self._faults_s
            bag = Bag(self._rng, self._kinds)
            while (now := loop.time()) < end:
                self._strike(bag, group)
                await asyncio.sleep(min(self._rng.uniform(*self._every_s), max(0.0, end - now)))
            await asyncio.sleep(SETTLE_S)
            watching.cancel()
        counts = next(iter(self._world.peers.values())).peer.history.ledger.totals
        await self._world.stop()
        first, last = (self._commits[last_commit(self._commits, at) or 1] for at in (began, end))
        alive, _ = capacity(self._samples, STAGES, REPLICAS, first, last)
        usual = rate_between(self._commits, *peace, CALM.microbatches)
        rate = rate_between(self._commits, began, end, CALM.microbatches)
        return Trial(usual, rate, alive, list(self._steps(began, end)), dict(counts))

    async def _next_commit(self, after_s: float = 0.0) -> float:
        await asyncio.sleep(after_s)
        version = len(self._commits)
        await self._world.until(lambda: len(self._commits) > version, BOUND_S)
        return max(self._commits.values())

    # ---------------------------------------------------------------------------------------------- looking

    async def _watch(self) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            newest = max((it.peer.history.version for it in self._world.peers.values()), default=0)
            for version in range(len(self._commits) + 1, newest + 1):
                self._commits[version] = now
            self._samples += [self._sample(number, now, newest) for number in range(len(NAMES_OF_PEERS))]
            for number, before in list(self._struck.items()):
                sample = self._newest(number)
                if before is not None and sample.at_work and sample.done > before:
                    del self._struck[number]
            await asyncio.sleep(LOOK_S)

    def _newest(self, number: int) -> Sample:
        return self._samples[number - len(NAMES_OF_PEERS)]

    def _sample(self, number: int, now: float, newest: int) -> Sample:
        it = self._world.peers.get(NAMES_OF_PEERS[number])
        if it is None or it.peer.compute is None or number in self._kept_from_work:
            return Sample(now, number, 0.0, alive=False, at_work=False)
        at_work = it.peer.state == "serving" and it.peer.history.version >= newest - 1
        return Sample(now, number, 0.0, alive=True, at_work=at_work, done=it.peer.figures.microbatches_done())

    def _well(self) -> dict[int, list[int]]:
        well: dict[int, list[int]] = {stage: [] for stage in range(STAGES)}
        for number in range(len(NAMES_OF_PEERS)):
            if number not in self._struck and self._newest(number).at_work:
                well[number % STAGES].append(number)
        return well

    # ---------------------------------------------------------------------------------------------- faults

    def _strike(self, bag: Bag, group: asyncio.TaskGroup) -> None:
        """Begins the next fault that can be done now."""
        for _ in self._kinds:
            kind = bag.draw()
            if (fault := plan_fault(self._rng, kind, self._well())) is not None:
                self._began.append((asyncio.get_running_loop().time(), fault))
                self._struck.update(dict.fromkeys(fault.victims))
                group.create_task(self._happen(fault))
                return
            bag.put_back(kind)

    async def _happen(self, fault: Fault) -> None:
        begin, end = {
            "kill": (self._kill, self._boot),
            "restart": (self._kill, self._boot),
            "drain": (self._drain, self._boot),
            "stop": (self._stop, self._go_on),
            "partition": (self._cut_off, self._mend),
            "slow": (self._slow_down, self._speed_up),
            "corrupt": (self._break, self._nothing),
        }[fault.kind]
        await begin(fault)
        await asyncio.sleep(fault.seconds)
        await end(fault)
        for number in fault.victims:
            fresh = fault.kind in FRESH_PROCESS
            self._struck[number] = 0 if fresh else self._newest(number).done

    async def _kill(self, fault: Fault) -> None:
        for number in fault.victims:
            self._world.crash(NAMES_OF_PEERS[number])

    async def _boot(self, fault: Fault) -> None:
        await asyncio.sleep(PROCESS_S)
        for number in fault.victims:
            await self._world.restart(NAMES_OF_PEERS[number])

    async def _drain(self, fault: Fault) -> None:
        for number in fault.victims:
            it = self._world.peers[NAMES_OF_PEERS[number]]
            await asyncio.wait([it.machine.spawn(it.peer.drain(DRAIN_BOUND_S))])
            self._world.crash(it.name)

    async def _stop(self, fault: Fault) -> None:
        self._kept_from_work.update(fault.victims)
        for number in fault.victims:
            self._world.pause(NAMES_OF_PEERS[number])

    async def _go_on(self, fault: Fault) -> None:
        self._kept_from_work.difference_update(fault.victims)
        for number in fault.victims:
            self._world.resume(NAMES_OF_PEERS[number])

    async def _cut_off(self, fault: Fault) -> None:
        self._kept_from_work.update(fault.victims)
        for one, other in self._borders(fault):
            self._world.network.block(one, other)

    async def _mend(self, fault: Fault) -> None:
        self._kept_from_work.difference_update(fault.victims)
        for one, other in self._borders(fault):
            self._world.network.unblock(one, other)

    def _borders(self, fault: Fault) -> Iterable[tuple[str, str]]:
        """Ways between the victims and all others."""
        victims = [NAMES_OF_PEERS[number] for number in fault.victims]
        for one in victims:
            for other in NAMES_OF_PEERS:
                if other not in victims:
                    yield from ((one, other), (other, one))

    async def _slow_down(self, fault: Fault) -> None:
        for one, other in self._borders(fault):
            self._world.network.set_link(one, other, SLOW)

    async def _speed_up(self, fault: Fault) -> None:
        for one, other in self._borders(fault):
            self._world.network.set_link(one, other, LINK)

    async def _break(self, fault: Fault) -> None:
        """Does what a flipped bit does: the connection can't be decrypted any more."""
        for number in fault.victims:
            name = NAMES_OF_PEERS[number]
            others = [other for other in NAMES_OF_PEERS if other != name]
            for other in self._rng.sample(others, CONNECTIONS_DAMAGED):
                self._world.network.cut(name, other)

    async def _nothing(self, fault: Fault) -> None:
        """It is over by itself."""

    # ---------------------------------------------------------------------------------------------- figures

    def _steps(self, begin_s: float, end_s: float) -> Iterable[Step]:
        alive: dict[float, list[int]] = {}
        for sample in self._samples:
            alive.setdefault(sample.time_s, [0] * STAGES)[sample.number % STAGES] += sample.alive
        times = list(alive)
        for version in range(2, len(self._commits) + 1):
            before, after = self._commits[version - 1], self._commits[version]
            if before < begin_s or after > end_s:
                continue
            seen = times[bisect.bisect_left(times, before) : bisect.bisect_left(times, after)]
            kinds = sorted(
                f"{fault.kind} of {len(fault.victims)}" if fault.kind == "partition" else fault.kind
                for at, fault in self._began
                if before - AT_ONCE_S <= at < after - AT_ONCE_S
            )
            yield Step(after - before, fmean(min(alive[at]) / REPLICAS for at in seen), ", ".join(kinds))
