"""The conductor of steps: when it leads, what it proposes, and which moves it grants."""

import asyncio
import dataclasses
import itertools
import math
from collections.abc import Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.ballots import Mandate, Outranked
from swarmd.swarm.history.record import Move, Record, record_to_plain
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.table import SILENCE_FLOOR_SECONDS, Membership
from swarmd.swarm.signals import Signal
from swarmd.swarm.steps.conductor import (
    LOOK_SECONDS,
    PATIENCE_CEILING_SECONDS,
    RETRY_SECONDS,
    VALIDATION_SECONDS,
    Conductor,
)
from swarmd.swarm.wire.messages.commit import AskRecord, Commit
from swarmd.swarm.wire.messages.common import Ack, Ballot
from swarmd.swarm.wire.messages.move import AskMove, Wished
from swarmd.swarm.wire.messages.presence import Announce
from swarmd.swarm.wire.messages.round import AskHoldings, Close, StageReport
from swarmd.swarm.wire.messages.step import AskLease, Lead, Lease
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

    async def seek(self, step: int, complete: Callable[[], bool]) -> Mandate:
        self.sought.append(step)
        self.complete = complete
        if self.outranked:
            self.outranked -= 1
            raise Outranked("another one leads")
        ballot = Ballot(self.number, "me")
        return Mandate(step, LAST.hash, ballot, ("me",), forked=False, bound=self.bound, decided=self.decided)

    async def propose(self, mandate: Mandate, content: Record, complete: Callable[[], bool]) -> Record:
        self.proposed.append(content)
        self.complete = complete
        if self.outranked:
            self.outranked -= 1
            raise Outranked("another one leads by now")
        return content


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
            chain=SimpleNamespace(total_tokens=1000, members=lambda stage=None: ("me", BEFORE)),
            listen=lambda listener: None,
            adopt=self._adopt,
            await_version=self._await_version,
        )
        self.applies = True
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
        links.handle(Lead, hear)
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


# ------------------------------------------------------------------------------------------------- a step


def test_it_leads_a_step_to_its_record_and_tells_everyone() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(0.5)
        assert it.conductor.desk.completed == 0
        assert not (await it.all_done()).again
        await asyncio.sleep(1)
        (made,) = it.ballots.proposed
        assert (made.step, made.parent, made.conductor) == (STEP, LAST.hash, "me")
        assert made.seconds == pytest.approx(2.0), "since its first lease"
        assert made.total_tokens == 1000 + it.reports[1].tokens
        assert made.validation_loss is None
        assert it.adopted == [(made, "me")]
        assert it.commits == ["p"]
        assert (it.ballots.sought, it.told_returns, it.ended_rounds) == ([STEP], [], [])
        assert it.conductor.desk.completed is None, "no more leases of it"
        assert [ask for _, ask in it.links.asked if isinstance(ask, AskRecord | Lead)] == []

    during(events)


def test_it_waits_while_another_is_first() -> None:
    async def main() -> None:
        it = Rig()
        it.add(BEFORE, 0)
        assert (it.conductor.conductor_of(STEP), it.conductor.is_first(STEP)) == (BEFORE, False)
        running = asyncio.ensure_future(it.conductor.run())
        await asyncio.sleep(1)
        it.membership.suspect(BEFORE)
        await asyncio.sleep(LOOK_SECONDS - 2)
        assert it.ballots.sought == []
        await asyncio.sleep(2)
        assert it.conductor.is_first(STEP)
        assert it.ballots.sought == [STEP]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtual(main())


@pytest.mark.parametrize("replaced", [False, True], ids=["committed", "another state"])
def test_what_another_leads_may_come_while_it_waits(replaced: bool) -> None:
    async def main() -> None:
        it = Rig()
        it.add(BEFORE, 0)
        running = asyncio.ensure_future(it.conductor.run())
        await asyncio.sleep(1)
        it.history.finished = True
        it.history.version += not replaced
        it.history.replacements += replaced
        it.membership.changed.notify()
        await asyncio.sleep(0.1)
        assert running.done()
        assert it.ballots.sought == []

    run_virtual(main())


@pytest.mark.parametrize("change", ["another first", "committed", "replaced"])
def test_it_leads_no_longer_once_another_is_first_or_the_step_is_over(change: str) -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(1)
        assert it.conductor.desk.completed == 0
        it.history.finished = True
        if change == "another first":
            it.add(BEFORE, 0)
        else:
            it.history.version += change == "committed"
            it.history.replacements += change == "replaced"
        it.membership.changed.notify()
        await asyncio.sleep(0.1)
        assert it.conductor.desk.completed is None
        assert it.ballots.proposed == []

    during(events)


