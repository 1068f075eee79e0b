"""A conductor that takes over from another one: it looks for what that one decided."""

import asyncio
import math

import pytest

from swarmd.errors import Outvoted
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.membership.table import SILENCE_FLOOR_SECONDS
from swarmd.swarm.wire.messages.commit import AskRecord, Commit
from swarmd.swarm.wire.messages.common import Ack, Ballot
from swarmd.swarm.wire.messages.round import AskHoldings
from swarmd.swarm.wire.messages.step import AskLease, TookOver
from tests.swarm.cards import card
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import record, report
from tests.swarm.steps.conductor_rig import BEFORE, LAST, STEP, Rig, during


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


def test_where_no_head_took_part_anyone_of_the_record_may_have_led() -> None:
    async def events(it: Rig) -> None:
        it.history.record = record(report(0, members=()), report(1, members=("me",)), step=STEP - 1)
        assert not it.conductor._takes_over(STEP)
        it.history.record = record(report(0, members=()), report(1, members=("me", BEFORE)), step=STEP - 1)
        assert it.conductor._takes_over(STEP)

    during(events)


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
            return Commit(b"three")

        async def give(peer: str, ask: AskRecord) -> Commit:
            assert ask.step == STEP
            return Commit(old.raw)

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
        assert [(ask.step, ask.record_hash, ask.ballot) for ask in it.ended_rounds] == 2 * [
            (STEP, LAST.hash, Ballot(1, "me"))
        ]
        assert [peer for peer, ask in it.links.asked if isinstance(ask, AskRecord)] == ["p"]
        assert [peer for peer, ask in it.links.asked if isinstance(ask, TookOver)] == ["p"]
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
        assert [peer for peer, ask in it.links.asked if isinstance(ask, TookOver)] == ["p", "x"]
        it.add("y", 1)
        it.conductor.sweep(1.0)
        await asyncio.sleep(0.1)
        assert [peer for peer, ask in it.links.asked if isinstance(ask, TookOver)] == ["p", "x", "y"]

    during(events)


def test_who_learns_of_a_higher_ballot_from_a_frozen_round_tries_again_above_it() -> None:
    """The conductor before had it from no acceptor, too."""

    async def events(it: Rig) -> None:
        async def is_frozen(peer: str, ask: AskHoldings) -> Ack:
            if ask.ballot.number <= 7:
                raise Outvoted(ask.ballot.number, 7)
            it.ended_rounds.append(ask)
            return Ack()

        it.ballots.number = 2
        it.everyone["p"].handle(AskHoldings, is_frozen)
        await asyncio.sleep(0.5)
        assert it.ballots.seen == [(STEP, 7)]
        assert it.conductor.desk.completed is None, "nobody trains in vain meanwhile"
        await asyncio.sleep(1)
        assert it.ballots.sought == [STEP, STEP]
        assert it.ended_rounds[-1].ballot == Ballot(8, "me")
        assert it.conductor.desk.completed == 0

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
