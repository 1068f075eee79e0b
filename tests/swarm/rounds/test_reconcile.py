"""What a round's leader has sent again or taken out, of whom, and when it gives up."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import pytest

from swarmd.config import ModelConfig, RunConfig
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.handouts import Handouts
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.rounds.reconcile import (
    LOST_SECONDS,
    NEWCOMER_SECONDS,
    RESEND_AFTER_SECONDS,
    RESEND_AGAIN_SECONDS,
    TURN_SECONDS,
    Lacks,
    Reconciliation,
    order_sources,
)
from swarmd.swarm.rounds.round import Round
from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Request, from_ranges, to_ranges
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.swarm.wire.messages.round import (
    AskHoldings,
    AveragedPart,
    Close,
    Freeze,
    Holdings,
    Part,
    Resend,
    Resent,
    Subtract,
)
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card

RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, 3, 3, 8), sequences_per_step=4, sequences_per_microbatch=1)
MICROBATCHES = 4
SIZE = 10
BLAME = Blame("loss", 1, "a", 3)


def frozen(indices: Iterable[int], under_way: Iterable[int] = (), parts: tuple[AveragedPart, ...] = ()) -> Holdings:
    indices = list(indices)
    return Holdings(to_ranges(indices), to_ranges(under_way), float(len(indices)), 0, True, parts=parts)


class Members:
    """Links to members whose sums change as they are asked to, and what they were asked."""

    step = 3

    def __init__(self, **sums: set[int]) -> None:
        self.sums, self.under_way = sums, dict[str, set[int]]()
        self.asked: list[tuple[str, Any]] = []
        self.retained: dict[str, set[int]] = {}  # by peers of the stage before
        self.stubborn: set[str] = set()  # they subtract nothing
        self.parts: tuple[AveragedPart, ...] = ()
        self.beyond: dict[str, dict[str, Any]] = {}  # fields of their answers
        self.blame = Blame()
        self.lies: set[str] = set()  # they say that they bring more than there is
        self.not_finite: set[str] = set()  # they say so of their sums
        self.heard: Callable[[str], None] = lambda peer: None

    def of(self, kind: type[Request[Any]]) -> list[tuple[str, Any]]:
        return [(peer, question) for peer, question in self.asked if isinstance(question, kind)]

    async def ask(self, peer: str, question: Any, **options: Any) -> Any:
        self.asked.append((peer, question))
        self.heard(peer)
        if isinstance(question, Resend):
            if self.blame:
                return Resent((), self.blame)
            if peer in self.lies:
                return Resent(((0, MICROBATCHES + 1),))
            wanted = set(from_ranges(question.indices, MICROBATCHES))
            taken = wanted if question.anew else wanted & self.retained.get(peer, set())
            self.sums[question.members[0]] |= taken
            return Resent(to_ranges(taken))
        if isinstance(question, Subtract) and peer in self.stubborn:
            raise TimeoutError
        if isinstance(question, Subtract):
            self.sums[peer] -= set(from_ranges(question.indices, MICROBATCHES))
        assert isinstance(question, AskHoldings | Freeze | Subtract)
        said = frozen(self.sums[peer], self.under_way.get(peer, ()), self.parts)
        said = dataclasses.replace(said, **self.beyond.get(peer, {}))
        return dataclasses.replace(said, finite=peer not in self.not_finite)


def reconcile(members: Members, test: Callable[[Reconciliation, Round], Awaitable[None]]) -> None:
    """Runs a test with the round of stage 1 that peer `a` leads; `before1` and `before2` are of the stage before."""

    async def main() -> None:
        membership = Membership(OwnCard(card("a", stage=1)))
        for peer in members.sums:
            if peer != "a":
                membership.hear(card(peer, stage=1), 0.0)
        for peer in ("before1", "before2"):
            membership.hear(card(peer, stage=0), 0.0)
        members.heard = lambda peer: membership.touch(peer, asyncio.get_running_loop().time())
        it = Round(cast("Links", members), membership, Signal(), Close(members.step, "record"), 1, Handouts())
        await test(Reconciliation(RUN, it, SIZE, lambda peer: "new" not in peer), it)

    run_virtual(main())


def test_sums_that_have_every_index_once_are_frozen_with_one_question() -> None:
    members = Members(a={0, 1}, b={2, 3})

    async def test(sums: Reconciliation, it: Round) -> None:
        assert set(await sums.make_whole()) == {"a", "b"}
        assert [type(question) for _, question in members.asked] == [Freeze, Freeze]
        assert (sums.loss_sum, sums.lost) == (4.0, set())

    reconcile(members, test)


@pytest.mark.parametrize("where", ["indices", "under_way"])
@pytest.mark.parametrize("missing", [False, True])
def test_a_member_that_names_indices_which_the_step_does_not_have_is_left_out(where: str, missing: bool) -> None:
    members = Members(a={0, 1}, b={2} if missing else {2, 3}, c=set())
    members.retained = {"before1": {3}, "before2": {3}}
    members.beyond = {"c": {where: ((3, MICROBATCHES + 1),)}}

    async def test(sums: Reconciliation, it: Round) -> None:
        assert {*await sums.make_whole()} == {"a", "b"}
        assert it.left_out == {"c"}
        assert sums.loss_sum == 4.0

    reconcile(members, test)


def test_a_peer_that_says_to_bring_what_the_step_does_not_have_brings_nothing() -> None:
    members = Members(a={0, 1}, b={2})
    members.retained = {"before1": {3}, "before2": {3}}
    members.lies = {"before1"}

    async def test(sums: Reconciliation, it: Round) -> None:
        await sums.make_whole()
        assert {peer for peer, question in members.of(Resend)} >= {"before2"}
        assert sums.loss_sum == 4.0

    reconcile(members, test)


def test_a_missing_index_comes_from_whoever_retained_it() -> None:
    members = Members(a={0, 1}, b={2})
    members.retained = {"before1": {3}, "before2": {3}}

    async def test(sums: Reconciliation, it: Round) -> None:
        began = asyncio.get_running_loop().time()
        await sums.make_whole()
        assert asyncio.get_running_loop().time() - began >= RESEND_AFTER_SECONDS
        assert [question.anew for _, question in members.of(Resend)] == [False]
        assert sums.loss_sum == 4.0

    reconcile(members, test)


def test_what_nobody_retained_is_computed_anew_by_all_of_the_stage_before_in_shares() -> None:
    members = Members(a={0}, b={1})

    async def test(sums: Reconciliation, it: Round) -> None:
        await sums.make_whole()
        assert [question.anew for _, question in members.of(Resend)] == [False, False, True, True]
        shares = [from_ranges(question.indices, MICROBATCHES) for _, question in members.of(Resend)[2:]]
        assert sorted(shares) == [[2], [3]]

    reconcile(members, test)


def test_an_index_on_its_way_is_waited_for() -> None:
    members = Members(a={0, 1}, b={2})
    members.under_way = {"b": {3}}

    async def test(sums: Reconciliation, it: Round) -> None:
        whole = asyncio.create_task(sums.make_whole())
        await asyncio.sleep(5 * RESEND_AGAIN_SECONDS)
        assert not whole.done() and not members.of(Resend)
        members.sums["b"].add(3)
        await whole

    reconcile(members, test)


def test_an_index_that_is_with_a_newcomer_for_long_is_brought_to_it_again() -> None:
    """Whoever gave it may be gone, and nobody takes its hop, then."""
    members = Members(a={0, 1}, b=set(), new={2})
    members.under_way, members.retained = {"new": {3}}, {"before1": {3}}

    async def test(sums: Reconciliation, it: Round) -> None:
        began = asyncio.get_running_loop().time()
        await sums.make_whole()
        waited_s = asyncio.get_running_loop().time() - began
        assert waited_s == pytest.approx(NEWCOMER_SECONDS + RESEND_AFTER_SECONDS, abs=1.0)
        assert {question.indices for _, question in members.of(Resend)} == {((3, 4),)}
        assert it.handouts.given(3, 0, [3], "before1") == [3]

    reconcile(members, test)


def test_an_index_that_is_with_a_newcomer_and_a_member_is_waited_for() -> None:
    members = Members(a={0, 1}, b=set(), new={2})
    members.under_way = {"new": {3}, "b": {3}}

    async def test(sums: Reconciliation, it: Round) -> None:
        whole = asyncio.create_task(sums.make_whole())
        await asyncio.sleep(5 * NEWCOMER_SECONDS)
        assert not whole.done() and not members.of(Resend)
        members.sums["b"].add(3)
        await whole

    reconcile(members, test)


def test_an_index_in_two_sums_is_taken_out_of_one() -> None:
    members = Members(a={0, 1, 2}, b={2, 3})

    async def test(sums: Reconciliation, it: Round) -> None:
        await sums.make_whole()
        assert sum(len(indices) for indices in members.sums.values()) == MICROBATCHES
        assert len(members.of(Subtract)) == 1

    reconcile(members, test)


def test_what_another_sum_has_need_not_be_finished() -> None:
    members = Members(a={0, 1}, b={2})
    members.under_way = {"b": {0}, "a": {3}}

    async def test(sums: Reconciliation, it: Round) -> None:
        whole = asyncio.create_task(sums.make_whole())
        await asyncio.sleep(0.1)
        assert to_ranges([0]) in [question.spared for _, question in members.of(AskHoldings)]
        members.under_way = {}
        members.sums["a"].add(3)
        await whole

    reconcile(members, test)


def test_a_sum_that_cannot_be_subtracted_from_counts_for_nothing_after_the_second_time() -> None:
    members = Members(a={0, 1, 2}, b={2, 3})
    members.stubborn = {"a", "b"}
    members.retained = {"before1": {0, 1, 2, 3}}

    async def test(sums: Reconciliation, it: Round) -> None:
        whole = await sums.make_whole()
        assert len(members.of(Subtract)) == 2
        holdings = sums.holdings(whole)
        assert sorted(index for indices in holdings.values() for index in indices) == list(range(MICROBATCHES))
        assert len(holdings) == 1

    reconcile(members, test)


def test_what_does_not_come_for_long_is_lost() -> None:
    members = Members(a={0, 1}, b={2})
    members.under_way = {"b": {3}}  # for ever

    async def test(sums: Reconciliation, it: Round) -> None:
        began = asyncio.get_running_loop().time()
        await sums.make_whole()
        assert asyncio.get_running_loop().time() - began == pytest.approx(LOST_SECONDS, abs=10.0)
        assert (sums.lost, sums.loss_sum) == ({3}, None)

    reconcile(members, test)


def test_nothing_must_be_whole_of_a_step_that_is_skipped() -> None:
    members = Members(a={0, 1}, b={2})
    members.blame = BLAME

    async def test(sums: Reconciliation, it: Round) -> None:
        await sums.make_whole()
        assert it.blame == BLAME

    reconcile(members, test)


def test_what_is_averaged_already_need_not_be_in_any_sum() -> None:
    members = Members(a={0, 1}, b={2})
    members.parts = (AveragedPart(0, SIZE, "digest"),)

    async def test(sums: Reconciliation, it: Round) -> None:
        await sums.make_whole()
        assert not members.of(Resend)
        assert (sums.lost, sums.loss_sum) == (set(), None)
        sums.spread = False
        assert [part.owner for part in sums.averaged({"a": frozen([]), "b": frozen([], parts=members.parts)})] == []

    reconcile(members, test)


def test_a_lack_is_asked_for_after_a_while_and_again_after_a_longer_one() -> None:
    lacks = Lacks()
    assert lacks.due([1, 2], 10.0, 1.0) == []
    assert lacks.due([1, 2, 3], 11.0, 1.0) == [1, 2]
    assert lacks.ask([1, 2], 11.0) == 1.0
    assert lacks.due([1, 2, 3], 12.0, 1.0) == [3]
    assert lacks.due([2, 3], 11.0 + RESEND_AGAIN_SECONDS, 1.0) == [2, 3]
    assert lacks.ask([2], 11.0 + RESEND_AGAIN_SECONDS) == 1.0 + RESEND_AGAIN_SECONDS
    assert lacks.due([1], 20.0, 1.0) == []  # it was there in between


@pytest.mark.parametrize(
    ("waited_s", "order"),
    [(0.0, "abdc"), (TURN_SECONDS, "bdac"), (2 * TURN_SECONDS, "dabc"), (4 * TURN_SECONDS, "abdc")],
)
def test_each_turn_another_one_is_asked_first_and_silent_ones_last(waited_s: float, order: str) -> None:
    assert "".join(order_sources("abcd", waited_s, lambda peer: peer == "c", lambda peer: True)) == order


def test_newcomers_are_asked_after_those_that_a_record_names_and_before_silent_ones() -> None:
    order = order_sources("abcdef", 2 * TURN_SECONDS, lambda peer: peer in "ad", lambda peer: peer in "cdf")
    assert "".join(order) == "cfebda"


def test_nobody_is_asked_where_nobody_is() -> None:
    assert order_sources([], 100.0, lambda peer: False, lambda peer: True) == []


def test_a_newcomers_word_that_a_missing_index_is_not_finite_does_not_make_the_step_a_skipped_one() -> None:
    members = Members(a={0, 1}, b=set())
    members.blame = BLAME

    async def test(sums: Reconciliation, it: Round) -> None:
        assert await sums._bring("newcomer", [2, 3], ["a", "b"], anew=False) == [2, 3]
        assert not it.blame
        assert await sums._bring("before1", [2, 3], ["a", "b"], anew=False) == []
        assert it.blame == BLAME

    reconcile(members, test)


def test_a_newcomers_word_that_a_missing_index_is_not_finite_counts_where_all_of_its_stage_are_newcomers() -> None:
    members = Members(a={0, 1}, b=set())
    members.blame = BLAME

    async def test(sums: Reconciliation, it: Round) -> None:
        sums._is_named = lambda peer: not peer.startswith("before")
        assert await sums._bring("before1", [2, 3], ["a", "b"], anew=False) == []
        assert it.blame == BLAME

    reconcile(members, test)


@pytest.mark.parametrize(
    ("step", "peer", "skipped"), [(1, "a", True), (1, "b", False), (3, "b", True), (3, "new", False)]
)
def test_a_step_is_skipped_for_the_word_of_whom_a_record_names_and_the_first_for_ones_own(
    step: int, peer: str, skipped: bool
) -> None:
    """Before the first record a card is all that anybody has shown; what the others had is computed anew."""
    members = Members(**{name: {number} for number, name in enumerate({"a", peer})}, c={2, 3})
    members.step, members.not_finite = step, {peer}

    async def test(sums: Reconciliation, it: Round) -> None:
        await sums.make_whole()
        assert bool(it.blame) == skipped
        assert (peer in it.left_out) == (not skipped)

    reconcile(members, test)


def test_averaged_parts_of_a_newcomer_are_averaged_again() -> None:
    members = Members(a={0, 1}, b={2}, new={3})
    members.parts = (AveragedPart(0, SIZE, "digest"),)

    async def test(sums: Reconciliation, it: Round) -> None:
        answers = await sums.make_whole()
        assert sums.averaged({peer: answers[peer] for peer in ("a", "b")}) == (Part(0, SIZE, "a", "digest"),)
        only_new = {"a": frozen([0, 1]), "new": answers["new"]}
        assert sums.averaged(only_new) == ()

    reconcile(members, test)
