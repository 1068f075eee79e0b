"""Returns to a version on disks: when one is decided, whom it concerns, and how a peer comes by its state."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import ConfigError
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.record import Record, build_return, founding
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.recovery.returns import FETCH_SECONDS, FETCHES, LOOK_SECONDS, QUIET_SECONDS, TELL_SECONDS, Returns
from swarmd.swarm.signals import Signal
from swarmd.swarm.state.download import OutOfDonors
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.disks import Kept, Stock
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import RUN, record

TIMEOUT_S = 60.0
VERSION = 6
CHAIN = {step: record(step=step) for step in range(1, VERSION + 1)}
NEWEST = CHAIN[VERSION]


def back_to(version: int, **changes: Any) -> Record:
    """A return to a version that follows version 6."""
    plain = {"after": NEWEST.hash, "after_version": VERSION, "conductor": "c"}
    return build_return(CHAIN[version], (("me",), ("p",)), {"me": 1, "p": 1}, **{**plain, **changes})


class Rig:
    """A peer of stage 0 at version 6; "p" of stage 1 is there, too. Version 4 is on their disks."""

    def __init__(self, run: Any = RUN) -> None:
        self.everyone: dict[str, FakeLinks] = {}
        self.commits: list[str] = []
        self.membership = Membership(OwnCard(card("me", version=VERSION, record=NEWEST.hash)))
        self._sequence = 1
        self.stocks = {"me": stock((4, 0)), "p": stock((4, 1))}
        self.asked, self.answer_s = 0, 0.0
        self.gone_meanwhile = ""
        self.on_disks: dict[Kept, Record] = {}
        self.loaded: bytes | None = None
        self.brought: list[bytes] = []
        self.tries = 0
        self.holders: list[str] = []
        self.ended: list[Record] = []
        self.records = dict(CHAIN)
        chain = SimpleNamespace(
            at=self.records.get, hash_at=lambda step: self.records[step].hash if step in self.records else ""
        )
        self.history: Any = SimpleNamespace(
            version=VERSION,
            record=NEWEST,
            record_hash=NEWEST.hash,
            chain=chain,
            returned=None,
            ready=True,
            behind=False,
            changed=Signal(),
            listen=lambda listener: None,
            end=self.ended.append,
        )
        disks: Any = SimpleNamespace(
            ask_around=self._ask_around, record_of=self._record_of, load=self._load, bring=self._bring
        )
        context = peer_context(
            run=run,
            limits=SimpleNamespace(stage_lost_timeout_s=TIMEOUT_S),
            links=FakeLinks("me", self.everyone),
            membership=self.membership,
            history=self.history,
        )
        self.returns = Returns(context, disks)
        self.hear("p")

    def hear(self, peer: str, **changes: Any) -> None:
        """A card comes."""
        self._sequence += 1
        if peer not in self.everyone:

            async def commit(_: str, told: Commit) -> Ack:
                self.commits.append(peer)
                return Ack()

            FakeLinks(peer, self.everyone).handle(Commit, commit)
        plain = {"stage": 1, "version": VERSION, "record": NEWEST.hash, "sequence": self._sequence}
        self.membership.hear(card(peer, **{**plain, **changes}), 0.0)
        self.membership.changed.notify()

    def untrained(self) -> None:
        """A run of which nothing is left but disks: nobody has a state."""
        self.history.version, self.history.record, self.history.record_hash = 0, None, "genesis"
        self.records.clear()
        own = self.membership._own_card
        own.card = dataclasses.replace(own.card, version=0, state="joining", record="")
        self.hear("p", state="joining", version=0, record="")
        self.on_disks = {Kept(4, 1, CHAIN[4].state): CHAIN[4]}

    async def _ask_around(self, peers: Sequence[str]) -> dict[str, Stock]:
        self.asked += 1
        await asyncio.sleep(self.answer_s)
        if self.gone_meanwhile:
            self.membership.suspect(self.gone_meanwhile)
        return {peer: self.stocks[peer] for peer in peers if peer in self.stocks}

    async def _record_of(self, kept: Kept, holders: Sequence[str]) -> Record | None:
        self.holders = list(holders)
        return self.on_disks.get(kept)

    async def _load(self, kept: Kept) -> tuple[bytes, Record] | None:
        return (self.loaded, CHAIN[4]) if self.loaded is not None else None

    async def _bring(self, kept: Kept, candidates: Callable[[], list[str]]) -> tuple[bytes, Record]:
        self.tries += 1
        self.holders = candidates()
        if not self.brought:
            raise OutOfDonors("nobody gives it")
        return self.brought.pop(), CHAIN[4]


def stock(*kept: tuple[int, int]) -> Stock:
    return Stock(tuple(Kept(version, stage, CHAIN[version].state) for version, stage in kept), True)


def try_it(events: Callable[[Rig], Awaitable[None]], **changes: Any) -> None:
    async def main() -> None:
        await events(Rig(dataclasses.replace(RUN, **changes)))

    run_virtual(main())


async def seconds(work: Awaitable[Record]) -> tuple[Record, float]:
    before = asyncio.get_running_loop().time()
    return await work, asyncio.get_running_loop().time() - before


async def never(work: Awaitable[Record], seconds: float = 10 * TIMEOUT_S) -> None:
    """Nothing is decided."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(work, seconds)


