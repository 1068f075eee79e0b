"""Histories that meet: which one is kept, where they part, and who crosses to the other."""

import asyncio
import dataclasses
import itertools
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Record, genesis_hash, record_to_plain
from swarmd.swarm.history.record_format import write_record
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.recovery.forks import (
    ASKED_AT_ONCE,
    FOREIGN_SECONDS,
    INCOMPLETE_SECONDS,
    MEET_SECONDS,
    MEMORY_SECONDS,
    MET_AT_ONCE,
    Forks,
    Standing,
    ask_record,
    find_fork,
    wins,
)
from swarmd.swarm.wire.messages.commit import AskRecord, Commit
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.fake_links import FakeLinks
from tests.swarm.no_disk import NoDisk
from tests.swarm.records import RUN, record, report

PLAIN = Standing(version=20, forked=True, tokens=1000, record_hash="b")
STEPS = 100


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"version": 100}, {"version": 99, "forked": False, "tokens": 9999, "record_hash": "a"}),
        ({"forked": False}, {"version": 90, "tokens": 9999, "record_hash": "a"}),
        ({"version": 22}, {"version": 20, "tokens": 9999, "record_hash": "a"}),
        ({"tokens": 1001}, {"version": 21, "record_hash": "a"}),
        ({"record_hash": "a"}, {"version": 21}),
        ({"record_hash": "a"}, {}),
    ],
    ids=["at the end of the run", "decided by majorities", "more steps", "more tokens", "a lead of one", "lower hash"],
)
def test_which_history_wins(better: dict[str, object], worse: dict[str, object]) -> None:
    one, other = dataclasses.replace(PLAIN, **better), dataclasses.replace(PLAIN, **worse)  # type: ignore[arg-type]
    assert wins(one, other, STEPS)
    assert not wins(other, one, STEPS)
    assert not wins(one, one, STEPS), "nobody need change sides"


standings = st.builds(Standing, st.integers(90, 100), st.booleans(), st.integers(0, 2), st.sampled_from("abc"))


@given(standings, standings)
def test_exactly_one_of_two_histories_wins(one: Standing, other: Standing) -> None:
    if one == other or (one.record_hash == other.record_hash and abs(one.version - other.version) < 2):
        return  # one and the same
    assert wins(one, other, STEPS) != wins(other, one, STEPS)


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 300))
async def test_the_fork_is_found_wherever_it_is(common: int, more: int, forgotten: int) -> None:
    newest, asked = common + more, []

    async def theirs(version: int) -> str:
        asked.append(version)
        return f"c{version}" if version <= common else f"t{version}"

    def ours(version: int) -> str:
        return "" if version < forgotten else f"c{version}" if version <= common else f"o{version}"

    found = await find_fork(ours, theirs, newest)
    if forgotten > newest:
        assert found is None
    else:
        first = max(common + 1, forgotten)
        assert found == (first - 1, first)
    assert len(asked) <= 11
    assert all(version >= forgotten for version in asked), "what isn't remembered here tells nothing"
    assert await find_fork(ours, theirs, common) is None


async def test_the_untrained_version_is_common_to_all() -> None:
    async def theirs(version: int) -> str:
        raise AssertionError("nobody is asked for it")

    assert await find_fork(lambda version: "genesis", theirs, 0) is None


# ------------------------------------------------------------------------------------------------- a peer's records


@pytest.mark.parametrize(
    ("given", "taken"),
    [({}, True), ({"step": 3}, False), ({"step": "two"}, False), (None, False)],
    ids=["that step's", "another step's", "it makes no sense", "none"],
)
async def test_a_record_counts_if_it_is_of_the_step_that_was_asked_for(
    given: dict[str, Any] | None, taken: bool
) -> None:
    everyone: dict[str, FakeLinks] = {}
    of = record(step=(given or {}).get("step", 2)) if (given or {}).get("step") == 3 else record(step=2)

    async def answer(peer: str, ask: AskRecord) -> Commit:
        if given is None:
            raise Refused("not here")
        return Commit(write_record({**record_to_plain(of), **given}))

    FakeLinks("x", everyone).handle(AskRecord, answer)
    context = peer_context(run=RUN, links=FakeLinks("a", everyone))
    assert await ask_record(context, "x", 2) == (of if taken else None)
    assert await ask_record(context, "gone", 2) is None


