"""Seeds and named scenarios: a bounded number of them, played as `make sim` plays them without end."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.sim import __main__ as command_line
from swarmd.sim.campaign.checks import Violation
from swarmd.sim.campaign.course import ScenarioCourse
from swarmd.sim.campaign.play import Outcome, play, report
from swarmd.sim.campaign.seeds import Result, Summary, drawn, examine, replay_command, run_campaign, scenario_of
from swarmd.sim.campaign.shrink import shrink
from swarmd.sim.engines.symbolic import SymbolicEngine
from swarmd.sim.faults.connections import Cut
from swarmd.sim.faults.course import Fault
from swarmd.sim.faults.draw import draw_scenario
from swarmd.sim.faults.draw_fault import DRAWS
from swarmd.sim.faults.logical import Acceptors
from swarmd.sim.faults.machines import Crash, Outage, Pause, StageLoss
from swarmd.sim.faults.named import NAMED
from swarmd.sim.faults.outsider import Outsider
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.world import SimPeer
from swarmd.swarm.peer.status_view import StatusView
from tests.swarm.cards import card

SEEDS = range(30)  # about 10 seconds of CPU
CALM = Scenario(replicas=(2, 1), microbatches=4, steps=3)


@pytest.mark.timeout(180)
def test_a_number_of_seeds_keeps_every_promise() -> None:
    failed = []
    for seed in SEEDS:
        result = examine(seed, minimal=False)
        if result.promise:
            failed.append(result)
    lines = [line for result in failed for line in (*result.lines, "")]
    seeds = ", ".join(str(result.seed) for result in failed)
    assert not failed, "\n".join([f"seeds {seeds}", *lines])


@pytest.mark.parametrize("name", NAMED)
def test_every_scenario_with_a_name_keeps_every_promise(name: str) -> None:
    outcome = play(NAMED[name], trace=True)
    assert outcome.passed, "\n".join([NAMED[name].story, *report(NAMED[name], outcome)])


def test_the_same_seed_gives_the_same_trace_in_any_process() -> None:
    """The hash function's own seed makes no difference."""
    program = (
        "from swarmd.sim.campaign.play import play; from swarmd.sim.faults.draw import draw_scenario\n"
        "print(*(play(draw_scenario(seed), trace=True).trace for seed in (3, 7)))"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": str(number), "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for number in (1, 2)
    }
    assert len(traces) == 1
    (line,) = traces
    assert len({*line.split()}) == 2  # and other seeds give others
    assert line.split()[0] == play(draw_scenario(3), trace=True).trace


def test_watching_changes_nothing() -> None:
    """So that the transcript of a failure is that of the failure."""
    scenario = draw_scenario(5)
    silent, traced = play(scenario), play(scenario, trace=True)
    assert (silent.violations, silent.virtual_s, silent.struck) == (traced.violations, traced.virtual_s, traced.struck)


def test_scenarios_are_drawn_from_their_seed_and_print_as_python() -> None:
    names = {kind.__name__: kind for kind in Fault.__subclasses__()}
    from swarmd.config import LimitsConfig
    from swarmd.sim.engines.reference import Symbols
    from swarmd.sim.world.network import LinkSpec

    scenarios = [draw_scenario(seed) for seed in range(300)]
    for scenario in scenarios:
        again = eval(
            scenario.text(),
            {"Scenario": Scenario, "LinkSpec": LinkSpec, "LimitsConfig": LimitsConfig, "Symbols": Symbols, **names},
        )
        assert again == scenario == draw_scenario(scenario.seed)
    assert {fault.kind for scenario in scenarios for fault in scenario.faults} == {*DRAWS, StageLoss.kind, Outage.kind}
    assert {scenario.stages for scenario in scenarios} == {1, 2, 3, 4, 5}


