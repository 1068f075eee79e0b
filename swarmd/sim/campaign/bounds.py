"""The bounds of a peer: everything that could grow without end, and the size that it may have (promise 5)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from swarmd.config import RunConfig
from swarmd.sim.campaign.checks import Violation
from swarmd.sim.engines.symbolic import SymbolicEngine
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.history.chain import RECORDS_KEPT
from swarmd.swarm.hops.rework import SUBTRACTED_AT_ONCE
from swarmd.swarm.hops.under_way import HopUnderWay
from swarmd.swarm.membership.rumours import RUMOURS_KEPT
from swarmd.swarm.membership.table import MEMBERS_LIMIT

SUMS_LIMIT = 3  # steps of which a peer keeps a sum: the present one, the next, and one that ends
PINNED_LIMIT = 2  # snapshots that a donor holds at once
HELD_BESIDES = 2  # steps whose gradients a member may hold besides so many committed ones: the present and the next
RETAINED_BESIDES = SUBTRACTED_AT_ONCE + 1  # messages that wait for an answer besides hops in flight, and the newest
TASKS_PER_HOP = 8  # tasks that may stand for one hop at one peer: its journey, question, beat, wait, cancel, repair ...
TASKS_PER_NEIGHBOUR = 12  # questions, answers, dials and gossip between a peer and one other
TASKS_FLOOR = 60  # what a peer runs for itself, round included
DEVICE_QUEUE_PER_HOP = 2  # tasks that wait for a device, of each hop: one that was given up, and its successor
HELD_FRAMES_PER_PAIR = 500  # behind a wall, one way: what is sent in the minutes until the silent peer is dropped
FP32_BYTES = 4
DEVICE_QUEUE_FLOOR = 40  # of rounds, joiners and validation


@dataclass(frozen=True)
class Bound:
    """A named bound on something that could grow without end."""

    name: str
    size: Callable[[SimPeer], int]
    limit: Callable[[SimPeer, RunConfig], int]


def hops_of(it: SimPeer) -> list[HopUnderWay]:
    """The hops under way at a peer."""
    return list(it.peer.journeys.hops) if it.peer.journeys is not None else []


def admitted(it: SimPeer) -> list[HopUnderWay]:
    """The hops that others gave this peer."""
    return [hop for hop in hops_of(it) if hop.custodian]


def message_bytes(it: SimPeer) -> int:
    """Bytes of an activation."""
    engine = it.compute.engine if it.compute is not None else None
    if isinstance(engine, SymbolicEngine):
        return engine.symbols.activation_bytes
    run = it.peer.run_config
    return FP32_BYTES * run.tokens_per_microbatch * run.model.hidden


def gradients_of(it: SimPeer) -> dict[int, int]:
    """Number of whole averaged gradients that a peer holds of each step."""
    return it.peer.served.rounds.gradients() if it.peer.served is not None else {}


BOUNDS = (
    Bound("hops in flight", lambda it: len(admitted(it)), lambda it, run: it.setup.limits.in_flight_hops),
    Bound(
        "bytes in flight",
        lambda it: sum(hop.nbytes for hop in admitted(it)),
        lambda it, run: it.setup.limits.in_flight_bytes + message_bytes(it),
    ),
    Bound(
        "retained bytes",
        lambda it: it.peer.journeys.custodian.retention.nbytes if it.peer.journeys is not None else 0,
        # What waits for its answer is never evicted: a message for each hop in flight, and for each that is brought
        # anew. What a lost holder had answered waits, too, but was within the limit.
        lambda it, run: (
            it.setup.limits.retained_bytes + (2 * it.setup.limits.in_flight_hops + RETAINED_BESIDES) * message_bytes(it)
        ),
    ),
    Bound(
        "held gradients",
        lambda it: len(gradients_of(it)),
        lambda it, run: it.setup.limits.held_gradients + HELD_BESIDES,
    ),
    Bound(
        "pinned snapshots",
        lambda it: len(it.peer.served.donor.versions) if it.peer.served is not None else 0,
        lambda it, run: PINNED_LIMIT,
    ),
    Bound("records", lambda it: len(it.peer.history.chain), lambda it, run: RECORDS_KEPT),
    Bound("members", lambda it: len(it.peer.membership.members()), lambda it, run: MEMBERS_LIMIT),
    Bound("rumours", lambda it: len(it.peer.membership.rumours), lambda it, run: RUMOURS_KEPT),
    Bound(
        "sums of steps",
        lambda it: len(it.peer.sums.open_steps) if it.peer.sums is not None else 0,
        lambda it, run: SUMS_LIMIT,
    ),
    Bound(
        "tasks in the queue of its device",
        lambda it: it.compute.device.waiting if it.compute is not None else 0,
        lambda it, run: DEVICE_QUEUE_FLOOR + DEVICE_QUEUE_PER_HOP * run.microbatches,
    ),
    Bound(
        "kept forwards",
        lambda it: len(it.compute.engine.kept) if it.compute is not None else 0,
        lambda it, run: run.microbatches,
    ),
)
"""Every named bound of a peer that can be looked at from outside."""


def check_bounds(world: World, bounds: Iterable[Bound] = BOUNDS) -> Iterator[Violation]:
    """Promise 5, for every living peer, and for the tasks of all of them."""
    for bound in bounds:
        for name, it in world.peers.items():
            size, limit = bound.size(it), bound.limit(it, world.run)
            if size > limit:
                yield Violation(5, f"{name} has {size} {bound.name}, of {limit} allowed", peer=name)
    peers, neighbours = max(1, len(world.peers)), max(1, len(world.peers) + len(world.strangers))
    hops = sum(len(hops_of(it)) for it in world.peers.values())
    limit = peers * (TASKS_FLOOR + TASKS_PER_NEIGHBOUR * neighbours) + TASKS_PER_HOP * hops
    if (tasks := sum(len(it.machine.tasks()) for it in world.peers.values())) > limit:
        yield Violation(5, f"{tasks} tasks run for {peers} peers with {hops} hops, of {limit} allowed")
    if (held := world.network.held()) > (most := HELD_FRAMES_PER_PAIR * peers * peers + TASKS_PER_HOP * hops):
        yield Violation(5, f"{held} frames wait between {peers} peers, of {most} allowed")
