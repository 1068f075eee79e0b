"""A head: how much it keeps under way, and what becomes of its leases."""

import asyncio
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.config import LimitsConfig
from swarmd.errors import HopForgotten, OutOfRange, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.signals import Signal
from swarmd.swarm.steps.head import FOLLOW_SECONDS, PULSE_SECONDS, RETRY_SECONDS, Head, plan_slots
from swarmd.swarm.wire.messages.fields import Ranges
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.swarm.wire.messages.step import AskLease, Lease, Revoke
from swarmd.swarm.wire.own_card import OwnCard
from swarmd.values import HopId
from tests.swarm.cards import card
from tests.swarm.contexts import stage_context
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import RUN


@pytest.mark.parametrize(
    ("peers", "heads", "limit", "slots"),
    [(6, 2, 64, 6), (7, 2, 64, 7), (1, 1, 64, 2), (100, 1, 64, 64), (3, 0, 64, 6), (6, 2, 1, 1), (6, 6, 64, 2)],
)
def test_heads_keep_their_share_of_what_keeps_all_busy(peers: int, heads: int, limit: int, slots: int) -> None:
    assert plan_slots(peers, heads, limit, 0.0, 0.0) == slots


@pytest.mark.parametrize(
    ("away", "service", "slots"),
    [(3.0, 10.0, 3), (3.0, 1.0, 5), (6.0, 1.0, 8), (60.0, 1.0, 12), (0.0, 1.0, 12), (3.0, 0.0, 12)],
)
def test_a_slow_head_doesnt_hoard(away: float, service: float, slots: int) -> None:
    assert plan_slots(12, 2, 64, away, service) == slots


# ------------------------------------------------------------------------------------------------- a step

STEP = 3
JOURNEY_SECONDS = 10.0


class Desk:
    """A conductor that gives what it is told to give."""

    def __init__(self, name: str, everyone: dict[str, FakeLinks]) -> None:
        FakeLinks(name, everyone).handle(AskLease, self._answer)
        self.asked: list[AskLease] = []
        self.leases: list[Ranges] = []  # to be given, one a question
        self.forgotten = 0
        self.again, self.hangs, self.trouble = False, False, cast("Exception | None", None)

    async def _answer(self, head: str, ask: AskLease) -> Lease:
        self.asked.append(ask)
        await asyncio.sleep(0.01)
        if self.hangs:
            try:
                await asyncio.sleep(1000)
            finally:
                self.forgotten += 1
        if self.trouble is not None:
            raise self.trouble
        if not ask.want:
            return Lease(ask.step, (), False)
        while not self.leases:
            await asyncio.sleep(0.1)
        return Lease(ask.step, self.leases.pop(0), self.again, 5.0)

    @property
    def wanted(self) -> list[int]:
        return [ask.want for ask in self.asked if ask.want]

    @property
    def reports(self) -> list[AskLease]:
        return [ask for ask in self.asked if not ask.want]


class Rig:
    """A head in a swarm of two, at the start of a step, which keeps three microbatches under way."""

    def __init__(self) -> None:
        everyone: dict[str, FakeLinks] = {}
        self.desk, self.next_desk = Desk("c", everyone), Desk("d", everyone)
        self.leader = "c"
        self.membership = Membership(OwnCard(card("me")))
        self.membership.hear(card("tail", stage=1), 0.0)
        self.sums = StepSums()
        self.history: Any = SimpleNamespace(
            version=STEP - 1, record_hash="r", ready=True, finished=False, changed=Signal(), left=self._left
        )
        self.admission = SimpleNamespace(
            paused=False, resting=False, ailing=SimpleNamespace(why="a bug"), fail_at=self._fail_at
        )
        self.failures: list[str] = []
        self.sent: list[tuple[int, bool, float]] = []  # index, whether again, at which time
        self.ended: list[int] = []
        self.given_up: list[int] = []
        self.troubles: dict[int, list[Exception]] = {}  # of journeys, one after the other
        self.counts = True  # what comes back enters the sum
        self.unreadable: list[Exception] = []
        self.with_others: list[HopId] = []
        journeys: Any = SimpleNamespace(
            admission=self.admission,
            custodian=SimpleNamespace(custody=SimpleNamespace(away_seconds=0.0, waiting=lambda: self.with_others)),
            hops=SimpleNamespace(undisturbed=self._undisturbed),
            train=self._train,
            give_up=lambda hop: self.given_up.append(hop.index),
        )
        self.disturbed_s = 0.0
        context = stage_context(
            stage=0,
            run=RUN,
            limits=LimitsConfig(in_flight_hops=3),
            links=FakeLinks("me", everyone),
            scope=SimpleNamespace(handle=lambda kind, handler: None),
            membership=self.membership,
            history=self.history,
            sums=self.sums,
            rng=random.Random(0),
        )
        conductor: Any = SimpleNamespace(conductor_of=lambda step: self.leader)
        self.head = Head(context, journeys, conductor, cast("Any", SimpleNamespace(microbatch=self._microbatch)))

    def _fail_at(self, what: str, trouble: Exception) -> None:
        self.failures.append(what)

    async def _left(self, step: int) -> None:
        await self.history.changed.until(lambda: self.history.version >= step)

    async def _microbatch(self, step: int, index: int) -> bytes:
        if self.unreadable:
            raise self.unreadable.pop(0)
        return b"%d" % index

    async def _undisturbed(self, hop: HopId) -> None:
        await asyncio.sleep(self.disturbed_s)

    async def _train(self, hop: HopId, tokens: bytes, *, again: bool, horizon_s: float) -> None:
        assert (tokens, horizon_s) == (b"%d" % hop.index, 5.0)
        self.sent.append((hop.index, again, asyncio.get_running_loop().time()))
        if trouble := self.troubles.get(hop.index):
            raise trouble.pop(0)
        await asyncio.sleep(JOURNEY_SECONDS)
        if self.counts:
            self.sums.of(hop.step).add(hop.index, 1.0, "tail")
        self.ended.append(hop.index)

    def commit(self) -> None:
        self.history.version += 1
        self.sums.end_step(self.history.version)
        self.history.changed.notify()

    async def revoke(self, *ranges: tuple[int, int], step: int = STEP) -> None:
        await self.head._answer_revoke("c", Revoke(step, ranges))

    @property
    def begun(self) -> list[int]:
        return [index for index, _, _ in self.sent]


