"""Figures of recordings: rates, capacity, recoveries, memory; and of all ledgers together."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.figures import capacity, lives, percentile, rate_between, recoveries, slope
from benchmarks.chaos.outcome import check_ledgers
from benchmarks.chaos.plan import Fault
from benchmarks.chaos.recorder import Event, Sample
from swarmd.config import ModelConfig, RunConfig

RUN = RunConfig("toy", ModelConfig(256, 8, 16, 2, 2, 2, 16), sequences_per_step=8, sequences_per_microbatch=2)


def test_a_rate_is_taken_between_commits() -> None:
    commits = {1: 10.0, 2: 20.0, 3: 30.0, 4: 50.0}
    assert rate_between(commits, 10.0, 35.0, microbatches=5) == pytest.approx(0.5)
    assert rate_between(commits, 31.0, 60.0, microbatches=5) == pytest.approx(0.25)
    assert rate_between(commits, 1.0, 60.0, microbatches=5) == 0.0, "nothing had been committed before"


def _samples(alive: list[list[bool]]) -> list[Sample]:
    """One sample a second of every daemon; two stages, so daemon n holds stage n % 2."""
    return [
        Sample(float(second), number, 0.0, lives, at_work=lives)
        for second, row in enumerate(alive)
        for number, lives in enumerate(row)
    ]


def test_capacity_is_that_of_the_weakest_stage_over_time() -> None:
    whole, one_down, both_down = [True] * 4, [False, True, True, True], [False, False, True, True]
    assert capacity(_samples([whole] * 5), 2, 2, 0, 10) == (1.0, 1.0)
    assert capacity(_samples([whole, whole, one_down, one_down, whole]), 2, 2, 0, 10)[0] == pytest.approx(0.75)
    assert capacity(_samples([both_down] * 3), 2, 2, 0, 10)[0] == pytest.approx(0.5), (
        "one of each of two is half of both"
    )
    assert capacity(_samples([whole, one_down, one_down]), 2, 2, 1, 10)[0] == pytest.approx(0.5), "only from then on"


def test_percentiles_are_by_nearest_rank() -> None:
    assert percentile([], 0.5) is None
    assert [percentile([3.0, 1.0, 2.0], fraction) for fraction in (0.01, 0.5, 0.95)] == [1.0, 2.0, 3.0]


def test_recoveries_are_counted_from_the_beginning_and_from_the_end() -> None:
    over = Event(Fault("kill", (1,), 5.0), 10.0, 3, ended_s=15.0, back_s={1: 18.0}, commit_s=12.0)
    open_still = Event(Fault("stop", (0, 2), 5.0), 20.0, 4, ended_s=25.0, back_s={0: 26.0}, commit_s=30.0)
    kill, stop, everything = recoveries([over, open_still])
    assert (kill.kind, kill.faults, kill.commit_p50, kill.at_work_p95, kill.not_over) == ("kill", 1, 2.0, 3.0, 0)
    assert (stop.kind, stop.at_work_p50, stop.not_over) == ("stop", 1.0, 1)
    assert (everything.faults, everything.not_over) == (2, 1)


def test_memory_is_judged_by_its_slope_after_the_warm_up() -> None:
    assert slope([0, 1, 2], [5, 7, 9]) == pytest.approx(2)

    def grown(number: int, per_second: int, seconds: int) -> list[Sample]:
        start = [Sample(float(t), number, 0.0, True, True, (100 << 20) + (t << 20), 9, 9) for t in range(0, 120, 10)]
        flat = (300 << 20) - 120 * per_second
        later = [
            Sample(float(t), number, 0.0, True, True, flat + t * per_second, 20, 30) for t in range(120, seconds, 10)
        ]
        return start + later

    leaking, steady = lives(grown(0, 10_000, 900) + grown(1, 0, 600) + grown(2, 0, 100))
    assert (leaking.number, steady.number) == (0, 1), "the third did not live long enough"
    assert leaking.slope_bytes == pytest.approx(6e6)
    assert (leaking.flat, steady.flat) == (False, True)
    assert (steady.memory_start_bytes, steady.open_files_most, steady.tasks_most) == (300 << 20, 20, 30)


def _line(step: int, stage: int, **changes: Any) -> dict[str, Any]:
    usual = {"record": f"r{step}", "parent": f"r{step - 1}", "microbatches": 4, "forked": False}
    digests = {"grad_digest": f"g{step}/{stage}", "digest": f"d{step}/{stage}"}
    counts = {"resent": 1, "subtracted": 0, "lost": 0, "duplicated": 0}
    return {"step": step, "stage": stage, **usual, **digests, **counts, **changes}


def _homes(tmp_path: Path, *ledgers: list[dict[str, Any]]) -> list[Path]:
    for number, lines in enumerate(ledgers):
        home = tmp_path / str(number)
        home.mkdir(exist_ok=True)
        (home / "ledger.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"torn')
    return [tmp_path / str(number) for number in range(len(ledgers))]


def test_ledgers_that_agree_are_counted_once(tmp_path: Path) -> None:
    head = [_line(1, 0), _line(2, 0)]
    tails = [_line(1, 1), _line(2, 1, record="other")], [_line(2, 1), _line(3, 1)]
    ledgers = check_ledgers(_homes(tmp_path, head, *tails), RUN, 2)
    assert ledgers.problems == [], "a line of another history, and one after the version, say nothing"
    assert (ledgers.steps, ledgers.counts["resent"], ledgers.counts["lost"]) == (2, 4, 0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"grad_digest": "x"}, "differ in grad_digest"),
        ({"microbatches": 3}, "3 microbatches"),
        ({"record": "of another history"}, "stage 1 has no line"),
    ],
)
def test_broken_promises_are_named(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    twin = [_line(1, 1), _line(2, 1)] if "grad_digest" in changed else []
    homes = _homes(tmp_path, [_line(1, 0), _line(2, 0)], [_line(1, 1), _line(2, 1, **changed)], twin)
    assert any(said in problem for problem in check_ledgers(homes, RUN, 2).problems)
