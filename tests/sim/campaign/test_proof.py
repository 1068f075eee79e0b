"""Real training under fifty faults a run equals a single process: two seeds of `make prove`, and that it would be told
if it didn't.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from swarmd.config import RunConfig
from swarmd.sim import __main__ as command_line
from swarmd.sim.campaign import proof
from swarmd.sim.campaign.play import play
from swarmd.sim.campaign.proof import TOLERANCE, TrainingPlay, examine
from swarmd.sim.campaign.seeds import Result, Summary
from swarmd.sim.campaign.trainings import FAULTS, STEPS, Training, draw_training
from swarmd.sim.engines.training import Text
from swarmd.sim.faults.draw_fault import DRAWS
from swarmd.sim.faults.logical import InStep
from swarmd.sim.world.compute import torch_engine

CALM = Training(replicas=(2, 2, 2), microbatches=4, steps=3)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [8, pytest.param(22, marks=pytest.mark.long)])
def test_training_under_fifty_faults_equals_a_single_process(seed: int) -> None:
    result = examine(seed)
    assert not result.promise, "\n".join(result.lines)
    assert sum(result.struck.values()) >= FAULTS
    assert len(result.struck) >= 8, "of many kinds"
    figures = result.figures
    assert (figures["steps"], figures["lost"], figures["duplicated"]) == (STEPS, 0, 0)
    assert figures["resent"] > 0
    assert 0 < figures["difference"] <= TOLERANCE


@pytest.mark.parametrize("index", [0, 1])
def test_a_microbatch_that_counts_twice_in_place_of_another_is_seen(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So small a mistake, once in a run: the swarm trains on microbatch `index` of step 2 in place of number 1."""

    class Wrong(Text):
        async def microbatch(self, step: int, number: int) -> bytes:
            return await super().microbatch(step, index if (step, number) == (2, 1) else number)

    monkeypatch.setattr(proof, "Text", Wrong)
    found = play(CALM, course=TrainingPlay).violations
    assert {violation.promise for violation in found} == (set() if index == 1 else {3})
    assert {violation.step for violation in found} == (set() if index == 1 else {2})


def test_parameters_that_stray_are_seen_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def straying(run: RunConfig, stage: int) -> Any:
        engine = torch_engine(run, stage)
        if stage == 1:
            engine.module.named()["blocks.1.ffn.up.weight"].data[0, 0] += 1e-4  # of a norm of about 0.5
        return engine

    monkeypatch.setattr(proof, "torch_engine", straying)
    first = play(CALM, course=TrainingPlay).violations[0]
    assert first.promise == 3
    assert first.text.startswith("blocks.1.ffn.up.weight of middle")


def test_a_seed_draws_a_swarm_and_enough_faults_of_every_kind() -> None:
    drawn = [draw_training(seed) for seed in range(30)]
    assert {len(it.replicas) for it in drawn} == {3, 4, 5}
    assert {count for it in drawn for count in it.replicas} == {2, 3, 4}
    inner = [fault.fault for it in drawn for fault in it.faults if isinstance(fault, InStep)]
    assert len(inner) == sum(len(it.faults) for it in drawn)
    assert {fault.kind for fault in inner} == set(DRAWS)
    for it in drawn:
        assert it == draw_training(it.seed)
        assert len(it.faults) >= FAULTS
        steps = [fault.step for fault in it.faults if isinstance(fault, InStep)]
        assert {*steps} == {*range(1, STEPS)}, "in every step but the last"


@pytest.fixture
def campaign_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Result], None]:
    """Lets `prove` see one result without playing anything."""

    def give(result: Result) -> None:
        def run_campaign(*_: object, on_result: Callable[[Result], None], **__: object) -> Summary:
            summary = Summary()
            summary.add(result)
            on_result(result)
            return summary

        monkeypatch.setattr("swarmd.sim.campaign.seeds.run_campaign", run_campaign)

    return give


RESULT = Result(
    7,
    struck={"cut": 30, "crash": 20},
    figures={
        "replicas": "2-3-2",
        "steps": 20,
        "resent": 3,
        "subtracted": 1,
        "lost": 0,
        "duplicated": 0,
        "forked": 0,
        "voided": 0,
        "difference": 1.2e-6,
        "tensor": "head.weight",
    },
)


def test_the_command_shows_a_table_and_the_worst(
    campaign_of: Callable[[Result], None], capsys: pytest.CaptureFixture[str]
) -> None:
    campaign_of(RESULT)
    assert command_line.run_command_line(["prove"]) == 0
    header, row, *rest = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["seed", "replicas", "faults"]
    assert row.split()[:5] == ["7", "2-3-2", "50", "20", "3"]
    assert "1.2e-06 of 1e-05 allowed, of head.weight in seed 7" in "\n".join(rest)
    assert command_line.run_command_line(["prove", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["figures"]["tensor"] == "head.weight"


@pytest.mark.parametrize(
    "result",
    [
        dataclasses.replace(RESULT, promise=3, lines=("seed 7: promise 3: it strays",)),
        dataclasses.replace(RESULT, struck={"cut": 49}),
        Result(7, promise=6, lines=("seed 7: promise 6: it stalls",)),
    ],
    ids=["a broken promise", "too few faults", "no end"],
)
def test_what_proves_nothing_is_a_failure(
    result: Result, campaign_of: Callable[[Result], None], capsys: pytest.CaptureFixture[str]
) -> None:
    campaign_of(result)
    assert command_line.run_command_line(["prove"]) == command_line.EXIT_FAILED
    out = capsys.readouterr().out
    assert all(line in out for line in result.lines)
    assert ("they prove nothing" in out) == (result.struck == {"cut": 49})
