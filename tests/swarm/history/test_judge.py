"""The judge: a role is by the last record, or by the card of one that joined since; orders never by a card alone."""

import asyncio
import dataclasses
from typing import Any, cast

import pytest

from swarmd.errors import OutOfRange
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.consensus import BALLOT_REACH
from swarmd.swarm.history.handouts import Handouts
from swarmd.swarm.history.history import History
from swarmd.swarm.history.judge import APPOINTMENTS_KEPT, VERSION_WAIT_SECONDS, RecordJudge
from swarmd.swarm.history.record import genesis_hash
from swarmd.swarm.membership.table import SILENCE_FLOOR_SECONDS, Membership
from swarmd.swarm.wire.messages.commit import AskRecord, Commit, Prepare
from swarmd.swarm.wire.messages.common import NO_BALLOT, Ballot
from swarmd.swarm.wire.messages.drain import HandOver
from swarmd.swarm.wire.messages.hop import AskGiven, Beat, Cancel, Given, Hop, Locate, Room
from swarmd.swarm.wire.messages.move import AskStay
from swarmd.swarm.wire.messages.round import (
    Appointment,
    AskAppointment,
    AskHoldings,
    Close,
    Contribution,
    Freeze,
    Plan,
    Resend,
    Subtract,
)
from swarmd.swarm.wire.messages.step import AskLease, Revoke, TookOver
from swarmd.swarm.wire.own_card import OwnCard
from swarmd.swarm.wire.roles import ROLES, Role
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.fake_links import FakeLinks
from tests.swarm.no_disk import NoDisk
from tests.swarm.records import RUN, record
from tests.swarm.wire.samples import filled

FIRST = record(step=1, parent=genesis_hash(RUN))  # of m0 and n0 at stage 0, of m1 and n1 at stage 1
SECOND = record(step=2, parent=FIRST.hash, before=FIRST)
NEXT: dict[str, Any] = {"step": 2, "record_hash": FIRST.hash, "parent_hash": FIRST.hash}
"""The fields by which an order is one of the present step."""
BEGINNING: dict[str, Any] = {"step": 1, "record_hash": genesis_hash(RUN), "parent_hash": genesis_hash(RUN)}
"""The same of the first step."""


class Rig:
    """Peer m1, of stage 1 at version 1, and those it has heard of."""

    def __init__(self, *heard: str, version: int = 1, stage: int = 1) -> None:
        self.everyone: dict[str, FakeLinks] = {}
        self.links = FakeLinks("m1", self.everyone)
        self.membership = Membership(OwnCard(card("m1", stage=stage)))
        for peer in heard:
            self.hear(peer, stage=int(peer[1]))
        self.history = History(RUN, cast("Any", self.links), cast("Any", NoDisk()))
        if version:
            self.history.replace(FIRST, "digest")
        self.handouts = Handouts()
        self.judge = self.judges()

    def judges(self) -> RecordJudge:
        parts = {"membership": self.membership, "history": self.history, "handouts": self.handouts}
        return RecordJudge(peer_context(run=RUN, links=self.links, **parts))

    def hear(self, peer: str, **says: Any) -> None:
        self.membership.hear(card(peer, **says), 0.0)

    async def allows(self, peer: str, kind: Any, **says: Any) -> bool:
        message = filled(kind)
        said = {name: value for name, value in {**NEXT, **says}.items() if hasattr(message, name)}
        return await self.judge.allows(peer, dataclasses.replace(message, **said), ROLES[kind])


class Giver:
    """Another peer, that says what it has given to whom."""

    def __init__(self, it: Rig, peer: str) -> None:
        self.links, self.handouts = FakeLinks(peer, it.everyone), Handouts()
        self.membership = Membership(OwnCard(card(peer)))
        self.asked: list[AskGiven] = []
        parts = {"membership": self.membership, "history": it.history, "handouts": self.handouts}
        self._judge = RecordJudge(peer_context(run=RUN, links=self.links, **parts))
        self.links.handle(AskGiven, self._answer)

    async def _answer(self, peer: str, ask: AskGiven) -> Given:
        self.asked.append(ask)
        return await self._judge._answer_given(peer, ask)


def test_orders_of_a_step_count_from_members_of_the_last_record_alone() -> None:
    async def main() -> None:
        it = Rig("m0", "n1", "x0", "x1")
        for kind in (Prepare, Close, TookOver, Revoke):
            for peer, right in (("m0", True), ("n1", True), ("gone", False), ("x0", False), ("x1", False)):
                assert await it.allows(peer, kind) == right, (kind, peer)

    run_virtual(main())


