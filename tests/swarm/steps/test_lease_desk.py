"""The desk at which heads get leases: when it gives, when it waits, what it gives again."""

import asyncio
import dataclasses
import math
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.errors import OutOfRange, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.steps.lease_desk import (
    HEARING_SECONDS,
    HORIZON_FLOOR_SECONDS,
    LEASE_POLL_SECONDS,
    LeaseDesk,
    plan_horizon_s,
)
from swarmd.swarm.steps.leases import Leases
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.fields import SECONDS_LIMIT, Ranges
from swarmd.swarm.wire.messages.hop import NOBODY, Blame
from swarmd.swarm.wire.messages.step import AskLease, Lease, Revoke
from swarmd.values import HopId
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import RUN

STEP = 3
EIGHT = dataclasses.replace(RUN, sequences_per_step=8, sequences_per_microbatch=1)


class Office:
    """A conductor's desk, with two heads that ask there."""

    history: Any

    def __init__(self) -> None:
        everyone: dict[str, FakeLinks] = {}
        links = FakeLinks("me", everyone)
        self.revoked: list[Ranges] = []  # of the first head
        FakeLinks("a", everyone).handle(Revoke, self._revoked)
        self.cards = {"a": card("a"), "b": card("b"), "gone": card("gone", state="left")}
        self.missing: list[int] = []
        self.cut_off = False
        self.speaking = [card("a"), card("b"), card("tail", stage=1)]
        membership: Any = SimpleNamespace(
            own=card("me"),
            get=lambda peer: self.cards.get(peer),
            stage=lambda stage: [card("a"), card("b")],
            standing=SimpleNamespace(is_counted=lambda peer: True),
            missing_stages=lambda stages: self.missing,
        )
        self.newcomers: set[str] = set()
        chain = SimpleNamespace(is_newcomer=lambda peer: peer in self.newcomers)
        history = self.history = SimpleNamespace(
            record=SimpleNamespace(seconds=0.0), await_version=self._await_version, chain=chain
        )
        succession: Any = SimpleNamespace(is_cut_off=lambda now: self.cut_off, speaking=lambda now: self.speaking)
        tasks: Any = SimpleNamespace(start=self._start)
        context = peer_context(run=EIGHT, links=links, membership=membership, history=history, tasks=tasks)
        self.desk = LeaseDesk(context, succession)
        self._tasks: list[asyncio.Task[None]] = []

    async def _revoked(self, peer: str, revoke: Revoke) -> Ack:
        self.revoked.append(revoke.indices)
        return Ack()

    async def _await_version(self, version: int, record_hash: str, peer: str, seconds: float) -> None:
        if record_hash != "ours":
            raise Refused("another history")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    async def ask(
        self, head: str = "a", want: int = 1, completed: Ranges = (), held: Ranges = (), **changes: Any
    ) -> Lease:
        plain = AskLease(STEP, "ours", want, completed, held)
        return await self.desk._answer(head, dataclasses.replace(plain, **changes))


def test_who_asks_gets_leases_and_all_are_done_once_they_are_completed() -> None:
    async def main() -> None:
        it = Office()
        assert (it.desk.completed, it.desk.all_done, it.desk.leased_to("a")) == (None, False, set())
        it.desk.open(STEP, again=False)
        assert (it.desk.completed, it.desk.began) == (0, None)
        await asyncio.sleep(1)
        lease = await it.ask(want=2)
        assert lease == Lease(STEP, ((0, 2),), again=False)
        assert it.desk.leased_to("a") == {HopId(STEP, 0), HopId(STEP, 1)}
        assert it.desk.began == asyncio.get_running_loop().time()
        waiting = asyncio.create_task(it.desk.until_all_done())
        await it.ask(want=0, completed=((0, 7),))
        assert (it.desk.completed, it.desk.all_done, waiting.done()) == (7, False, False)
        await it.ask("b", want=0, completed=((7, 8),))
        await waiting
        assert it.desk.all_done
        it.desk.close()
        assert (it.desk.completed, it.desk.all_done) == (None, False)

    run_virtual(main())


@pytest.mark.parametrize(
    ("head", "changes", "why"),
    [
        ("stranger", {}, "doesn't know you"),
        ("gone", {"completed": ((0, 1),)}, "said goodbye"),
        ("a", {"step": STEP + 1}, "doesn't lead step 4"),
        ("a", {"record_hash": "theirs"}, "another history"),
    ],
)
def test_who_asks_elsewhere_is_refused(head: str, changes: dict[str, Any], why: str) -> None:
    async def main() -> None:
        it = Office()
        it.desk.open(STEP, again=False)
        with pytest.raises(Refused, match=why):
            await it.ask(head, **changes)

    run_virtual(main())


