"""The question for the stages' reports: who is asked, who is passed over, when the conductor gives up."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import Outvoted, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.ballots import Mandate, Outranked
from swarmd.swarm.membership.order import leader_order
from swarmd.swarm.signals import Signal
from swarmd.swarm.steps.stage_reports import MANDATE_TRIES, SILENCE_SECONDS, StageReports
from swarmd.swarm.wire.messages.common import Ack, Ballot
from swarmd.swarm.wire.messages.hop import NOBODY, Blame
from swarmd.swarm.wire.messages.presence import Announce
from swarmd.swarm.wire.messages.round import Appointment, AskAppointment, Close, StageReport
from tests.swarm.cards import card
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import RUN, report

MANDATE = Mandate(3, "parent", Ballot(1, "me"), (), forked=False, bound=None, decided=None)
MEMBERS = (("m0", "n0"), ("m1", "n1"))
FIRST, SECOND = leader_order(3, 1, MEMBERS[1], MEMBERS[1])

TookOver = Callable[[Close], Awaitable[StageReport]]


async def reports_well(close: Close) -> StageReport:
    return report(close.stage)


async def says_nothing(close: Close) -> StageReport:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def refuses(close: Close) -> StageReport:
    raise Refused("its round began anew")


async def lies(close: Close) -> StageReport:
    return report(close.stage, tokens=-1)


class Swarm:
    """A conductor, and peers that lead rounds as they are told to."""

    def __init__(self) -> None:
        everyone: dict[str, FakeLinks] = {}
        self.asked: list[tuple[str, Close]] = []
        self.leads: dict[str, TookOver] = {}
        self.silent: set[str] = set()
        self.lost: set[str] = set()
        self.changed = Signal()
        membership: Any = SimpleNamespace(
            own=card("me"),
            changed=self.changed,
            stage=lambda stage: [card(peer) for peer in MEMBERS[stage] if peer not in self.lost],
            is_silent=lambda peer, now: peer in self.silent,
            is_live=lambda peer: peer not in self.lost,
        )
        for peer in (*MEMBERS[0], *MEMBERS[1]):
            links = FakeLinks(peer, everyone)
            links.handle(Close, self._close(peer))
            links.handle(Announce, self._pinged)
        self.everyone = everyone
        self.members: dict[int, tuple[str, ...]] = dict(enumerate(MEMBERS))  # of the last record
        history: Any = SimpleNamespace(chain=SimpleNamespace(members=lambda stage: self.members[stage]))
        self.reports = StageReports(RUN, cast("Any", FakeLinks("me", everyone)), membership, history)

    def _close(self, leader: str) -> Callable[[str, Close], Awaitable[StageReport]]:
        async def close(peer: str, ask: Close) -> StageReport:
            self.asked.append((leader, ask))
            return await self.leads.get(leader, reports_well)(ask)

        return close

    async def _pinged(self, peer: str, ping: Announce) -> Ack:
        return Ack()

    def asked_of(self, stage: int) -> list[str]:
        return [leader for leader, close in self.asked if close.stage == stage]

    async def collect(self, blame: Blame = NOBODY) -> list[StageReport]:
        return await self.reports.collect(MANDATE, blame)


def test_the_first_leader_of_each_stage_is_asked() -> None:
    async def main() -> None:
        it, blame = Swarm(), Blame("loss", 1, "x", 0)
        assert await it.collect(blame) == [report(0), report(1)]
        assert it.asked_of(1) == [FIRST]
        assert {close.blame for _, close in it.asked} == {blame}

    run_virtual(main())


@pytest.mark.parametrize("bad", [refuses, lies])
def test_a_leader_that_fails_is_passed_over(bad: TookOver) -> None:
    async def main() -> None:
        it = Swarm()
        it.leads[FIRST] = bad
        assert await it.collect() == [report(0), report(1)]
        assert it.asked_of(1) == [FIRST, SECOND]

    run_virtual(main())


def test_a_leader_that_is_silent_already_is_asked_last() -> None:
    async def main() -> None:
        it = Swarm()
        it.silent.add(FIRST)
        await it.collect()
        assert it.asked_of(1) == [SECOND]

    run_virtual(main())


@pytest.mark.parametrize("how", ["deaf", "lost"])
def test_a_leader_that_is_lost_or_falls_silent_in_its_round_is_passed_over(how: str) -> None:
    async def main() -> None:
        it, loop = Swarm(), asyncio.get_running_loop()
        it.leads[FIRST] = says_nothing
        collecting = asyncio.create_task(it.collect())
        await asyncio.sleep(60)
        assert it.asked_of(1) == [FIRST], "it answers pings: a round may take long"
        before = loop.time()
        if how == "deaf":
            it.everyone[FIRST].deaf = True
        else:
            it.lost.add(FIRST)
            it.changed.notify()
        assert await collecting == [report(0), report(1)]
        assert it.asked_of(1) == [FIRST, SECOND]
        assert loop.time() - before <= 2 * SILENCE_SECONDS

    run_virtual(main())


def test_where_no_leader_follows_the_mandate_a_new_one_is_needed() -> None:
    async def main() -> None:
        it = Swarm()
        it.leads = {FIRST: refuses, SECOND: refuses}
        with pytest.raises(Outranked, match="no leader of stage 1 reports under ballot 1"):
            await it.collect()
        assert it.asked_of(1) == [FIRST, SECOND] * MANDATE_TRIES

    run_virtual(main())


def test_a_higher_ballot_that_members_have_heard_ends_the_mandate_at_once() -> None:
    async def main() -> None:
        async def is_outvoted(close: Close) -> StageReport:
            raise Outvoted(MANDATE.ballot.number, 7)

        it = Swarm()
        it.leads[FIRST] = is_outvoted
        with pytest.raises(Outranked, match="ballot 7 was heard in stage 1") as outranked:
            await it.collect()
        assert outranked.value.number == 7
        assert it.asked_of(1) == [FIRST]

    run_virtual(main())


def test_a_round_that_ends_because_members_have_heard_this_ballot_is_led_by_another() -> None:
    async def main() -> None:
        async def led_for_the_conductor_before(close: Close) -> StageReport:
            raise Outvoted(MANDATE.ballot.number - 1, MANDATE.ballot.number)

        it = Swarm()
        it.leads[FIRST] = led_for_the_conductor_before
        assert await it.collect() == [report(0), report(1)]
        assert it.asked_of(1) == [FIRST, SECOND]

    run_virtual(main())


def test_an_empty_stage_is_waited_for() -> None:
    async def main() -> None:
        it = Swarm()
        it.lost.update(MEMBERS[1])
        collecting = asyncio.create_task(it.collect())
        await asyncio.sleep(60)
        assert not collecting.done()
        it.lost.clear()
        assert await collecting == [report(0), report(1)]

    run_virtual(main())


def test_a_newcomer_is_asked_after_the_members_and_then_appointed() -> None:
    """Those who get its orders ask the conductor, as no record names it."""

    async def main() -> None:
        it = Swarm()
        it.members[1] = (SECOND,)
        it.leads[SECOND] = refuses
        member, newcomer = (AskAppointment(3, 1, peer) for peer in (SECOND, FIRST))
        asks = FakeLinks("n", it.everyone)
        assert await it.collect() == [report(0), report(1)]
        assert it.asked_of(1) == [SECOND, FIRST]
        for ask, asked in ((member, True), (newcomer, True), (dataclasses.replace(newcomer, step=4), False)):
            assert await asks.ask("me", ask, deadline_s=1) == Appointment(asked)

    run_virtual(main())