def test_a_newcomer_conducts_where_no_member_is_at_work() -> None:
    async def main() -> None:
        it = Rig("x0", "m0")
        it.membership.suspect("m0")
        assert not await it.allows("x0", Prepare), "this peer is a member, and at work"
        it.links, it.membership = FakeLinks("y", {}), Membership(OwnCard(card("y", stage=1)))
        it.hear("x0", stage=0)
        it.judge = it.judges()
        assert await it.allows("x0", Prepare)
        it.membership.suspect("x0")
        assert not await it.allows("x0", Prepare), "nor is it itself"
        it.membership.touch("x0", 0.0)
        it.hear("m0", stage=0)
        assert not await it.allows("x0", Prepare)

    run_virtual(main())


def test_a_member_that_has_no_state_any_more_leaves_conducting_to_a_newcomer() -> None:
    async def main() -> None:
        it = Rig("x0")
        it.membership._own_card.become("joining")
        assert await it.allows("x0", Prepare)

    run_virtual(main())


def test_before_the_first_record_the_founder_leads_as_long_as_it_speaks() -> None:
    async def main() -> None:
        it, now = Rig("f1", "x0", "x1", version=0), asyncio.get_running_loop().time
        it.history.origin.founder = "f1"
        it.hear("y0", stage=0, state="joining")
        for kind in (Prepare, Close, TookOver, Revoke):
            assert await it.allows("f1", kind, **BEGINNING)
            assert not any([await it.allows(peer, kind, **BEGINNING) for peer in ("x0", "x1", "y0")])
        await asyncio.sleep(SILENCE_FLOOR_SECONDS / 2)
        assert await it.allows("x0", Prepare, **BEGINNING), "it has fallen silent"
        assert not await it.allows("y0", Prepare, **BEGINNING), "this one is not at work"
        it.membership.touch("f1", now())
        assert not await it.allows("x0", Prepare, **BEGINNING)
        it.membership.hear(card("f1", stage=1, state="joining", sequence=2), now())
        assert not await it.allows("x0", Prepare, **BEGINNING), "it opens its stage"
        it.membership.hear(card("f1", stage=1, state="left", sequence=3), now())
        assert await it.allows("x0", Prepare, **BEGINNING)

    run_virtual(main())


def test_the_founder_has_nobody_else_lead_the_first_step() -> None:
    async def main() -> None:
        it = Rig("x0", version=0)
        assert await it.allows("x0", Prepare, **BEGINNING), "nobody knows who founded the run"
        it.history.origin.found("m1", resumes=False)
        it.membership._own_card.become("joining")
        assert not await it.allows("x0", Prepare, **BEGINNING)
        it.membership._own_card.become("left")
        assert await it.allows("x0", Prepare, **BEGINNING)

    run_virtual(main())


@pytest.mark.parametrize("appointed", [True, False])
def test_before_the_first_record_a_round_is_led_by_whom_the_founder_has_asked(appointed: bool) -> None:
    async def main() -> None:
        it, ballot = Rig("f1", "x0", "x1", version=0), Ballot(1, "f1")
        it.history.origin.founder = "f1"

        async def answer(peer: str, ask: AskAppointment) -> Appointment:
            return Appointment(appointed and ask == AskAppointment(1, 1, "x1"))

        FakeLinks("f1", it.everyone).handle(AskAppointment, answer)
        for kind in (Freeze, AskHoldings, Plan, Resend, Subtract):
            assert await it.allows("x1", kind, **BEGINNING, stage=1, ballot=ballot) == appointed, kind
            assert not await it.allows("x0", kind, **BEGINNING, stage=1, ballot=ballot)
            assert not await it.allows("x1", kind, **BEGINNING, stage=1, ballot=Ballot(2, "x1"))

    run_virtual(main())


