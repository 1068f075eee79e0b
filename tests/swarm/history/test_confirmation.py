"""Records that others bring: when a peer believes them."""

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.confirmation import (
    AGAIN_SECONDS,
    HEDGE_SECONDS,
)
from swarmd.swarm.history.consensus import ACCEPTORS as ACCEPTORS_LIMIT
from swarmd.swarm.history.consensus import plan_acceptors
from swarmd.swarm.history.record import Record, genesis_hash
from swarmd.swarm.wire.messages.commit import AskVote
from tests.swarm.cards import card
from tests.swarm.fake_links import FakeLinks
from tests.swarm.history.confirming import (
    ACCEPTORS,
    BALLOT,
    FIRST,
    FORK_SECONDS,
    FORKED,
    RETURN,
    SECOND,
    Peer,
    Swarm,
    now,
)
from tests.swarm.records import RUN, record


def test_six_members_are_all_acceptors() -> None:
    assert set(plan_acceptors(2, FIRST, "")) == set(ACCEPTORS)


@pytest.mark.parametrize(("voters", "believed"), [(3, False), (4, True), (6, True)])
def test_a_record_is_believed_once_a_majority_has_accepted_it(voters: int, believed: bool) -> None:
    async def main() -> None:
        it = Swarm().accept(*ACCEPTORS[:voters])
        assert await it.me.confirms() == believed
        assert it.me.confirmation.knows(SECOND.hash) == believed
        it.me.links.asked.clear()
        assert await it.me.confirms() == believed
        assert not believed or it.me.asked == [], "it is remembered"

    run_virtual(main())


def test_a_stranger_decides_nothing() -> None:
    async def main() -> None:
        forged = dataclasses.replace(SECOND, total_tokens=1)
        it = Swarm().accept(*ACCEPTORS)
        for made in (forged, dataclasses.replace(forged, forked=True), dataclasses.replace(RETURN, total_tokens=1)):
            assert not await it.me.confirms(made, voters=("x", *ACCEPTORS))
            await asyncio.sleep(FORK_SECONDS)
            assert not await it.me.confirms(made), "nor does it by its patience"

    run_virtual(main())


def test_a_vote_under_another_ballot_is_none() -> None:
    async def main() -> None:
        assert not await Swarm().accept(*ACCEPTORS).me.confirms(dataclasses.replace(SECOND, ballot=(2, "n0")))

    run_virtual(main())


def test_a_return_is_believed_like_a_step() -> None:
    async def main() -> None:
        assert await Swarm().accept(*ACCEPTORS[:4], it=RETURN).me.confirms(RETURN)
        assert not await Swarm().accept(*ACCEPTORS[:3], it=RETURN).me.confirms(RETURN)

    run_virtual(main())


def test_only_as_many_are_asked_as_it_takes() -> None:
    """An acceptor that accepted it itself, and has it from another one, asks two more: those that are named."""

    async def main() -> None:
        it = Swarm("m1").accept("m0", "m1", "n0", "o0")
        assert await it.me.confirms(source="m0", voters=("m0", "m1", "n0", "o0"))
        assert sorted(it.me.asked) == ["n0", "o0"]

    run_virtual(main())


def test_in_the_smallest_swarms_nobody_is_asked() -> None:
    async def main() -> None:
        everyone: dict[str, FakeLinks] = {}
        before = record(step=1, parent=genesis_hash(RUN))  # of four: m0, n0, m1, n1
        me = Peer("m1", everyone)
        pair = dataclasses.replace(
            before, stages=tuple(dataclasses.replace(it, members=it.members[:1]) for it in before.stages)
        )
        me.history.replace(pair, "digest")
        me.history.took_part(1)
        after = dataclasses.replace(record(step=2, parent=pair.hash), ballot=(1, "m0"))
        assert not await me.confirms(after, "m0"), "it hasn't accepted that"
        me.accept(after)
        await asyncio.sleep(AGAIN_SECONDS)
        me.links.asked.clear()
        assert await me.confirms(after, "m0")
        assert me.asked == []

    run_virtual(main())


