"""The checkers of a world: one function for every promise of docs/design.md, but for its bounds (`bounds.py`).

Each yields `Violation`s and decides nothing else; `watch.py` runs them. Nothing here trusts what the swarm says of
itself where it can be worked out: gradients and parameters are compared with `Reference`.
"""

import asyncio
import itertools
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from swarmd.sim.engines.reference import Reference
from swarmd.sim.engines.symbolic import Applied, SymbolicEngine
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.history.consensus import is_majority, plan_acceptors
from swarmd.swarm.membership.table import SILENCE_FLOOR_SECONDS
from swarmd.swarm.peer.final_copies import MACHINES
from swarmd.swarm.wire.messages.common import Ballot
from swarmd.values import PeerId


@dataclass(frozen=True)
class Violation:
    """A promise that was broken, and where to look."""

    promise: int  # its number in PROMISES
    text: str
    step: int | None = None
    index: int | None = None
    peer: PeerId | None = None

    def __str__(self) -> str:
        return f"promise {self.promise}: {self.text}"


PROMISES = {
    1: "every index of a step is in every stage's averaged gradient once",
    2: "replicas at the same record have the same gradient and the same parameters",
    3: "training in a swarm equals single-process training",
    4: "a stage never loses its last replica by its own choice",
    5: "every queue, buffer and cache has a bound",
    6: "steps resume within a bounded time when faults stop",
    7: "nothing that comes from others can crash or stall a peer",
    8: "each data index is trained once",
    9: "no peer moves back and forth",
    10: "a stopped peer leaves nothing behind",
    11: "at the end of a run every stage's final state is on two machines",
}


@dataclass(frozen=True)
class Ended:
    """A step that one engine of the world has ended."""

    stage: int
    applied: Applied


@dataclass(frozen=True)
class Line:
    """A line of one peer's ledger."""

    peer: PeerId
    line: dict[str, Any]


# ------------------------------------------------------------------------------------------------- promises 1 to 3


Blame = Callable[[int, int], tuple[str, int | None]]
"""Names the fault in the sums of a step and stage: in words, and with an index that it concerns."""


def check_gradients(reference: Reference, ended: Iterable[Ended], blame: Blame) -> Iterator[Violation]:
    """Promise 1, worked out anew: what was applied is the sum over 0 .. M-1, each once, over all tokens."""
    for it in ended:
        step = it.applied.step
        skipped = it.applied.grad_digest == ""
        if skipped != reference.skipped(step):
            words = "skipped, though all its numbers are finite" if skipped else "applied, though some are not finite"
            yield Violation(1, f"step {step} was {words} (stage {it.stage})", step)
        elif not skipped and it.applied.averaged != reference.gradient(step, it.stage):
            fault, index = blame(step, it.stage)
            text = f"stage {it.stage} applied another gradient at step {step} than the sum of its hops: {fault}"
            yield Violation(1, text, step, index)


def find_fault(microbatches: int, sums: dict[PeerId, frozenset[int]]) -> tuple[str, int | None]:
    """The first index that is missing or double in the sums of a stage's members, in words and as a number."""
    for index in range(microbatches):
        having = [peer for peer, indices in sums.items() if index in indices]
        if not having:
            return f"index {index} is in no sum of {', '.join(sums)}", index
        if len(having) > 1:
            return f"index {index} is in the sums of {' and '.join(having)}", index
    return f"though {', '.join(sums)} have every index once", None


def check_counts(microbatches: int, lines: Iterable[Line]) -> Iterator[Violation]:
    """Promise 1, as the ledger has it: nothing lost, nothing double."""
    for it in lines:
        counts = {name: it.line[name] for name in ("microbatches", "lost", "duplicated")}
        if counts != {"microbatches": microbatches, "lost": 0, "duplicated": 0}:
            text = ", ".join(f"{name} {count}" for name, count in counts.items())
            stage, step = it.line["stage"], it.line["step"]
            yield Violation(1, f"the ledger of stage {stage} says of step {step}: {text}", step, peer=it.peer)