@pytest.mark.parametrize("kind", [it for it in ROLES if "ballot" in {field.name for field in dataclasses.fields(it)}])
def test_an_order_under_a_ballot_that_nobody_can_have_reached_is_refused(kind: Any) -> None:
    """And is obeyed once it was said as often as an honest successor, far ahead after a long partition, has to."""

    async def main() -> None:
        it, number = Rig("m0", "n1"), 3 * BALLOT_REACH
        asked: dict[str, Any] = {"stage": 1, "ballot": Ballot(number, "m0")}
        if ROLES[kind].role is Role.KNOWN:
            assert await it.allows("n1", kind, **asked), "it decides nothing"
            return
        for _ in range(2):
            with pytest.raises(OutOfRange, match=f"ballot {number} of step 2 is far above"):
                await it.allows("n1", kind, **asked)
        assert await it.allows("n1", kind, **asked)
        assert await it.allows("n1", kind, **{**asked, "ballot": Ballot(1, "m0")})
        assert await it.allows("n1", kind, **{**asked, "step": 1, "ballot": Ballot(1 << 61, "m0")}), "it is over"

    run_virtual(main())


@pytest.mark.parametrize("kind", [it for it in ROLES if "step" in {field.name for field in dataclasses.fields(it)}])
def test_a_step_that_the_run_does_not_have_is_refused_at_once(kind: Any) -> None:
    async def main() -> None:
        it = Rig("m0", "n1", "x0")
        it.membership.last_version = 10
        for peer in ("m0", "x0"):
            with pytest.raises(OutOfRange, match="step 12 is past the run's last one, 10"):
                await it.allows(peer, kind, step=12, stage=1)
        assert asyncio.get_running_loop().time() == 0.0, "no record before it can come"
        assert await it.allows("m0", Prepare, step=11)

    run_virtual(main())


def test_the_ballot_of_an_order_without_the_role_is_not_heard() -> None:
    async def main() -> None:
        it = Rig("m0", "x0")
        for _ in range(9):
            assert not await it.allows("x0", Prepare, ballot=Ballot(1 << 60, "x0"))
        with pytest.raises(OutOfRange):
            await it.allows("m0", Prepare, ballot=Ballot(BALLOT_REACH + 1, "m0"))

    run_virtual(main())


def test_rounds_are_led_by_members_of_their_stage() -> None:
    async def main() -> None:
        it = Rig("m0", "n1", "x1")
        for kind in (Freeze, AskHoldings, Plan):
            assert await it.allows("n1", kind, stage=1, ballot=Ballot(1, "m0"))
            assert not await it.allows("m0", kind, stage=1, ballot=Ballot(1, "m0"))
            assert not await it.allows("n1", kind, stage=0, ballot=Ballot(1, "m0"))
            assert not await it.allows("x1", kind, stage=1, ballot=Ballot(1, "m0")), "nobody has asked it to lead"
        assert await it.allows("m0", AskHoldings, stage=-1), "a conductor asks every stage alike"
        assert not await it.allows("x1", AskHoldings, stage=-1)

    run_virtual(main())


@pytest.mark.parametrize("conductor", ["m0", "m1", "x0"])
def test_a_newcomer_leads_a_round_if_the_conductor_says_that_it_asked_it(conductor: str) -> None:
    """The conductor may be this peer itself, and isn't the first one who says that it is."""

    async def main() -> None:
        it, asked = Rig("m0", "x1", "x0"), list[AskAppointment]()

        async def answer(peer: str, ask: AskAppointment) -> Appointment:
            asked.append(ask)
            return Appointment(ask.leader == "x1")

        (it.links if conductor == "m1" else FakeLinks(conductor, it.everyone)).handle(AskAppointment, answer)
        ballot, honest = Ballot(1, conductor), conductor != "x0"
        for _ in range(2):
            assert await it.allows("x1", Freeze, stage=1, ballot=ballot) == honest
        assert asked == [AskAppointment(2, 1, "x1")][:honest], "it is asked once, if at all"
        for _ in range(2):
            assert not await it.allows("y1", Freeze, stage=1, ballot=ballot)

    run_virtual(main())


def test_who_was_asked_to_lead_is_remembered_until_the_step_is_over_and_so_many_at_most() -> None:
    async def main() -> None:
        it, ballot = Rig("m0"), Ballot(1, "m0")
        asked: list[str] = []

        async def answer(peer: str, ask: AskAppointment) -> Appointment:
            asked.append(ask.leader)
            return Appointment(True)

        FakeLinks("m0", it.everyone).handle(AskAppointment, answer)
        for leader in ("x1", "y1", "x1", "y1"):
            assert await it.allows(leader, Freeze, stage=1, ballot=ballot)
        assert asked == ["x1", "y1"]
        for number in range(2 * APPOINTMENTS_KEPT):
            assert await it.allows(f"z{number}", Freeze, stage=1, ballot=ballot)
        assert len(it.judge._appointed) == APPOINTMENTS_KEPT
        it.history.chain.append(SECOND)
        after: dict[str, Any] = {"step": 3, "record_hash": SECOND.hash, "parent_hash": SECOND.hash}
        assert await it.allows("x1", Freeze, stage=1, ballot=ballot, **after)
        assert it.judge._appointed == {(3, ballot, 1, "x1")}

    run_virtual(main())