def during(events: Any, *leases: Ranges) -> None:
    """Lets things happen while a head runs to which the conductor gives these leases."""

    async def main() -> None:
        it = Rig()
        it.desk.leases = list(leases)
        running = asyncio.create_task(it.head.run())
        await asyncio.gather(events(it))
        it.history.finished = True
        it.commit()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtual(main())


def test_a_lease_of_indices_that_the_run_does_not_have_is_none() -> None:
    """It may come of anybody who seems to conduct, and must not end what the head has under way."""

    async def events(it: Rig) -> None:
        await asyncio.sleep(JOURNEY_SECONDS + 1)
        assert it.ended == [0, 1, 2]

    during(events, ((0, 1),), ((1, RUN.microbatches + 1),), ((1, 3),))


def test_it_keeps_its_slots_full_and_reports_what_is_done() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(1)
        assert (it.desk.wanted, it.begun, it.head.busy) == ([3], [0, 1, 2], True)
        changed = asyncio.create_task(it.sums.changed.wait())
        await asyncio.sleep(JOURNEY_SECONDS)
        assert changed.done(), "who waits until nothing is under way looks again"
        assert it.ended == [0, 1, 2]
        assert it.begun == [0, 1, 2, 3]
        assert max(len(ask.leased) and ask.leased[0][1] - ask.leased[0][0] for ask in it.desk.asked) == 3
        await asyncio.sleep(JOURNEY_SECONDS)
        assert it.desk.reports[-1].completed == ((0, 4),)
        assert not it.head.busy

    during(events, ((0, 3),), ((3, 4),))


def test_what_waits_for_a_slot_counts_as_asked_for() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(2)
        assert it.begun == [0, 1, 2]
        assert it.desk.reports[-1].leased == ((0, 4),)
        assert it.desk.wanted == [3]
        it.head.inherit([3])
        await asyncio.sleep(1.5)
        assert (it.desk.reports[-1].leased, it.desk.reports[-1].completed) == (((0, 3),), ((3, 4),))

    during(events, ((0, 4),))


def test_one_that_has_leases_is_busy_before_it_begins_them() -> None:
    async def main() -> None:
        it = Rig()
        assert not it.head.busy
        it.desk.leases = [((0, 1),)]
        fetching = asyncio.create_task(it.head._fetch_leases(STEP))
        await asyncio.sleep(1)
        assert it.head.busy
        it.head.retire()
        assert not it.head.busy
        fetching.cancel()

    run_virtual(main())


def test_what_is_in_its_sum_already_is_not_begun() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(1)
        assert it.begun == [0, 1]
        it.head.inherit([1, 2])
        assert 2 in it.head._completed
        await asyncio.sleep(1)
        it.desk.leases.append(((2, 3),))
        await asyncio.sleep(JOURNEY_SECONDS + 1)
        assert 2 not in it.begun

    during(events, ((0, 2),))


