"""The demo with stand-ins for its daemons, as real processes: what it starts, shows, stops, judges and prints."""

import asyncio
import io
import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from swarmd.config import DataConfig, ModelConfig, RunConfig
from swarmd.demo import kills as demo_kills
from swarmd.demo import run as demo
from swarmd.demo.kills import Killer, plan_victim
from swarmd.demo.process import DaemonProcess
from swarmd.demo.report import judge, loss_curve, print_report, read_ledgers, with_sample
from swarmd.demo.run import Demo, DemoFailed, DemoOptions, prepare_home, run_demo, verdict
from swarmd.demo.view import Lines, LiveTable, peer_table, swarm_lines
from swarmd.errors import ConfigError
from tests.daemon.fake_swarmd import STEPS
from tests.daemon.fakes import ADDRESS, STATUS

ROOT = Path(__file__).parents[2]
FAKE = (sys.executable, "-m", "tests.daemon.fake_swarmd")
RUN = RunConfig("toy", ModelConfig(256, 8, 16, 2, 2, 2, 16), steps=STEPS)
OPTIONS = DemoOptions(peers=3, model="toy", stages=None, steps=None, home=None, as_json=False, timeout_s=30)


class Said:
    """A view that remembers."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.shown = asyncio.Event()

    def show(self, peers: Sequence[DaemonProcess], elapsed_s: float) -> None:
        if all(peer.status is not None for peer in peers):
            self.shown.set()

    def say(self, text: str) -> None:
        self.sentences.append(text)

    def close(self) -> None:
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls often, so that a test is short; and lets the stand-ins find this repository."""
    monkeypatch.setattr(demo, "POLL_INTERVAL_S", 0.05)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def make(home: Path, view: Said, behaviour: str = "", count: int = 2, **changes: object) -> Demo:
    (home / "behaviour").write_text(behaviour)
    peers = [DaemonProcess(number, number % 2, home / f"peer-{number}", FAKE) for number in range(count)]
    return Demo(replace(OPTIONS, **changes), RUN, home, peers, view)  # type: ignore[arg-type]


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


async def test_who_was_killed_is_away_until_it_is_started_again_whatever_it_said_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the signal and the process' end the daemon seems to run and to serve."""
    victim, other = (DaemonProcess(number, 0, tmp_path / f"peer-{number}", FAKE) for number in range(2))
    monkeypatch.setattr(DaemonProcess, "runs", True)
    monkeypatch.setattr(DaemonProcess, "signal", lambda *_: None)
    for peer in (victim, other):
        peer.status, peer.answers = replace(STATUS, state="serving"), True
    killer = Killer([victim, other], 1.0, lambda _: [], lambda _: None)
    started = asyncio.Event()
    monkeypatch.setattr(DaemonProcess, "ended", lambda _: started.wait())
    monkeypatch.setattr(DaemonProcess, "start", lambda *_: asyncio.sleep(0))
    monkeypatch.setattr(demo_kills, "AWAY_S", 0.0)
    kill = asyncio.create_task(killer._kill(victim))
    await asyncio.sleep(0)
    killer.notice_returns()
    assert killer.away == {victim.number}
    started.set()
    await kill
    killer.notice_returns()
    assert killer.away == set()


def test_the_last_replica_at_work_is_never_killed(tmp_path: Path) -> None:
    class Running(DaemonProcess):
        runs = True

    peers = [Running(number, number % 2, tmp_path) for number in range(3)]  # stage 0 twice, stage 1 once
    rng = random.Random(1)
    assert plan_victim(peers, rng) is None, "nobody is known to be at work"
    for peer in peers:
        peer.status, peer.answers = replace(STATUS, stage=peer.number % 2), True
    assert {plan_victim(peers, rng) for _ in range(50)} == {peers[0], peers[2]}
    peers[2].status = replace(STATUS, stage=0, state="joining")
    assert plan_victim(peers, rng) is None


def test_kills_need_a_second_replica() -> None:
    with pytest.raises(ConfigError, match="--peers 4"):
        run_demo(replace(OPTIONS, model="tiny", kill_every_s=20.0))


def test_a_home_with_a_run_in_it_is_refused(tmp_path: Path) -> None:
    assert prepare_home(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "new" / "peer-0").mkdir()
    with pytest.raises(ConfigError, match="already holds another run"):
        prepare_home(tmp_path / "new")