def test_nobody_leads_by_an_order_without_a_ballot() -> None:
    async def main() -> None:
        it = Rig("m0", "x1")
        assert not await it.allows("x1", Freeze, stage=1, ballot=NO_BALLOT)
        assert it.links.asked == []

    run_virtual(main())


def test_an_order_of_a_later_step_waits_for_the_record_before_it() -> None:
    async def main() -> None:
        it, loop = Rig("x0"), asyncio.get_running_loop()
        entries = [dataclasses.replace(entry, members=("x0",)) for entry in SECOND.stages]
        second = dataclasses.replace(SECOND, stages=tuple(entries))
        later: dict[str, Any] = {"step": 3, "record_hash": second.hash, "parent_hash": second.hash}
        assert await it.allows("m0", Prepare, **later), "a member of the last record needn't wait"
        others: dict[str, Any] = {**later, "parent_hash": "another"}
        asks = (("x0", later), ("z", later), ("z", others))
        waiting = [asyncio.create_task(it.allows(peer, Prepare, **says)) for peer, says in asks]
        await asyncio.sleep(1)
        it.history.replace(second, "digest")
        assert [await task for task in waiting] == [True, False, True], "another history's is left to its handler"
        assert loop.time() == 1.0, "no longer than for that record"
        assert not await it.allows("z", Prepare, **later)
        assert loop.time() == 1.0, "it is here"
        assert not await it.allows("z", Prepare, step=9)
        assert loop.time() == 1.0 + VERSION_WAIT_SECONDS

    run_virtual(main())


def test_what_has_no_effect_is_left_to_its_handler() -> None:
    async def main() -> None:
        it = Rig()
        assert await it.allows("z", Close, step=1), "the step is over"
        assert await it.allows("z", Close, record_hash="another"), "of another history"

    run_virtual(main())


def test_replicas_are_those_of_the_record_and_those_that_joined_since() -> None:
    async def main() -> None:
        it = Rig("x0", "x1", "x2")
        it.hear("y0", stage=0, state="joining")
        for kind, stages in ((Cancel, [0]), (Contribution, [1]), (Locate, [0, 1]), (AskLease, [0])):
            for stage, peers in enumerate((["m0", "x0"], ["n1", "x1"], ["x2"])):
                for peer in peers:
                    assert await it.allows(peer, kind) == (stage in stages), (kind, peer)
            assert not await it.allows("y0", kind)
            assert not await it.allows("unheard", kind)
        for word in (Beat, Room):
            assert await it.allows("x2", word)
            assert not await it.allows("n1", word)

    run_virtual(main())


def test_a_commit_comes_from_those_who_have_worked() -> None:
    async def main() -> None:
        it = Rig("x0", "n1")
        it.hear("y0", stage=0, state="joining")
        it.hear("z0", stage=0)
        entries = [dataclasses.replace(entry, members=("x0",)) for entry in SECOND.stages]
        it.history.chain.append(dataclasses.replace(SECOND, stages=tuple(entries)))
        third = record(step=3, parent=it.history.record_hash, before=it.history.record)
        follows, other = {"record": third.raw}, {"record": SECOND.raw}
        for peer, right in (("x0", True), ("m0", True), ("z0", False), ("y0", False), ("unheard", False)):
            assert await it.allows(peer, Commit, **follows) == right, peer
        assert await it.allows("z0", Commit, **other), "it may be one of its members"
        assert not await it.allows("y0", Commit, **other)
        it.membership.suspect("n1")
        assert await it.allows("z0", Commit, **follows), "there is nobody else of this stage to pass it on"
        assert await it.allows("unheard", AskRecord)
        assert await Rig(version=0).allows("unheard", Commit), "a newcomer can't tell"

    run_virtual(main())


