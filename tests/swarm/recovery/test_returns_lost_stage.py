"""A stage that is lost: when the swarm returns to a version on disks, to which, and with whom."""

import asyncio
import dataclasses

import pytest

from swarmd.swarm.recovery.returns import LOOK_SECONDS
from swarmd.swarm.wire.messages.disks import CheckpointName
from tests.swarm.records import record
from tests.swarm.recovery.returns_rig import CHAIN, NEWEST, TIMEOUT_S, VERSION, Rig, listed, never, seconds, try_it


def lose(it: Rig) -> None:
    """The last peer of stage 1 goes; another one comes there that has no state."""
    it.membership.suspect("p")
    it.hear("q", state="joining")
    it.lists["q"] = listed((4, 1))


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
        it.lists = {"me": listed((4, 0), (5, 0)), "r": listed((4, 1))}
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
        del it.lists["q"]
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
        it.on_disks[CheckpointName(4, 0, CHAIN[4].state)] = CHAIN[4]
        assert (await it.returns.lost()).step == 4, "it isn't remembered here"

    try_it(events)


def test_a_return_keeps_in_mind_the_step_that_broke() -> None:
    async def events(it: Rig) -> None:
        it.history.record = dataclasses.replace(NEWEST, broke_at=9)
        lose(it)
        assert (await it.returns.lost()).broke_at == 9

    try_it(events)


def test_a_return_within_a_run_that_was_prolonged_prolongs_nothing() -> None:
    async def events(it: Rig) -> None:
        lose(it)
        assert (await it.returns.lost()).continues == ""

    try_it(events, steps=20, earlier=(10,))