def check_agreement(seen: dict[tuple[str, int], tuple[str, str]], lines: Iterable[Line]) -> Iterator[Violation]:
    """Promise 2. `seen`: digests by (record, stage), which this adds to."""
    for it in lines:
        digests = (it.line["grad_digest"], it.line["digest"])
        known = seen.setdefault((it.line["record"], it.line["stage"]), digests)
        if known != digests:
            step = it.line["step"]
            what = "gradient" if known[0] != digests[0] else "parameters"
            yield Violation(2, f"{it.peer} has other {what} than its replicas at step {step}", step, peer=it.peer)


def check_parameters(reference: Reference, ended: Iterable[Ended]) -> Iterator[Violation]:
    """Promise 3: after every step the parameters are those of plain arithmetic."""
    for it in ended:
        step = it.applied.step
        if it.applied.digest != reference.digest(step, it.stage):
            yield Violation(3, f"stage {it.stage} has other parameters than the reference after step {step}", step)


def check_losses(reference: Reference, lines: Iterable[Line]) -> Iterator[Violation]:
    """Promise 3: the loss that was committed is that of the reference."""
    for it in lines:
        step = it.line["step"]
        if it.line["skipped"] or it.line["lost"] or it.line["duplicated"]:
            continue
        if it.line["loss"] != reference.loss(step):
            yield Violation(3, f"the loss of step {step} is {it.line['loss']}, not {reference.loss(step)}", step)


# ------------------------------------------------------------------------------------------------- promises 4 and 9


Life = tuple[PeerId, int]
"""A peer and its incarnation."""

ON_ITS_WAY_SECONDS = 1.0  # that a word takes through the network, or the news that a connection is reset
UNNOTICED_SECONDS = SILENCE_FLOOR_SECONDS / 2 + ON_ITS_WAY_SECONDS  # after a near peer has lost power


def check_last_replicas(before: dict[Life, int], world: World, told: Container[PeerId] = ()) -> Iterator[Violation]:
    """Promise 4. `before`: the stage of every peer at work when this was looked at last. One that has finished serves
    its stage to those who are late, one on its way back to a checkpoint has it there; one that was `told` to leave has
    no choice, nor has one that slept while a step was made whose gradient is gone; and one that moves can't reckon with
    a death that nobody can have noticed.
    """
    now = at_work(world)
    others = (it.peer for it in world.peers.values() if it.peer.state == "finished" or it.peer.returns.under_way)
    served = {*now.values(), *(peer.stage for peer in others)}
    alive = {_life(name, it): it.peer.state for name, it in world.peers.items()}
    for life, stage in before.items():
        if life in alive and now.get(life) != stage and stage not in served:
            peer, state = life[0], alive[life]
            it = world.peers[peer]
            chosen = not (state == "left" and peer in told) and not (state == "joining" and it.peer.history.behind)
            if chosen and not _leaves_the_dead(world, stage, it):
                yield Violation(4, f"{peer} left stage {stage}, whose last replica it was ({state})", peer=peer)


def _leaves_the_dead(world: World, stage: int, mover: SimPeer) -> bool:
    """True if a peer left a stage to another replica that had died too short a time ago to be missed. One that leaves
    in the middle of a step has asked its heir right before.
    """
    asked = bool(mover.peer.membership.own.heir)
    for death in world.deaths:
        bound_s = UNNOTICED_SECONDS if death.power and not asked else ON_ITS_WAY_SECONDS
        if death.stage == stage and 0 <= mover.peer.switch.left_at - death.at < bound_s:
            return True
    return False


def at_work(world: World) -> dict[Life, int]:
    """The stage of every living peer that serves one."""
    stages = {_life(name, it): it.stage_at_work for name, it in world.peers.items()}
    return {life: stage for life, stage in stages.items() if stage is not None}