# ------------------------------------------------------------------------------------------------- founding


def test_a_founder_goes_on_from_what_is_on_disks_once_nobody_new_has_come_for_a_while() -> None:
    async def events(it: Rig) -> None:
        it.untrained()
        finding = asyncio.create_task(seconds(it.returns.found()))
        await asyncio.sleep(QUIET_SECONDS - 1)
        assert it.returns.waiting == "others of the run, for 5 s, to go on from version 4"
        it.stocks["q"] = stock((4, 0))
        it.hear("q", state="joining", stage=1, incarnation=7)
        made, waited = await finding
        assert 2 * QUIET_SECONDS - 1 <= waited <= 2 * QUIET_SECONDS - 1 + LOOK_SECONDS
        assert (made.step, made.after_version, made.after) == (4, 4, founding("me", 1, CHAIN[4]))
        assert [entry.members for entry in made.stages] == [("me",), ("p", "q")]
        assert (made.lives, made.conductor, made.continues, made.why) == ((1, 1, 7), "me", "", "")
        assert it.holders == ["me", "p", "q"], "the record is looked for on their disks"

    try_it(events)


def test_a_founder_waits_for_a_version_that_is_whole_and_says_so() -> None:
    async def events(it: Rig) -> None:
        it.untrained()
        del it.stocks["p"]
        finding = asyncio.create_task(it.returns.found())
        await asyncio.sleep(10 * QUIET_SECONDS)
        assert it.returns.waiting.startswith("a checkpoint of stage 1, on a disk of anyone who comes")
        it.stocks["p"] = stock((4, 1))
        await asyncio.wait_for(finding, QUIET_SECONDS)

    try_it(events)


def test_a_founder_waits_for_a_record_that_somebody_gives() -> None:
    async def events(it: Rig) -> None:
        it.untrained()
        it.on_disks.clear()
        await never(it.returns.found())

    try_it(events)


def test_only_after_a_while_a_stage_without_peers_gets_one_of_the_others() -> None:
    async def events(it: Rig) -> None:
        it.untrained()
        it.hear("p", state="joining", stage=0, version=0)
        made, waited = await seconds(it.returns.found())
        assert TIMEOUT_S < waited <= TIMEOUT_S + 2 * LOOK_SECONDS
        assert sorted(made.members()) == ["me", "p"]

    try_it(events)


@pytest.mark.parametrize(("steps", "refused"), [(3, True), (4, False)])
def test_a_run_is_not_resumed_with_fewer_steps_than_are_done(steps: int, refused: bool) -> None:
    async def events(it: Rig) -> None:
        it.untrained()
        with pytest.raises(ConfigError, match="give --steps 4 or more") if refused else contextlib.nullcontext():
            await it.returns.found()

    try_it(events, steps=steps, earlier=(9,))


def test_what_is_newer_than_all_totals_is_not_of_the_run() -> None:
    async def events(it: Rig) -> None:
        it.untrained()
        it.stocks = {"me": stock((4, 0), (2, 0)), "p": stock((4, 1), (2, 1))}
        it.on_disks[Kept(2, 0, CHAIN[2].state)] = CHAIN[2]
        assert (await it.returns.found()).step == 2

    try_it(events, steps=3)


