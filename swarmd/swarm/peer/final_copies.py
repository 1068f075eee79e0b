"""The rule by which peers bring copies of a run's final state. Pure: plain data in, plain data out.

Every stage's final state is to be on two machines. All peers work it out alike from the cards that they know.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.states import AT_WORK, STAYING
from swarmd.swarm.wire.messages.fields import FINAL_LIMIT
from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import PeerId, host_of

MACHINES = 2  # that a stage's final state is to be on: one may burn


@dataclass(frozen=True)
class Keeper:
    """A peer, as far as the final state is concerned."""

    peer: PeerId
    machine: str
    stage: int
    has: frozenset[int] = frozenset()  # stages whose final state is on its disk
    saves: bool = False  # it will write its own stage's
    takes: bool = False  # it keeps a copy of another stage's, if need be
    here: bool = True  # it can be asked; one that has left can't
    lasts: bool = True  # its machine will not be gone soon


def keeper_of(card: Card) -> Keeper:
    """A card's peer as a keeper of final states."""
    work, finished = card.state in AT_WORK, card.state == "finished"
    return Keeper(
        card.peer,
        host_of(card.machine) or card.peer,  # of an older release: unknown
        card.stage,
        frozenset(card.final),
        saves=work and card.state in STAYING,
        takes=card.spare and len(card.final) < FINAL_LIMIT and (finished or card.state in STAYING),
        here=work or finished,
        lasts=not card.ending,
    )


def plan_final_copies(stages: Iterable[int], keepers: Sequence[Keeper]) -> dict[int, tuple[PeerId, ...]]:
    """By stage the peers of other machines that bring a copy of its state, where its replicas are on fewer than
    MACHINES; none where nobody has it. The same for all who see the same cards.
    """
    plan: dict[int, tuple[PeerId, ...]] = {}
    load: Counter[PeerId] = Counter()
    for stage in stages:
        machines = {it.machine for it in keepers if it.stage == stage and it.lasts and (it.saves or stage in it.has)}
        plan[stage] = ()
        if len(machines) >= MACHINES:
            continue
        given = any(it.here and (it.stage == stage or stage in it.has) for it in keepers)
        order = {peer: place for place, peer in enumerate(rendezvous(f"final/{stage}", [it.peer for it in keepers]))}
        able = [it for it in keepers if it.stage != stage and it.lasts and ((it.takes and given) or stage in it.has)]
        able.sort(key=lambda it: (stage not in it.has, load[it.peer], order[it.peer]))
        chosen = []
        for it in able:
            if len(machines) < MACHINES and it.machine not in machines:
                machines.add(it.machine)
                chosen.append(it.peer)
                load[it.peer] += 1
        plan[stage] = tuple(chosen)
    return plan


def machines_of(stage: int, keepers: Iterable[Keeper]) -> dict[str, Keeper]:
    """The machines on which a stage's final state is, each with one of its peers; the lasting ones only."""
    found: dict[str, Keeper] = {}
    for it in keepers:
        if stage in it.has and it.lasts:
            found.setdefault(it.machine, it)
    return found


def awaited(stages: Iterable[int], keepers: Sequence[Keeper]) -> list[int]:
    """Stages whose final state isn't on MACHINES yet, and will be on more than now if one waits."""
    plan = plan_final_copies(stages, keepers)
    found = []
    for stage, chosen in plan.items():
        machines = machines_of(stage, keepers)
        writers = [it for it in keepers if it.peer in chosen or (it.stage == stage and it.saves)]
        comes = any(stage not in it.has and it.lasts and it.machine not in machines for it in writers)
        if len(machines) < MACHINES and comes:
            found.append(stage)
    return found


def untold(stages: Iterable[int], keepers: Iterable[Keeper], own: PeerId) -> list[int]:
    """Stages that may be on more machines than peer `own` has heard of: all who could give their state have left, as
    they do when others have it, and another peer takes copies. A goodbye may overtake the word of that one's copy.
    """
    found, keepers = [], list(keepers)
    for stage in stages:
        machines = machines_of(stage, keepers)
        given = any(it.here and (it.stage == stage or stage in it.has) for it in keepers)
        others = (it for it in keepers if it.peer != own and it.takes and it.lasts)
        if 0 < len(machines) < MACHINES and not given and any(it.machine not in machines for it in others):
            found.append(stage)
    return found