def test_its_own_decision_needs_nobody() -> None:
    async def main() -> None:
        it = Swarm()
        assert await it.me.confirms(source="p0")
        assert it.me.asked == []

    run_virtual(main())


def test_silent_voters_hold_nobody_up() -> None:
    async def main() -> None:
        it = Swarm().accept(*ACCEPTORS)
        for name in ("m0", "n0"):
            it.peers[name].links.deaf = True
        assert await it.me.confirms(voters=ACCEPTORS[:4])
        assert now() == HEDGE_SECONDS
        assert sorted(it.me.asked) == sorted(ACCEPTORS), "nobody is asked twice"

    run_virtual(main())


def test_those_who_know_a_decision_vouch_for_it_as_well() -> None:
    """For a late peer: acceptors that have adopted it since, whether or not they accepted it then."""

    async def main() -> None:
        it = Swarm()
        for name in ACCEPTORS[:4]:
            it.peers[name].history.replace(SECOND, "digest")
        assert await it.me.confirms(source=ACCEPTORS[0])

    run_virtual(main())


def test_when_acceptors_die_after_the_decision_those_that_are_left_are_believed() -> None:
    async def main() -> None:
        it = Swarm().accept(*ACCEPTORS[:4]).kill("m0", "n0", "o0", "n1")
        assert not await it.me.confirms(), "accepted is not decided"
        it.peers["m1"].history.votes.learn(SECOND.hash)
        await asyncio.sleep(AGAIN_SECONDS)
        assert not await it.me.confirms(), "one of two"
        it.peers["o1"].history.took_part(2)
        it.peers["o1"].history.votes.learn(SECOND.hash)
        await asyncio.sleep(AGAIN_SECONDS)
        assert await it.me.confirms()

    run_virtual(main())


def test_one_that_has_lost_its_memory_says_nothing_against_a_record() -> None:
    async def main() -> None:
        it = Swarm().accept("m1").kill("m0", "n0", "o0")
        it.peers["m1"].history.votes.learn(SECOND.hash)
        for name in ("n1", "o1"):
            it.peers[name].history._contributed.clear()
            with pytest.raises(Refused, match="can't speak for step 2"):
                it.peers[name].confirmation._vote(AskVote(2, FIRST.hash, SECOND.hash, BALLOT))
        assert await it.me.confirms(source="m1")

    run_virtual(main())


@pytest.mark.parametrize(("forgetful", "borne_out", "believed"), [(6, True, True), (6, False, False), (5, True, False)])
def test_where_no_member_can_speak_for_the_step_a_newcomer_is_believed_of_a_round_that_one_was_in(
    forgetful: int, borne_out: bool, believed: bool
) -> None:
    """All members are there, and none remembers the step before: nobody but a newcomer can have decided this one."""

    async def main() -> None:
        it = Swarm()
        it.me.bear_out(borne_out)
        for name in ACCEPTORS[:forgetful]:
            it.peers[name].history._contributed.clear()
        it.me.membership.hear(card("x", stage=0, version=1, record_hash=FIRST.hash), now())
        assert await it.me.confirms(FORKED, "x") == believed

    run_virtual(main())


@pytest.mark.parametrize(
    ("state", "borne_out", "knowing", "believed"),
    [
        ("serving", True, 0, True),
        ("serving", False, 0, False),  # it may have made the record up
        ("joining", True, 0, False),  # one that only greets knows of nothing
        ("joining", True, 1, True),  # somebody else is asked
        ("joining", False, 3, False),
        ("joining", False, 4, True),  # most of seven, with the one that asks
        ("serving", False, 3, False),  # of eight, with the one that brings it
        ("serving", False, 4, True),
    ],
)
def test_before_the_first_record_those_are_believed_that_bring_what_came_out_of_ones_round_or_are_most(
    state: str, borne_out: bool, knowing: int, believed: bool
) -> None:
    """The founder decides the first step; it is gone, and nobody is a member of anything."""

    async def main() -> None:
        it, made = before_the_first_record(), dataclasses.replace(FIRST, ballot=(7, "x"))
        it.me.bear_out(borne_out)
        for name in ACCEPTORS[:knowing]:
            it.peers[name].history.votes.learn(made.hash)
        it.me.membership.hear(card("x", stage=0, state=state), now())
        assert await it.me.confirms(made, "x") == believed

    run_virtual(main())


