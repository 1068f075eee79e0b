"""A leader's round from its first question to its report, with members that do as they are told, or don't."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from swarmd.config import ModelConfig, RunConfig
from swarmd.errors import Overruled, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.handouts import Handouts
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.rounds.leader import ATTEMPTS, ATTEMPTS_SPREAD, REFUSALS, RoundLeader
from swarmd.swarm.rounds.round import Round
from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Ballot, to_ranges
from swarmd.swarm.wire.messages.hop import NOBODY, Blame
from swarmd.swarm.wire.messages.round import AskHoldings, Close, Freeze, Holdings, Plan, Result
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card

RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, 3, 3, 8), sequences_per_step=4, sequences_per_microbatch=1)
SIZE = 10
BLAME = Blame("loss", 2, "b", 3)
CLOSE = Close(3, "record", Ballot(2, "d"), stage=2)


class Members:
    """Links to `a`, the leader, and `b`, which have two indices each; `plan` says what becomes of an attempt."""

    def __init__(self, carry_out: Callable[[str, Plan], Result], blame: Blame = NOBODY) -> None:
        self.carry_out, self.blame = carry_out, blame
        self.newcomers: set[str] = set()
        self.sums = {"a": [0, 1], "b": [2, 3]}
        self.plans: list[Plan] = []
        self.asked: list[tuple[str, Any]] = []

    async def ask(self, peer: str, question: Any, **options: Any) -> Any:
        self.asked.append((peer, question))
        if isinstance(question, Plan):
            if peer == "a":
                self.plans.append(question)
            return self.carry_out(peer, question)
        assert isinstance(question, AskHoldings | Freeze)
        bad = bool(self.blame) and peer == max(self.sums)
        indices = to_ranges(self.sums[peer])
        return Holdings(indices, (), 2.5, 1, not bad, subtracted=1, thaws=7, blame=self.blame if bad else NOBODY)

    def is_named(self, peer: str) -> bool:
        return peer not in self.newcomers


def lead(members: Members, test: Callable[[RoundLeader], Awaitable[None]]) -> None:
    """Runs a test with the leader of the last stage's round."""

    async def main() -> None:
        membership = Membership(OwnCard(card("a", stage=2)))
        for peer in members.sums.keys() - {"a"}:
            membership.hear(card(peer, stage=2), 0.0)
        it = Round(cast("Links", members), membership, Signal(), CLOSE, 2, Handouts())
        leader = RoundLeader(RUN, it, SIZE, lambda: f"attempt {len(members.plans)}", members.is_named)
        await test(leader)
        leader.close()

    run_virtual(main())


def alike(peer: str, plan: Plan) -> Result:
    return Result("digest", 4.0)


def test_the_report_says_what_all_agree_on() -> None:
    members = Members(alike)

    async def test(leader: RoundLeader) -> None:
        report = await leader.lead()
        assert (report.digest, report.squared_norm, report.loss_sum, report.microbatches) == ("digest", 4.0, 5.0, 4)
        assert (report.members, report.holders, report.finite) == (("a", "b"), ("a", "b"), True)
        assert (report.resent, report.subtracted, report.lost, report.blame) == (2, 2, 0, NOBODY)
        plan = members.plans[0]
        assert {part.owner for part in plan.parts} == {"a", "b"}
        assert (plan.thaws, plan.tokens, plan.ballot) == ((7, 7), 4 * RUN.tokens_per_microbatch, CLOSE.ballot)

    lead(members, test)


def test_after_some_failed_attempts_the_leader_owns_all_parts() -> None:
    def differ(peer: str, plan: Plan) -> Result:
        return Result("digest" if len(members.plans) > ATTEMPTS_SPREAD else peer, 4.0)

    members = Members(differ)

    async def test(leader: RoundLeader) -> None:
        assert (await leader.lead()).digest == "digest"
        owners = [{part.owner for part in plan.parts} for plan in members.plans]
        assert owners == [{"a", "b"}] * ATTEMPTS_SPREAD + [{"a"}]
        assert len({plan.attempt for plan in members.plans}) == len(members.plans)

    lead(members, test)


def test_a_round_that_never_agrees_ends_and_lets_the_sums_go() -> None:
    members = Members(lambda peer, plan: Result(peer, 4.0))

    async def test(leader: RoundLeader) -> None:
        with pytest.raises(Refused, match="failed"):
            await leader.lead()
        assert len(members.plans) == ATTEMPTS

    lead(members, test)