def test_a_head_may_ask_before_the_conductor_knows_that_it_is_one() -> None:
    async def main() -> None:
        it = Office()
        asking = asyncio.create_task(it.ask())
        await asyncio.sleep(1)
        it.desk.open(STEP, again=False)
        assert (await asking).indices

    run_virtual(main())


@pytest.mark.parametrize("reason", ["missing", "cut_off"])
def test_nothing_is_given_while_a_stage_is_empty_or_another_may_lead(reason: str) -> None:
    async def main() -> None:
        it, loop = Office(), asyncio.get_running_loop()
        it.missing, it.cut_off = ([1], False) if reason == "missing" else ([], True)
        it.desk.open(STEP, again=False)
        before = loop.time()
        assert (await it.ask()).indices == ()
        assert loop.time() - before == pytest.approx(LEASE_POLL_SECONDS)
        it.missing, it.cut_off = [], False
        assert (await it.ask()).indices

    run_virtual(main())


def test_who_takes_over_hears_every_head_before_it_gives_leases() -> None:
    async def main() -> None:
        it, loop = Office(), asyncio.get_running_loop()
        it.desk.open(STEP, again=True)
        asking = asyncio.create_task(it.ask("a", completed=((0, 4),)))
        await asyncio.sleep(HEARING_SECONDS / 2)
        assert not asking.done(), "the other head may have the rest"
        now = loop.time()
        await it.ask("b", want=0, leased=((4, 7),))
        assert await asking == Lease(STEP, ((7, 8),), again=True)
        assert loop.time() == now, "both are answered at once"
        it.desk.open(STEP, again=True)
        before = loop.time()
        assert (await it.ask("a")).indices
        assert loop.time() - before == pytest.approx(HEARING_SECONDS), "the other head may be gone"

    run_virtual(main())


def test_what_a_lost_or_silent_head_had_is_given_again() -> None:
    async def main() -> None:
        it = Office()
        it.desk.open(STEP, again=False)
        assert it.desk.sweep(0.0) == 0.0
        await it.ask("a", want=4, completed=((4, 8),))
        it.desk.peer_lost("a")
        assert (it.desk.completed, it.desk.leased_to("a")) == (0, set())
        await it.ask("b", want=0, completed=((4, 8),))
        it.desk.peer_lost("b", heir="a")
        assert it.desk.completed == 4, "its sum isn't lost"
        await it.ask("b", want=1)
        it.desk.sweep(asyncio.get_running_loop().time())
        assert it.desk.leased_to("b")
        now = asyncio.get_running_loop().time() + 100.0
        assert it.desk.sweep(now) == now
        assert it.desk.leased_to("b") == set()
        it.desk.close()
        assert it.desk.sweep(now) == math.inf

    run_virtual(main())


def test_who_works_in_vain_is_told_to_stop() -> None:
    async def main() -> None:
        it = Office()
        it.desk.open(STEP, again=False)
        await it.ask("a", want=0, leased=((0, 2),))
        await it.ask("b", want=0, completed=((0, 1),))
        await asyncio.sleep(0)
        assert it.revoked == [((0, 1),)]

    run_virtual(main())


def test_the_first_number_that_is_not_finite_is_blamed_as_long_as_it_counts() -> None:
    async def main() -> None:
        it = Office()
        it.desk.open(STEP, again=False)
        assert it.desk.blame == NOBODY
        first, second = Blame("loss", 1, "x", 0), Blame("loss", 1, "y", 1)
        await it.ask("a", want=0, completed=((0, 1),), blame=first)
        await it.ask("b", want=0, completed=((1, 2),), blame=second)
        assert it.desk.blame == first
        it.desk.peer_lost("a", heir="b")
        assert it.desk.blame == first
        it.desk.peer_lost("a")
        assert it.desk.blame == second
        it.desk.open(STEP + 1, again=False)
        assert it.desk.blame == NOBODY

    run_virtual(main())


