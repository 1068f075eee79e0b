"""Scenarios from seeds: everything that decides how a run goes is drawn from one number.

Sizes are mostly small: most bugs need few peers, and small runs are quick. Each scenario has a few kinds of faults, so
that those that need each other meet without being drowned.
"""

import dataclasses
import random

from swarmd.config import LimitsConfig
from swarmd.sim.engines.reference import Symbols
from swarmd.sim.faults.commands import Drain, Join
from swarmd.sim.faults.course import Fault
from swarmd.sim.faults.draw_fault import DRAWS, back, draw_point, log_uniform, neat
from swarmd.sim.faults.logical import PointFault
from swarmd.sim.faults.machines import Crash, Outage, StageLoss
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.network import LinkSpec
from swarmd.sim.world.points import ANYONE, GROUPS

FAULTS_AT_MOST = 10  # of most scenarios
LONG_SHARE = 0.08  # of scenarios that have many faults and steps, but few hops
LONG_FAULTS = (20, 60)
LONG_STEPS = (8, 14)
POINTS_SHARE = 0.9  # of scenarios that have faults at points besides their other kinds
POINTS_AT_MOST = 14
PAIR_SHARE = 0.15  # of scenarios with two faults in the same round
FOUNDER_SHARE = 0.05  # of scenarios that lose the founder before the first commit
HAND_OVER_SHARE = 0.5  # of scenarios with drains in which a fault strikes while a sum is handed over
NEWCOMER_SHARE = 0.25  # of scenarios that have newcomers besides their other kinds
REPAIR_SHARE = 0.35  # of scenarios in which sums must be repaired, and faults strike at that
STAGE_LOSS_SHARE = 0.08  # of scenarios that lose a stage for good
REBALANCE_SHARE = 0.3  # of scenarios in which peers move of their own accord
REBALANCE_SECONDS = (0.2, 1.0, 5.0)  # hurried: runs are short, and every stage that loses a peer is to be helped
OUTAGE_SHARE = 0.04  # of scenarios in which the whole swarm goes down
BAD_ROUNDS_SHARE = 0.15  # of scenarios in which an average may come out not finite
OPENING_SHARE = 0.5  # of scenarios in which a device takes long to open a stage, as real ones do
EARLY_SHARE = 0.6  # of scenarios in which movers don't wait for the end of a step, as they don't where steps are long
SAFETY_SHARE = 0.7  # faults strike within this share of what the run takes without them
GIB = 1 << 30


def draw_scenario(seed: int) -> Scenario:
    """Draws a whole scenario from one seed."""
    rng = random.Random(f"scenario/{seed}")
    long, repairs = rng.random() < LONG_SHARE, rng.random() < REPAIR_SHARE
    stages = rng.choices((1, 2, 3, 4, 5), (1, 4, 4, 1, 1))[0]
    calm = Scenario(
        seed=seed,
        replicas=tuple(rng.choices((1, 2, 3, 4), (2, 5, 2, 1))[0] for _ in range(stages)),
        microbatches=rng.randint(2, 6) if long else min(40, 2 + int(rng.expovariate(1 / 7))),
        steps=rng.randint(*LONG_STEPS) if long else rng.randint(3, 7),
        speeds=tuple(neat(log_uniform(rng, 0.002, 0.08)) for _ in range(rng.randint(1, 4))),
        link=draw_link(rng),
        uplinks=draw_rates(rng),
        downlinks=draw_rates(rng),
        limits=dataclasses.replace(draw_limits(rng), fork_timeout_s=rng.choice((1.5, 6.0, 30.0, 30.0))),
        symbols=Symbols(
            activation_bytes=rng.choice((128, 256, 2048)),
            state_bytes=rng.choice((500, 4_000, 20_000)),
            spoiled=rng.choice((0.0, 0.0, 0.0, 0.02, 0.05)),
        ),
        validate_every=rng.choice((0, 0, 2)),
        checkpoint_every=rng.choice((0, 0, 2)),
    )
    count = rng.randint(*LONG_FAULTS) if long else rng.randint(1, FAULTS_AT_MOST)
    faults = draw_faults(rng, calm, count)
    if any(isinstance(fault, StageLoss) for fault in faults):
        calm = dataclasses.replace(calm, checkpoint_every=rng.choice((0, 1, 2)))
    if rng.random() < OUTAGE_SHARE:
        calm = dataclasses.replace(calm, checkpoint_every=rng.choice((1, 2)))
        at_s = neat(rng.uniform(0, SAFETY_SHARE * calm.run_seconds()))
        faults += (Outage(at_s, neat(log_uniform(rng, 0.5, 40.0)), neat(log_uniform(rng, 0.05, 5.0))),)
    if repairs:  # what was retained would do otherwise
        calm = dataclasses.replace(calm, limits=dataclasses.replace(calm.limits, retained_bytes=rng.choice((0, 400))))
        faults += draw_repairs(rng, calm)
    if rng.random() < REBALANCE_SHARE:
        calm = dataclasses.replace(calm, rebalance_seconds=rng.choice(REBALANCE_SECONDS))
    if rng.random() < OPENING_SHARE:
        calm = dataclasses.replace(calm, open_seconds=neat(log_uniform(rng, 0.01, 10.0)))
    if rng.random() < EARLY_SHARE:
        calm = dataclasses.replace(calm, limits=dataclasses.replace(calm.limits, move_wait_s=rng.choice((0.0, 0.3))))
    if rng.random() < BAD_ROUNDS_SHARE:
        calm = dataclasses.replace(
            calm, symbols=dataclasses.replace(calm.symbols, spoiled_rounds=rng.choice((0.05, 0.2)))
        )
    return dataclasses.replace(calm, faults=tuple(sorted(faults, key=lambda fault: (fault.at_s, repr(fault)))))