def test_a_prolonged_run_says_from_which_record_it_goes_on() -> None:
    async def events(it: Rig) -> None:
        it.untrained()
        made = await it.returns.found()
        assert made.continues == CHAIN[4].hash

    try_it(events, steps=20, earlier=(10,))


def test_newer_versions_that_are_passed_over_are_told(caplog: pytest.LogCaptureFixture) -> None:
    async def events(it: Rig) -> None:
        it.untrained()
        it.stocks["me"] = stock((4, 0), (5, 0))
        finding = asyncio.create_task(it.returns.found())
        await asyncio.sleep(1)
        assert "version 5 is passed over" in it.returns.waiting
        await finding
        assert "going back to version 4: version 5 is passed over" in caplog.text

    try_it(events)


# ------------------------------------------------------------------------------------------------- a lost stage


def lose(it: Rig) -> None:
    """The last peer of stage 1 goes; another one comes there that has no state."""
    it.membership.suspect("p")
    it.hear("q", state="joining")
    it.stocks["q"] = stock((4, 1))


def test_a_stage_that_stays_lost_comes_back_with_a_return() -> None:
    async def events(it: Rig) -> None:
        lose(it)
        made, waited = await seconds(it.returns.lost())
        assert TIMEOUT_S <= waited <= TIMEOUT_S + LOOK_SECONDS
        assert (made.step, made.after, made.after_version) == (4, NEWEST.hash, VERSION)
        assert made.members() == ("me", "q")
        assert (made.why, made.broke_at, made.ends) == ("", 0, False)
        assert it.holders == [], "its record is known here"
        assert it.asked == 1, "nobody reads its disk before there is need"

    try_it(events)


def test_a_lost_stage_gets_a_peer_of_another_one(caplog: pytest.LogCaptureFixture) -> None:
    async def events(it: Rig) -> None:
        it.hear("r", stage=0)
        it.membership.suspect("p")
        it.stocks = {"me": stock((4, 0), (5, 0)), "r": stock((4, 1))}
        assert (await it.returns.lost()).members() == ("me", "r")
        assert "going back to version 4: version 5 is passed over" in caplog.text

    try_it(events)


def test_the_time_counts_from_when_it_was_seen_to_be_lost_without_a_break() -> None:
    async def events(it: Rig) -> None:
        lose(it)
        it.returns.sweep()
        await asyncio.sleep(TIMEOUT_S)
        assert (await seconds(it.returns.lost()))[1] == 0.0
        it.hear("p")
        it.returns.sweep()
        it.membership.suspect("p")
        assert (await seconds(it.returns.lost()))[1] >= TIMEOUT_S

    try_it(events)


@pytest.mark.parametrize("change", ["there is an untrained version only", "every stage is there"])
def test_without_need_there_is_no_return(change: str) -> None:
    async def events(it: Rig) -> None:
        if change == "every stage is there":
            it.hear("p")
        else:
            lose(it)
            it.history.version = 0
        await never(it.returns.lost())
        assert it.asked == 0

    try_it(events)


def test_a_stage_that_comes_back_meanwhile_is_not_returned_for() -> None:
    async def events(it: Rig) -> None:
        lose(it)
        it.answer_s = 30.0
        deciding = asyncio.create_task(it.returns.lost())
        await asyncio.sleep(TIMEOUT_S + 10)
        it.hear("p")
        await never(deciding)

    try_it(events)


def test_while_no_version_is_whole_it_says_what_it_waits_for_until_the_stage_is_back() -> None:
    async def events(it: Rig) -> None:
        lose(it)
        del it.stocks["q"]
        deciding = asyncio.create_task(it.returns.lost())
        told = asyncio.create_task(it.membership.changed.wait())
        await asyncio.sleep(2 * TIMEOUT_S)
        assert it.returns.waiting.startswith("a checkpoint of stage 1")
        assert told.done()
        it.hear("p")
        await asyncio.sleep(LOOK_SECONDS)
        assert it.returns.waiting == ""
        deciding.cancel()

    try_it(events)