def _life(name: PeerId, it: SimPeer) -> Life:
    return name, it.peer.membership.own.incarnation


@dataclass
class Visit:
    """A peer at a stage."""

    stage: int
    since: float  # virtual time
    until: float


def check_moves(visits: dict[PeerId, list[Visit]], rest_s: float) -> Iterator[Violation]:
    """Promise 9: nobody comes back to a stage that it has left less than `rest_s` ago. `visits`: in order."""
    for peer, visited in visits.items():
        for earlier, later in itertools.combinations(visited, 2):
            if earlier.stage == later.stage and later.since - earlier.until < rest_s:
                way = " -> ".join(str(it.stage) for it in visited)
                yield Violation(9, f"{peer} moved back and forth between stages: {way}", peer=peer)
                break


# ------------------------------------------------------------------------------------------------- promise 7


def check_failures(failures: Iterable[tuple[PeerId, BaseException]]) -> Iterator[Violation]:
    """Promise 7: no peer's task ended with an exception, and no answer raised what none may."""
    for name, trouble in failures:
        yield Violation(7, f"{name or 'the world'} failed with {_told(trouble)}", peer=name or None)


def check_bugs(engines: Iterable[SymbolicEngine]) -> Iterator[Violation]:
    """Promise 1, at its root: an engine was given what belongs to another hop, version or parameters."""
    for engine in engines:
        for bug in engine.bugs:
            yield Violation(1, bug)


def check_unheard(unheard: Iterable[dict[str, Any]]) -> Iterator[Violation]:
    """Promise 7: nothing failed without anybody taking notice. `unheard`: what the event loop was told."""
    for context in unheard:
        trouble = context.get("exception")
        yield Violation(7, f"{context.get('message')}: {_told(trouble)}")


def _told(trouble: BaseException | None) -> str:
    """An exception in one line, the innermost of a group, and where in the swarm it came from."""
    while isinstance(trouble, BaseExceptionGroup):
        trouble = trouble.exceptions[0]
    if trouble is None:
        return "nothing"
    frames = [it for it in traceback.extract_tb(trouble.__traceback__) if "/swarm/" in it.filename]
    way = " > ".join(f"{it.filename.rpartition('/')[2]}:{it.lineno} {it.name}" for it in frames[-4:])
    return f"{type(trouble).__name__}: {trouble} ({way})"


# ------------------------------------------------------------------------------------------------- promises 6, 8, 10


def check_finished(world: World, stranded: Container[PeerId] = ()) -> Iterator[Violation]:
    """Promise 6: everyone alive has come to the last step, but for those who are `stranded`."""
    for name, it in world.peers.items():
        version = it.peer.history.version
        if version < world.run.steps and name not in stranded:
            waits = it.view.waiting_for() or it.peer.state
            text = f"{name} stands at version {version} of {world.run.steps} ({waits})"
            yield Violation(6, text, version + 1, peer=name)


def check_standstill(world: World, version: int, stage: int) -> Iterator[Violation]:
    """Promise 6, where a stage has lost its state: nobody goes on without it, and everyone says what it waits for."""
    for name, it in world.peers.items():
        state, waits, at = it.peer.state, it.view.waiting_for(), it.peer.history.version
        lost = it.peer.stage is None and waits  # it came by peers that are gone, and knows of no stage
        if state != "finished" and (at > version or (str(stage) not in waits and not lost)):
            text = f"stage {stage} is gone, and {name} ({state}, version {at}) waits for '{waits}'"
            yield Violation(6, text, version + 1, peer=name)


