"""Draws one fault of each kind: its moment, its victims, how long it lasts and when they are back."""

import math
import random

from swarmd.sim.faults.commands import Drain, Hold, Join, Leave, Move
from swarmd.sim.faults.connections import Clog, Corruption, Cut, OneWay, Partition
from swarmd.sim.faults.course import Fault
from swarmd.sim.faults.logical import Acceptors, PointFault
from swarmd.sim.faults.machines import Crash, Hang, Pause, Preemption, Slowdown
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.points import ANYONE, GROUPS
from swarmd.values import PeerId


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """Draws between two numbers, every order of magnitude as often."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def neat(value: float) -> float:
    """Rounds to two digits: they are enough, and can be read."""
    return float(f"{value:.2g}")


def lasting(rng: random.Random, calm: Scenario) -> float:
    """Draws the length of a fault: some are blinks, some outlast every patience of the swarm."""
    return neat(
        rng.choice((log_uniform(rng, 0.01, 3.0), calm.step_seconds() * rng.uniform(0.2, 3), rng.uniform(3, 90)))
    )


def one(rng: random.Random, calm: Scenario) -> PeerId:
    """Draws a peer that is there from the start."""
    return rng.choice(list(calm.peers))


def two(rng: random.Random, calm: Scenario) -> tuple[PeerId, PeerId]:
    """Draws two different ones, if there are two."""
    names = list(calm.peers)
    first = rng.choice(names)
    return first, rng.choice([name for name in names if name != first] or [first])


def back(rng: random.Random) -> float | None:
    """Draws the seconds until a dead peer is started again; None: never."""
    return None if rng.random() < 0.4 else neat(log_uniform(rng, 0.2, 40.0))


def _crash(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Crash(at_s, one(rng, calm), rng.random() < 0.4, back(rng), rng.random() < 0.5)


def _preemption(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    names = list(calm.peers)
    return Preemption(at_s, tuple(sorted(rng.sample(names, max(1, len(names) // 2)))), back(rng))


def _join(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Join(at_s, f"newcomer{number}", rng.choice((None, rng.randrange(calm.stages))))


def _leave(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Leave(at_s, one(rng, calm))


def _drain(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Drain(at_s, one(rng, calm), neat(log_uniform(rng, 0.1, 60.0)))


def _hold(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Hold(at_s, one(rng, calm), lasting(rng, calm))


def _move(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Move(at_s, one(rng, calm), rng.randrange(calm.stages))


def _pause(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Pause(at_s, one(rng, calm), lasting(rng, calm))


def _hang(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Hang(at_s, one(rng, calm), lasting(rng, calm))


def _slowdown(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Slowdown(at_s, one(rng, calm), rng.choice((3.0, 10.0, 100.0)), lasting(rng, calm))


def _partition(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    names = list(calm.peers)
    rng.shuffle(names)
    cut = rng.randint(1, max(1, len(names) - 1))
    return Partition(at_s, (tuple(sorted(names[:cut])), tuple(sorted(names[cut:]))), lasting(rng, calm))


def _one_way(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return OneWay(at_s, *two(rng, calm), lasting(rng, calm))


def _clog(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Clog(at_s, *two(rng, calm), lasting(rng, calm))


def _cut(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Cut(at_s, *two(rng, calm))


def _corruption(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Corruption(at_s, one(rng, calm), rng.choice((0.02, 0.2)), lasting(rng, calm))


def _acceptors(rng: random.Random, calm: Scenario, at_s: float, number: int) -> Fault:
    return Acceptors(at_s, rng.choice(("pause", "cut", "power loss")), lasting(rng, calm))


def _point(rng: random.Random, calm: Scenario, at_s: float, number: int) -> PointFault:
    return draw_point(rng, calm, rng.choice(GROUPS[rng.choice(list(GROUPS))].points()))


NEED_MEMORY = (
    "forward",
    "backward",
    "tail",
    "absorb",
    "contribution",
    "reduce",
    "assemble",
    "apply",
    "export_state",
    "import_state",
)
"""Methods of Compute that need more memory than the device has in use already."""


def draw_point(rng: random.Random, calm: Scenario, point: str) -> PointFault:
    """Draws a fault at a point."""
    peer, other = two(rng, calm)
    actions = ["crash", "crash", "power loss", "pause", "cut"]
    if point in [f"begin.{method}" for method in NEED_MEMORY]:
        actions += ["out of memory"] * 3
    action = rng.choice(actions)
    return PointFault(
        at_s=0.0,
        peer=ANYONE if rng.random() < 0.6 else peer,
        step=None if rng.random() < 0.5 else rng.randint(1, calm.steps - 1),
        point=point,
        action=action,
        other=other if action == "cut" else "",
        seconds=lasting(rng, calm) if action == "pause" else 0.0,
        back_s=back(rng) if action in ("crash", "power loss") else None,
        skip=rng.choice((0, 0, 1, 3, 20)),
    )


DRAWS = {
    Crash.kind: (3, _crash),
    Preemption.kind: (1, _preemption),
    Join.kind: (2, _join),
    Leave.kind: (1, _leave),
    Drain.kind: (2, _drain),
    Hold.kind: (1, _hold),
    Move.kind: (2, _move),
    Pause.kind: (3, _pause),
    Hang.kind: (1, _hang),
    Slowdown.kind: (1, _slowdown),
    Partition.kind: (2, _partition),
    OneWay.kind: (2, _one_way),
    Clog.kind: (2, _clog),
    Cut.kind: (4, _cut),
    Corruption.kind: (1, _corruption),
    Acceptors.kind: (2, _acceptors),
    PointFault.kind: (5, _point),
}
"""The weight of a kind among those that a scenario has, and the function that draws it."""
