"""Looks at a world on its way and at its end, with all of `checks.py`, and keeps what it found.

What the numbers must be depends on what engines compute with: `SymbolicWatch` knows it for symbols.
"""

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarmd.sim.campaign.bounds import check_bounds
from swarmd.sim.campaign.checks import (
    Ended,
    Life,
    Line,
    Violation,
    Visit,
    at_work,
    check_agreement,
    check_bugs,
    check_chain,
    check_counts,
    check_decided,
    check_failures,
    check_final_state,
    check_finished,
    check_gradients,
    check_last_replicas,
    check_losses,
    check_moves,
    check_parameters,
    check_remains,
    check_standstill,
    check_unheard,
    find_fault,
)
from swarmd.sim.engines.symbolic import Factory, SymbolicEngine
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.balance.balancer import rest_seconds
from swarmd.swarm.wire.messages.common import Ballot
from swarmd.values import PeerId


@dataclass
class Watch:
    """Looks at a world again and again, and keeps what it found."""

    world: World
    everyone: list[SimPeer] = field(default_factory=list)  # all peers that ever lived, in the order they came
    unheard: list[dict[str, Any]] = field(default_factory=list)
    leaving: set[PeerId] = field(default_factory=set)  # peers that were told to leave
    stranded: set[PeerId] = field(default_factory=set)  # peers that came too late to finish
    found: list[Violation] = field(default_factory=list)
    _digests: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)
    _at_work: dict[Life, int] = field(default_factory=dict)
    _visits: dict[PeerId, list[Visit]] = field(default_factory=dict)
    _seen_lines: dict[int, tuple[int, int]] = field(default_factory=dict)  # of `everyone`: lines; lines voided
    _decided: set[tuple[str, Ballot]] = field(default_factory=set)  # records that were looked at
    _returned: dict[PeerId, str] = field(default_factory=dict)  # the newest return that a peer has made

    def listen(self) -> None:
        """Records from now on the failures of the running loop's tasks that nobody retrieved."""
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.unheard.append(context))

    def look(self) -> bool:
        """Runs the checks for a run under way. True if everything held."""
        self._meet()
        lines = list(self._lines())
        self._keep(self.check_numbers(lines))
        self._keep(check_counts(self.world.run.microbatches, lines))
        self._keep(check_agreement(self._digests, lines))
        self._keep(check_last_replicas(self._at_work, self.world, self.leaving))
        self._keep(check_moves(self._visits, rest_seconds(self.world.run.rebalance_seconds) or math.inf))
        self._keep(check_decided(self._decided, self.world, self.everyone))
        self._keep(check_bounds(self.world))
        self._hear()
        self._at_work = at_work(self.world)
        return not self.found

    def check_numbers(self, lines: Sequence[Line]) -> Iterator[Violation]:
        """Compares what was computed with a perfect run. `lines`: new in the ledgers."""
        raise NotImplementedError("a watch knows the numbers of its engines")

    def conclude(self, version: int | None = None, lost: int | None = None) -> None:
        """Runs the checks at the end of a run, before the world is stopped; where stage `lost` has lost its state, the
        checks of a run that stands still at a version.
        """
        self.look()
        if lost is None or version is None:
            self._keep(check_finished(self.world, self.stranded))
            self._keep(check_final_state(self.world, self.stranded))
        else:
            self._keep(check_standstill(self.world, version, lost))
        living = {name: it.store.ledger for name, it in self.world.peers.items()}
        dead = [it.store.ledger for it in self.everyone]
        at = {name: (it.peer.history.version, it.peer.history.record_hash) for name, it in self.world.peers.items()}
        if lost is not None and any(line["forked"] for ledger in living.values() for line in ledger):
            for stand in sorted(set(at.values())):  # nobody can cross to a history that lacks a stage: each for itself
                its = {name: ledger for name, ledger in living.items() if at[name] == stand}
                self._keep(check_chain(stand[0], its, dead, [stand]))
            return
        self._keep(check_chain(self.world.run.steps if version is None else version, living, dead, set(at.values())))

    def after_peers(self) -> None:
        """Checks that nothing goes on that a peer started, once its own task has ended and its network is closed."""
        self._keep(check_remains([task for it in self.everyone for task in it.machine.tasks()]))

    def after(self) -> None:
        """Runs the checks for a world that is stopped."""
        self._hear()
        current = asyncio.current_task()
        self._keep(check_remains([task for task in asyncio.all_tasks() if task is not current]))

    def _hear(self) -> None:
        """Takes the failures out of the world, so that it doesn't raise them."""
        self._keep(check_failures(self.world.failures))
        self._keep(check_unheard(self.unheard))
        self.world.failures.clear()
        self.unheard.clear()

    def _keep(self, violations: Iterator[Violation]) -> None:
        for violation in violations:
            if violation not in self.found:
                self.found.append(violation)

    def _meet(self) -> None:
        known = {id(it) for it in self.everyone}
        for it in (*self.world.past, *self.world.dead.values(), *self.world.peers.values()):
            if id(it) not in known:
                self.everyone.append(it)
                self._visits.pop(it.name, None)  # in another life it may well be needed elsewhere
            if (returned := it.peer.history.returned) is not None and self._returned.get(it.name) != returned.hash:
                self._returned[it.name] = returned.hash
                self._visits.pop(it.name, None)  # and so after a return
        for (name, _), stage in at_work(self.world).items():
            visited, now = self._visits.setdefault(name, []), asyncio.get_running_loop().time()
            if not visited or visited[-1].stage != stage:
                visited.append(Visit(stage, now, now))
            visited[-1].until = now

    def _lines(self) -> Iterator[Line]:
        """Lines that came into ledgers since the last look."""
        for number, it in enumerate(self.everyone):
            ledger, voided = it.store.ledger, len(it.store.voided)
            seen, voided_before = self._seen_lines.get(number, (0, 0))
            start = min(seen, len(ledger)) if voided == voided_before else 0  # steps are taken anew after a void
            yield from (Line(it.name, line) for line in ledger[start:])
            self._seen_lines[number] = len(ledger), voided


