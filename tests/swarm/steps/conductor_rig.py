"""A conductor whose acceptors, neighbours, history and returns are stand-ins."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

from swarmd.errors import Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.ballots import Decision, Mandate, Outranked
from swarmd.swarm.history.record import Move, Record
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.signals import Signal
from swarmd.swarm.steps.conductor import Conductor
from swarmd.swarm.wire.messages.commit import AskRecord, Commit
from swarmd.swarm.wire.messages.common import Ack, Ballot
from swarmd.swarm.wire.messages.presence import Announce
from swarmd.swarm.wire.messages.round import AskHoldings, Close, StageReport
from swarmd.swarm.wire.messages.step import AskLease, Lease, TookOver
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import RUN, record, report

STEP = 3
BEFORE = next(name for name in (f"q{n}" for n in range(99)) if rendezvous(f"conductor/{STEP}", ["me", name])[0] == name)
"""Another head, which comes before "me" as the conductor of the step."""
LAST = record(report(0, members=("me",)), report(1, members=("p",)), step=STEP - 1)
RETURN = dataclasses.replace(record(step=1), after=LAST.hash, after_version=STEP - 1, lives=(1, 1, 1, 1))


class FakeBallots:
    """Acceptors that give every mandate and take every record, unless told otherwise."""

    def __init__(self) -> None:
        self.sought: list[int] = []
        self.proposed: list[Record] = []
        self.complete: Callable[[], bool] = lambda: False  # of the last question
        self.number = 1
        self.bound: Record | None = None
        self.decided: Record | None = None
        self.outranked = 0  # times still to come
        self.seen: list[tuple[int, int]] = []  # steps, and numbers of others' ballots

    def see(self, step: int, number: int) -> None:
        self.seen.append((step, number))
        self.number = max(self.number, number + 1)

    async def seek(self, step: int, complete: Callable[[], bool]) -> Mandate:
        self.sought.append(step)
        self.complete = complete
        if self.outranked:
            self.outranked -= 1
            raise Outranked("another one leads")
        ballot = Ballot(self.number, "me")
        return Mandate(step, LAST.hash, ballot, ("me",), forked=False, bound=self.bound, decided=self.decided)

    async def propose(self, mandate: Mandate, content: Record, complete: Callable[[], bool]) -> Decision:
        self.proposed.append(content)
        self.complete = complete
        if self.outranked:
            self.outranked -= 1
            raise Outranked("another one leads by now")
        return Decision(content, ("me",))


class Rig:
    """The only head, "me", and "p" at the stage after it, both at the version before the step."""

    def __init__(self, run: Any = RUN) -> None:
        self.everyone: dict[str, FakeLinks] = {}
        self.loss: float | None = 1.5
        self.validation_s = 0.0
        self.validated: list[int] = []
        self.links = FakeLinks("me", self.everyone)
        self.reports = {0: report(0, members=("me",), holders=("me",)), 1: report(1, members=("p",), holders=("p",))}
        self.ended_rounds: list[AskHoldings] = []
        self.commits: list[str] = []
        self.membership = Membership(OwnCard(card("me", version=STEP - 1)))
        self.add("p", 1)
        self._serve(self.links, "me")
        self.history: Any = SimpleNamespace(
            version=STEP - 1,
            record=LAST,
            record_hash=LAST.hash,
            replacements=0,
            finished=False,
            changed=Signal(),
            chain=SimpleNamespace(
                total_tokens=1000, members=lambda stage=None: ("me", BEFORE), is_newcomer=lambda peer: False
            ),
            listen=lambda listener: None,
            adopt=self._adopt,
            confirms=self._confirms,
            await_version=self._await_version,
        )
        self.applies, self.confirmed = True, True
        self.adopted: list[tuple[Record, str]] = []
        self.ballots = FakeBallots()
        self.lost: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self.told_returns: list[Record] = []
        self.imbalance = ""
        self.weighed: list[list[Move]] = []
        returns: Any = SimpleNamespace(lost=self._lost, tell=self._tell_return)
        context = peer_context(
            run=run,
            links=self.links,
            membership=self.membership,
            history=self.history,
            tasks=SimpleNamespace(start=self._start),
            rng=SimpleNamespace(random=lambda: 0.5),
        )
        outlook: Any = SimpleNamespace(objection=self._weigh)
        self.conductor = Conductor(context, cast("Any", self.ballots), returns, outlook, self._validate)
        self.background: list[asyncio.Task[None]] = []

    async def _confirms(self, record: Record, source: str) -> bool:
        return self.confirmed

    def add(self, peer: str, stage: int, *, heard: float = 0.0, **changes: Any) -> FakeLinks:
        links = FakeLinks(peer, self.everyone)
        self._serve(links, peer)
        self.membership.hear(card(peer, stage=stage, version=STEP - 1, **changes), heard)
        return links

    def _serve(self, links: FakeLinks, name: str) -> None:
        async def close(peer: str, ask: Close) -> StageReport:
            return self.reports[ask.stage]

        async def holdings(peer: str, ask: AskHoldings) -> Ack:
            self.ended_rounds.append(ask)
            return Ack()

        async def commit(peer: str, told: Commit) -> Ack:
            self.commits.append(name)
            return Ack()

        async def hear(peer: str, told: Any) -> Ack:
            return Ack()

        async def no_record(peer: str, ask: AskRecord) -> Commit:
            raise Refused("none")

        links.handle(Close, close)
        links.handle(AskHoldings, holdings)
        links.handle(Commit, commit)
        links.handle(Announce, hear)
        links.handle(TookOver, hear)
        links.handle(AskRecord, no_record)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self.background.append(asyncio.ensure_future(work))

    async def _lost(self) -> Record:
        return await asyncio.shield(self.lost)

    def _weigh(self, wish: Move, others: list[Move]) -> str:
        self.weighed.append(others)
        return self.imbalance

    async def _tell_return(self, record: Record) -> None:
        self.told_returns.append(record)

    async def _validate(self, version: int) -> float | None:
        self.validated.append(version)
        await asyncio.sleep(self.validation_s)
        return self.loss

    async def _await_version(self, version: int, record_hash: str, peer: str, seconds: float) -> None:
        if (version, record_hash) != (self.history.version, self.history.record_hash):
            raise Refused("another version")

    async def _adopt(self, record: Record, source: str) -> None:
        self.adopted.append((record, source))
        if self.applies and record.step > self.history.version and not record.after:
            self.commit(record)

    def commit(self, record: Record) -> None:
        self.history.version, self.history.record, self.history.record_hash = record.step, record, record.hash
        self.history.changed.notify()
        self.membership.changed.notify()

    async def all_done(self) -> Lease:
        """The heads finish the step. Returns the first lease."""
        await asyncio.sleep(1)
        done = ((0, self.conductor._run.microbatches),)
        lease = await self.conductor.desk._answer("me", AskLease(STEP, self.history.record_hash, 1, (), ()))
        await asyncio.sleep(2)
        await self.conductor.desk._answer("me", AskLease(STEP, self.history.record_hash, 0, done, ()))
        return lease

    def stop_with(self, version: int) -> None:
        """The run is over at a version."""
        apply = self.commit

        def commit(record: Record) -> None:
            apply(record)
            self.history.finished = self.history.version >= version

        self.commit = commit  # type: ignore[method-assign]


def during(events: Callable[[Rig], Awaitable[None]], **changes: Any) -> None:
    """Lets things happen while a conductor runs that ends with the step's commit."""

    async def main() -> None:
        it = Rig(dataclasses.replace(RUN, **changes))
        it.stop_with(STEP)
        running = asyncio.ensure_future(it.conductor.run())
        await events(it)
        if running.done():
            await running
        running.cancel()
        await asyncio.gather(running, *it.background, return_exceptions=True)

    run_virtual(main())
