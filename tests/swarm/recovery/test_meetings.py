"""Meetings of two histories: when they are compared, what is asked, and which of them wins."""

import asyncio
import dataclasses
import itertools
import random
from typing import Any

import pytest

from swarmd.errors import Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.recovery.forks import (
    ASKED_AT_ONCE,
    MEET_SECONDS,
    MET_AT_ONCE,
    Forks,
)
from swarmd.swarm.wire.messages.commit import AskRecord, Commit
from swarmd.swarm.wire.messages.presence import Card
from tests.swarm.cards import card
from tests.swarm.records import RUN
from tests.swarm.recovery.two_histories import (
    COMMON,
    OURS,
    THEIRS,
    Meeting,
    by_hash,
    following,
    forked_at,
    looks,
    now,
)


def test_the_loser_finds_the_way_and_the_winner_stays() -> None:
    async def main() -> None:
        meeting = Meeting(theirs=THEIRS[:4])
        ways = [await meeting.way(name) for name in ("a", "x")]
        lost = [name for name, way in zip(("a", "x"), ways, strict=True) if way is not None]
        assert len(lost) == 1
        way = next(way for way in ways if way is not None)
        assert way.ancestor == 2
        assert way.donors == (("x",) if lost == ["a"] else ("a",))

    run_virtual(main())


def test_who_is_behind_by_far_crosses() -> None:
    async def main() -> None:
        meeting = Meeting(OURS, THEIRS)
        meeting.shown("b")
        way = await meeting.way("b")
        assert (way.ancestor, way.guide, way.donors) == (2, "x", ("y",)), "its own stage's"
        assert await meeting.way("x") is None

    run_virtual(main())


def test_between_two_looks_at_foreign_histories_it_rests() -> None:
    async def main() -> None:
        rest_s = MEET_SECONDS * (0.5 + random.Random(0).random())
        it = Meeting(theirs=THEIRS[:3]).peers["a"]
        for other in ("x", "y"):
            it.membership.suspect(other)
        assert not await looks(it), "there is none"
        for other in ("x", "y"):
            it.membership.touch(other, now())
        assert await looks(it), "at once when one comes"
        assert not await looks(it)
        await asyncio.sleep(rest_s - 0.1)
        assert not await looks(it)
        await asyncio.sleep(0.2)
        assert await looks(it)

    run_virtual(main())


def test_of_many_foreign_peers_some_are_looked_at_at_a_time() -> None:
    async def main() -> None:
        it = Meeting(theirs=THEIRS[:3]).peers["a"]
        for number in range(2 * MET_AT_ONCE):
            it.membership.hear(card(f"z{number}", stage=0, version=4, record_hash="another"), now())
        assert len(it.foreign()) == 2 * MET_AT_ONCE + 2
        assert await looks(it)
        assert {peer for peer, _ in it.links.asked} == {f"z{number}" for number in range(MET_AT_ONCE)}

    run_virtual(main())


@pytest.mark.parametrize(("state", "looked_at"), [("serving", True), ("finished", True), ("joining", False)])
def test_only_those_who_have_a_state_are_looked_at(state: str, looked_at: bool) -> None:
    async def main() -> None:
        it = Meeting().peers["a"]
        it.membership.hear(card("z", stage=0, version=4, record_hash="another", state=state), now())
        assert it.foreign() == ["z"]
        assert await looks(it) == looked_at

    run_virtual(main())


def test_who_has_trained_nothing_has_no_history_to_give_up() -> None:
    async def main() -> None:
        it = Meeting().shown("a")
        it.history.replace(None, "digest")
        it.forks.on_foreign("x")
        assert not await looks(it)
        assert it.foreign() == ["x"], "nor can it tell that one is of the same"

    run_virtual(main())


@pytest.mark.parametrize("step", [3, 5, 6])
def test_a_history_that_has_forked_loses_to_one_that_has_not_however_long_it_is(step: int) -> None:
    """Wherever in it the forked record is."""

    async def main() -> None:
        meeting = Meeting(OURS, forked_at(following(COMMON, 6, digest="other"), step))
        meeting.shown("a")
        assert await meeting.way("a") is None
        way = await meeting.way("x")
        assert (way.ancestor, way.donors) == (2, ("a",))
        both = Meeting(forked_at(OURS, 4), forked_at(following(COMMON, 6, digest="other"), step))
        both.shown("a")
        assert await both.way("a") is not None, "the longer one, where both have"
        assert await both.way("x") is None

    run_virtual(main())


