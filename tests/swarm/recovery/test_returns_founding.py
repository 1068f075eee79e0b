"""A founder: which version on disks it goes on from, and how long it waits for others."""

import asyncio
import contextlib

import pytest

from swarmd.errors import ConfigError
from swarmd.swarm.history.record import founding
from swarmd.swarm.recovery.returns import LOOK_SECONDS, QUIET_SECONDS
from swarmd.swarm.wire.messages.disks import CheckpointName
from tests.swarm.recovery.returns_rig import CHAIN, TIMEOUT_S, Rig, listed, never, seconds, try_it


def test_a_founder_goes_on_from_what_is_on_disks_once_nobody_new_has_come_for_a_while() -> None:
    async def events(it: Rig) -> None:
        it.untrained()
        finding = asyncio.create_task(seconds(it.returns.found()))
        await asyncio.sleep(QUIET_SECONDS - 1)
        assert it.returns.waiting == "others of the run, for 5 s, to go on from version 4"
        it.lists["q"] = listed((4, 0))
        it.hear("q", state="joining", stage=1, incarnation=7)
        made, waited = await finding
        assert 2 * QUIET_SECONDS - 1 <= waited <= 2 * QUIET_SECONDS - 1 + LOOK_SECONDS
        assert (made.step, made.after_version, made.after) == (4, 4, founding("me", 1, CHAIN[4]))
        assert [entry.members for entry in made.stages] == [("me",), ("p", "q")]
        assert (made.lives, made.conductor, made.continues, made.why) == ((1, 1, 7), "me", "", "")
        assert it.holders == ["me", "p", "q"], "the record is looked for on their disks"

    try_it(events)


def test_while_it_waits_nobody_is_woken_for_words_that_stay_the_same() -> None:
    async def events(it: Rig) -> None:
        it.untrained()
        finding = asyncio.create_task(it.returns.found())
        await asyncio.sleep(1)
        told = asyncio.create_task(it.membership.changed.wait())
        await asyncio.sleep(LOOK_SECONDS)
        assert (told.done(), it.asked) == (False, 2)
        told.cancel()
        await finding

    try_it(events)


def test_a_founder_waits_for_a_version_that_is_whole_and_says_so() -> None:
    async def events(it: Rig) -> None:
        it.untrained()
        del it.lists["p"]
        finding = asyncio.create_task(it.returns.found())
        await asyncio.sleep(10 * QUIET_SECONDS)
        assert it.returns.waiting.startswith("a checkpoint of stage 1, on a disk of anyone who comes")
        it.lists["p"] = listed((4, 1))
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
        await asyncio.sleep(2 * TIMEOUT_S)
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
        it.lists = {"me": listed((4, 0), (2, 0)), "p": listed((4, 1), (2, 1))}
        it.on_disks[CheckpointName(2, 0, CHAIN[2].state)] = CHAIN[2]
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
        it.lists["me"] = listed((4, 0), (5, 0))
        finding = asyncio.create_task(it.returns.found())
        await asyncio.sleep(1)
        assert "version 5 is passed over" in it.returns.waiting
        await finding
        assert "going back to version 4: version 5 is passed over" in caplog.text

    try_it(events)