def test_nobody_is_counted_on_that_gives_no_answer_or_goes_meanwhile() -> None:
    async def events(it: Rig) -> None:
        lose(it)
        it.hear("r", state="joining")
        it.returns.sweep()
        await asyncio.sleep(TIMEOUT_S)
        assert (await it.returns.lost()).members() == ("me", "q")
        it.gone_meanwhile = "q"
        it.hear("q", state="joining")
        await never(it.returns.lost())

    try_it(events)


def test_who_waits_for_work_can_take_part_in_a_return() -> None:
    async def events(it: Rig) -> None:
        it.hear("r", state="waiting")
        assert it.returns._places() == {"me": 0, "p": 1, "r": 1}

    try_it(events)


@pytest.mark.parametrize("state", ["paused", "draining", "left"])
def test_who_does_not_take_work_is_sent_nowhere(state: str) -> None:
    async def events(it: Rig) -> None:
        it.hear("r", state=state)
        assert it.returns._places() == {"me": 0, "p": 1}

    try_it(events)


def test_the_states_of_another_history_are_not_returned_to() -> None:
    async def events(it: Rig) -> None:
        lose(it)
        it.records[4] = record(step=4, total_tokens=9)
        await never(it.returns.lost())
        it.records.pop(4)
        it.on_disks[Kept(4, 0, CHAIN[4].state)] = CHAIN[4]
        assert (await it.returns.lost()).step == 4, "it isn't remembered here"

    try_it(events)


def test_a_return_keeps_in_mind_the_step_that_broke() -> None:
    async def events(it: Rig) -> None:
        it.history.record = dataclasses.replace(NEWEST, broke_at=9)
        lose(it)
        assert (await it.returns.lost()).broke_at == 9

    try_it(events)


# ------------------------------------------------------------------------------------------------- a broken stage

WHY = "the parameters of stage 1 came out not finite at step 6"


def break_stage(it: Rig) -> None:
    """All replicas of stage 1 have lost their state to the last step."""
    it.hear("p", state="joining", broken=VERSION)


def test_a_stage_is_broken_if_no_replica_has_the_version() -> None:
    async def events(it: Rig) -> None:
        assert it.returns.broken_stage() is None
        break_stage(it)
        assert it.returns.broken_stage() == 1
        it.hear("p", state="joining", broken=VERSION - 1)
        assert it.returns.broken_stage() is None, "that was another version"
        break_stage(it)
        it.hear("q")
        assert it.returns.broken_stage() is None, "another replica has the state"
        it.membership.suspect("q")
        it.history.version = 0
        assert it.returns.broken_stage() is None

    try_it(events)


def test_from_a_broken_version_it_returns_at_once_to_the_one_before(caplog: pytest.LogCaptureFixture) -> None:
    async def events(it: Rig) -> None:
        break_stage(it)
        it.stocks = {"me": stock((4, 0), (5, 0), (6, 0)), "p": stock((4, 1), (6, 1))}
        made, waited = await seconds(it.returns.lost())
        assert waited == 0.0
        assert "going back to version 4: version 5 is passed over" in caplog.text
        assert (made.step, made.after, made.after_version) == (4, NEWEST.hash, VERSION)
        assert (made.broke_at, made.why, made.ends) == (VERSION, WHY, False)

    try_it(events)


@pytest.mark.parametrize(
    ("broke_at", "on_disks", "why"),
    [
        (VERSION, True, f"{WHY}, also after the swarm had returned to a checkpoint"),
        (0, False, f"{WHY}, and there is no checkpoint to return to"),
    ],
)
def test_without_a_way_back_from_there_the_run_ends(broke_at: int, on_disks: bool, why: str) -> None:
    async def events(it: Rig) -> None:
        break_stage(it)
        it.history.record = dataclasses.replace(NEWEST, broke_at=broke_at)
        if not on_disks:
            it.stocks = {"me": stock((6, 0)), "p": stock((6, 1))}
        made, _ = await seconds(it.returns.lost())
        assert (made.step, made.ends, made.why, made.broke_at) == (VERSION, True, why, broke_at)
        assert made.after == it.history.record.hash

    try_it(events)


def test_the_run_does_not_end_before_everyone_has_said_what_it_has() -> None:
    async def events(it: Rig) -> None:
        break_stage(it)
        it.stocks = {"me": stock()}
        deciding = asyncio.create_task(seconds(it.returns.lost()))
        await asyncio.sleep(10 * LOOK_SECONDS)
        assert not deciding.done()
        it.stocks["p"] = stock()
        assert (await deciding)[0].ends

    try_it(events)