def test_a_member_that_cannot_carry_plans_out_is_left_out_in_the_end() -> None:
    def refuse(peer: str, plan: Plan) -> Result:
        if "b" in plan.members and peer == "b":
            raise Refused("no memory")
        return Result("digest", 4.0)

    members = Members(refuse)

    async def test(leader: RoundLeader) -> None:
        report = await leader.lead()  # nobody is there who brings what only b had: it is lost after long
        assert (report.members, report.lost) == (("a",), 2)
        assert len(members.plans) == ATTEMPTS_SPREAD + REFUSALS + 1

    lead(members, test)


def test_a_number_that_is_not_finite_skips_the_step_and_everyone_is_told() -> None:
    members = Members(alike, BLAME)

    async def test(leader: RoundLeader) -> None:
        report = await leader.lead()
        assert (report.finite, report.blame, report.digest, report.members) == (False, BLAME, "", ("a", "b"))
        told = [peer for peer, question in members.asked if isinstance(question, AskHoldings) and question.blame]
        assert (told, members.plans) == (["a", "b"], [])

    lead(members, test)


def test_an_average_that_is_not_finite_skips_the_step() -> None:
    members = Members(lambda peer, plan: Result("", 0.0, BLAME))

    async def test(leader: RoundLeader) -> None:
        report = await leader.lead()
        assert (report.finite, report.blame) == (False, BLAME)

    lead(members, test)


def test_a_conductor_may_take_over_and_have_the_step_skipped() -> None:
    members = Members(alike)

    async def test(leader: RoundLeader) -> None:
        leader.on_close(Close(3, "record", Ballot(5, "x"), stage=2, blame=BLAME))
        leader.on_close(Close(3, "record", Ballot(4, "y"), stage=2))
        assert (await leader.lead()).blame == BLAME
        assert {question.ballot for _, question in members.asked} == {Ballot(5, "x")}

    lead(members, test)


def test_a_leader_that_is_overruled_gives_up() -> None:
    def overrule(peer: str, plan: Plan) -> Result:
        raise AssertionError("nobody is asked to carry anything out")

    members = Members(overrule)

    async def ask(peer: str, question: Any, **options: Any) -> Any:
        raise Overruled("later")

    members.ask = ask  # type: ignore[method-assign]

    async def test(leader: RoundLeader) -> None:
        with pytest.raises(Overruled, match="later"):
            await leader.lead()

    lead(members, test)


def with_a_newcomer(members: Members) -> Members:
    """Beside the two, `c` has an index that is one of `b`'s otherwise, and no record names it."""
    members.sums = {"a": [0, 1], "b": [2], "c": [3]}
    members.newcomers = {"c"}
    return members


def test_a_newcomer_gives_its_sum_and_owns_no_parts() -> None:
    members = with_a_newcomer(Members(alike))

    async def test(leader: RoundLeader) -> None:
        report = await leader.lead()
        assert (report.members, report.holders) == (("a", "b", "c"), ("a", "b", "c"))
        assert {part.owner for plan in members.plans for part in plan.parts} == {"a", "b"}

    lead(members, test)


@pytest.mark.parametrize("false", [Result("", 0.0, BLAME), Result("another", 4.0)])
def test_the_result_of_a_newcomer_that_says_something_else_costs_its_place_in_the_round(false: Result) -> None:
    members = with_a_newcomer(Members(lambda peer, plan: false if peer == "c" else Result("digest", 4.0)))
    members.sums = {"a": [0, 1], "b": [2, 3], "c": []}

    async def test(leader: RoundLeader) -> None:
        report = await leader.lead()
        assert (report.finite, report.digest, report.holders) == (True, "digest", ("a", "b"))
        assert len(members.plans) == 1

    lead(members, test)


def test_a_newcomer_alone_makes_no_step_a_skipped_one() -> None:
    """The leader leaves it out; the peer that computes its microbatches anew finds out whether they are finite."""
    members = with_a_newcomer(Members(alike, BLAME))
    members.sums["b"] = [2, 3]

    async def test(leader: RoundLeader) -> None:
        report = await leader.lead()
        assert (report.finite, report.members) == (True, ("a", "b"))

    lead(members, test)