@pytest.mark.parametrize("kinds", [("decided",), ("bound",), ("decided", "bound")])
def test_what_is_decided_or_may_be_is_not_trained_again(kinds: tuple[str, ...]) -> None:
    async def main() -> None:
        it = Rig()
        it.stop_with(STEP)
        old = record(step=STEP, conductor=BEFORE)
        for kind in kinds:
            setattr(it.ballots, kind, old)
        await asyncio.wait_for(it.conductor.run(), 1)
        assert it.adopted == [(old, "me")]
        assert it.ballots.proposed == ([] if "decided" in kinds else [old])
        await asyncio.gather(*it.background)
        assert it.commits == ["p"]

    run_virtual(main())


def test_who_is_outranked_waits_longer_each_time() -> None:
    async def events(it: Rig) -> None:
        it.ballots.outranked = 9
        times: list[float] = []
        for _ in range(10):
            before = len(it.ballots.sought)
            while len(it.ballots.sought) == before:
                await asyncio.sleep(0.01)
            times.append(asyncio.get_running_loop().time())
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 64, 120, PATIENCE_CEILING_SECONDS], abs=0.05)
        await asyncio.sleep(0.1)
        it.history.finished, it.applies = False, True
        await it.all_done()
        await asyncio.sleep(1)
        assert it.conductor._outranked == 0

    during(events)


def test_who_is_outranked_gives_no_leases_meanwhile() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(0.1)
        it.ballots.outranked = 1
        await it.all_done()
        await asyncio.sleep(0.1)
        assert (len(it.ballots.proposed), it.conductor.desk.completed) == (1, None)
        await asyncio.sleep(1)
        assert (len(it.ballots.sought), it.conductor.desk.completed) == (2, 0)

    during(events)


def test_the_commit_ends_the_patience_of_who_was_outranked() -> None:
    async def main() -> None:
        it = Rig()
        it.ballots.outranked = 99
        running = asyncio.ensure_future(it.conductor.run())
        await asyncio.sleep(20)
        sought = len(it.ballots.sought)
        it.history.finished = True
        it.commit(record(step=STEP))
        await asyncio.sleep(0.1)
        assert running.done()
        assert len(it.ballots.sought) == sought

    run_virtual(main())


def test_a_record_that_it_cannot_apply_is_not_learnt_again_at_once() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(0.1)
        it.applies, it.ballots.decided = False, record(step=STEP)
        await it.all_done()
        await asyncio.sleep(10 * RETRY_SECONDS)
        assert 9 <= len(it.adopted) <= 12

    during(events)


# ------------------------------------------------------------------------------------------------- a stage is lost


def test_a_return_is_proposed_instead_of_the_step() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(5)
        it.lost.set_result(RETURN)
        await asyncio.sleep(5)
        assert it.ballots.proposed == [RETURN]
        assert (it.adopted, it.told_returns, it.commits) == ([(RETURN, "me")], [RETURN], [])
        assert it.ballots.sought == [STEP], "the step is not over before it has returned"
        it.stop_with(RETURN.step)
        it.commit(RETURN)
        await asyncio.sleep(0.1)
        assert it.ballots.sought == [STEP]

    during(events)


def test_without_a_stage_only_a_way_back_is_worth_going_on_without_the_others() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(1)
        assert it.ballots.complete()
        it.membership.suspect("p")
        assert not it.ballots.complete()
        it.lost.set_result(RETURN)
        await asyncio.sleep(0.1)
        assert it.ballots.complete()

    during(events)


# ------------------------------------------------------------------------------------------------- taking over


@pytest.mark.parametrize(
    ("members", "asks"), [(("me",), []), (("me", BEFORE), ["p"])], ids=["it was first", "another was"]
)
def test_it_asks_for_the_record_if_another_may_have_led(members: tuple[str, ...], asks: list[str]) -> None:
    async def main() -> None:
        it = Rig()
        it.add("silent", 1, heard=-SILENCE_FLOOR_SECONDS)
        it.history.record = record(report(0, members=members), report(1, members=("p",)), step=STEP - 1)
        running = asyncio.ensure_future(it.conductor.run())
        await asyncio.sleep(1)
        assert [peer for peer, ask in it.links.asked if isinstance(ask, AskRecord)] == asks
        assert sorted(peer for peer, ask in it.links.asked if isinstance(ask, AskHoldings)) == (
            ["me", "p"] if asks else []
        )
        running.cancel()
        await asyncio.gather(running, *it.background, return_exceptions=True)

    run_virtual(main())