def test_before_the_first_record_who_brings_one_that_nobody_believes_is_taken_for_foreign() -> None:
    """It may be the first in the order of conductors, and the step is over for it: another one does it again."""

    async def main() -> None:
        it, foreign = before_the_first_record(), list[str]()
        it.me.history.listen(cast("Any", SimpleNamespace(on_foreign=foreign.append)))
        it.me.membership.hear(card("x", stage=0, version=1, record_hash=FIRST.hash), now())
        assert not await it.me.confirms(FIRST, "x")
        assert not foreign
        await asyncio.sleep(FORK_SECONDS)
        assert not await it.me.confirms(FIRST, "x")
        assert foreign == ["x"]

    run_virtual(main())


def before_the_first_record() -> Swarm:
    """Six peers at work, and one that asks; the founder is gone."""
    it = Swarm(version=0)
    it.me.history.origin.founder = "founder"
    for name in ACCEPTORS:
        it.peers[name].history.replace(None, "digest")
        behind = dataclasses.replace(it.peers[name].card, version=0, record_hash="", sequence=9)
        it.me.membership.hear(behind, now())
    return it


@pytest.mark.parametrize("stage", [1, 2])
def test_where_the_conductor_is_gone_a_stage_that_is_past_the_step_is_believed(stage: int) -> None:
    """Its only peer has the record; the others can't do the step without it. One of no stage says nothing."""

    async def main() -> None:
        it, made = before_the_first_record(), dataclasses.replace(FIRST, forked=True, ballot=(7, "gone"))
        for name in ACCEPTORS:
            it.me.membership.hear(dataclasses.replace(it.peers[name].card, stage=0, version=0, sequence=10), now())
        it.me.membership.hear(card("x", stage=stage, version=1, record_hash=made.hash), now())
        assert await it.me.confirms(made, "x") == (stage == 1)

    run_virtual(main())


def test_only_those_around_that_have_a_state_are_asked_about_records_of_elsewhere() -> None:
    async def main() -> None:
        it = Swarm(version=0)
        for number in range(9):
            it.me.membership.hear(card(f"stranger{number}", stage=-1, state="joining"), now())
        for name in ACCEPTORS[:4]:
            it.peers[name].history.votes.learn(RETURN.hash)
        assert await it.me.confirms(RETURN, "stranger1")
        assert sorted(set(it.me.asked)) == sorted(set(it.me.asked) & {*ACCEPTORS})

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- what it believes


def test_one_replica_that_has_gone_on_with_a_forked_record_does_not_take_the_others_along() -> None:
    async def main() -> None:
        it = Swarm().accept("m1", "n1", "o1")
        it.go_on("m1")
        for _ in range(3):
            assert not await it.me.confirms(FORKED, "m1")
            await asyncio.sleep(FORK_SECONDS)

    run_virtual(main())


def test_a_doubt_counts_from_when_it_came_up_first() -> None:
    async def main() -> None:
        it = Swarm().accept("m1", "n1", "o1")
        it.go_on("m1", "n1", "o1")
        await asyncio.sleep(10 * FORK_SECONDS)
        for name in ACCEPTORS:
            it.me.membership.touch(name, now())
        for _ in range(3):
            assert not await it.me.confirms(FORKED, "m1")
            await asyncio.sleep(FORK_SECONDS / 3)
        assert await it.me.confirms(FORKED, "m1")

    run_virtual(main())