def test_the_run_does_not_end_for_want_of_a_peer() -> None:
    async def events(it: Rig) -> None:
        it.hear("p", stage=1, broken=VERSION, state="joining")
        it.stocks = {"me": stock((4, 0), (4, 1))}
        await never(it.returns.lost())

    try_it(events)


# ------------------------------------------------------------------------------------------------- telling


@pytest.mark.parametrize(
    ("changes", "late"),
    [
        ({}, True),
        ({"version": VERSION + 1}, False),
        ({"state": "left"}, False),
        ({"version": 4, "record": "back"}, False),
        ({"version": 5, "record": "further"}, False),
        ({"version": 3, "record": "before"}, True),
    ],
    ids=["it is where it was", "it is ahead", "it left", "it has returned", "it goes on from there", "it is behind"],
)
def test_those_are_told_who_may_not_have_heard(changes: dict[str, Any], late: bool) -> None:
    async def events(it: Rig) -> None:
        back = back_to(4)
        it.records.clear()
        it.records.update({3: CHAIN[3], 4: back, 5: CHAIN[5]})
        names = {"back": back.hash, "further": CHAIN[5].hash, "before": CHAIN[3].hash}
        it.hear("p", **{**changes, **({"record": names[changes["record"]]} if "record" in changes else {})})
        assert it.returns._is_late(it.membership.members()["p"].card, back) == late
        assert not it.returns._is_late(it.membership.own, back)

    try_it(events)


def test_while_it_has_yet_to_return_itself_it_tells_everyone() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = back_to(4)
        it.hear("p", version=4, record=CHAIN[4].hash)
        assert it.returns._is_late(it.membership.members()["p"].card, it.returns.due)
        assert not it.returns._is_late(it.membership.members()["p"].card, back_to(4, why="another"))

    try_it(events)


@pytest.mark.parametrize(("state", "late"), [("serving", True), ("finished", False), ("left", False)])
def test_the_end_is_told_to_those_who_have_not_ended(state: str, late: bool) -> None:
    async def events(it: Rig) -> None:
        end = dataclasses.replace(back_to(6), ends=True)
        it.hear("p", state=state)
        assert it.returns._is_late(it.membership.members()["p"].card, end) == late

    try_it(events)


def test_it_tells_them_again_until_another_return_is_made() -> None:
    async def events(it: Rig) -> None:
        back = back_to(4)
        it.returns.due = it.history.returned = back
        telling = asyncio.create_task(it.returns.tell(back))
        await asyncio.sleep(2.5 * TELL_SECONDS)
        assert it.commits == ["p"] * 3
        it.history.returned = back_to(4, after="another")
        await asyncio.sleep(TELL_SECONDS)
        assert (len(it.commits), telling.done()) == (4, False), "it is due"
        it.returns.due = None
        await asyncio.sleep(TELL_SECONDS)
        assert telling.done()
        telling = asyncio.create_task(it.returns.tell(back))
        await asyncio.sleep(0)
        assert telling.done()
        for made in (None, back_to(4, after="")):
            it.history.returned = made
            telling = asyncio.create_task(it.returns.tell(back))
            await asyncio.sleep(0)
            assert not telling.done()
            telling.cancel()

    try_it(events)


# ------------------------------------------------------------------------------------------------- returning


@pytest.mark.parametrize(
    ("changes", "rig", "concerned"),
    [
        ({}, {}, True),
        ({"after": "theirs"}, {}, False),
        ({"after": "theirs"}, {"ready": False}, True),
        ({"after": "theirs"}, {"behind": True}, True),
        ({"after": "theirs", "after_version": VERSION - 1}, {"behind": True}, False),
        ({"after": "theirs", "after_version": VERSION + 1}, {}, False),
        ({"after": "theirs", "after_version": VERSION + 1}, {"torn": True}, True),
        ({"after": "theirs"}, {"torn": True}, False),
    ],
)
def test_a_return_is_for_those_whose_version_it_follows_or_who_would_have_come_to_it(
    changes: dict[str, Any], rig: dict[str, bool], concerned: bool
) -> None:
    async def events(it: Rig) -> None:
        torn = rig.pop("torn", False)
        if torn:
            it.membership.suspect("p")
        for name, value in rig.items():
            setattr(it.history, name, value)
        back = back_to(4, **changes)
        woken = [asyncio.create_task(it.membership.changed.wait()), asyncio.create_task(it.history.changed.wait())]
        await asyncio.sleep(0)
        it.returns.on_return(back)
        await asyncio.sleep(0.1)
        assert it.returns.due is (back if concerned else None)
        assert [task.done() for task in woken] == [concerned] * 2
        assert it.ended == []

    try_it(events)


