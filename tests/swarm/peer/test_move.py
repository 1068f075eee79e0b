"""A move: a moving peer leaves with a record's grant, or early, or stays; it arrives, or comes back."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.config import LimitsConfig
from swarmd.errors import ConfigError, PeerUnreachable, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.record import Move, Record
from swarmd.swarm.peer.move import MoveUnderWay, repeat
from swarmd.swarm.signals import Signal
from swarmd.swarm.state.backlog import Entry, Missed
from swarmd.swarm.state.puller import Pulled
from swarmd.swarm.wire.messages.move import AskMove, MoveOutlook
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.records import RUN, record, report, skipped

SOURCE, TARGET = 0, 1
STEP = 3


def grant(*movers: str, holders: tuple[str, ...] = ("p", "q", "r")) -> Record:
    """The record of the step, in which peers go from stage 0 to stage 1; and who has its gradient there."""
    moves = tuple(Move(peer, SOURCE, TARGET) for peer in movers)
    return record(report(SOURCE, members=holders[:1], holders=holders), report(TARGET), step=STEP, moves=moves)


GRANT = grant("p")


class Mover:
    """Peer `p` of stage 0, with one more replica, `q`, on its way to stage 1 in step 3."""

    def __init__(self, **limits: Any) -> None:
        self.own, self.cards, self.silent = card("p", stage=SOURCE), [card("q", stage=SOURCE)], set[str]()
        self.changed, self.answers, self.asked = Signal(), list[Any](), list[AskMove]()
        self.history = SimpleNamespace(
            version=STEP - 1,
            record_hash="r",
            record=None,
            entered=0.0,
            finished=False,
            behind=False,
            crosses_at=None,
            lock=asyncio.Lock(),
            settle=self._settle,
            replace=self._replace,
        )
        self.heirs, self.log = list[str](), list[Any]()
        early_exit = SimpleNamespace(stays=0, leave=self._leave_early)
        self.old = SimpleNamespace(stage=SOURCE, early_exit=early_exit)
        self.switch = SimpleNamespace(served=self.old, leave_for=self._leave_for, arrive=self._arrive)
        self.cannot_open = set[int]()
        mover = self

        class Members:
            own = property(lambda _: mover.own)
            changed = self.changed
            newest = None

            def staying(self, stage: int) -> list[Any]:
                return [mover.own, *mover.cards]

            def is_silent(self, peer: str, now: float) -> bool:
                return peer in mover.silent

        context = peer_context(
            run=RUN,
            limits=dataclasses.replace(LimitsConfig(), **limits),
            links=SimpleNamespace(ask=self._ask),
            membership=Members(),
            history=self.history,
        )
        conductor: Any = SimpleNamespace(conductor_of=lambda step: "c")
        self.move = MoveUnderWay(context, conductor, cast("Any", self.switch), TARGET, balance=False)
        self.backlog: Any = SimpleNamespace(missed=False, hear=lambda record, source: self.log.append("heard"))
        self.backlog.drop = self.backlog.hand_over = lambda *_: None
        self.backlog.reach = self._reach

    async def _ask(self, peer: str, question: AskMove, *, deadline_s: float) -> MoveOutlook:
        self.asked.append(question)
        await asyncio.sleep(0.1)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, MoveOutlook)
        return answer

    async def _reach(self, step: int) -> Entry:
        return Entry(skipped(step), "c", ())

    async def _leave_early(self) -> str:
        await asyncio.sleep(2)
        return self.heirs.pop(0) if self.heirs else ""

    def _leave_for(self, target: int, heir: str) -> None:
        self.log.append((target, heir))
        self.switch.served = None
        self.changed.notify()

    async def _arrive(self, stage: int) -> Any:
        if stage in self.cannot_open:
            raise ConfigError("too large")

        async def import_state(state: Any) -> str:
            return f"state of {stage}"

        async def skip(step: int) -> str:
            return f"state of {stage} after step {step}"

        compute = SimpleNamespace(import_state=import_state, skip=skip)
        self.switch.served = SimpleNamespace(
            stage=stage, compute=compute, committed=SimpleNamespace(hold=None), serve=lambda: self.log.append("serves")
        )
        return self.switch.served

    def _settle(self, digest: str) -> None:
        self.log.append(digest)

    def _replace(self, record: Record, digest: str) -> None:
        self.log.append((record.step, digest))

    def has_state(self, version: int = STEP - 1) -> None:
        """The state comes at once, whenever it is pulled."""

        async def bring(donors: Any, use: Callable[[Pulled], Awaitable[None]]) -> bool:
            manifest: Any = SimpleNamespace(version=version, record=record(step=version))
            await use(Pulled(manifest, b"", self.backlog))
            return True

        aim = self.move._aim

        def aimed(stage: int) -> None:
            aim(stage)
            puller: Any = self.move.puller
            puller.bring, puller.loaded = bring, lambda version: None

        self.move._aim = aimed  # type: ignore[method-assign]
        self.move._aim(TARGET)


def try_it(events: Callable[[Mover], Awaitable[None]], **limits: Any) -> None:
    async def main() -> None:
        await events(Mover(**limits))

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- a record's grant


def granted(change: Callable[[Mover], Any] = lambda it: None, record: Record = GRANT) -> list[Any]:
    """Has a record come while the peer asks for its move. Returns what happens."""
    happened: list[Any] = []

    async def events(it: Mover) -> None:
        it.move._backlog = it.backlog
        change(it)
        it.move.on_record(record)
        assert it.move.has_left == ((TARGET, "") in it.log)
        happened.extend(it.log)

    try_it(events)
    return happened


def test_a_record_that_grants_the_move_takes_the_peer_away_at_once() -> None:
    assert granted() == ["heard", (TARGET, "")]


@pytest.mark.parametrize(
    ("change", "record"),
    [
        (lambda it: None, grant()),
        (lambda it: None, grant("q")),
        (lambda it: None, grant("p", "q")),
        (lambda it: it.cards.clear(), GRANT),
        (lambda it: None, grant("p", holders=("p",))),
        (lambda it: it.silent.add("q"), GRANT),
        (lambda it: setattr(it, "own", card("p", stage=SOURCE, state="draining")), GRANT),
        (lambda it: setattr(it.history, "crosses_at", 1), GRANT),
        (lambda it: setattr(it.history, "finished", True), GRANT),
        (lambda it: setattr(it.old.early_exit, "stays", STEP), GRANT),
    ],
    ids=[
        "no grant",
        "another's",
        "all move",
        "alone",
        "the other came during the step",
        "nothing is heard of the other",
        "drains",
        "crosses",
        "run over",
        "has promised to stay",
    ],
)
def test_a_grant_obliges_nobody(change: Callable[[Mover], None], record: Record) -> None:
    assert granted(change, record) == ["heard"]


def test_one_that_has_applied_the_record_can_go_on_alone() -> None:
    def change(it: Mover) -> None:
        it.cards = [card("q", stage=SOURCE, version=STEP)]

    assert granted(change, grant("p", holders=("p",))) == ["heard", (TARGET, "")]


@pytest.mark.parametrize(("other", "goes"), [("o", False), ("q", True)], ids=["comes second", "comes first"])
def test_of_two_that_a_record_takes_from_three_one_goes(other: str, goes: bool) -> None:
    """The third may have died without a word: the one that stays will notice."""

    def change(it: Mover) -> None:
        it.cards = [card(other, stage=SOURCE), card("r", stage=SOURCE)]

    assert granted(change, grant(*sorted(("p", other)))) == ["heard", *([(TARGET, "")] if goes else [])]


def test_of_four_two_go_at_once() -> None:
    def change(it: Mover) -> None:
        it.cards = [card(name, stage=SOURCE) for name in ("o", "q", "r")]

    assert granted(change, grant("o", "p")) == ["heard", (TARGET, "")]


def test_before_the_state_is_here_no_record_takes_the_peer_away() -> None:
    assert granted(lambda it: setattr(it.move, "_backlog", None)) == []


def test_a_promise_for_an_earlier_step_is_kept() -> None:
    assert granted(lambda it: setattr(it.old.early_exit, "stays", STEP - 1)) == ["heard", (TARGET, "")]


# ------------------------------------------------------------------------------------------------- asking


def test_it_asks_until_a_record_grants_it() -> None:
    async def events(it: Mover) -> None:
        it.history.record = record(step=STEP - 1, seconds=1.0)
        it.answers = [MoveOutlook(True), PeerUnreachable("gone"), MoveOutlook(True)]
        it.has_state()
        moving = asyncio.ensure_future(it.move.run())
        await asyncio.sleep(10)
        assert len(it.asked) == 3
        assert it.asked[0] == AskMove(STEP, "r", SOURCE, TARGET, False)
        it.history.version = STEP
        it.move.on_record(GRANT)
        assert await moving == ""
        assert it.log[-2:] == ["state of 1 after step 3", "serves"], "it goes on at the version at which it left"

    try_it(events)


def test_a_refusal_is_the_conductors_sentence() -> None:
    async def events(it: Mover) -> None:
        it.answers = [MoveOutlook(False, "it would be empty")]
        it.has_state()
        with pytest.raises(Refused, match="it would be empty"):
            await it.move.run()
        assert not it.move.has_left

    try_it(events)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda it: setattr(it.history, "finished", True), "the run is over"),
        (lambda it: setattr(it.history, "behind", True), "lost touch with stage 0"),
        (lambda it: setattr(it, "own", card("p", stage=SOURCE, state="joining")), "lost touch with stage 0"),
    ],
)
def test_there_is_no_sense_in_moving_any_more(change: Callable[[Mover], None], why: str) -> None:
    async def events(it: Mover) -> None:
        it.has_state()
        change(it)
        with pytest.raises(Refused, match=why):
            await it.move.run()
        assert it.asked == []

    try_it(events)


def test_what_was_missed_needs_another_version() -> None:
    async def events(it: Mover) -> None:
        it.has_state()
        it.backlog.missed = True
        with pytest.raises(Missed):
            await it.move.run()

    try_it(events)


# ------------------------------------------------------------------------------------------------- leaving early


def test_a_long_step_is_left_early() -> None:
    async def events(it: Mover) -> None:
        it.history.record = record(step=STEP - 1, seconds=100.0)
        it.answers, it.heirs = [MoveOutlook(True)], ["q"]
        it.has_state()
        assert await it.move.run() == ""
        assert it.log[0] == (TARGET, "q")

    try_it(events, move_wait_s=15.0)


def test_a_short_step_is_waited_for() -> None:
    async def events(it: Mover) -> None:
        it.history.record = record(step=STEP - 1, seconds=10.0)
        it.answers, it.heirs = [MoveOutlook(True)], ["q"]
        it.has_state()
        moving = asyncio.ensure_future(it.move.run())
        await asyncio.sleep(5)
        assert it.heirs == ["q"]
        it.move.on_record(GRANT)
        assert await moving == ""

    try_it(events, move_wait_s=15.0)


def test_a_record_that_comes_during_an_early_exit_ends_that() -> None:
    async def events(it: Mover) -> None:
        it.answers, it.heirs = [MoveOutlook(True)], ["q"]
        it.has_state()
        moving = asyncio.ensure_future(it.move.run())
        await asyncio.sleep(1)
        it.move.on_record(GRANT)
        assert await moving == ""
        assert [entry for entry in it.log if isinstance(entry, tuple)] == [(TARGET, "")], "it has left once"
        assert it.heirs == ["q"]

    try_it(events)


# ------------------------------------------------------------------------------------------------- arriving


def test_a_stage_that_cannot_be_opened_sends_it_back() -> None:
    async def events(it: Mover) -> None:
        it.cannot_open, it.answers, it.heirs = {TARGET}, [MoveOutlook(True)], ["q"]
        it.has_state()
        assert await it.move.run() == "stage 1 can't be opened here: too large"
        assert it.move.target == SOURCE
        assert it.log[-2:] == ["state of 0", "serves"]

    try_it(events)


def test_where_neither_can_be_opened_it_fails() -> None:
    async def events(it: Mover) -> None:
        it.cannot_open, it.answers, it.heirs = {SOURCE, TARGET}, [MoveOutlook(True)], ["q"]
        it.has_state()
        with pytest.raises(ConfigError, match="too large"):
            await it.move.run()

    try_it(events)


def test_a_newer_state_than_its_own_version_is_taken_as_it_is() -> None:
    async def events(it: Mover) -> None:
        it.answers, it.heirs = [MoveOutlook(True)], ["q"]
        it.has_state(version=STEP + 2)
        await it.move.run()
        assert (STEP + 2, "state of 1") in it.log

    try_it(events)


# ------------------------------------------------------------------------------------------------- repeating a commit


async def test_a_skipped_step_is_repeated_without_a_gradient() -> None:
    async def skip(step: int) -> str:
        return f"skipped {step}"

    compute: Any = SimpleNamespace(skip=skip)
    assert await repeat(compute, TARGET, Entry(skipped(3), "c", ())) == "skipped 3"


async def test_a_gradient_that_the_record_does_not_name_is_refused() -> None:
    async def assemble(step: int, parts: Any) -> Any:
        return SimpleNamespace(digest="another")

    compute: Any = SimpleNamespace(assemble=assemble)
    with pytest.raises(ValueError, match="isn't the one that the record of step 3 names"):
        await repeat(compute, TARGET, Entry(record(step=3), "c", ()))