def test_a_forked_record_is_followed_only_by_those_who_reach_no_majority_themselves() -> None:
    async def main() -> None:
        it = Swarm().accept("m1", "n1")
        assert not await it.me.confirms(FORKED, "m1")
        it.kill("m0", "n0", "o0")
        await asyncio.sleep(FORK_SECONDS - 2 * AGAIN_SECONDS)
        assert not await it.me.confirms(FORKED, "m1"), "they were heard of not long ago"
        await asyncio.sleep(2 * AGAIN_SECONDS)
        assert await it.me.confirms(FORKED, "m1")

    run_virtual(main())


@pytest.mark.parametrize(("past", "followed"), [(("m1", "n1", "o1"), True), (("m1", "n1"), False)])
def test_a_forked_record_is_followed_when_those_who_are_not_past_it_can_decide_nothing(
    past: tuple[str, ...], followed: bool
) -> None:
    """If they can, who brings it is of another history: they would wait for it to conduct the step otherwise."""

    async def main() -> None:
        it, foreign = Swarm(), list[str]()
        it.me.history.listen(cast("Any", SimpleNamespace(on_foreign=foreign.append)))
        for name in past:
            it.peers[name].history.replace(FORKED, "digest")
        assert not await it.me.confirms(FORKED, "m1")
        assert not foreign
        await asyncio.sleep(FORK_SECONDS)
        assert await it.me.confirms(FORKED, "m1") == followed
        assert foreign == ([] if followed else ["m1"])

    run_virtual(main())


@pytest.mark.parametrize(("it", "believed"), [(FORKED, True), (SECOND, False)], ids=["forked", "by a majority"])
def test_accepted_is_decided_only_where_a_record_says_that_no_majority_decided_it(it: Record, believed: bool) -> None:
    async def main() -> None:
        swarm = Swarm().accept("m1", "n1").kill("m0", "n0", "o0")
        await asyncio.sleep(FORK_SECONDS)
        assert await swarm.me.confirms(it) == believed

    run_virtual(main())


@pytest.mark.parametrize(("knowing", "believed"), [(ACCEPTORS_LIMIT, False), (ACCEPTORS_LIMIT + 1, True)])
def test_where_all_members_are_gone_most_of_those_around_must_know(knowing: int, believed: bool) -> None:
    async def main() -> None:
        it = Swarm().kill(*ACCEPTORS)
        for name in ACCEPTORS:
            it.me.membership.suspect(name)
        await asyncio.sleep(FORK_SECONDS)
        for number in range(2 * ACCEPTORS_LIMIT):
            stranger = Peer(f"x{number}", it.me.links.everyone, member=False)
            it.me.membership.hear(dataclasses.replace(stranger.card, stage=0), now())
            if number < knowing:
                stranger.history.votes.learn(FORKED.hash)
        assert await it.me.confirms(FORKED, "y") == believed

    run_virtual(main())


def test_a_forked_record_is_followed_when_nobody_can_do_the_step_without_it() -> None:
    """The network is whole again, and all peers of a stage have gone on with it."""

    async def main() -> None:
        it = Swarm().accept("m1", "n1", "o1")
        it.go_on("m1", "n1", "o1")
        assert not await it.me.confirms(FORKED, "m1")
        await asyncio.sleep(FORK_SECONDS)
        assert await it.me.confirms(FORKED, "m1")

    run_virtual(main())


@pytest.mark.parametrize(("knowing", "believed"), [(0, False), (3, False), (4, True)])
def test_a_newcomer_takes_the_word_of_most_of_those_around(knowing: int, believed: bool) -> None:
    async def main() -> None:
        it = Swarm(version=0)
        for name in ACCEPTORS[:knowing]:
            it.peers[name].history.votes.learn(RETURN.hash)
        assert await it.me.confirms(RETURN) == believed

    run_virtual(main())


