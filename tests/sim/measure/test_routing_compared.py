"""The comparison of routing policies: what the default one promises, and that the measurement sees what it should."""

import json

import pytest

from swarmd.config import RunConfig
from swarmd.sim.__main__ import run_command_line
from swarmd.sim.measure.figures import SLOWER
from swarmd.sim.measure.routing_compared import SITUATIONS, THIN_SHARE, PolicyFigures, Situation, mean_speeds, measure

BY_NAME = {it.name: it for it in SITUATIONS}
SMALL = Situation("small", (1.0, 2.0), heads=1)


def measured(name: str, microbatches: int) -> PolicyFigures:
    return measure(BY_NAME[name], RunConfig.routing, 0, microbatches)


def test_peers_of_speeds_1_2_and_4_are_chosen_in_these_proportions_and_all_their_speed_is_used() -> None:
    it = measured("speeds 1, 2, 4", 20)
    assert it.used >= 0.95
    for speed in (1.0, 2.0, 4.0):  # two of each: about 22 microbatches are a slow one's share, one is 5 %
        shares = [share for share, own in zip(it.shares, it.speeds, strict=True) if own == speed]
        assert sum(shares) / len(shares) == pytest.approx(1.0, abs=0.05)


def test_a_peer_behind_a_thin_line_does_not_keep_the_others_waiting() -> None:
    it = measured("one behind a thin line", 25)
    assert it.used >= 0.9
    assert it.used_in_step >= 0.6, "nothing is sent again and again"


def test_a_seed_gives_the_same_figures_again_and_another_seed_others() -> None:
    first, again, other = (measure(SMALL, "weighted", seed, 8) for seed in (1, 1, 2))
    assert first == again
    assert (first.used, first.shares) != (other.used, other.shares)


def test_the_sum_of_speeds_is_what_there_was_at_the_time() -> None:
    thin, slows = Situation("", (1.0, 1.0), thin=True), Situation("", (1.0, 1.0), slows=True)
    assert mean_speeds(SMALL, 10.0, 0.0, 20.0) == (1.0, 2.0)
    assert mean_speeds(thin, 10.0, 0.0, 20.0) == (THIN_SHARE, 1.0)
    assert mean_speeds(slows, 10.0, 0.0, 10.0) == (1.0, 1.0)
    assert mean_speeds(slows, 10.0, 5.0, 15.0) == (0.5 + 0.5 / SLOWER, 1.0)
    assert mean_speeds(slows, 10.0, 12.0, 15.0) == (1.0 / SLOWER, 1.0)


@pytest.fixture
def one_small_situation(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("routing_compared", "tables"):
        monkeypatch.setattr(f"swarmd.sim.measure.{module}.SITUATIONS", (SMALL,))


@pytest.mark.usefixtures("one_small_situation")
def test_the_command_prints_tables_and_json_that_say_that_they_are_simulated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = ["routing", "--seeds", "1", "--microbatches", "5"]
    assert run_command_line([*wanted, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["simulated"]
    assert [row["policy"] for row in plain["rows"]] == ["iwrr", "weighted", "p2c"]
    assert run_command_line(wanted) == 0
    assert "simulated: percent of the sum of speeds" in capsys.readouterr().out
    assert run_command_line(["routing", "--only", "nonsense"]) == 2
    assert "small" in capsys.readouterr().err