# ------------------------------------------------------------------------------------------------- two histories


def following(before: list[Record], count: int, **changes: Any) -> list[Record]:
    """Records that follow others; `changes` make them another history's."""
    made = list(before)
    for step in range(len(made) + 1, len(made) + count + 1):
        parent = made[-1].hash if made else genesis_hash(RUN)
        made.append(record(report(0), report(1, **changes), step=step, parent=parent))
    return made


COMMON = following([], 2)
OURS, THEIRS = following(COMMON, 2), following(COMMON, 4, digest="other")


def now() -> float:
    return asyncio.get_running_loop().time()


class Peer:
    """One peer with its own history of the run."""

    def __init__(self, name: str, stage: int, records: list[Record], everyone: dict[str, FakeLinks]) -> None:
        self.links = FakeLinks(name, everyone)
        newest = records[-1]
        self.card = card(name, stage=stage, version=newest.step, record_hash=newest.hash)
        self.membership = Membership(OwnCard(self.card))
        self.history = History(RUN, cast("Any", self.links), cast("Any", NoDisk()))
        self.history.replace(newest, "digest")
        self.history.chain.learn({it.step: it for it in records})
        context: Any = SimpleNamespace(
            run=RUN, links=self.links, membership=self.membership, history=self.history, rng=random.Random(0)
        )
        self.denied: set[str] = set()  # records that their acceptors deny
        self.forks = Forks(context, cast("Any", SimpleNamespace(denies=self._denies)))

    async def _denies(self, it: Record) -> bool:
        return it.hash in self.denied

    def foreign(self) -> list[str]:
        return [it.peer for it in self.membership.foreign()]


class Meeting:
    """Two histories of two stages each: a and b here, x and y there."""

    def __init__(self, ours: list[Record] = OURS, theirs: list[Record] = THEIRS, *, without: str = "") -> None:
        everyone: dict[str, FakeLinks] = {}
        sides = {"a": (0, ours), "b": (1, ours), "x": (0, theirs), "y": (1, theirs)}
        self.peers = {name: Peer(name, *it, everyone) for name, it in sides.items() if name != without}
        for it in self.peers.values():
            for other in self.peers.values():
                if other is not it:
                    it.membership.hear(other.card, 0.0)

    def shown(self, name: str) -> Peer:
        """A peer to which those that are ahead have shown their records."""
        for other in ("x", "y"):
            self.peers[name].forks.on_foreign(other)
        return self.peers[name]

    async def way(self, name: str) -> Any:
        """The history that a peer would cross to, and whether it may meanwhile be counted on."""
        it = self.peers[name]
        await asyncio.sleep(2 * MEET_SECONDS)
        async with it.forks.look() as way:
            assert (it.history.crosses_at is not None) == (way is not None)
        assert it.history.crosses_at is None
        return way


def test_a_card_that_is_not_in_our_chain_is_foreign() -> None:
    async def main() -> None:
        it = Meeting(theirs=THEIRS[:3]).peers["a"]
        assert it.foreign() == ["x", "y"]
        assert it.forks.fits(card("z", version=1, record_hash=COMMON[0].hash))
        assert it.forks.fits(card("z", version=1, record_hash=""))
        assert not it.forks.fits(card("z", version=4, record_hash="another"))
        it.history.chain._records.pop(1)
        assert it.forks.fits(card("z", version=1, record_hash="another")), "that isn't remembered here"

    run_virtual(main())


def test_one_that_was_ahead_is_foreign_once_this_peer_has_another_record_of_its_version() -> None:
    async def main() -> None:
        it = Meeting().peers["a"]
        assert it.foreign() == []
        for made in following(OURS, 2)[-2:]:
            it.history.chain.append(made)
            it.forks.on_record(made)
        assert it.foreign() == ["x", "y"]

    run_virtual(main())