def test_before_the_first_step_nobody_can_have_led() -> None:
    async def events(it: Rig) -> None:
        it.history.record = None
        await asyncio.sleep(1)
        assert it.conductor.desk.completed == 0
        assert [ask for _, ask in it.links.asked if isinstance(ask, AskRecord)] == []

    during(events)


def test_a_record_that_someone_has_is_adopted_and_a_bad_one_passed_over() -> None:
    async def main() -> None:
        it, old = Rig(), record(step=STEP, conductor=BEFORE)
        it.history.record = record(report(0, members=(BEFORE,)), report(1), step=STEP - 1)
        it.history.chain.members = lambda stage=None: (BEFORE,)
        it.stop_with(STEP)

        async def lie(peer: str, ask: AskRecord) -> Commit:
            return Commit({"step": "three"})

        async def give(peer: str, ask: AskRecord) -> Commit:
            assert ask.step == STEP
            return Commit(record_to_plain(old))

        it.everyone["p"].handle(AskRecord, lie)
        it.add("r", 1).handle(AskRecord, give)
        await asyncio.wait_for(it.conductor.run(), 1)
        assert it.adopted == [(old, "r")]
        assert it.ballots.proposed == []

    run_virtual(main())


def test_who_led_the_step_before_ends_the_rounds_that_were_begun_meanwhile() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(1)
        assert it.ended_rounds == []
        it.membership.hear(card(BEFORE, version=STEP - 1), 0.0)
        FakeLinks(BEFORE, it.everyone).deaf = True
        it.membership.changed.notify()
        await asyncio.sleep(1)
        assert it.conductor.desk.completed is None
        it.membership.suspect(BEFORE)
        it.membership.changed.notify()
        await asyncio.sleep(1)
        assert [(ask.step, ask.record, ask.ballot) for ask in it.ended_rounds] == 2 * [
            (STEP, LAST.hash, Ballot(1, "me"))
        ]
        assert [peer for peer, ask in it.links.asked if isinstance(ask, AskRecord)] == ["p"]
        assert [peer for peer, ask in it.links.asked if isinstance(ask, Lead)] == ["p"]
        lease = await it.conductor.desk._answer("me", AskLease(STEP, LAST.hash, 1, (), ()))
        assert lease.indices and lease.again

    during(events)


def test_a_mandate_that_is_not_the_first_one_is_made_known() -> None:
    async def events(it: Rig) -> None:
        it.ballots.number = 2
        it.add("x", 1, state="joining")
        it.add("silent", 1, heard=-SILENCE_FLOOR_SECONDS)
        await asyncio.sleep(1)
        assert [peer for peer, ask in it.links.asked if isinstance(ask, AskHoldings)] == ["me", "p"]
        assert [peer for peer, ask in it.links.asked if isinstance(ask, Lead)] == ["p", "x"]
        it.add("y", 1)
        it.conductor.sweep(1.0)
        await asyncio.sleep(0.1)
        assert [peer for peer, ask in it.links.asked if isinstance(ask, Lead)] == ["p", "x", "y"]

    during(events)


def test_a_sweep_takes_over_from_one_that_is_silent() -> None:
    async def main() -> None:
        it = Rig()
        it.add(BEFORE, 0)
        late = SILENCE_FLOOR_SECONDS / 2 + 1
        it.membership.touch("p", late)
        assert it.conductor.sweep(0.0) == math.inf
        assert it.conductor.conductor_of(STEP) == BEFORE
        assert it.conductor.sweep(late) == math.inf
        assert it.conductor.conductor_of(STEP) == "me"
        it.conductor.desk.open(STEP, again=False)
        assert it.conductor.sweep(late) == late

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(("every", "loss"), [(2, 1.5), (1, 1.5), (3, None), (0, None)])
def test_every_so_many_versions_the_record_has_a_validation_loss(every: int, loss: float | None) -> None:
    async def events(it: Rig) -> None:
        await it.all_done()
        await asyncio.sleep(1)
        assert [made.validation_loss for made in it.ballots.proposed] == [loss]
        assert it.validated == ([STEP - 1] if loss else [])

    during(events, validate_every=every)


def test_the_untrained_version_is_not_validated() -> None:
    async def main() -> None:
        it = Rig(dataclasses.replace(RUN, validate_every=1))
        assert await it.conductor._validation(0) is None
        assert it.validated == []

    run_virtual(main())


@pytest.mark.parametrize("in_time", [True, False])
def test_the_step_waits_for_its_validation_but_not_for_ever(in_time: bool) -> None:
    async def events(it: Rig) -> None:
        it.validation_s = 3.0 + VALIDATION_SECONDS + (-1.0 if in_time else 1.0)
        await it.all_done()
        await asyncio.sleep(VALIDATION_SECONDS - 2)
        assert it.ballots.proposed == []
        await asyncio.sleep(3)
        assert [made.validation_loss for made in it.ballots.proposed] == [1.5 if in_time else None]

    during(events, validate_every=1)