def test_ledgers_are_merged_and_torn_lines_skipped(tmp_path: Path) -> None:
    for name, content in (
        ("a", '{"step": 2, "stage": 0, "loss": 1}\n{"st'),
        ("b", '[]\n{"step": 1, "stage": 0}\n{"step": 2, "stage": 0}\n{"step": 1, "stage": 1}\n'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.jsonl").write_text(content)
    assert read_ledgers([tmp_path / "a", tmp_path / "b", tmp_path / "none"]) == [
        {"step": 1, "stage": 0},
        {"step": 1, "stage": 1},
        {"step": 2, "stage": 0, "loss": 1},
    ]


def _peer(tmp_path: Path, losses: Sequence[float | None]) -> DaemonProcess:
    peer = DaemonProcess(0, 0, tmp_path / "peer-0")
    peer.home.path.mkdir()
    lines = [
        json.dumps({"step": step, "stage": 0, "loss": loss, "tokens": 10, "seconds": 0.5})
        for step, loss in enumerate(losses, 1)
    ]
    peer.home.ledger.write_text("\n".join(lines))
    peer.status = STATUS
    return peer


@pytest.mark.parametrize(
    ("losses", "fell"), [([5.0, 4.0], True), ([5.0, 6.0], False), ([5.0], False), ([], False), ([None, 5.0, 4.0], True)]
)
def test_the_loss_is_judged(tmp_path: Path, losses: list[float | None], fell: bool) -> None:
    run = replace(RUN, steps=len(losses))
    result = judge(run, tmp_path, [_peer(tmp_path, losses)], 10.0, 1.0)
    assert result.fell is fell
    assert result.tokens_per_second == (20.0 if losses else 0.0)
    assert verdict(run, replace(result, sample="x")) == (0 if fell else 1)


def test_a_run_cut_short_or_without_a_sample_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = judge(RUN, tmp_path, [_peer(tmp_path, [5.0, 4.0])], 10.0, 1.0)
    lost = replace(result, steps=STEPS, sample="x", ledger={**result.ledger, "lost": 2})
    assert verdict(RUN, lost) == 1
    assert "2 microbatches were lost" in capsys.readouterr().err
    assert verdict(RUN, replace(result, sample="x")) == 1
    assert f"only 2 of {STEPS} steps" in capsys.readouterr().err
    short = replace(RUN, steps=2)

    def broken(_directories: Sequence[Path], _run: RunConfig, _prompt: str, _tokens: int) -> str:
        raise FileNotFoundError("no checkpoint of stage 1")

    assert verdict(short, with_sample(result, short, broken)) == 1
    assert "no checkpoint of stage 1" in capsys.readouterr().err


def test_the_report_shows_curve_figures_and_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(directories: Sequence[Path], _run: RunConfig, prompt: str, tokens: int) -> str:
        assert directories == [tmp_path / "peer-0" / "checkpoints"]
        assert tokens > 0
        return f"{prompt}f(x):\n\x1b[31m return"

    result = judge(RUN, tmp_path, [_peer(tmp_path, [5.5 - 0.1 * step for step in range(30)])], 130.0, 1.0)
    print_report(with_sample(result, replace(RUN, data=DataConfig()), write))
    out = capsys.readouterr().out
    for text in (
        "training loss",
        "5.500 at the first step",
        "validation 3.500",
        "2 min 10 s",
        "def f(x):",
        str(tmp_path),
    ):
        assert text in out
    assert "\x1b" not in out


def test_a_curve_is_drawn_and_drawn_again() -> None:
    curve = loss_curve([5.0, None, 3.0, 2.5], coloured=False)
    assert curve == loss_curve([5.0, None, 3.0, 2.5], coloured=False)
    assert len(curve.splitlines()) >= 10
    assert "5.0" in curve
    assert "\x1b" not in curve
    assert loss_curve([5.0], coloured=False)


def test_the_live_table_leaves_sentences_above_it(tmp_path: Path) -> None:
    file = io.StringIO()
    view = LiveTable(RUN, Console(file=file, force_terminal=True, width=120))
    peers = [DaemonProcess(0, 0, tmp_path)]
    view.show(peers, 1.0)
    view.say("peer 3 [bold]was[/] killed")
    peers[0].status = STATUS
    view.show(peers, 2.0)
    view.close()
    drawn = file.getvalue()
    assert "peer 3 [bold]was[/] killed" in drawn
    assert "loss 3.250" in drawn


def test_text_of_a_model_cannot_confuse_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    print_report(replace(judge(RUN, tmp_path, [], 1.0, 1.0), sample="a\tb\n\x1b[2J\x00é"))
    assert capsys.readouterr().out.endswith("    a\tb\n    ·[2J·é\n")


def test_tables_and_lines_show_the_swarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers = [DaemonProcess(0, 0, tmp_path), DaemonProcess(1, 1, tmp_path)]
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as captured:
        console.print(peer_table(peers), swarm_lines(RUN, peers, 1.0))
    assert "the first daemon starts" in captured.get()
    peers[1].status = STATUS
    with console.capture() as captured:
        console.print(peer_table(peers), swarm_lines(RUN, peers, 100.0))
    for text in ("2.50", "1 min 40 s", f"step 7/{STEPS}", "loss 3.250", "38%", "validation 3.500"):
        assert text in captured.get()
    lines = Lines(replace(RUN, steps=100))
    for version, elapsed_s in ((0, 1.0), (1, 2.0), (4, 3.0), (5, 4.0), (6, 5.0), (6, 40.0)):
        peers[1].status = replace(STATUS, version=version)
        lines.show(peers, elapsed_s)
    assert [line.split()[3] for line in capsys.readouterr().err.splitlines()] == ["0/100", "5/100", "6/100"]