def test_a_lease_that_comes_twice_is_begun_once() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(1)
        assert it.begun == [0, 1]

    during(events, ((0, 1),), ((0, 2),))


def test_a_step_that_begins_for_the_second_time_goes_on_from_its_sum() -> None:
    async def main() -> None:
        it = Rig()
        it.sums.of(STEP).add(0, 1.0, "tail")
        it.sums.of(STEP).spoil(1, blame := Blame("loss", 1, "x", 1))
        it.desk.leases = [((0, 3),)]
        running = asyncio.create_task(it.head.run())
        await asyncio.sleep(1)
        assert it.begun == [2]
        assert (it.desk.asked[0].completed, it.desk.asked[0].blame) == (((0, 2),), blame)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtual(main())


def test_what_came_into_its_sum_meanwhile_is_done_with() -> None:
    async def events(it: Rig) -> None:
        it.troubles[0] = [Refused("busy")]
        await asyncio.sleep(RETRY_SECONDS / 2)
        it.sums.of(STEP).add(0, 1.0, "tail")
        await asyncio.sleep(2)
        assert it.begun == [0]
        assert it.desk.reports[-1].completed == ((0, 1),)

    during(events, ((0, 1),))


def test_what_comes_back_after_the_sum_was_frozen_is_done_with_too() -> None:
    async def events(it: Rig) -> None:
        it.counts = False
        await asyncio.sleep(2 * JOURNEY_SECONDS)
        assert (it.begun, it.ended) == ([0], [0])
        assert it.desk.reports[-1].completed == ((0, 1),)

    during(events, ((0, 1),))


def test_it_takes_no_leases_before_it_has_the_state() -> None:
    async def events(it: Rig) -> None:
        it.history.ready = False
        await asyncio.sleep(5)
        assert it.desk.asked == []
        it.history.ready = True
        it.history.changed.notify()
        await asyncio.sleep(1)
        assert it.begun == [0]

    during(events, ((0, 1),))


def test_with_the_commit_the_next_step_begins_with_nothing_under_way() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(1)
        it.commit()
        await asyncio.sleep(PULSE_SECONDS / 2)
        assert not it.head.busy
        assert (it.desk.asked[-1].step, it.desk.asked[-1].leased, it.desk.asked[-1].completed) == (STEP + 1, (), ())
        assert it.ended == []

    during(events, ((0, 4),))


# ------------------------------------------------------------------------------------------------- trouble


@pytest.mark.parametrize("trouble", [Refused("busy"), MemoryError()], ids=["refused", "no memory"])
def test_a_journey_that_fails_begins_anew_after_a_while(trouble: Exception) -> None:
    async def events(it: Rig) -> None:
        it.troubles[0] = [trouble, HopForgotten("again")]
        await asyncio.sleep(JOURNEY_SECONDS + 2)
        assert [again for _, again, _ in it.sent] == [False, True, True]
        times = [time for _, _, time in it.sent]
        assert times == pytest.approx([times[0] + number * RETRY_SECONDS for number in range(3)])
        assert it.ended == [0]
        assert it.desk.reports[-1].completed == ((0, 1),)

    during(events, ((0, 1),))


def test_what_was_given_to_another_head_before_is_sent_as_such() -> None:
    async def events(it: Rig) -> None:
        it.desk.again = True
        await asyncio.sleep(1)
        assert [again for _, again, _ in it.sent] == [True]

    during(events, ((0, 1),))


def test_where_too_much_fails_all_that_is_not_under_way_is_left_to_others() -> None:
    async def events(it: Rig) -> None:
        it.admission.resting = False
        it.troubles[0] = [Refused("ill")]
        it.disturbed_s = 0.5
        await asyncio.sleep(0.2)
        it.admission.resting = True
        await asyncio.sleep(3)
        assert it.begun == [0, 1, 2]
        assert it.desk.reports[-1].leased == ((1, 3),), "neither the one that failed nor the one that waited"
        asked = len(it.desk.wanted)
        await asyncio.sleep(JOURNEY_SECONDS)
        assert it.ended == [1, 2]
        assert len(it.desk.wanted) == asked

    during(events, ((0, 4),))


@pytest.mark.parametrize("reason", ["paused", "resting"])
def test_a_head_that_pauses_or_rests_takes_no_leases(reason: str) -> None:
    async def events(it: Rig) -> None:
        setattr(it.admission, reason, True)
        await asyncio.sleep(5)
        assert it.desk.asked == []
        setattr(it.admission, reason, False)
        await asyncio.sleep(PULSE_SECONDS + 0.1)
        assert it.begun == [0]

    during(events, ((0, 1),))