def check_chain(
    steps: int,
    living: dict[PeerId, list[dict[str, Any]]],
    dead: Iterable[list[dict[str, Any]]] = (),
    stands: Collection[tuple[int, str]] = (),
) -> Iterator[Violation]:
    """Promise 8: the living have one chain of records, every step once. Lines of lost histories are void. A step whose
    peers are all gone must be in the ledger of one of the dead, with the record that the next step names as its parent,
    or, for the last step, the one record at which the living stand. `stands`: version and record of each of these.
    """
    records: dict[int, tuple[str, str]] = {}
    for peer, ledger in living.items():
        numbers = [line["step"] for line in ledger]
        twice = [step for step, times in Counter(numbers).items() if times > 1]
        if twice:
            yield Violation(8, f"the ledger of {peer} has step {twice[0]} twice", twice[0], peer=peer)
        elif numbers != sorted(numbers):
            yield Violation(8, f"the ledger of {peer} is out of order: {numbers}", peer=peer)
        for line in ledger:
            step, link = line["step"], (line["parent"], line["record"])
            if records.setdefault(step, link) != link:
                yield Violation(8, f"{peer} has another record of step {step} than others", step, peer=peer)
    old = {(line["step"], line["record"]): (line["parent"], line["record"]) for ledger in dead for line in ledger}
    for step in range(steps, 0, -1):
        after = records.get(step + 1)
        named = {after[0]} if after is not None else {record for version, record in stands if version == step}
        found = [old[step, record] for record in named if (step, record) in old]
        if step not in records and len(named) == len(found) == 1:
            records[step] = found[0]
        if step not in records:
            yield Violation(8, f"nobody has a record of step {step}", step)
        elif after is not None and after[0] != records[step][1]:
            yield Violation(8, f"the record of step {step + 1} doesn't follow that of step {step}", step + 1)


def check_decided(seen: set[tuple[str, Ballot]], world: World, everyone: Iterable[SimPeer]) -> Iterator[Violation]:
    """Promise 8, at its root: nobody goes on by a record that isn't marked as forked, and that no majority of its
    acceptors has accepted. `seen`: records that were looked at, by hash and ballot, which this adds to. `everyone`: all
    that ever lived.
    """
    for name, it in world.peers.items():
        history, record = it.peer.history, it.peer.history.record
        if record is None or record.forked or (record.hash, Ballot(*record.ballot)) in seen:
            continue
        step, parent = record.place
        if history.chain.hash_at(step - 1) != parent:  # of a return, or before this peer came
            continue
        ballot = Ballot(*record.ballot)
        seen.add((record.hash, ballot))
        acceptors = plan_acceptors(step, history.chain.at(step - 1), history.origin.founder)
        voters = {it.name for it in everyone if it.peer.history.votes.accepted(record.hash, ballot)}
        if not is_majority(len(voters.intersection(acceptors)), len(acceptors)):
            text = f"{name} went on by a record of step {step} that {len(voters)} of {len(acceptors)} accepted"
            yield Violation(8, text, step, peer=name)


def check_final_state(world: World, stranded: Container[PeerId] = ()) -> Iterator[Violation]:
    """Promise 11, where peers of two machines have come to the end, of which one at least takes copies."""
    ended = [it for name, it in world.peers.items() if it.peer.ending.over and name not in stranded]
    everyone = (*world.peers.values(), *world.dead.values(), *world.past)
    for stage in range(world.run.model.stages):
        having = {it.setup.machine for it in everyone if (world.run.steps, stage) in it.store.checkpoints}
        gives = any(it.peer.stage == stage for it in ended)
        takes = {it.setup.machine for it in ended if it.setup.limits.copies_bytes > 0 and not it.store.full}
        if gives and len(having) < MACHINES <= len(having | takes):
            yield Violation(
                11, f"the final state of stage {stage} is on {', '.join(sorted(having)) or 'no machine'} only"
            )


def check_remains(tasks: Iterable[asyncio.Task[Any]]) -> Iterator[Violation]:
    """Promise 10: after `stop` nothing runs any more. `tasks`: those that are left."""
    names = sorted(f"{task.get_name()} ({_coroutine(task)})" for task in tasks if not task.done())
    if names:
        yield Violation(10, f"{len(names)} tasks are left after the end: {', '.join(names[:5])}")


def _coroutine(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", "?")
