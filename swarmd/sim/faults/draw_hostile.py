"""Scenarios with outsiders from seeds: those of `draw.py`, with devices so slow that there is time to talk.

An outsider comes when something happens: before the first record, while a newcomer joins, in a partition, when the
whole swarm comes back from its disks. Some scenarios have a replica that gives newcomers a false state besides.
"""

import dataclasses
import random

from swarmd.sim.faults.commands import Join
from swarmd.sim.faults.connections import Partition
from swarmd.sim.faults.course import Fault
from swarmd.sim.faults.draw import draw_scenario
from swarmd.sim.faults.draw_fault import DRAWS, log_uniform, neat
from swarmd.sim.faults.lies import LyingDonor
from swarmd.sim.faults.machines import Crash, Outage, Preemption, StageLoss
from swarmd.sim.faults.outsider import ELSEWHERE, Outsider
from swarmd.sim.faults.scenario import Scenario, name_of
from swarmd.swarm.membership.states import AT_WORK

ALONE_SHARE = 0.2  # of scenarios with outsiders that have no other faults: what breaks is the outsiders' doing alone
EVENT_SHARE = 0.3  # ... that have one thing happen, which honest swarms get over
OUTSIDERS = (1, 1, 1, 2)
OUTSIDER_RATES = (2.0, 20.0)  # messages a second
POSING_SHARE = 0.5  # of outsiders whose cards say at times that they are at work
FIRST_SHARE = 0.25  # of outsiders that come before the first record
FIRST = 0.2  # of a step's estimated time: many take a third of it
MOMENT_SHARE = 0.6  # of the others that come right before something else happens, where something does
AHEAD_SECONDS = 3.0  # that they come before it at most: they must have greeted
EARLY = 0.15  # of a run's estimated time, at which the others come at the latest: many runs take a third of it
LAST = 0.25  # ... and at which the one thing happens
HOSTILE_SECONDS = (40.0, 240.0)  # that a run with outsiders takes without them
MOMENTS = (Join, Partition, Outage, StageLoss, Crash, Preemption)
"""Faults at which what peers believe of each other changes."""

LIAR_REPLICAS = 3  # of a stage in which one of them gives a false state: two of three are most


def draw_hostile(seed: int) -> Scenario:
    """Draws the scenario of a seed with outsiders in it, on devices so slow that it takes minutes."""
    rng, scenario = random.Random(f"hostile/{seed}"), draw_scenario(seed)
    calm = slowed(scenario, log_uniform(rng, *HOSTILE_SECONDS))
    factor, way = calm.run_seconds() / scenario.run_seconds(), rng.random()
    others = tuple(dataclasses.replace(fault, at_s=neat(factor * fault.at_s)) for fault in scenario.faults)
    if way < ALONE_SHARE:
        others = ()
    elif way < ALONE_SHARE + EVENT_SHARE:
        calm, others = draw_event(rng, calm)
    numbers = range(1, rng.choice(OUTSIDERS) + 1)
    outsiders = tuple(draw_outsider(rng, calm, number, others) for number in numbers)
    return dataclasses.replace(calm, faults=(*outsiders, *(_among(rng, it, outsiders) for it in others)))


def slowed(scenario: Scenario, seconds: float) -> Scenario:
    """The scenario with devices so slow that its run takes so many seconds, about; no shorter than it is."""

    def times(factor: float) -> Scenario:
        return dataclasses.replace(scenario, speeds=tuple(neat(factor * speed) for speed in scenario.speeds))

    computing = times(2.0).run_seconds() - scenario.run_seconds()  # of it; the rest is the network's
    return times(1.0 + max(0.0, seconds - scenario.run_seconds()) / computing)


def draw_event(rng: random.Random, calm: Scenario) -> tuple[Scenario, tuple[Fault, ...]]:
    """Draws the one thing that happens besides outsiders: somebody joins, some beside a replica that lies; the network
    is cut in two; all machines are down for a while, and the swarm returns to what is on its disks.
    """
    at_s = neat(rng.uniform(0, LAST * calm.run_seconds()))
    liable = [stage for stage, count in enumerate(calm.replicas) if count >= LIAR_REPLICAS]
    event = rng.choice((Join, Partition, Outage, LyingDonor if liable else Join))
    if event is Outage:
        outage = Outage(at_s, neat(log_uniform(rng, 0.5, 40.0)), neat(log_uniform(rng, 0.05, 5.0)))
        return dataclasses.replace(calm, checkpoint_every=1), (outage,)
    if event is LyingDonor:  # nobody else may leave its stage to it
        stage = rng.choice(liable)
        liar = LyingDonor(0.1, f"{name_of(stage, calm.stages)}{rng.randint(1, calm.replicas[stage])}")
        joins = tuple(Join(at_s, f"newcomer{number}", stage) for number in range(1, rng.randint(2, 3)))
        return dataclasses.replace(calm, rebalance_seconds=0.0), (liar, *joins)
    return calm, (DRAWS[event.kind][1](rng, calm, at_s, 1),)


def draw_outsider(rng: random.Random, calm: Scenario, number: int, others: tuple[Fault, ...] = ()) -> Outsider:
    """Draws an outsider that comes early, or when something happens."""
    moments = [it.at_s for it in others if isinstance(it, MOMENTS)]
    poses = rng.random() < POSING_SHARE
    at_s = rng.uniform(0, EARLY * calm.run_seconds())
    if rng.random() < FIRST_SHARE:
        at_s = rng.uniform(0, FIRST * calm.step_seconds())
    elif moments and rng.random() < MOMENT_SHARE:
        at_s = max(0.0, rng.choice(moments) - rng.uniform(0, AHEAD_SECONDS))
    return Outsider(
        at_s=neat(at_s),
        peer=f"outsider{number}",
        seconds=neat(rng.uniform(0.2, 1.0) * calm.run_seconds()),
        stage=rng.choice((-1, rng.randrange(calm.stages))),
        state=rng.choice((*ELSEWHERE, *AT_WORK, "finished") if poses else ELSEWHERE),
        rate=neat(log_uniform(rng, *OUTSIDER_RATES)),
        poses=poses,
    )


def _among(rng: random.Random, fault: Fault, outsiders: tuple[Outsider, ...]) -> Fault:
    """A partition with the outsiders in its groups: elsewhere they would hear nobody."""
    if not isinstance(fault, Partition):
        return fault
    groups = [list(group) for group in fault.groups]
    for it in outsiders:
        rng.choice(groups).append(it.peer)
    return dataclasses.replace(fault, groups=tuple(tuple(group) for group in groups))