def test_a_history_whose_first_record_was_looked_at_is_asked_only_for_what_is_new() -> None:
    async def main() -> None:
        meeting = Meeting(following(COMMON, 6), following(COMMON, 4, digest="other"))
        asked = meeting.peers["a"].links.asked
        await meeting.way("a")
        assert {4, 5, 6} <= {ask.step for _, ask in asked}
        asked.clear()
        await meeting.way("a")
        assert 5 not in {ask.step for _, ask in asked}, "and 4 and 6 only to find where they part"
        for name in ("x", "y"):
            peer = meeting.peers[name]
            peer.history.chain.append(following(COMMON, 5, digest="other")[-1])
            newest: dict[str, Any] = {"version": 7, "record_hash": peer.history.record_hash, "sequence": 9}
            meeting.peers["a"].membership.hear(dataclasses.replace(peer.card, **newest), now())
        asked.clear()
        await meeting.way("a")
        steps = [ask.step for _, ask in asked]
        assert (steps.count(7), 5 in steps) == (3, False), "7 once for each of the two to see where they part, and once"

    run_virtual(main())


def test_what_was_looked_at_is_remembered_of_so_many_histories() -> None:
    async def main() -> None:
        meeting = Meeting()
        it, x = meeting.peers["a"], meeting.peers["x"]
        firsts = [dataclasses.replace(THEIRS[2], total_tokens=number) for number in range(MET_AT_ONCE + 2)]
        for first in firsts:
            assert not await it.forks._is_forked(x.card, first)
        assert list(it.forks._unforked) == [first.hash for first in firsts[2:]]

    run_virtual(main())


def test_so_many_records_are_asked_for_at_a_time() -> None:
    async def main() -> None:
        theirs = following(COMMON, 3 * ASKED_AT_ONCE, digest="other")
        meeting = Meeting(OURS, theirs)
        it, x = meeting.peers["a"], meeting.peers["x"]
        it.forks._run = dataclasses.replace(RUN, steps=100)
        asked = most = 0

        async def answer(peer: str, ask: AskRecord) -> Commit:
            nonlocal asked, most
            asked += 1
            most = max(most, asked)
            await asyncio.sleep(1)
            asked -= 1
            return Commit(theirs[ask.step - 1].raw)

        x.links.handle(AskRecord, answer)
        assert not await it.forks._is_forked(x.card, theirs[2])
        assert [ask.step for _, ask in it.links.asked] == list(range(4, len(theirs) + 1))
        assert most == ASKED_AT_ONCE

    run_virtual(main())


def test_a_version_that_does_not_exist_costs_no_questions_without_end() -> None:
    async def main() -> None:
        meeting = Meeting()
        it = meeting.shown("a")
        it.membership.hear(dataclasses.replace(meeting.peers["x"].card, version=1 << 40, sequence=1 << 20), 0.0)
        await meeting.way("a")
        assert len(it.links.asked) < 200

    run_virtual(main())


def test_what_a_peer_does_not_remember_of_its_new_history_is_not_taken_for_common() -> None:
    """It has crossed itself, and is about to learn the records that led there."""

    async def main() -> None:
        meeting = Meeting(following(COMMON, 4), following(COMMON, 6, digest="other"))
        for name in ("x", "y"):
            chain = meeting.peers[name].history.chain
            chain._records = {step: it for step, it in chain._records.items() if step not in (3, 4)}
        meeting.shown("a")
        way = await meeting.way("a")
        assert way.ancestor == 2

    run_virtual(main())


def test_nobody_crosses_to_what_its_acceptors_deny() -> None:
    async def main() -> None:
        meeting = Meeting(OURS, following(COMMON, 6, digest="other"))
        it = meeting.shown("a")
        it.denied.add(meeting.peers["x"].history.chain.hash_at(3))
        assert await meeting.way("a") is None
        it.denied.clear()
        meeting.shown("a")
        assert await meeting.way("a") is not None

    run_virtual(main())


def test_acceptors_are_not_asked_about_what_no_majority_of_them_decided() -> None:
    async def main() -> None:
        meeting = Meeting(forked_at(OURS, 3), forked_at(following(COMMON, 6, digest="other"), 3))
        it = meeting.shown("a")
        it.denied.add(meeting.peers["x"].history.chain.hash_at(3))
        assert await meeting.way("a") is not None

    run_virtual(main())


def test_one_that_turns_out_to_be_of_the_same_history_is_foreign_no_longer() -> None:
    async def main() -> None:
        it = Meeting(OURS, following(OURS, 2)).shown("a")
        assert it.foreign() == ["x", "y"]
        assert await looks(it)
        assert it.foreign() == []

    run_virtual(main())


@pytest.mark.parametrize(("version", "stays"), [(3, False), (4, True)])
def test_one_that_is_not_behind_stays_foreign_when_it_goes_on(version: int, stays: bool) -> None:
    async def main() -> None:
        it = Meeting(theirs=THEIRS[:version]).peers["a"]
        assert await it.forks._meet(it.membership.members()["x"].card) is not None
        it.membership.hear(card("x", sequence=9, version=5, record_hash=THEIRS[4].hash), now())
        assert ("x" in it.foreign()) == stays

    run_virtual(main())