@dataclass
class SymbolicWatch(Watch):
    """The watch of a world whose engines are all of one factory: their numbers are known exactly."""

    factory: Factory = field(kw_only=True)
    _seen_applied: dict[int, int] = field(default_factory=dict)  # of the factory's engines

    def check_numbers(self, lines: Sequence[Line]) -> Iterator[Violation]:
        reference, ended = self.factory.reference, list(self._ended())
        yield from check_gradients(reference, ended, self._blame)
        yield from check_parameters(reference, ended)
        yield from check_losses(reference, lines)
        yield from check_bugs(self.factory.engines)

    def _blame(self, step: int, stage: int) -> tuple[str, int | None]:
        """Compares the sums of the members, whose names are in the ledger of any peer that applied the step."""
        lines = (line for it in self.everyone for line in it.store.ledger)
        members = next((line["members"] for line in lines if (line["step"], line["stage"]) == (step, stage)), ())
        sums: dict[PeerId, frozenset[int]] = {}
        for it in self.everyone:
            engine = it.compute.engine if it.compute is not None else None
            if isinstance(engine, SymbolicEngine) and it.name in members and engine.stage == stage:
                sums[it.name] = engine.indices(step) or sums.get(it.name, frozenset())
        return find_fault(self.world.run.microbatches, sums)

    def _ended(self) -> Iterator[Ended]:
        """Steps that engines ended since the last look."""
        for number, engine in enumerate(self.factory.engines):
            start = self._seen_applied.get(number, 0)
            yield from (Ended(engine.stage, applied) for applied in engine.applied[start:])
            self._seen_applied[number] = len(engine.applied)
