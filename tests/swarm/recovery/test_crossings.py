"""Crossing to a history that wins: the way there, who stays there, and what is learned on arrival."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.recovery.forks import (
    ASKED_AT_ONCE,
    INCOMPLETE_SECONDS,
    MEET_SECONDS,
    MEMORY_SECONDS,
)
from tests.swarm.cards import card
from tests.swarm.recovery.two_histories import (
    COMMON,
    OURS,
    THEIRS,
    Meeting,
    Peer,
    following,
    now,
)


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
