"""Operating real daemons: pause, resume, switch, drain (by command, by signal, by notice), leave. Each ends with 0."""

import dataclasses
import signal

import pytest

from tests.e2e.swarm import check_replicas, swarm, swarmctl
from tests.e2e.test_training import INT8, write_settings

MODEL = dataclasses.replace(INT8.model, layers=2, stages=2)
ENDLESS = dataclasses.replace(INT8, model=MODEL, steps=100_000, validate_every=0)


@pytest.mark.timeout(240)
async def test_a_swarm_is_operated_until_nobody_is_left() -> None:
    async with swarm() as it:
        first = await it.start("--model", str(write_settings(ENDLESS, it.directory / "run.toml")), "--stage", "0")
        notice = it.directory / "notice"
        address = await first.address()
        spot = ("--spot-file", str(notice), "--spot-interval", "0.1", "--spot-notice", "62.1")
        second = await it.start("--bootstrap", address, "--stage", "1", *spot)
        third = await it.start("--bootstrap", address, "--stage", "1")
        await third.until(lambda status: status["version"] >= 2 and status["state"] == "serving")

        assert (await swarmctl(third, "pause"))[0] == {"paused": True}
        status = await third.until(lambda status: status["state"] == "paused")
        assert "resume" in status["queues"]["idle_because"] or status["queues"]["in_flight"]
        version = status["version"]
        await third.until(lambda status: status["version"] >= version + 3 and status["state"] == "paused")
        assert (await swarmctl(third, "resume"))[0] == {"paused": False}
        _, error = await swarmctl(third, "resume", code=2)
        assert "not paused" in error

        result, error = await swarmctl(third, "switch", "0")
        assert result == {"switched": True, "stage": 0}
        await third.until(lambda status: status["stage"] == 0 and status["state"] == "serving")
        _, error = await swarmctl(second, "switch", "0", code=2)
        assert "stage 1 would be left with 0 replicas" in error
        _, error = await swarmctl(second, "switch", "7", code=2)
        assert "no stage 7" in error

        version = (await third.status())["version"]
        first.process.send_signal(signal.SIGTERM)  # a head, and the founder: the other head goes on
        assert await first.end(60) == 0, first.log()
        assert "drained" in first.log()
        await third.until(lambda status: status["version"] >= version + 3)

        notice.touch()  # the last replica of its stage; it works on for two of its seconds
        await second.until(lambda status: "will be gone soon" in status["doing"] and status["state"] == "serving")
        assert await second.end(60) == 0, second.log()
        assert f"{notice} is there" in second.log()
        assert "stage 1 is left empty" in second.log()
        assert list((second.home / "checkpoints").iterdir())
        status = await third.until(lambda status: status["state"] == "waiting")
        assert "stage 1" in status["waiting_for"]

        result, _ = await swarmctl(third, "drain", "--timeout", "20")
        assert result["drained"]
        assert result["stage_left_empty"]
        assert await third.end(30) == 0
        assert check_replicas([first, second, third]) >= version + 3
        lines = [line for daemon in it.daemons for line in daemon.ledger()]
    assert all((line["lost"], line["duplicated"]) == (0, 0) for line in lines)


@pytest.mark.timeout(120)
async def test_leaving_and_commands_to_an_idle_daemon() -> None:
    async with swarm() as it:
        idle, other = await it.start("--idle"), await it.start("--idle")
        for command in (("pause",), ("switch", "1")):
            await idle.until(lambda status: status["state"] == "idle")
            _, error = await swarmctl(idle, *command, code=2)
            assert "serves no stage yet" in error
            assert len(error.strip().splitlines()) == 1
        assert (await swarmctl(idle, "leave"))[0] == {"left": True}
        assert await idle.end(20) == 0
        await other.until(lambda status: status["state"] == "idle")
        assert (await swarmctl(other, "drain"))[0]["drained"]
        assert await other.end(20) == 0