@pytest.mark.parametrize("gone_on", ["with their record", "elsewhere"])
def test_who_has_gone_on_while_the_records_came_meets_nobody(gone_on: str) -> None:
    async def main() -> None:
        meeting = Meeting()
        it, x = meeting.peers["a"], meeting.peers["x"]
        asked = 0

        async def answer(peer: str, ask: AskRecord) -> Commit:
            nonlocal asked
            asked += 1
            if asked == 3:  # the last one: 4, 2, 3
                it.history.replace(THEIRS[-1], "digest", crossed_at=2)
                if gone_on == "with their record":
                    it.history.chain.learn({of.step: of for of in THEIRS})
            of = x.history.chain.at(ask.step)
            assert of is not None
            return Commit(of.raw)

        x.links.handle(AskRecord, answer)
        assert await it.forks._meet(x.card) is None
        assert asked == 3

    run_virtual(main())


def test_where_two_histories_part_is_asked_for_no_further_once_it_is_plain() -> None:
    async def main() -> None:
        meeting = Meeting()
        it = meeting.peers["a"]
        met = await it.forks._meet(meeting.peers["x"].card)
        assert met is not None
        assert (met.ancestor, met.ours, met.theirs) == (2, OURS[2], THEIRS[2])
        assert [ask.step for _, ask in it.links.asked] == [4, 2, 3]

    run_virtual(main())


def test_what_a_peer_learns_while_it_is_asked_counts_as_common() -> None:
    """It didn't remember version 2 first, and gives our record of it then."""

    async def main() -> None:
        meeting = Meeting()
        third = following(OURS[:1], 3, digest="third")
        refused = False

        async def answer(peer: str, ask: AskRecord) -> Commit:
            nonlocal refused
            if ask.step == 2 and not refused:
                refused = True
                raise Refused("not here")
            return Commit((OURS[1] if ask.step == 2 else third[ask.step - 1]).raw)

        meeting.peers["x"].links.handle(AskRecord, answer)
        met = await meeting.peers["a"].forks._meet(meeting.peers["x"].card)
        assert met is not None
        assert (met.ancestor, met.theirs) == (2, third[2])

    run_virtual(main())


def test_a_record_that_forked_before_the_histories_parted_counts_for_neither() -> None:
    async def main() -> None:
        winner, loser = by_hash(2)
        meeting = Meeting(forked_at(winner, 2), forked_at(loser, 9))
        assert await meeting.way("a") is None
        assert await meeting.way("x") is not None

    run_virtual(main())


def test_the_newest_of_its_own_history_counts_for_a_peer_that_is_behind() -> None:
    async def main() -> None:
        winner, loser = by_hash(4)
        meeting = Meeting(winner[:4], loser)
        it = meeting.shown("a")
        assert await meeting.way("a") is not None, "two steps are decisive"
        it.membership.hear(card("b", sequence=9, stage=1, version=6, record_hash=winner[-1].hash), now())
        meeting.shown("a")
        assert await meeting.way("a") is None

    run_virtual(main())


def test_the_newest_of_the_other_history_counts_whoever_is_looked_at() -> None:
    async def main() -> None:
        winner, loser = by_hash(4)
        meeting = Meeting(winner[:4], loser)
        it = meeting.peers["a"]
        it.membership.hear(card("w", stage=0, version=4, record_hash=loser[3].hash), now())
        assert await meeting.way("a") is None, "it sees none that is further"
        meeting.shown("a")
        assert await meeting.way("a") is not None

    run_virtual(main())


def test_one_that_is_gone_once_its_records_have_come_counts_as_it_was() -> None:
    async def main() -> None:
        meeting = Meeting(OURS, THEIRS)
        it = meeting.shown("a")
        met = await it.forks._meet(known := it.membership.members()["x"].card)
        assert met is not None
        it.membership.hear(dataclasses.replace(known, state="left", sequence=9), now())
        it.membership.sweep(now())
        assert it.membership.get("x") is None
        assert await it.forks._loses_to(met, known)

    run_virtual(main())


def test_histories_are_compared_as_they_are_once_the_records_have_come() -> None:
    """Two histories ended at the same time: for one peer its own was a step ahead, as the other's cards were older."""
    both = following(COMMON, RUN.steps - 2), following(COMMON, RUN.steps - 2, digest="other")
    winner, loser = sorted(both, key=lambda records: records[2].hash)

    async def main() -> None:
        meeting = Meeting(loser, winner)
        it, sequence = meeting.peers["a"], itertools.count(2)

        def show(version: int) -> None:
            for peer, stage in (("x", 0), ("y", 1)):
                changes: dict[str, Any] = {"stage": stage, "version": version, "record_hash": winner[version - 1].hash}
                it.membership.hear(card(peer, sequence=next(sequence), **changes), asyncio.get_running_loop().time())

        async def meet(card: Card) -> Any:
            found = await Forks._meet(it.forks, card)
            show(RUN.steps)
            return found

        show(RUN.steps - 1)
        assert it.foreign() == ["x", "y"]
        it.forks._meet = meet  # type: ignore[method-assign]
        assert await meeting.way("a") is not None

    run_virtual(main())