# ------------------------------------------------------------------------------------------------- moves


async def wish(it: Rig, peer: str = "p", *, source: int = 1, target: int = 0, **changes: Any) -> Wished:
    ask = AskMove(STEP, it.history.record_hash, source, target, **changes)
    return await it.conductor._answer_move(peer, ask)


async def granted(it: Rig) -> tuple[Move, ...]:
    await it.all_done()
    await asyncio.sleep(1)
    return it.ballots.proposed[0].moves


def test_a_wish_is_kept_for_the_record() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.reports[1] = report(1, members=("p", "r"), holders=("p", "r"))
        await asyncio.sleep(0.1)
        assert await wish(it) == Wished(True, "")
        again = await wish(it, "r")
        assert (again.likely, again.why) == (False, "stage 1 would be left with 0 replicas, and it needs 1")
        assert await granted(it) == (Move("p", 1, 0),)

    during(events)


def test_what_was_wished_for_in_another_step_is_void() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.reports[1] = report(1, members=("p", "r"), holders=("p", "r"))
        it.conductor._wishes.ask(Move("p", 1, 0), {0: ["me"], 1: ["p", "r"]})
        assert await granted(it) == ()

    during(events)


def test_a_wish_is_weighed_with_those_of_others_and_with_who_stays() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.add("s", 1, state="draining")
        await asyncio.sleep(0.1)
        assert (await wish(it)).likely
        assert it.weighed == []
        await wish(it, "r", balance=True)
        assert it.weighed == [[Move("p", 1, 0)]]
        assert not (await wish(it, "r")).likely, "nobody would stay"

    during(events)


def test_the_record_counts_on_from_the_one_before() -> None:
    async def events(it: Rig) -> None:
        it.history.record = dataclasses.replace(LAST, skips=2)
        it.reports[1] = report(1, members=("p",), finite=False)
        await it.all_done()
        await asyncio.sleep(1)
        assert it.ballots.proposed[0].skips == 3

    during(events)


def test_where_no_head_took_part_anyone_of_the_record_may_have_led() -> None:
    async def events(it: Rig) -> None:
        it.history.record = record(report(0, members=()), report(1, members=("me",)), step=STEP - 1)
        assert not it.conductor._takes_over(STEP)
        it.history.record = record(report(0, members=()), report(1, members=("me", BEFORE)), step=STEP - 1)
        assert it.conductor._takes_over(STEP)

    during(events)


def test_only_who_leads_the_step_takes_wishes() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(0.1)
        with pytest.raises(Refused, match="another version"):
            await it.conductor._answer_move("p", AskMove(STEP, "theirs", 1, 0))

    during(events)


def test_what_would_make_the_swarm_slower_is_refused_if_it_is_for_balance() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.imbalance = "another one moves there"
        await asyncio.sleep(0.1)
        assert await wish(it, balance=True) == Wished(False, "another one moves there")
        assert await wish(it) == Wished(True, "")

    during(events)


def test_with_the_last_step_nobody_moves() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        await asyncio.sleep(0.1)
        assert await wish(it) == Wished(False, "the run ends with this step")
        it.conductor._wishes.ask(Move("p", 1, 0), {0: ["me"], 1: ["p", "r"]})
        it.reports[1] = report(1, members=("p", "r"), holders=("p", "r"))
        assert await granted(it) == ()

    during(events, steps=STEP)


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"members": ("p", "r"), "holders": ("p", "r")}, 1),
        ({"members": ("p", "r"), "holders": ("p",)}, 0),
        ({"members": ("p", "r"), "holders": (), "finite": False}, 1),
        ({"members": ("p",), "holders": (), "finite": False}, 0),
    ],
    ids=["both have the gradient", "who would stay lacks it", "nobody needs it", "who would stay took no part"],
)
def test_a_stage_keeps_one_that_can_go_on_alone(changes: dict[str, Any], moves: int) -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.reports[1] = report(1, **changes)
        await asyncio.sleep(0.1)
        assert (await wish(it)).likely
        assert len(await granted(it)) == moves

    during(events)


def test_a_stage_keeps_one_that_stays() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.reports[1] = report(1, members=("p", "r"), holders=("p", "r"))
        await asyncio.sleep(0.1)
        assert (await wish(it)).likely
        it.membership.hear(card("r", stage=1, version=STEP - 1, sequence=2, state="draining"), 0.0)
        assert await granted(it) == ()

    during(events)