@pytest.mark.parametrize(("knowing", "source", "believed"), [(3, "o1", True), (3, "x", False), (6, "p0", True)])
def test_a_newcomer_counts_who_brings_it_if_that_is_one_of_those_around(
    knowing: int, source: str, believed: bool
) -> None:
    async def main() -> None:
        it = Swarm(version=0)
        for name in ACCEPTORS[:knowing]:
            it.peers[name].history.votes.learn(RETURN.hash)
        assert await it.me.confirms(RETURN, source) == believed
        assert source not in it.me.asked, "it has said so"
        assert "p0" not in it.me.asked

    run_virtual(main())


def test_a_newcomer_does_not_believe_what_others_have_only_accepted() -> None:
    async def main() -> None:
        it = Swarm(version=0).accept(*ACCEPTORS, it=RETURN)
        assert not await it.me.confirms(RETURN)

    run_virtual(main())


def test_a_run_that_is_founded_again_is_its_founders_business() -> None:
    async def main() -> None:
        it = Swarm(version=0)
        it.me.history.origin.founder, it.me.history.origin.resumes = "m0", True
        it.peers["m0"].history.origin.found("m0", resumes=True)
        back = dataclasses.replace(RETURN, after="founding")
        assert not await it.me.confirms(back, "n0")
        assert await it.me.confirms(back, "m0")

    run_virtual(main())


@pytest.mark.parametrize(("accepted", "dead", "denied"), [(0, 0, True), (1, 2, True), (1, 3, False), (4, 0, False)])
def test_what_no_majority_can_have_decided_is_denied(accepted: int, dead: int, denied: bool) -> None:
    """Of another history's record: those that can't be asked may have accepted it."""

    async def main() -> None:
        it = Swarm().accept(*ACCEPTORS[:accepted]).kill(*ACCEPTORS[6 - dead :])
        it.me.history.chain.append(dataclasses.replace(SECOND, total_tokens=1))
        assert await it.me.confirmation.denies(SECOND) == denied
        elsewhere = dataclasses.replace(SECOND, parent="elsewhere")
        assert not await it.me.confirmation.denies(elsewhere), "who its acceptors are isn't known here"
        it.me.history.replace(dataclasses.replace(FIRST, total_tokens=1), "digest")
        assert not await it.me.confirmation.denies(SECOND), "nor any more"

    run_virtual(main())


def test_a_record_is_asked_about_once_at_a_time_and_not_over_and_over() -> None:
    async def main() -> None:
        it = Swarm()
        assert not any(await asyncio.gather(it.me.confirms(), it.me.confirms()))
        assert len(it.me.asked) == len(ACCEPTORS)
        await it.me.confirms()
        assert len(it.me.asked) == len(ACCEPTORS)
        await asyncio.sleep(AGAIN_SECONDS)
        await it.me.confirms()
        assert len(it.me.asked) == 2 * len(ACCEPTORS)

    run_virtual(main())


def test_one_that_brings_many_records_at_a_time_has_one_of_them_looked_into() -> None:
    async def main() -> None:
        it = Swarm()
        made = [dataclasses.replace(SECOND, total_tokens=number) for number in range(50)]
        assert not any(await asyncio.gather(*(it.me.confirms(one) for one in made)))
        assert len(it.me.asked) == len(ACCEPTORS)

    run_virtual(main())


def test_a_peer_that_is_past_a_step_votes_for_its_own_record_only() -> None:
    async def main() -> None:
        it = Swarm().peers["m0"]
        it.history.chain.append(SECOND)
        ask = AskVote(2, FIRST.hash, SECOND.hash, BALLOT)
        assert (it.confirmation._vote(ask).accepted, it.confirmation._vote(ask).decided) == (False, True)
        other = it.confirmation._vote(dataclasses.replace(ask, record_hash="another"))
        assert (other.accepted, other.decided) == (False, False)
        outside = Peer("p0", {}, member=False)
        with pytest.raises(Refused):
            outside.confirmation._vote(ask)

    run_virtual(main())
