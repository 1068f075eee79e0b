"""A killed peer doesn't stop the swarm, a late one catches up, a missing stage is named."""

import dataclasses

import pytest

from tests.e2e.swarm import Daemon, check_replicas, swarm, swarmctl
from tests.e2e.test_training import INT8, write_settings

LONG = dataclasses.replace(INT8, steps=50, validate_every=0)


async def at_version(daemon: Daemon, version: int) -> None:
    await daemon.until(lambda status: status["version"] >= version, seconds=90)


@pytest.mark.timeout(300)
async def test_killed_replicas_and_a_newcomer() -> None:
    """A head, a middle and a tail die, one at a time; a newcomer takes a place, pulls its state and is identical."""
    async with swarm() as it:
        model = write_settings(LONG, it.directory / "run.toml")
        head, *others, head2, middle2, tail2 = daemons = await it.found(model, [0, 1, 2, 0, 1, 2])
        await at_version(head, 3)
        head2.kill()
        await swarmctl(head, "pause")  # so that the run waits for the newcomer, however long that takes
        newcomer = await it.start("--bootstrap", await head.address())
        began = (await newcomer.until(lambda status: status["state"] == "serving"))["version"]
        await swarmctl(head, "resume")
        for victim, version in ((middle2, began + 5), (tail2, began + 10)):
            await at_version(head, version)
            victim.kill()
        survivors = [head, *others, newcomer]
        assert [await daemon.end() for daemon in survivors] == [0] * 4
        assert check_replicas([*daemons, newcomer]) == LONG.steps
        ledger, late = head.ledger(), newcomer.ledger()
    assert late[0]["step"] > 3, "the newcomer began at a later version"
    assert late[-1]["step"] == LONG.steps
    assert sum(line["lost"] + line["duplicated"] for line in ledger) == 0, ledger


@pytest.mark.timeout(200)
async def test_a_missing_stage_is_named_and_the_run_goes_on_when_it_comes() -> None:
    run = dataclasses.replace(LONG, steps=4)
    async with swarm() as it:
        first, last = await it.found(write_settings(run, it.directory / "run.toml"), [0, 2])
        status = await first.until(lambda status: status["peers"].get("2") == 1 and status["state"] == "waiting")
        assert "stage 1" in status["waiting_for"]
        assert status["version"] == 0
        middle = await it.start("--bootstrap", await first.address())
        assert [await daemon.end() for daemon in (first, last, middle)] == [0, 0, 0]
        assert middle.ledger()[0]["stage"] == 1, "the newcomer takes the stage that needs it"


@pytest.mark.long
@pytest.mark.timeout(200)
async def test_the_conductor_dies() -> None:
    """The conductor of the present step is killed; another head takes over."""
    async with swarm() as it:
        daemons = await it.found(write_settings(LONG, it.directory / "run.toml"), [0, 1, 2, 0])
        by_id = {(await daemon.until(lambda status: status["version"] >= 2))["peer_id"]: daemon for daemon in daemons}
        conductor = by_id[(await daemons[1].status())["conductor"]]
        conductor.kill()
        survivors = [daemon for daemon in daemons if daemon is not conductor]
        assert [await daemon.end() for daemon in survivors] == [0] * 3
        assert check_replicas(daemons) == LONG.steps
