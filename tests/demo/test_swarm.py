"""A demo's swarm with stand-ins for its daemons, as real processes: started, watched, stopped."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from swarmd.demo import kills as demo_kills
from swarmd.demo import swarm as demo
from swarmd.demo.swarm import DemoFailed
from tests.daemon.fake_swarmd import STEPS
from tests.daemon.fakes import ADDRESS
from tests.demo.stand_ins import Said, make

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls often, so that a test is short; and lets the stand-ins find this repository."""
    monkeypatch.setattr(demo, "POLL_INTERVAL_S", 0.05)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.usefixtures("quick")
async def test_a_whole_swarm_runs_to_its_end(tmp_path: Path) -> None:
    view = Said()
    result = await make(tmp_path, view, count=3).run()
    assert result is not None
    assert (result.steps, result.fell, view.sentences) == (STEPS, True, [])
    assert result.first_loss == pytest.approx(4.9)
    assert result.last_loss == pytest.approx(sum(5 - 0.1 * step for step in range(7, 13)) / 6)
    assert [peer["exit_code"] for peer in result.peers] == [0, 0, 0]
    assert result.ledger == {"resent": 2 * STEPS, "subtracted": 0, "lost": 0, "duplicated": 0}
    assert 0 < result.listening_seconds < result.wall_seconds
    founder, joiner = (json.loads((tmp_path / f"peer-{number}/argv.json").read_text()) for number in (0, 1))
    assert founder[founder.index("--model") + 1] == "toy"
    assert joiner[joiner.index("--bootstrap") + 1] == ADDRESS
    assert joiner[joiner.index("--stage") + 1] == "1"


@pytest.mark.usefixtures("quick")
async def test_a_daemon_that_dies_is_named_and_the_swarm_goes_on(tmp_path: Path) -> None:
    view = Said()
    result = await make(tmp_path, view, "2 dies", count=3).run()
    assert result is not None
    assert result.steps == STEPS
    assert "peer 2 (stage 0) ended with exit code 1" in view.sentences[0]
    assert "the log of peer-2" in view.sentences[1]
    assert "out of luck" in view.sentences[1]


@pytest.mark.usefixtures("quick")
async def test_a_stage_without_daemons_ends_the_demo_and_the_others(tmp_path: Path) -> None:
    view = Said()
    swarm = make(tmp_path, view, "1 dies\n0 lingers")
    with pytest.raises(DemoFailed, match="stage 1 has no daemon left"):
        await swarm.run()
    assert view.sentences[-1] == "all daemons are stopped"


@pytest.mark.usefixtures("quick")
async def test_a_first_daemon_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    view = Said()
    with pytest.raises(DemoFailed, match="ended with exit code"):
        await make(tmp_path, view, "0 dies").run()
    assert any("out of luck" in sentence for sentence in view.sentences)


@pytest.mark.usefixtures("quick")
async def test_a_signal_stops_every_daemon(tmp_path: Path) -> None:
    view = Said()
    swarm = make(tmp_path, view, "0 lingers\n1 lingers")
    work = asyncio.create_task(swarm.run())
    await view.shown.wait()
    pids = [peer.pid for peer in swarm.peers]
    os.kill(os.getpid(), signal.SIGINT)
    assert await work is None
    assert view.sentences == ["stopping 2 daemons", "all daemons are stopped"]
    assert not [pid for pid in pids if pid is not None and Path(f"/proc/{pid}").exists()]


@pytest.mark.usefixtures("quick")
async def test_a_daemon_that_does_not_heed_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STOP_BOUND_S", 2.0)
    view = Said()
    work = asyncio.create_task(make(tmp_path, view, "0 lingers\n1 stubborn").run())
    await view.shown.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await work is None
    assert view.sentences[-1].startswith("killed peer 1")


@pytest.mark.usefixtures("quick")
async def test_a_run_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match="not done after 0 s"):
        await make(tmp_path, Said(), "0 lingers", timeout_s=0.2).run()


@pytest.mark.usefixtures("quick")
async def test_a_daemon_that_does_not_end_with_the_others_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "FINISH_BOUND_S", 0.3)
    with pytest.raises(DemoFailed, match=r"peer 1.* did not end within"):
        await make(tmp_path, Said(), "1 lingers").run()


@pytest.mark.usefixtures("quick")
async def test_daemons_are_killed_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_kills, "AWAY_S", 0.05)
    view = Said()
    behaviour = "\n".join(f"{number} lingers" for number in range(4))
    swarm = make(tmp_path, view, behaviour, count=4, kill_every_s=0.2)
    work = asyncio.create_task(swarm.run())
    while not any("started again" in sentence for sentence in view.sentences):
        assert not work.done()
        await asyncio.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
    assert await work is None
    assert any(sentence.startswith("kill -9 of peer") for sentence in view.sentences)
    assert not any("last words" in sentence for sentence in view.sentences), "a kill is no surprise"
    assert max(peer.starts for peer in swarm.peers) == 2