@pytest.mark.parametrize(
    ("trouble", "failed"), [(OSError("the disk"), True), (Refused("not now"), False), (MemoryError(), False)]
)
def test_tokens_that_cannot_be_read_are_a_failure_of_this_peer(trouble: Exception, failed: bool) -> None:
    async def events(it: Rig) -> None:
        it.unreadable = [trouble]
        await asyncio.sleep(JOURNEY_SECONDS + 1)
        assert it.failures == (["reading microbatch (3, 0)"] if failed else [])
        assert (it.ended, it.sent[0][1]) == ([0], True), "it was tried again"

    during(events, ((0, 1),))


def test_it_begins_a_microbatch_only_when_nothing_older_of_it_is_under_way() -> None:
    async def events(it: Rig) -> None:
        it.disturbed_s = 5.0
        await asyncio.sleep(4)
        assert it.begun == []
        await asyncio.sleep(2)
        assert it.begun == [0]

    during(events, ((0, 1),))


# ------------------------------------------------------------------------------------------------- giving up


def test_what_others_were_faster_with_is_dropped() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(1.5)
        await it.revoke((0, 1), step=STEP + 1)
        assert (it.given_up, it.desk.wanted) == ([], [3])
        await it.revoke((1, 2), (3, 4))
        await asyncio.sleep(0.1)
        assert (it.given_up, it.desk.wanted) == ([1], [3, 1])
        await asyncio.sleep(1)
        assert it.desk.reports[-1].leased == ((0, 1), (2, 3))
        await asyncio.sleep(JOURNEY_SECONDS)
        assert it.ended == [0, 1, 2], "a hop under way ends as it ends"
        assert it.desk.reports[-1].completed == ((0, 1), (2, 3))
        with pytest.raises(OutOfRange):
            await it.revoke((0, RUN.microbatches + 1))

    during(events, ((0, 4),))


def test_one_that_leaves_gives_everything_back_and_takes_no_more_until_it_goes_on() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(1)
        it.head.retire()
        assert not it.head.busy
        assert it.given_up == [0, 1, 2]
        it.desk.leases.append(((0, 1),))
        await asyncio.sleep(1)
        assert not it.head.busy
        it.head.go_on()
        it.desk.leases.append(((1, 2),))
        await asyncio.sleep(1)
        assert it.begun == [0, 1, 2, 1]

    during(events, ((0, 4),))


# ------------------------------------------------------------------------------------------------- conductors


def test_while_anything_is_under_way_it_says_so_every_second() -> None:
    async def events(it: Rig) -> None:
        it.with_others = [HopId(STEP, 1), HopId(STEP - 1, 0), HopId(STEP, 3)]
        await asyncio.sleep(5.5)
        assert 5 <= len(it.desk.reports) <= 6
        assert {(ask.leased, ask.passed_on) for ask in it.desk.reports} == {(((0, 2),), ((1, 2),))}
        await asyncio.sleep(2 * JOURNEY_SECONDS)
        reports = len(it.desk.reports)
        await asyncio.sleep(5)
        assert len(it.desk.reports) == reports, "all is said"

    during(events, ((0, 2),))


def test_what_is_done_is_said_again_until_it_is_heard_and_to_a_new_conductor() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(JOURNEY_SECONDS - 1)
        it.desk.trouble = Refused("not yet")
        await asyncio.sleep(3)
        tries = [ask for ask in it.desk.reports if ask.completed]
        assert len(tries) > 3
        it.desk.trouble = None
        await asyncio.sleep(2)
        assert it.next_desk.asked == []
        it.leader = "d"
        it.membership.changed.notify()
        await asyncio.sleep(2)
        assert [ask.completed for ask in it.next_desk.reports] == [((0, 1),)]

    during(events, ((0, 1),))


def test_an_answer_that_fails_to_come_is_not_waited_for_once_another_leads() -> None:
    async def events(it: Rig) -> None:
        it.desk.hangs = True
        it.next_desk.leases = [((0, 1),)]
        await asyncio.sleep(5)
        assert len(it.desk.asked) == 1
        it.leader = "d"
        await asyncio.sleep(FOLLOW_SECONDS + 0.1)
        assert it.begun == [0]
        assert it.desk.forgotten == 1

    during(events)


def test_a_conductor_that_cannot_be_asked_is_asked_again_after_a_while() -> None:
    async def events(it: Rig) -> None:
        it.desk.trouble = Refused("who are you")
        await asyncio.sleep(3.5 * RETRY_SECONDS)
        assert it.desk.wanted == [3] * 4
        it.leader = "gone"
        await asyncio.sleep(1)
        it.leader, it.desk.trouble = "c", None
        await asyncio.sleep(1)
        assert it.begun == [0]

    during(events, ((0, 1),))