@pytest.mark.parametrize(
    ("completed", "elapsed_s", "last_step_s", "horizon_s"),
    [
        (0, 0.0, 0.0, 0.0),  # nothing is known
        (0, 0.0, 16.0, 16.0),  # as the last step
        (1, 1.0, 16.0, 14.0),  # too little is done to go by it
        (4, 4.0, 16.0, 4.0),  # at this step's own pace
        (8, 4.0, 16.0, HORIZON_FLOOR_SECONDS),
        (0, 0.0, 1e300, SECONDS_LIMIT),  # what a lease may say at most
    ],
)
def test_the_horizon_follows_the_pace(completed: int, elapsed_s: float, last_step_s: float, horizon_s: float) -> None:
    leases = Leases(8)
    leases.heard("a", range(completed), [], 0.0)
    assert plan_horizon_s(leases, elapsed_s, last_step_s) == pytest.approx(horizon_s)


def test_a_newcomer_has_what_it_was_given_and_nothing_else() -> None:
    async def main() -> None:
        it = Office()
        it.newcomers = {"a"}
        it.desk.open(STEP, again=False)
        await it.ask(want=0, completed=((0, 2),), held=((2, 3),))
        assert (it.desk.completed, it.desk.leased_to("a")) == (0, set())
        await asyncio.sleep(0)
        assert it.revoked == [((2, 3),)], "it holds it in vain"
        lease = await it.ask()
        await it.ask(want=0, held=lease.indices)
        assert len(it.desk.leased_to("a")) == 1
        await it.ask(want=0, completed=(*lease.indices, (7, 8)))
        assert it.desk.completed == 1
        await it.ask("b", want=0, completed=((7, 8),))
        assert it.desk.completed == 2, "who is in a record is believed"
        assert it.revoked == [((2, 3),)]

    run_virtual(main())


def test_a_newcomers_word_that_numbers_are_not_finite_counts_where_no_other_head_is_at_work() -> None:
    async def main() -> None:
        it, blame = Office(), Blame("activation", 0, "a", 1)
        it.newcomers = {"a"}
        it.desk.open(STEP, again=False)
        await it.ask(want=0, blame=blame)
        assert it.desk.blame == NOBODY
        await it.ask("b", want=0, blame=blame)
        assert it.desk.blame == blame
        it.newcomers = {"a", "b"}
        it.desk.open(STEP, again=True)
        await it.ask(want=0, blame=blame)
        assert it.desk.blame == blame

    run_virtual(main())


def test_before_the_first_record_a_conductor_believes_only_itself_that_numbers_are_not_finite() -> None:
    async def main() -> None:
        it, blame = Office(), Blame("activation", 0, "a", 1)
        it.history.record, it.cards["me"] = None, card("me")
        it.desk.open(1, again=False)
        for head in ("a", "b"):
            await it.ask(head, step=1, want=0, blame=blame)
        assert it.desk.blame == NOBODY
        await it.ask("me", step=1, want=0, blame=blame)
        assert it.desk.blame == blame

    run_virtual(main())


@pytest.mark.parametrize("where", ["completed", "leased", "passed_on"])
def test_nothing_counts_of_a_question_with_indices_that_the_step_does_not_have(where: str) -> None:
    async def main() -> None:
        it = Office()
        it.desk.open(STEP, again=False)
        said: dict[str, Any] = {"completed": ((0, 1),), where: ((7, 9),)}
        with pytest.raises(OutOfRange):
            await it.ask(want=0, blame=Blame("loss", 1, "x", 0), **said)
        assert (it.desk.completed, it.desk.blame) == (0, NOBODY)

    run_virtual(main())


def test_a_desk_is_unheeded_for_as_long_as_heads_are_there_and_none_of_them_has_asked() -> None:
    async def main() -> None:
        it, now = Office(), asyncio.get_running_loop().time
        assert it.desk.unheeded_s(now()) == 0.0, "it leads nothing"
        it.desk.open(STEP, again=False)
        it.speaking = [card("tail", stage=1), card("a", state="paused")]
        for _ in range(10):
            await asyncio.sleep(5)
            assert it.desk.unheeded_s(now()) == 0.0, "nobody is there who could ask"
        it.speaking = [card("a")]
        found = []
        for _ in range(3):
            await asyncio.sleep(5)
            found.append(it.desk.unheeded_s(now()))
        assert found == [5.0, 10.0, 15.0]
        await it.ask()
        assert it.desk.unheeded_s(now()) == 0.0
        await asyncio.sleep(5)
        assert it.desk.unheeded_s(now()) == 0.0

    run_virtual(main())