def test_a_newcomer_counts_for_the_hops_that_it_was_given() -> None:
    """Its custodian says so; a custodian that is a newcomer, too, must have been given the hop itself."""

    async def main() -> None:
        it = Rig("m0", "x0", "y0")
        it.hear("c", stage=0)
        givers = {peer: Giver(it, peer) for peer in ("m0", "x0", "y0")}
        assert await it.allows("m0", Hop, source="")
        assert not await it.allows("x0", Hop, source="")
        assert not await it.allows("x0", Hop, source="x0")
        assert not await it.allows("x0", Hop, source="m0", index=3)
        assert givers["m0"].asked == [AskGiven(2, 0, ((3, 4),), "x0", "m0")]
        givers["m0"].handouts.give(2, 0, (3,), "x0")
        assert await it.allows("x0", Hop, source="m0", index=3)
        assert not await it.allows("x0", Hop, source="m0", index=4)
        assert not await it.allows("y0", Hop, source="m0", index=3)
        givers["x0"].handouts.give(2, 0, (5,), "y0")
        assert not await it.allows("y0", Hop, source="x0", index=5), "another newcomer's word isn't enough"

    run_virtual(main())


def test_givers_that_are_newcomers_must_have_been_given_it_themselves() -> None:
    async def main() -> None:
        it = Rig("m0", "x0", "x2", stage=3)
        it.hear("x1", stage=1)
        givers = {peer: Giver(it, peer) for peer in ("m0", "x0", "x1")}
        givers["x1"].handouts.give(2, 2, (5,), "x2")
        assert not await it.allows("x2", Hop, source="x1", index=5)
        givers["x1"].handouts.take(2, 1, (5,), "x0")
        givers["x0"].handouts.give(2, 1, (5,), "x1")
        assert not await it.allows("x2", Hop, source="x1", index=5)
        givers["x0"].handouts.take(2, 0, (5,), "m0")
        assert not await it.allows("x2", Hop, source="x1", index=5)
        givers["m0"].handouts.give(2, 0, (5,), "x0")
        assert await it.allows("x2", Hop, source="x1", index=5)
        it.handouts.forget()
        givers["x1"].links.deaf = True
        assert not await it.allows("x2", Hop, source="x1", index=5), "nobody answers for it"

    run_virtual(main())


def test_of_a_microbatch_that_is_here_who_sends_it_again_may_hear_what_became_of_it() -> None:
    """Its handler tells it, and does nothing else (`Journeys`): whoever gave it to that one may be gone."""

    async def main() -> None:
        it, gone = Rig("m0", "x0"), {"source": "gone", "index": 3, "evaluate": False, "again": True}
        assert not await it.allows("x0", Hop, **gone)
        it.handouts.take(2, 1, (3,), "m0")
        assert await it.allows("x0", Hop, **gone)
        assert it.handouts.source(2, 1, 3) == "m0"
        assert not await it.allows("x0", Hop, **{**gone, "evaluate": True})
        assert not await it.allows("x0", Hop, **{**gone, "index": 4})
        assert not await it.allows("x0", Hop, **{**gone, "again": False}), "it comes for the first time"
        Giver(it, "m0").handouts.give(2, 0, (3,), "x0")
        assert await it.allows("x0", Hop, source="m0", index=3)
        assert it.handouts.source(2, 1, 3) == "x0"
        assert not await it.allows("x0", Hop, source="m0", index=1 << 19), "there is no such place"

    run_virtual(main())


def test_a_newcomer_that_conducts_where_no_member_is_at_work_answers_for_its_own_hops() -> None:
    async def main() -> None:
        it = Rig("x0")
        assert not await it.allows("x0", Hop, source="", index=3)
        it.membership._own_card.become("joining")
        assert await it.allows("x0", Hop, source="", index=3)

    run_virtual(main())


