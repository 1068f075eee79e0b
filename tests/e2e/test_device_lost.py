"""A compute thread that dies under a real daemon: it says so and ends with 1, others go on, it can come back."""

import pytest

from tests.e2e.swarm import check_replicas, swarm, swarmctl
from tests.e2e.test_failures import LONG
from tests.e2e.test_training import write_settings


@pytest.mark.timeout(300)
async def test_a_daemon_whose_compute_thread_dies_ends_with_1_and_can_be_started_again() -> None:
    async with swarm(("tests.e2e.dying", "25")) as dying, swarm() as it:
        head, *others = await it.found(write_settings(LONG, it.directory / "run.toml"), [0, 1, 2])
        address = await head.address()
        lost = await dying.start("--bootstrap", address, "--stage", "1")
        assert await lost.end() == 1
        assert "the compute thread has died: SystemExit(1)" in lost.log()
        await swarmctl(head, "pause")  # so that the run waits for it, however long that takes
        again = await it.start("--bootstrap", address, "--stage", "1", home=lost.home)
        await again.until(lambda status: status["state"] == "waiting" and status["version"] > 0)
        await swarmctl(head, "resume")
        assert [await daemon.end() for daemon in (head, *others, again)] == [0] * 4
        assert check_replicas([head, *others]) == LONG.steps
        assert again.ledger()[-1]["digest"] == others[0].ledger()[-1]["digest"], "the other replica's"
        assert sum(line["lost"] + line["duplicated"] for line in head.ledger()) == 0