def test_one_that_is_ahead_counts_as_ours_until_it_shows_another_record_and_again_after_a_while() -> None:
    async def main() -> None:
        it = Meeting().peers["a"]
        assert it.foreign() == []
        changed = asyncio.ensure_future(it.history.changed.wait())
        await asyncio.sleep(0)
        it.forks.on_foreign("x")
        assert it.foreign() == ["x"]
        await asyncio.sleep(FOREIGN_SECONDS)
        assert changed.done()
        x = card("x", version=6, record_hash=THEIRS[-1].hash)
        it.forks.sweep(now())
        assert (it.foreign(), it.forks.fits(x)) == (["x"], False), "until then it is"
        await asyncio.sleep(1)
        assert it.forks.fits(x), "believed no longer"
        it.forks.sweep(now())
        assert it.foreign() == []
        it.forks.on_foreign("x")
        await asyncio.sleep(FOREIGN_SECONDS + 1)
        it.forks.on_foreign("y")
        it.forks.sweep(now())
        assert (it.foreign(), list(it.forks._foreign_until)) == (["y"], ["y"]), "what is over is forgotten"
        it.forks.on_replaced()
        assert it.foreign() == []
        it.forks.on_foreign("x")
        it.history.replace(THEIRS[2], "digest")
        assert it.foreign() == [], "this peer is of that history now"

    run_virtual(main())


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


async def looks(it: Peer) -> bool:
    """Whether a peer asks anyone about the foreign histories that it sees now."""
    it.links.asked.clear()
    async with it.forks.look():
        pass
    return bool(it.links.asked)


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


def forked_at(records: list[Record], step: int) -> list[Record]:
    """The same records, of which one was decided without a majority."""
    return [dataclasses.replace(it, forked=it.step == step) for it in records]


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


def by_hash(length: int) -> tuple[list[Record], list[Record]]:
    """Two histories that part after version 2 and are as long; the first one wins."""
    first, second = sorted(
        (following(COMMON, length, digest=digest) for digest in ("d1", "other")), key=lambda made: made[2].hash
    )
    return first, second


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


def test_nobody_crosses_to_a_history_that_is_not_whole_or_whose_peers_cross_themselves() -> None:
    async def main() -> None:
        meeting = Meeting(without="y")
        meeting.shown("a")
        assert await meeting.way("a") is None
        meeting = Meeting()
        meeting.shown("a")
        with meeting.peers["y"].history.crossing(2):
            assert await meeting.way("a") is None
        meeting.shown("a")
        assert await meeting.way("a") is not None

    run_virtual(main())


def test_who_shows_a_third_history_does_not_stay_in_the_guides() -> None:
    async def main() -> None:
        meeting = Meeting()
        meeting.shown("a")
        third = following(COMMON, 4, digest="third")
        meeting.peers["y"].history.replace(third[-1], "digest")
        assert await meeting.way("a") is None

    run_virtual(main())


def test_the_furthest_of_a_stage_are_asked_whether_they_stay_and_so_many_at_most() -> None:
    async def main() -> None:
        meeting = Meeting()
        it = meeting.peers["a"]
        late = [card(f"w{number}", stage=0, version=5) for number in range(ASKED_AT_ONCE)]
        others = [card(f"z{number}", stage=0, version=6) for number in range(ASKED_AT_ONCE - 1)]
        x, y = (meeting.peers[name].card for name in ("x", "y"))
        assert await it.forks._stayers(x, [y, *late, *others, x], 0) == ("x",)
        assert {peer for peer, _ in it.links.asked} == {"x", *(other.peer for other in others)}

    run_virtual(main())


def test_who_is_behind_the_guide_in_its_history_stays_as_well_and_without_a_guide_nobody_does() -> None:
    async def main() -> None:
        meeting = Meeting()
        it, x = meeting.peers["a"], meeting.peers["x"]
        y = Peer("y", 1, THEIRS[:5], it.links.everyone).card
        assert await it.forks._stays(x.card, y)
        assert await it.forks._stays(y, x.card)
        assert not await it.forks._stays(card("gone", version=6), y)
        assert not await it.forks._stays(x.card, card("gone", version=6))

    run_virtual(main())