def test_a_bug_is_found_named_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bug that a pause sets off, out of many faults the pause remains."""
    from swarmd.sim.world.machine import Machine

    pause, paused = Machine.pause, set()

    def noted(machine: Machine) -> None:
        paused.add(machine.name)
        pause(machine)

    add = SymbolicEngine._add

    def wrong(engine: SymbolicEngine, hop: object, sign: int) -> None:
        add(engine, hop, sign)  # type: ignore[arg-type]
        engine.sum[0] += len(paused)

    monkeypatch.setattr(Machine, "pause", noted)
    monkeypatch.setattr(SymbolicEngine, "_add", wrong)
    faults = (Cut(0.02, "head1", "tail1"), Pause(0.05, "head1", 0.1), Cut(0.1, "head2", "tail1"))
    scenario = dataclasses.replace(CALM, faults=faults)

    def clean(trial: Scenario) -> Outcome:
        paused.clear()
        return play(trial)

    assert clean(dataclasses.replace(scenario, faults=faults[:1])).passed
    monkeypatch.setattr("swarmd.sim.campaign.shrink.play", clean)
    outcome = clean(scenario)
    assert outcome.violations[0].promise == 1
    fewest = shrink(scenario, 1)
    assert fewest.faults == faults[1:2]
    text = "\n".join(report(fewest, outcome))
    assert "promise 1" in text
    assert "Pause(at_s=0.05, peer='head1', seconds=0.1)" in text


def test_of_many_words_of_an_outsider_those_that_matter_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    def fatal(trial: Scenario) -> Outcome:
        words = {word for fault in trial.faults if isinstance(fault, Outsider) for word in fault.words}
        broken = (Violation(6, "it stalls"),) if words >= {"Commit", "Card"} else ()
        return Outcome(0, broken, "", 1.0, 0, {})

    monkeypatch.setattr("swarmd.sim.campaign.shrink.play", fatal)
    outsider = Outsider(0.1, "outsider1", seconds=9.0, stage=1, state="serving", rate=10.0)
    few = (Crash(0.2, "head1"), dataclasses.replace(outsider, words=("Lease", "Card", "Hop", "Commit", "Freeze")))
    fewest = shrink(dataclasses.replace(CALM, faults=few), 6)
    assert fewest.faults == (dataclasses.replace(outsider, words=("Card", "Commit")),)
    assert "words=('Card', 'Commit')" in fewest.text()


def test_a_stage_that_is_lost_stops_the_swarm_and_everyone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = dataclasses.replace(CALM, steps=9, faults=(StageLoss(2 * CALM.step_seconds(), 1),))
    outcome = play(scenario)
    assert (outcome.passed, outcome.struck) == (True, {StageLoss.kind: 1})
    assert 0 < outcome.version < 8
    monkeypatch.setattr(StatusView, "waiting_for", lambda view: "")
    silent = play(scenario)
    assert {it.promise for it in silent.violations} == {6}
    assert {it.peer for it in silent.violations} == {"head1", "head2"}


def test_faults_strike_who_decides_the_present_step() -> None:
    faults = tuple(Acceptors(0.3, action, 0.5) for action in ("pause", "cut", "power loss"))
    for fault in faults:
        outcome = play(dataclasses.replace(CALM, steps=9, faults=(fault,)))
        assert outcome.passed
        assert outcome.struck == {Acceptors.kind: 1}


def test_a_campaign_plays_its_seeds_in_processes(capsys: pytest.CaptureFixture[str]) -> None:
    results: list[Result] = []
    summary = run_campaign(100, 4, 2, drawn(minimal=False), on_result=results.append, on_progress=lambda line: None)
    assert summary.seeds == 4
    assert sorted(result.seed for result in results) == [100, 101, 102, 103]
    assert [result for result in results if result.promise] == summary.failed
    assert summary.virtual_s > 0
    assert "4 seeds" in summary.line()


def test_a_run_that_takes_too_long_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(scenario: Scenario) -> Outcome:
        while True:
            pass

    monkeypatch.setattr("swarmd.sim.campaign.seeds.play", endless)
    result = examine(0, cpu_s=0.01)
    assert result.promise == 6
    assert result.lines[-1].endswith(replay_command(0))


def test_a_summary_counts_by_promise_and_kind() -> None:
    summary = Summary()
    summary.add(Result(1, struck={"cut": 2}))
    summary.add(Result(2, promise=6, struck={"cut": 1, "pause": 1}))
    text = "\n".join(summary.lines())
    assert "2 seeds" in text
    assert "3 cut, 1 pause" in text
    assert "1 of promise 6; seeds 2" in text
    assert json.loads(json.dumps(summary.plain()))["failed"][0]["seed"] == 2


def test_a_summary_counts_what_outsiders_said() -> None:
    summary = Summary()
    words = {"Commit": {"answered": 1, "refused": 2, "out_of_range": 1}, "Card": {"gossiped": 5}}
    summary.add(Result(1, words=words))
    summary.add(Result(2, words={"Commit": {"refused": 4}}))
    summary.add(Result(3, 6, posing=True))
    summary.add(Result(4, posing=True))
    text = "\n".join(summary.lines())
    assert "one that posed as a peer at work: 2, of which 1 failed; without: 2, of which 0 failed" in text
    assert "messages of outsiders: 13; 88 % of their questions came to a handler" in text
    assert "6 refused, 1 answered, 1 out_of_range" in text
    assert json.loads(json.dumps(summary.plain()))["words"]["Card"] == {"gossiped": 5}


def test_hostile_seeds_are_played_and_replayed_with_their_outsiders(capsys: pytest.CaptureFixture[str]) -> None:
    job = drawn(minimal=False, hostile=True)
    assert job.replay(4711) == "python -m swarmd.sim replay 4711 --hostile"
    result = job.examine(3)
    assert result.struck["outsider"] > 0
    outsiders = [fault for fault in scenario_of(3, hostile=True).faults if isinstance(fault, Outsider)]
    assert result.posing == any(it.poses for it in outsiders)
    command_line.run_command_line(["replay", "3", "--hostile"])
    assert "outsider" in capsys.readouterr().out


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run_command_line(["scenarios"]) == 0
    assert "calm" in capsys.readouterr().out
    assert command_line.run_command_line(["scenario", "calm", "--transcript"]) == 0
    out = capsys.readouterr().out
    assert "every promise held" in out
    assert " s  head1 -> " in out
    assert command_line.run_command_line(["scenario", "none"]) == command_line.EXIT_USER
    assert "scenarios` lists them" in capsys.readouterr().err
    assert command_line.run_command_line(["replay", "nonsense"]) == command_line.EXIT_USER


@pytest.mark.parametrize("command", [[], ["run"], ["replay"], ["scenario"]])
def test_help_has_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run_command_line([*command, "--help"]) == 0
    assert "python -m swarmd.sim" in capsys.readouterr().out


def test_exit_codes_tell_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Outcome(9, (Violation(6, "it stalls"),), "", 1.0, 0, {})
    monkeypatch.setattr(command_line, "play", lambda scenario, trace: broken)
    assert command_line.run_command_line(["replay", "9"]) == command_line.EXIT_FAILED
    for summary, seeds, code in (
        (Summary(), ["--seeds", "3"], 0),
        (Summary(interrupted=True), ["--seeds", "3"], 130),
        (Summary(interrupted=True), [], 0),
        (Summary(failed=[Result(1, 1)]), [], 1),
    ):
        monkeypatch.setattr("swarmd.sim.campaign.seeds.run_campaign", lambda *_, summary=summary, **__: summary)
        assert command_line.run_command_line(["run", *seeds]) == code


def test_faults_spare_the_last_replica() -> None:
    """A stage is not emptied by chance: that is another promise's affair."""
    faults = tuple(Crash(0.01 * number, f"head{number % 2 + 1}") for number in range(1, 6))
    outcome = play(dataclasses.replace(CALM, faults=(*faults, Crash(0.06, "tail1", power=True))))
    assert outcome.struck == {"crash": 1}


@pytest.mark.parametrize(
    ("own", "told"),
    [({}, True), ({"rested": False}, False), ({"moving": 1}, False)],
    ids=["rested", "just moved", "on its way"],
)
def test_faults_send_nobody_back_who_has_just_moved_of_its_own_accord(own: dict[str, Any], told: bool) -> None:
    """A peer that its balancer had sent to stage 1 was told to go back to stage 2: no rule of balance did that."""
    course = ScenarioCourse(CALM, trace=False)
    membership = SimpleNamespace(own=card("tail1", stage=1, **own))
    course.world.peers["tail1"] = cast("SimPeer", SimpleNamespace(peer=SimpleNamespace(membership=membership)))
    assert course.may_move("tail1") == told
    assert not course.may_move("tail1"), "nobody is told twice in a life"