def draw_link(rng: random.Random) -> LinkSpec:
    """Draws the network between peers: from a rack to the other side of the earth."""
    delay_s = neat(log_uniform(rng, 0.0003, 0.1))
    return LinkSpec(
        delay_s=delay_s,
        bytes_per_second=neat(log_uniform(rng, 1e5, 1e8)),
        jitter_s=neat(delay_s * rng.choice((0.0, 0.0, 0.5, 3.0))),
        loss=rng.choice((0.0, 0.0, 0.0, 0.01, 0.05)),
    )


def draw_rates(rng: random.Random) -> tuple[float, ...]:
    """Draws the bytes per second of the peers' own lines; none if all are the same."""
    return tuple(neat(log_uniform(rng, 2e4, 1e7)) for _ in range(3)) if rng.random() < 0.15 else ()


def draw_limits(rng: random.Random) -> LimitsConfig:
    """Draws limits, often far too tight ones."""
    if rng.random() < 0.35:
        return LimitsConfig()
    return LimitsConfig(
        in_flight_bytes=rng.choice((1, 1000, 2 * GIB)),
        in_flight_hops=rng.choice((1, 2, 3, 8, 64)),
        retained_bytes=rng.choice((0, 400, 3000, 4 * GIB)),
        held_gradients=rng.choice((1, 2, 4)),
        backlog_bytes=rng.choice((1, 4 * GIB, 4 * GIB)),
    )


def draw_faults(rng: random.Random, calm: Scenario, count: int) -> tuple[Fault, ...]:
    """Draws several faults of a few kinds; and sometimes those that are seldom drawn together otherwise."""
    kinds = rng.sample(list(DRAWS), rng.randint(1, 3))
    weights = [DRAWS[kind][0] for kind in kinds]
    span = SAFETY_SHARE * calm.run_seconds()
    faults: list[Fault] = []
    for number in range(count):
        kind = rng.choices(kinds, weights)[0]
        faults.append(DRAWS[kind][1](rng, calm, neat(rng.uniform(0, span)), number))
    if rng.random() < POINTS_SHARE:
        faults += [
            DRAWS[PointFault.kind][1](rng, calm, 0.0, number) for number in range(rng.randint(1, POINTS_AT_MOST))
        ]
    if any(isinstance(fault, Drain) for fault in faults) and rng.random() < HAND_OVER_SHARE:
        faults.append(
            dataclasses.replace(draw_point(rng, calm, rng.choice(GROUPS["drain"].points())), step=None, skip=0)
        )
    if rng.random() < PAIR_SHARE:
        faults += draw_pair(rng, calm)
    if rng.random() < NEWCOMER_SHARE:
        numbers = range(count, count + rng.randint(1, 3))
        faults += [DRAWS[Join.kind][1](rng, calm, neat(rng.uniform(0, span)), number) for number in numbers]
    if rng.random() < FOUNDER_SHARE:
        founder = next(iter(calm.peers))
        at_s = neat(rng.uniform(0, calm.step_seconds()))
        faults.append(Crash(at_s, founder, rng.random() < 0.3, back(rng), rng.random() < 0.5))
    if rng.random() < STAGE_LOSS_SHARE:
        faults.append(StageLoss(neat(rng.uniform(0, span)), rng.randrange(calm.stages), rng.random() < 0.5))
    return tuple(faults)


def draw_pair(rng: random.Random, calm: Scenario) -> list[Fault]:
    """Draws two faults in the round, or the decision, of the same step."""
    step = rng.randint(1, calm.steps - 1)
    points = [point for name in ("round", "commit") for point in GROUPS[name].points()]
    drawn = (draw_point(rng, calm, rng.choice(points)) for _ in range(2))
    return [dataclasses.replace(fault, peer=ANYONE, step=step, skip=0) for fault in drawn]


def draw_repairs(rng: random.Random, calm: Scenario) -> tuple[Fault, ...]:
    """Draws faults that leave sums with indices missing or double, and others on the way to mend that."""
    causes = [draw_point(rng, calm, rng.choice(SPOILING_POINTS)) for _ in range(rng.randint(1, 3))]
    effects = [draw_point(rng, calm, rng.choice(MENDING_POINTS)) for _ in range(rng.randint(2, 10))]
    return (
        *(dataclasses.replace(it, peer=ANYONE, skip=rng.choice((0, 1, 3, 8))) for it in causes),
        *(dataclasses.replace(it, peer=ANYONE, step=None, skip=rng.choice((0, 0, 1, 4))) for it in effects),
    )


SPOILING_POINTS = (
    "serve.Close",
    "begin.freeze",
    "served.Freeze",
    "ask.Plan",
    "end.tail",
    "end.backward",
    "served.Hop",
    "served.Accept",
)
"""Points at which a peer that is lost, or cut off, leaves the sums of its stage with too much or too little."""

MENDING = ("Cancel", "Locate", "AskHop", "AskHoldings", "Subtract", "Resend", "Revoke", "AskRecord", "AskGradient")
MENDING_POINTS = tuple(f"{side}.{kind}" for kind in MENDING for side in ("ask", "serve", "served", "asked"))
"""Points that a swarm without faults seldom reaches."""