def test_a_history_that_has_lacked_a_stage_for_long_loses() -> None:
    async def main() -> None:
        meeting = Meeting(following(COMMON, 4), THEIRS[:3], without="b")
        assert await meeting.way("a") is None, "it may only be restarting"
        await asyncio.sleep(INCOMPLETE_SECONDS)
        assert await meeting.way("a") is not None

    run_virtual(main())


def test_the_time_for_which_a_stage_is_lacking_counts_while_there_is_another_history() -> None:
    async def main() -> None:
        meeting = Meeting(following(COMMON, 4), THEIRS[:3], without="b")
        it = meeting.peers["a"]
        assert await meeting.way("a") is None
        for other in ("x", "y"):
            it.membership.suspect(other)
        await asyncio.sleep(INCOMPLETE_SECONDS)
        assert await meeting.way("a") is None
        for other in ("x", "y"):
            it.membership.touch(other, now())
        assert await meeting.way("a") is None, "it may only be restarting"
        await asyncio.sleep(INCOMPLETE_SECONDS / 2)
        it.membership.hear(card("b", stage=1, version=4, record_hash=it.history.chain.hash_at(4)), now())
        assert await meeting.way("a") is None
        it.membership.suspect("b")
        assert await meeting.way("a") is None
        await asyncio.sleep(INCOMPLETE_SECONDS - 3 * MEET_SECONDS)
        assert await meeting.way("a") is None, "it was there meanwhile"

    run_virtual(main())


def test_who_can_not_have_the_state_stays_with_an_empty_sum() -> None:
    async def main() -> None:
        it, imported = Meeting().peers["a"], list[str]()
        tries = iter([MemoryError(), None, None])

        async def export_state() -> str:
            if (trouble := next(tries)) is not None:
                raise trouble
            return "state"

        async def import_state(state: str) -> str:
            imported.append(state)
            return "the same"

        compute: Any = SimpleNamespace(export_state=export_state, import_state=import_state)
        await it.history.lock.acquire()
        staying = asyncio.ensure_future(it.forks.stay(compute))
        await asyncio.sleep(10)
        assert imported == [], "a record is being applied"
        it.history.lock.release()
        began = now()
        await staying
        assert now() == began + MEMORY_SECONDS
        assert (imported, it.history.record, it.history.digest) == (["state"], OURS[-1], "the same")
        assert it.history.replacements == 2
        it.history.broken = 4
        await it.forks.stay(compute)
        assert (imported, it.history.replacements) == (["state"], 2), "it has no state to load"

    run_virtual(main())


def test_who_has_crossed_learns_the_records_since_the_fork() -> None:
    async def main() -> None:
        meeting = Meeting()
        it = meeting.shown("a")
        way = await meeting.way("a")
        thawed: list[int] = []

        async def thaw(step: int) -> None:
            thawed.append(step)
            raise KeyError(step)

        with it.history.crossing(way.ancestor):
            it.history.replace(THEIRS[-1], "digest", crossed_at=way.ancestor)
        assert it.history.chain.at(4) is None
        it.links.asked.clear()
        await it.history.lock.acquire()
        arriving = asyncio.ensure_future(it.forks.arrive(way, cast("Any", SimpleNamespace(thaw=thaw))))
        await asyncio.sleep(1)
        assert thawed == [], "a record is being applied"
        it.history.lock.release()
        await arriving
        assert [ask.step for _, ask in it.links.asked] == [3, 4, 5]
        assert [it.history.chain.at(step) for step in range(1, 7)] == THEIRS
        assert (thawed, it.foreign()) == ([7], ["b"])

    run_virtual(main())


def test_who_has_crossed_learns_the_records_as_far_back_as_its_guide_gives_them() -> None:
    async def main() -> None:
        meeting = Meeting()
        it = meeting.shown("a")
        way = await meeting.way("a")
        meeting.peers["x"].history.chain._records.pop(4)
        with it.history.crossing(way.ancestor):
            it.history.replace(THEIRS[-1], "digest", crossed_at=way.ancestor)
        await it.forks._learn_chain(way.guide, way.ancestor)
        assert [it.history.chain.at(step) for step in range(3, 7)] == [None, None, *THEIRS[4:]]

    run_virtual(main())