def test_a_return_may_follow_the_one_that_is_due() -> None:
    async def events(it: Rig) -> None:
        first = it.returns.due = back_to(4)
        it.returns.on_return(second := back_to(2, after=first.hash, after_version=4))
        assert it.returns.due is second

    try_it(events)


@pytest.mark.parametrize("place", ["the record", "what is due", "made before"])
def test_a_return_that_is_known_is_no_news(place: str) -> None:
    async def events(it: Rig) -> None:
        back = back_to(4)
        if place == "the record":
            it.history.record = back
        elif place == "made before":
            it.history.returned = back
        else:
            it.returns.due = back
        assert not it.returns._concerns(dataclasses.replace(back, conductor="another"))

    try_it(events)


def test_a_return_may_be_the_end() -> None:
    async def events(it: Rig) -> None:
        end = dataclasses.replace(back_to(6), ends=True, why="no way back")
        it.returns.on_return(end)
        assert (it.ended, it.returns.due) == ([end], None)

    try_it(events)


def test_the_state_comes_from_its_own_disk_or_from_anyones() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = back_to(4)
        it.hear("gone", state="left")
        it.hear("q", stage=0, state="joining")
        it.loaded = b"own"
        assert await it.returns.state(it.returns.due, 0) == b"own"
        assert it.tries == 0
        it.loaded, it.brought = None, [b"theirs"]
        assert await it.returns.state(it.returns.due, 0) == b"theirs"
        assert it.holders == ["p", "q"]

    try_it(events)


def test_it_tries_again_for_the_state_and_says_what_it_waits_for() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = back_to(4)
        having = asyncio.create_task(it.returns.state(it.returns.due, 1))
        await asyncio.sleep(2.5 * FETCH_SECONDS)
        assert it.tries == 3
        assert it.returns.waiting == "version 4 of stage 1, on a disk of anyone who is there"
        it.brought = [b"theirs"]
        assert await having == b"theirs"

    try_it(events)


@pytest.mark.parametrize(
    ("version", "state", "passes"), [(5, "serving", True), (4, "serving", False), (5, "joining", False)]
)
def test_once_others_are_ahead_it_tries_only_so_often(version: int, state: str, passes: bool) -> None:
    async def events(it: Rig) -> None:
        own = it.membership._own_card
        own.card = dataclasses.replace(own.card, version=0, state="joining")
        it.hear("p", version=version, state=state)
        it.returns.due = back_to(4)
        having = asyncio.create_task(it.returns.state(it.returns.due, 1))
        await asyncio.sleep(FETCHES * FETCH_SECONDS + 1)
        assert having.done() == passes
        assert not passes or (having.result(), it.tries) == (None, FETCHES)
        having.cancel()

    try_it(events)


def test_it_tries_no_longer_once_another_return_is_decided() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = first = back_to(4)
        having = asyncio.create_task(it.returns.state(first, 1))
        await asyncio.sleep(1)
        it.returns.due = back_to(2)
        assert await having is None
        assert it.tries == 1

    try_it(events)


def test_a_return_that_is_made_is_due_no_more() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = back = back_to(4)
        it.returns.waiting = "something"
        it.membership.suspect("p")
        it.returns.sweep()
        with it.returns.making():
            assert it.returns.under_way
            changed = asyncio.create_task(it.membership.changed.wait())
            await asyncio.sleep(0)
            it.returns.done(back_to(2))
            assert it.returns.due is back, "another one was decided meanwhile"
            it.returns.done(back)
        assert cast("object", it.returns.due) is None
        assert (it.returns.under_way, it.returns.waiting, it.returns._lost_since) == (False, "", None)
        await asyncio.sleep(0)
        assert changed.done()

    try_it(events)
