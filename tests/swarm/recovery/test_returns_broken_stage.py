"""A stage whose replicas have all lost their state to a step: a return to before it, or the end."""

import asyncio
import dataclasses

import pytest

from swarmd.swarm.recovery.returns import LOOK_SECONDS
from tests.swarm.recovery.returns_rig import NEWEST, VERSION, Rig, listed, never, seconds, try_it

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
        it.lists = {"me": listed((4, 0), (5, 0), (6, 0)), "p": listed((4, 1), (6, 1))}
        made, waited = await seconds(it.returns.lost())
        assert waited == 0.0
        assert "going back to version 4: version 5 is passed over" in caplog.text
        assert (made.step, made.after, made.after_version) == (4, NEWEST.hash, VERSION)
        assert (made.broke_at, made.why, made.ends) == (VERSION, WHY, False)

    try_it(events)


def test_a_broken_stage_gets_a_peer_of_another_one_if_its_own_have_nothing() -> None:
    async def events(it: Rig) -> None:
        break_stage(it)
        it.hear("r", stage=0)
        it.lists = {"me": listed((4, 0)), "r": listed((4, 1))}
        assert (await it.returns.lost()).members() == ("me", "r")

    try_it(events)


def test_a_return_from_a_broken_version_that_nobody_has_the_record_of_is_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def events(it: Rig) -> None:
        break_stage(it)
        it.records.pop(4)
        it.lists = {"me": listed((4, 0), (5, 0)), "p": listed((4, 1))}
        await never(it.returns.lost())
        assert caplog.messages == []

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
            it.lists = {"me": listed((6, 0)), "p": listed((6, 1))}
        made, _ = await seconds(it.returns.lost())
        assert (made.step, made.ends, made.why, made.broke_at) == (VERSION, True, why, broke_at)
        assert made.after == it.history.record.hash

    try_it(events)


def test_the_run_does_not_end_before_everyone_has_said_what_it_has() -> None:
    async def events(it: Rig) -> None:
        break_stage(it)
        it.lists = {"me": listed()}
        deciding = asyncio.create_task(seconds(it.returns.lost()))
        await asyncio.sleep(10 * LOOK_SECONDS)
        assert not deciding.done()
        it.lists["p"] = listed()
        assert (await deciding)[0].ends

    try_it(events)


def test_the_run_does_not_end_for_want_of_a_peer() -> None:
    async def events(it: Rig) -> None:
        it.hear("p", stage=1, broken=VERSION, state="joining")
        it.lists = {"me": listed((4, 0), (4, 1))}
        await never(it.returns.lost())

    try_it(events)
