"""The ways of a record: who is told of it in a small swarm and in a large one, and who passes it on."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.consensus import plan_acceptors
from swarmd.swarm.history.distribution import RELAYS_TRIED, Distribution, plan_relays
from swarmd.swarm.membership.table import SMALL_SWARM, Membership
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import record, report

STAGES = 5
VOTERS = ("p002", "p001")
GONE = "z9"  # a member of the record before that nobody knows any more
BEFORE = record(report(0, members=("p000", "p002")), report(1, members=("p001", GONE)), step=6)
RECORD = record(step=7, parent=BEFORE.hash)


class Rig:
    """Peer "me" of stage 0, which knows so many others of all stages."""

    def __init__(self, others: int) -> None:
        everyone: dict[str, FakeLinks] = {}
        self.links, self.told = FakeLinks("me", everyone), list[tuple[str, Commit]]()
        self.membership = Membership(OwnCard(card("me", stage=0)))
        for number in range(others):
            self._add(f"p{number:03}", number % STAGES, everyone)
        history: Any = SimpleNamespace(
            listen=lambda listener: None,
            chain=SimpleNamespace(at={BEFORE.step: BEFORE}.get),
            origin=SimpleNamespace(founder=""),
        )
        self._tasks: list[asyncio.Task[Any]] = []
        tasks: Any = SimpleNamespace(start=lambda work: self._tasks.append(asyncio.ensure_future(work)))
        self.distribution = Distribution(cast("Any", self.links), self.membership, history, tasks)

    def _add(self, peer: str, stage: int, everyone: dict[str, FakeLinks]) -> None:
        async def hear(_: str, commit: Commit) -> Ack:
            self.told.append((peer, commit))
            return Ack()

        FakeLinks(peer, everyone).handle(Commit, hear)
        self.membership.hear(card(peer, stage=stage), 0.0)

    async def spread(self) -> None:
        await self.distribution.spread(RECORD, VOTERS)
        await self.end()

    async def end(self) -> None:
        """Waits for what was started."""
        await asyncio.gather(*self._tasks)

    def relays(self) -> list[str]:
        """Those that were told to tell their stage."""
        return [peer for peer, commit in self.told if commit.relay]

    def asked(self) -> set[str]:
        return {peer for peer, _ in self.links.asked}


def test_each_stage_has_its_relays_and_nobody_relays_to_itself() -> None:
    cards = [card(f"p{number:03}", stage=number % 5) for number in range(200)]
    relays = plan_relays(7, cards, "p000")
    assert [len(stage) for stage in relays] == [RELAYS_TRIED] * 5
    for stage, peers in enumerate(relays):
        assert all(int(peer[1:]) % 5 == stage for peer in peers)
        assert "p000" not in peers
    assert relays != plan_relays(8, cards, "p000"), "the work goes round"


def test_only_those_at_work_relay_and_not_oneself() -> None:
    cards = [card("a"), card("b", state="joining"), card("c", stage=1, state="finished"), card("me")]
    assert plan_relays(1, cards, "me") == [["a"]]


@pytest.mark.parametrize(("others", "small"), [(SMALL_SWARM, True), (SMALL_SWARM + 1, False)])
def test_in_a_small_swarm_everyone_else_is_told_and_passes_nothing_on(others: int, small: bool) -> None:
    async def main() -> None:
        it = Rig(others)
        await it.spread()
        assert {commit.voters for _, commit in it.told} == {VOTERS}
        assert all(commit.record == RECORD.raw for _, commit in it.told)
        assert (it.relays() == []) == small
        assert (len(it.told) == others) == small
        assert "me" not in it.asked()

    run_virtual(main())


def test_in_a_large_swarm_the_acceptors_are_told_and_one_replica_of_each_stage_that_tells_the_others() -> None:
    async def main() -> None:
        it = Rig(10 * STAGES)
        await it.spread()
        told = [peer for peer, commit in it.told if not commit.relay]
        acceptors = [peer for peer in plan_acceptors(RECORD.step, BEFORE, "") if peer != GONE]
        assert sorted(told) == sorted(acceptors), "those that are known"
        assert sorted(int(peer[1:]) % STAGES for peer in it.relays()) == list(range(STAGES))
        assert GONE not in it.asked()

    run_virtual(main())


def test_a_relay_that_is_gone_is_replaced_by_the_next_one() -> None:
    async def main() -> None:
        it = Rig(10 * STAGES)
        first, *others = plan_relays(RECORD.step, it.membership.kin(), "me")
        del it.links.everyone[first[0]]
        await it.spread()
        assert sorted(it.relays()) == sorted([first[1], *(relays[0] for relays in others)])

    run_virtual(main())


def test_a_relay_tells_the_others_of_its_stage_and_they_pass_nothing_on() -> None:
    async def main() -> None:
        it = Rig(4 * STAGES)
        it.distribution.on_relay("p005", Commit(RECORD.raw, relay=True, voters=VOTERS))
        await it.end()
        assert it.told == [(peer, Commit(RECORD.raw, voters=VOTERS)) for peer in ("p000", "p010", "p015")]
        assert it.asked() == {"p000", "p010", "p015"}, "neither itself nor whom it has it from"

    run_virtual(main())