@pytest.mark.parametrize(("leads", "stage"), [(1, 0), (0, 0), (2, 1)])
def test_a_newcomer_that_leads_a_round_says_what_it_gave_and_the_conductor_that_it_does(leads: int, stage: int) -> None:
    """A leader has hops sent again that its stage lacks. Hearers of other stages have had no order from it."""

    async def main() -> None:
        it = Rig("m0", "x0", "y1", f"z{leads}", stage=stage + 1)
        leader, newcomer, asked = f"z{leads}", ("x0", "y1")[stage], list[AskAppointment]()
        givers = {peer: Giver(it, peer) for peer in ("m0", leader)}

        async def answer(peer: str, ask: AskAppointment) -> Appointment:
            asked.append(ask)
            return Appointment((ask.stage, ask.leader) == (leads, leader))

        givers["m0"].links.handle(AskAppointment, answer)
        givers[leader].handouts.give(2, stage, (3,), newcomer)
        sum_: dict[str, Any] = {"stage": stage, "indices": ((3, 4),), "spoiled": (), "sources": (leader,)}
        assert not await it.allows(newcomer, Hop, source=leader, index=3), "in whose name?"
        givers[leader].handouts.lead(2, newcomer)
        assert not await it.allows(newcomer, Hop, source=leader, index=3), "that is no conductor"
        assert not await it.allows(newcomer, HandOver, **sum_)
        givers[leader].handouts.lead(2, "m0")
        assert await it.allows(newcomer, Hop, source=leader, index=3)
        assert await it.allows(newcomer, HandOver, **sum_)
        assert not await it.allows(newcomer, Hop, source=leader, index=4)
        assert {ask.step for ask in asked} == {2}

    run_virtual(main())


def test_a_newcomer_that_was_asked_to_lead_another_round_does_not_give_for_this_one() -> None:
    async def main() -> None:
        it = Rig("m0", "x0", "z2")
        givers = {peer: Giver(it, peer) for peer in ("m0", "z2")}

        async def answer(peer: str, ask: AskAppointment) -> Appointment:
            return Appointment(ask.stage == 2)

        givers["m0"].links.handle(AskAppointment, answer)
        givers["z2"].handouts.give(2, 0, (3,), "x0")
        givers["z2"].handouts.lead(2, "m0")
        assert not await it.allows("x0", Hop, source="z2", index=3)

    run_virtual(main())


def test_a_newcomer_hands_over_what_it_was_given_and_nothing_that_spoils_the_step() -> None:
    async def main() -> None:
        it = Rig("m0", "n0", "x0", "x1")
        givers = {peer: Giver(it, peer) for peer in ("m0", "n0", "x0")}
        sum_: dict[str, Any] = {"stage": 1, "indices": ((0, 2), (4, 5)), "spoiled": ()}
        assert await it.allows("n1", HandOver, **sum_)
        assert not await it.allows("x1", HandOver, **sum_)
        givers["m0"].handouts.give(2, 1, (0, 1, 7), "x1")
        givers["n0"].handouts.give(2, 1, (1,), "x1")
        givers["x0"].handouts.give(2, 1, (4,), "x1")
        assert not await it.allows("x1", HandOver, **sum_, sources=("m0", "n0", "x0"))
        givers["n0"].handouts.give(2, 1, (4,), "x1")
        assert not await it.allows("x1", HandOver, **sum_, sources=("m0",))
        assert await it.allows("x1", HandOver, **sum_, sources=("m0", "n0"))
        assert not await it.allows("x1", HandOver, **{**sum_, "spoiled": ((9, 10),)}, sources=("m0", "n0"))

    run_virtual(main())


def test_nobody_stays_for_a_newcomer() -> None:
    async def main() -> None:
        it = Rig("n1", "x1", "m0")
        for peer, right in (("n1", True), ("x1", False), ("m0", False)):
            assert await it.allows(peer, AskStay, stage=1) == right, peer
        assert await it.allows("x1", AskStay, stage=1, step=1), "its handler says that the step is over"
        assert await Rig("x1", version=0).allows("x1", AskStay, stage=1, step=1)

    run_virtual(main())


def test_who_does_not_know_or_reach_a_giver_has_another_peer_of_its_stage_ask_it() -> None:
    async def main() -> None:
        it = Rig("m0", "x0")
        far, near = Giver(it, "n0"), Giver(it, "m0")
        near.membership.hear(card("n0", stage=0), 0.0)
        assert not await it.allows("x0", Hop, source="n0", index=3)
        far.handouts.give(2, 0, (3,), "x0")
        assert await it.allows("x0", Hop, source="n0", index=3)
        assert [peer for peer, _ in near.links.asked] == ["n0", "n0"]
        it.hear("n0", stage=0)
        assert await it.allows("x0", Hop, source="n0", index=3)
        assert len(near.links.asked) == 2, "it is asked itself"
        it.links.cut_from.add("n0")
        assert await it.allows("x0", Hop, source="n0", index=3)
        assert len(near.links.asked) == 3
        far.links.deaf = True
        assert not await it.allows("x0", Hop, source="n0", index=3)

    run_virtual(main())
